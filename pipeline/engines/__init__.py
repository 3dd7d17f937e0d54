"""Optional runtimes for the backbone, one file each, behind a lazy table.

It may import ``backbones``, ``store`` and what lies below them. Nothing heavy is imported before
``create``. To add an engine, write ``engines/NAME.py`` with a ``create`` of the same signature as
``create`` here less the name, add its row to ``ENGINES`` and, once it is measured to be faster, its
place in ``FASTEST_FIRST``.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final

from pipeline.backbones.forms import KERAS, ONNX, Form
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines.encoder import Encoder
from pipeline.errors import ConfigError, EngineUnavailableError, PipelineError, unknown_name
from pipeline.system import keras_setup, machine


@dataclass(frozen=True, slots=True)
class Engine:
    """Where an engine is and how it is had.

    Attributes:
        factory: ``module:function`` that makes an encoder.
        requires: The import names of what it runs on.
        install: The command that installs it.
        forms: The forms of networks that it takes.
    """

    factory: str
    requires: tuple[str, ...]
    install: str
    forms: tuple[Form, ...] = (KERAS,)


ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        "keras": Engine(
            "pipeline.engines.keras:create", ("keras",), "pip install keras tensorflow"
        ),
        "onnx": Engine(
            "pipeline.engines.onnx:create",
            ("onnxruntime", "tf2onnx"),
            "pip install 'embedding-pipeline[onnx]'",
            (KERAS, ONNX),
        ),
        "openvino": Engine(
            "pipeline.engines.openvino:create",
            ("openvino",),
            "pip install 'embedding-pipeline[openvino]'",
            (KERAS, ONNX),
        ),
    }
)
# On a processor. ONNX Runtime comes between the two, but takes 20 seconds to convert a network of
# Keras; one in ONNX is in its form already.
FASTEST_FIRST: Final = ("openvino", "keras")
FASTEST_FIRST_OF_ONNX: Final = ("openvino", "onnx")


def require(name: str, form: Form = KERAS) -> None:
    """Refuse an engine that is unknown, not installed or not made for a network, importing none.

    Raises:
        ConfigError: The name is unknown, or the engine does not take that form of network.
        EngineUnavailableError: The engine is not installed; says how to install it.
    """
    if name != "auto":
        _able(name, form)


def resolve(name: str, form: Form = KERAS) -> tuple[str, str]:
    """Return the engine to use and why.

    Imports Keras only where there is a GPU, to ask whether Keras can use it.

    Example:
        >>> resolve("keras")
        ('keras', 'asked for')

    Args:
        name: A name in ``ENGINES``; ``auto`` takes the one for GPUs where there is one, else the
            fastest installed.
        form: The form of the network that it is to run.

    Raises:
        ConfigError: The name is unknown, or the engine does not take that form of network.
        EngineUnavailableError: The engine is not installed; says how to install it.
    """
    if name != "auto":
        return _able(name, form), "asked for"
    if form is ONNX:
        return _fastest_of_onnx()
    has_gpu = machine.has_gpu()
    if has_gpu and _is_installed("keras") and keras_setup.gpu_name():
        return "keras", "there is a GPU"
    unused = "; Keras does not see the GPU that is there" if has_gpu else ""
    backend = keras_setup.backend_name()
    if backend != "tensorflow":
        return _installed("keras"), f"Keras runs on {backend}{unused}"
    found = [engine for engine in FASTEST_FIRST if _is_installed(engine)]
    if not found:
        return _installed(FASTEST_FIRST[-1]), "asked for"
    if found[0] != FASTEST_FIRST[0]:
        return found[0], f"{FASTEST_FIRST[0]} is faster and not installed{unused}"
    return found[0], f"the fastest on a processor{unused}"


def best(form: Form, *, on_gpu: bool) -> str:
    """Return what ``auto`` would take on a device if everything were installed."""
    if form is ONNX:
        return "onnx" if on_gpu else FASTEST_FIRST_OF_ONNX[0]
    return "keras" if on_gpu else FASTEST_FIRST[0]


def create(name: str, loaded: FrozenBackbone, *, batch_size: int, precision: str) -> Encoder:
    """Make an encoder of a loaded backbone.

    Args:
        name: A name in ``ENGINES``.
        loaded: The backbone with its weights.
        batch_size: Most images in one call.
        precision: Arithmetic of the backbone, such as ``float32``.

    Raises:
        ConfigError: The name is unknown, or the engine has no such precision or takes no networks
            of that form.
        EngineUnavailableError: The engine is not installed; says how to install it.
    """
    engine = ENGINES[_able(name, loaded.form)]
    module, _, function = engine.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), function)
        encoder: Encoder = factory(loaded, batch_size=batch_size, precision=precision)
    except PipelineError:
        raise
    except ImportError as error:
        raise _unavailable(name, str(error)) from error
    return encoder


def _fastest_of_onnx() -> tuple[str, str]:
    """Return the engine to use for a network in ONNX, and why."""
    found = [engine for engine in FASTEST_FIRST_OF_ONNX if _is_installed(engine)]
    if not found:
        return _installed(FASTEST_FIRST_OF_ONNX[0]), "asked for"
    if "onnx" in found and machine.has_gpu():
        if importlib.import_module("pipeline.engines.onnx").has_cuda():
            return "onnx", "there is a GPU"
        return found[0], "the fastest on a processor; ONNX Runtime does not see the GPU"
    if found[0] != FASTEST_FIRST_OF_ONNX[0]:
        return found[0], f"{FASTEST_FIRST_OF_ONNX[0]} is faster and not installed"
    return found[0], "the fastest on a processor"


def _able(name: str, form: Form) -> str:
    """Return an engine that is installed and takes a form of network."""
    if name in ENGINES and form not in ENGINES[name].forms:
        able = [engine for engine in ENGINES if form in ENGINES[engine].forms]
        raise ConfigError(
            f"--engine: expected {' or '.join(able)}, which run networks in {form.name}. "
            f"Received: {name!r}.",
            hint="Use one of these, or leave it out.",
        )
    return _installed(name)


def _installed(name: str) -> str:
    if name not in ENGINES:
        raise unknown_name("engine", name, (*ENGINES, "auto"))
    missing = [module for module in ENGINES[name].requires if find_spec(module) is None]
    if missing:
        raise _unavailable(name, f"no module {missing[0]!r}")
    if name == "keras":
        keras_setup.require_backend()
    return name


def _is_installed(name: str) -> bool:
    return all(find_spec(module) is not None for module in ENGINES[name].requires)


def _unavailable(name: str, received: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"Expected the engine {name!r} to be installed. Received: {received}.",
        hint=f"Run: {ENGINES[name].install}",
    )
