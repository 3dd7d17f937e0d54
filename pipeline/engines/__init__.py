"""Optional runtimes for the backbone, one file each, behind a lazy table.

Called by the commands that encode images. Nothing heavy is imported before ``create``. To add
an engine, write ``engines/NAME.py`` with a ``create`` of the same signature as ``create`` here
less the name, add its row to ``ENGINES`` and, once it is measured to be faster, its place in
``FASTEST_FIRST``.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final

from pipeline.backbone import LoadedBackbone
from pipeline.config import unknown_name
from pipeline.encoder import Encoder
from pipeline.errors import EngineUnavailableError, PipelineError


@dataclass(frozen=True, slots=True)
class Engine:
    """Where an engine is and how it is had.

    Attributes:
        factory: ``module:function`` that makes an encoder.
        requires: The import name of the runtime.
        install: The command that installs it.
    """

    factory: str
    requires: str
    install: str


ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        "keras": Engine("pipeline.engines.keras:create", "keras", "pip install keras tensorflow"),
    }
)
FASTEST_FIRST: Final = ("keras",)


def resolve(name: str) -> tuple[str, str]:
    """Return the engine to use and why, importing none.

    Example:
        >>> resolve("auto")
        ('keras', 'the only engine installed')

    Args:
        name: A name in ``ENGINES``, or ``auto`` for the fastest one installed.

    Raises:
        ConfigError: The name is unknown.
        EngineUnavailableError: The engine is not installed; says how to install it.
    """
    if name != "auto":
        return _installed(name), "asked for"
    found = [engine for engine in FASTEST_FIRST if _is_installed(engine)]
    if not found:
        return _installed(FASTEST_FIRST[-1]), "asked for"
    reason = "the only engine installed" if len(found) == 1 else "the fastest engine installed"
    return found[0], reason


def create(name: str, loaded: LoadedBackbone, *, batch_size: int, precision: str) -> Encoder:
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
    if not _is_installed(name):
        raise _unavailable(name, f"no module {ENGINES[name].requires!r}")
    return name


def _is_installed(name: str) -> bool:
    return find_spec(ENGINES[name].requires) is not None


def _unavailable(name: str, received: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"Expected the engine {name!r} to be installed. Received: {received}.",
        hint=f"Run: {ENGINES[name].install}",
    )
