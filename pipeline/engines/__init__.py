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

from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines.encoder import Encoder
from pipeline.errors import EngineUnavailableError, PipelineError, unknown_name
from pipeline.system import keras_setup, machine


@dataclass(frozen=True, slots=True)
class Engine:
    """Where an engine is and how it is had.

    Attributes:
        factory: ``module:function`` that makes an encoder.
        requires: The import names of what it runs on.
        install: The command that installs it.
    """

    factory: str
    requires: tuple[str, ...]
    install: str


ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        "keras": Engine(
            "pipeline.engines.keras:create", ("keras",), "pip install keras tensorflow"
        ),
        "onnx": Engine(
            "pipeline.engines.onnx:create",
            ("onnxruntime", "tf2onnx"),
            "pip install 'embedding-pipeline[onnx]'",
        ),
        "openvino": Engine(
            "pipeline.engines.openvino:create",
            ("openvino",),
            "pip install 'embedding-pipeline[openvino]'",
        ),
    }
)
# On a processor. ONNX Runtime comes between the two, but takes 20 seconds to convert a network.
FASTEST_FIRST: Final = ("openvino", "keras")


def require(name: str) -> None:
    """Refuse an engine that is unknown or not installed, importing none.

    Raises:
        ConfigError: The name is unknown.
        EngineUnavailableError: The engine is not installed; says how to install it.
    """
    if name != "auto":
        _installed(name)


def resolve(name: str) -> tuple[str, str]:
    """Return the engine to use and why.

    Imports Keras only where there is a GPU, to ask whether Keras can use it.

    Example:
        >>> resolve("keras")
        ('keras', 'asked for')

    Args:
        name: A name in ``ENGINES``; ``auto`` takes Keras on a GPU, else the fastest installed.

    Raises:
        ConfigError: The name is unknown.
        EngineUnavailableError: The engine is not installed; says how to install it.
    """
    if name != "auto":
        return _installed(name), "asked for"
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


def create(name: str, loaded: FrozenBackbone, *, batch_size: int, precision: str) -> Encoder:
    """Make an encoder of a loaded backbone.

    Args:
        name: A name in ``ENGINES``.
        loaded: The backbone with its weights.
        batch_size: Most images in one call.
        precision: Arithmetic of the backbone, such as ``float32``.

    Raises:
        ConfigError: The name is unknown, or the engine has no such precision.
        EngineUnavailableError: The engine is not installed; says how to install it.
    """
    engine = ENGINES[_installed(name)]
    module, _, function = engine.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), function)
        encoder: Encoder = factory(loaded, batch_size=batch_size, precision=precision)
    except PipelineError:
        raise
    except ImportError as error:
        raise _unavailable(name, str(error)) from error
    return encoder


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
