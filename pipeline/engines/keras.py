"""The Keras engine: the backbone on Keras' own backend, on a GPU where there is one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines import folding
from pipeline.engines.base import (
    EngineEncoder,
    cpu_device,
    cpu_precisions,
    readable_errors,
    require_precision,
)
from pipeline.engines.encoder import Features, Images, Pending
from pipeline.system.keras_setup import KerasLayer, KerasModel, Tensor, gpu_name, import_keras

# From this size on, BatchNorm is folded into the convolutions: at 224 pixels, folding by TensorFlow
# made 42 instead of 34 images per second on two cores, and this one is no slower. Below, a run is
# often over before that pays. A choice by size alone keeps the features of one identity bit-equal
# from run to run.
FOLD_FROM: Final = 128
_CPU_PRECISIONS: Final = ("float32", "bfloat16")
_GPU_PRECISIONS: Final = ("float32", "tf32", "bfloat16", "float16")
_TF32_SWITCH: Final = threading.Lock()

Forward = Callable[[NDArray[np.uint8]], Tensor]


class KerasEncoder(EngineEncoder):
    """Encode images with Keras.

    Every batch is padded to ``batch_size``: one compiled shape, nothing retraces, and a row
    never depends on how many others come with it.
    """

    engine = "keras"

    def __init__(self, loaded: FrozenBackbone, *, batch_size: int, precision: str) -> None:
        super().__init__(loaded, batch_size=batch_size)
        gpu = gpu_name()
        self.device = f"GPU ({gpu})" if gpu else cpu_device()
        known = _GPU_PRECISIONS if gpu else cpu_precisions(_CPU_PRECISIONS)
        require_precision("keras", "GPU" if gpu else "processor", precision, known)
        with readable_errors(batch_size), _computing_in(loaded.network, precision):
            shape = (batch_size, *self.image_shape)
            self._forward = _forward(loaded.model, shape, precision, on_gpu=gpu is not None)

    def submit(self, images: Images) -> Pending:
        """Start to encode 1 to ``batch_size`` images, on a GPU in the background."""
        self.check(images)
        with readable_errors(self.batch_size):
            pending = self._forward(self.padded(images))
        count = len(images)

        def collect(timeout: float | None = None) -> Features:
            with readable_errors(self.batch_size):
                return np.array(np.asarray(pending)[:count], dtype=np.float32)

        return collect


def create(loaded: FrozenBackbone, *, batch_size: int, precision: str) -> KerasEncoder:
    """Make an encoder and compile it by encoding one blank image.

    Raises:
        ConfigError: The batch size is not positive, or the device has not the precision.
        PipelineError: The batch does not fit into memory.
    """
    encoder = KerasEncoder(loaded, batch_size=batch_size, precision=precision)
    encoder.warm_up()
    return encoder


@contextmanager
def _computing_in(network: KerasModel, precision: str) -> Iterator[None]:
    """Give a network's layers a mixed policy while it is traced; the weights stay float32.

    The last layer, the pooling, keeps float32: a mean of 49 values in half precision loses more
    than all convolutions together.
    """
    if precision not in ("bfloat16", "float16"):
        yield
        return
    layers = list(_all_layers(network))[:-1]
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = f"mixed_{precision}"
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


def _all_layers(layer: KerasLayer) -> Iterator[KerasLayer]:
    for child in layer.layers:
        if hasattr(child, "layers"):
            yield from _all_layers(child)
        yield child


def _forward(model: KerasModel, shape: tuple[int, ...], precision: str, *, on_gpu: bool) -> Forward:
    """Return the fastest way through a model on this backend, already traced."""
    backend = import_keras().backend.backend()
    if backend == "jax":
        return _jax_forward(model, shape, precision)
    if backend != "tensorflow":
        require_precision("keras", f"backend {backend}", precision, ("float32",))
        forward: Forward = model.predict_on_batch
        return forward
    import tensorflow as tf

    model = folding.folded(model) if shape[1] >= FOLD_FROM and not on_gpu else model
    signature = [tf.TensorSpec(shape, tf.uint8)]
    traced = tf.function(
        lambda images: model(images, training=False),
        input_signature=signature,
        autograph=False,
        jit_compile=on_gpu,
    ).get_concrete_function()

    def compiled(images: NDArray[np.uint8]) -> Tensor:
        # A switch of the process, looked at whenever a kernel starts, also in other threads; on a
        # processor all encoders agree on it.
        with _TF32_SWITCH if on_gpu else nullcontext():
            tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
            return traced(tf.constant(images))

    return compiled


def _jax_forward(model: KerasModel, shape: tuple[int, ...], precision: str) -> Forward:
    import jax

    variables = [variable.value for variable in model.non_trainable_variables]

    def encode(variables: Tensor, images: Tensor) -> Tensor:
        return model.stateless_call([], variables, images, training=False)[0]

    # JAX' own default takes TF32 for float32 on GPUs that have it.
    arithmetic = {"float32": "highest", "tf32": "tensorfloat32"}.get(precision, "default")
    with jax.default_matmul_precision(arithmetic):
        images = jax.ShapeDtypeStruct(shape, np.uint8)
        compiled = jax.jit(encode).lower(variables, images).compile()
    return lambda images: compiled(variables, images)
