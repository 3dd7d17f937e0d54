"""Importing Keras, the one way: quietly, with float32 meaning float32.

The import takes seconds, so it happens inside functions, where a network is built.
"""

import errno
import importlib
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final, TypeAlias

from pipeline.errors import EngineUnavailableError
from pipeline.system.machine import processors

# What Keras and its backends make has no types.
KerasModel: TypeAlias = Any
KerasLayer: TypeAlias = Any
KerasOptimizer: TypeAlias = Any
KerasVariable: TypeAlias = Any
Tensor: TypeAlias = Any

# Backends of Keras that networks are built and trained on, the default first.
BACKENDS: Final = ("tensorflow", "jax")
# The dense head is plain operations, which NumPy has as well.
HEAD_BACKENDS: Final = (*BACKENDS, "numpy")

ONEDNN: Final = "TF_ENABLE_ONEDNN_OPTS"
_QUIET: Final = "TF_CPP_MIN_LOG_LEVEL"
_NOISE: Final = re.compile(rb"^(WARNING: All log messages before absl|[IW]\d{4} )")
# What the user set wins, except where float32 would no longer mean float32.
_DEFAULT_ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        # TensorFlow turns oneDNN on or off by processor type, which changes last digits.
        ONEDNN: "1",
        # Without a GPU the CUDA library reports what is no error as one (level 2).
        _QUIET: "3",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
)
_FIXED_ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT"}
)


def import_keras() -> ModuleType:
    """Import Keras with float32 meaning float32 and GPU memory growing as needed.

    Works with each of ``HEAD_BACKENDS`` (``KERAS_BACKEND``), networks with each of ``BACKENDS``;
    what only TensorFlow needs is done only where TensorFlow is the backend.

    Raises:
        EngineUnavailableError: Keras is set to another backend.
    """
    require_backend(HEAD_BACKENDS)
    os.environ.update(_FIXED_ENVIRONMENT)
    if "keras" in sys.modules:
        keras = importlib.import_module("keras")
    else:
        with _without_noise():
            keras = importlib.import_module("keras")
    if keras.backend.backend() == "tensorflow":
        _prepare_tensorflow()
    return keras


def import_tensorflow() -> ModuleType:
    """Import TensorFlow, for what it alone can do, whatever backend Keras runs on."""
    if "tensorflow" in sys.modules:
        return importlib.import_module("tensorflow")
    with _without_noise():
        return importlib.import_module("tensorflow")


def import_converter() -> ModuleType:
    """Import tf2onnx, which warns of NumPy and imports TensorFlow."""
    import_tensorflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("tf2onnx")


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Keep notes and warnings of libraries' loggers from stderr while the context lasts."""
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def backend_name() -> str:
    """Return the backend that Keras will have, without importing it."""
    if "keras" in sys.modules:
        name: str = sys.modules["keras"].backend.backend()
        return name
    return os.environ.get("KERAS_BACKEND") or _configured_backend()


def require_backend(known: Sequence[str] = BACKENDS) -> None:
    """Refuse a Keras backend that is not made for what is asked, without importing Keras.

    Args:
        known: The backends that will do.

    Raises:
        EngineUnavailableError: It is another one, or not installed; says where it is set.
    """
    name = backend_name()
    expected = " or ".join(known)
    if name not in known:
        raise EngineUnavailableError(
            f"Expected Keras on {expected}. Received: {name!r}, by {_place_of_backend()}.",
            hint=f"Set KERAS_BACKEND={BACKENDS[0]} for this command.",
        )
    if "keras" not in sys.modules and find_spec(name) is None:
        raise EngineUnavailableError(
            f"Expected Keras on {expected}. Received: {name!r}, by {_place_of_backend()}, which "
            "is not installed.",
            hint=f"Run: pip install {name}, or set KERAS_BACKEND to the other.",
        )


def gpu_name() -> str | None:
    """Return the name of the GPU that Keras' backend computes on; None without one."""
    keras = import_keras()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if not gpus:
            return None
        details = tf.config.experimental.get_device_details(gpus[0])
        return str(details.get("device_name", gpus[0].name))
    if keras.backend.backend() != "jax":
        return None
    import jax

    device = jax.devices()[0]
    return None if device.platform == "cpu" else str(device.device_kind)


def trains_with_onednn() -> bool:
    """Tell whether Keras computes on a processor with TensorFlow's oneDNN operations."""
    is_off = os.environ.get(ONEDNN, "1").lower() in ("0", "false")
    return backend_name() == "tensorflow" and not is_off and gpu_name() is None


def _configured_backend() -> str:
    """Return what Keras' own configuration file says, which counts after the environment."""
    try:
        config = json.loads(_configuration().read_text(encoding="utf-8"))
        return str(config.get("backend", BACKENDS[0]))
    except (OSError, ValueError, AttributeError):
        return BACKENDS[0]


def _configuration() -> Path:
    home = os.environ.get("KERAS_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".keras") / "keras.json"


def _place_of_backend() -> str:
    """Return what sets Keras' backend, for a message."""
    if "keras" in sys.modules:
        return "the program that imported Keras"
    if os.environ.get("KERAS_BACKEND"):
        return "KERAS_BACKEND"
    if _configured_backend() != BACKENDS[0]:
        return str(_configuration())
    return "default"


def _prepare_tensorflow() -> None:
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        # TensorFlow counts the processors of the machine, not those that it may use.
        tf.config.threading.set_intra_op_parallelism_threads(processors())
    except RuntimeError:
        # Somebody in this process computed before us; its threads stay.
        return
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            # Somebody in this process used the GPU before us; its setting stays.
            return


@contextmanager
def _without_noise() -> Iterator[None]:
    """Drop the notices that TensorFlow's libraries write while they are being loaded.

    They are written by C++ before any log level holds, so the descriptor itself is redirected;
    every other line is written afterwards. Whoever sets TF_CPP_MIN_LOG_LEVEL sees everything.
    """
    # A parent process that did the same hands our own default down: that is no choice.
    default = _DEFAULT_ENVIRONMENT[_QUIET]
    chosen = os.environ.get(_QUIET, default) != default
    for key, value in _DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if chosen:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            for line in captured:
                if not _NOISE.match(line):
                    os.write(2, line)


@contextmanager
def tensorflow_writing() -> Iterator[None]:
    """Make an ``OSError`` of what TensorFlow raises where a file cannot be written.

    Raises:
        OSError: With the reason that the system gave.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        reason = error.message.partition(" [Op:")[0].rpartition("; ")[2]
        raise OSError(errno.EIO, reason) from error
