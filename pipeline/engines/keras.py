"""The Keras engine: the backbone on Keras' own backend, on a GPU where there is one."""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.backbone import LoadedBackbone
from pipeline.encoder import Encoder
from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime import import_keras

# From this size on, the weights become constants of the graph, so that BatchNorm is folded into
# the convolutions: 42 instead of 34 images a second at 224 pixels on two cores, for four seconds
# more at the start. Below, a run is often over before that pays. A choice by size alone keeps
# the features of one identity bit-equal from run to run.
FOLD_FROM: Final = 128

Forward = Callable[[NDArray[np.uint8]], Any]


class KerasEncoder(Encoder):
    """Encode images with Keras.

    Every batch is padded to ``batch_size``: one compiled shape, nothing retraces, and a row
    never depends on how many others come with it.
    """

    engine = "keras"

    def __init__(self, loaded: LoadedBackbone, *, batch_size: int) -> None:
        self.batch_size = batch_size
        self.dim = loaded.dim
        self.device, on_gpu = _device()
        self._image_shape = (loaded.image_size, loaded.image_size, 3)
        folds = loaded.image_size >= FOLD_FROM and not on_gpu
        self._forward = _forward(loaded.model, (batch_size, *self._image_shape), folds)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode 1 to ``batch_size`` images; see ``Encoder``."""
        self._check(images)
        try:
            features = np.asarray(self._forward(self._padded(images)))
            return np.array(features[: len(images)], dtype=np.float32)
        except Exception as error:
            _raise_readable(error, self.batch_size)

    def _check(self, images: NDArray[np.uint8]) -> None:
        fits = images.dtype == np.uint8 and images.shape[1:] == self._image_shape
        if not fits or not 1 <= len(images) <= self.batch_size:
            raise ConfigError(
                f"Expected 1 to {self.batch_size} uint8 images of shape {self._image_shape}. "
                f"Received: {images.dtype} of shape {images.shape}."
            )

    def _padded(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if len(images) == self.batch_size:
            return images
        batch = np.zeros((self.batch_size, *self._image_shape), np.uint8)
        batch[: len(images)] = images
        return batch


def create(loaded: LoadedBackbone, *, batch_size: int, precision: str) -> KerasEncoder:
    """Make an encoder and compile it by encoding one blank image.

    Raises:
        ConfigError: The batch size is not positive, or the precision is not float32.
        PipelineError: The batch does not fit into memory.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size: expected 1 or more. Received: {batch_size}.")
    if precision != "float32":
        raise ConfigError(
            f"--precision: the keras engine has float32. Received: {precision!r}.",
            hint="Use --precision float32.",
        )
    encoder = KerasEncoder(loaded, batch_size=batch_size)
    encoder(np.zeros((1, loaded.image_size, loaded.image_size, 3), np.uint8))
    return encoder


def _forward(model: Any, shape: tuple[int, ...], folds: bool) -> Forward:
    """Return the fastest plain way through a model on this backend."""
    if import_keras().backend.backend() != "tensorflow":
        forward: Forward = model.predict_on_batch
        return forward
    import tensorflow as tf

    signature = [tf.TensorSpec(shape, tf.uint8)]
    if not folds:
        return _compiled(tf, lambda images: model(images, training=False), signature)
    values = [variable.numpy() for variable in model.non_trainable_variables]

    def folded(images: Any) -> Any:
        constants = [tf.constant(value) for value in values]
        return model.stateless_call([], constants, images, training=False)[0]

    return _compiled(tf, folded, signature)


def _compiled(tf: Any, function: Callable[[Any], Any], signature: list[Any]) -> Forward:
    compiled: Forward = tf.function(function, input_signature=signature, autograph=False)
    return compiled


def _raise_readable(error: Exception, batch_size: int) -> NoReturn:
    """Say what to do when memory runs out; let every other error pass."""
    exhausted = isinstance(error, MemoryError) or "ResourceExhausted" in type(error).__name__
    if not exhausted and "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    hint = f"Try --batch-size {batch_size // 2}." if batch_size > 1 else "Use a smaller image size."
    raise PipelineError(
        f"Expected memory for batches of {batch_size} images. Received: out of memory.", hint=hint
    ) from error


def _device() -> tuple[str, bool]:
    """Return what the backend computes on, in words, and whether that is a GPU."""
    keras = import_keras()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        if gpus:
            return f"GPU ({details.get('device_name', gpus[0].name)})", True
    else:
        devices = [str(device) for device in keras.distribution.list_devices()]
        if devices and not devices[0].startswith("cpu"):
            return f"GPU ({devices[0]})", True
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU ({_processor()}, {threads} threads)", False


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
