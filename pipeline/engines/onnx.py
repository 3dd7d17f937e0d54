"""The ONNX Runtime engine: on its CUDA provider where there is one, else on the processor."""

from typing import Any, Final

import numpy as np

from pipeline.backbones.forms import ONNX
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines.base import (
    EngineEncoder,
    cpu_device,
    readable_errors,
    require_precision,
    usable_network,
)
from pipeline.engines.encoder import Images, Pending
from pipeline.engines.graph import ONNX_FILE, converted, frozen_graph, onnx_bytes, require_whole
from pipeline.system import machine
from pipeline.system.keras_setup import import_converter, quiet_loggers

# Operators of ONNX as of 2022: every runtime that is still in use has them.
OPSET: Final = 17
_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"


class OnnxEncoder(EngineEncoder):
    """Encode images with ONNX Runtime; a shorter batch is run as it is."""

    engine = "onnx"

    def __init__(self, loaded: FrozenBackbone, *, batch_size: int, precision: str) -> None:
        super().__init__(loaded, batch_size=batch_size)
        import onnxruntime

        on_gpu = has_cuda() and machine.has_gpu()
        self.device = "GPU (CUDA)" if on_gpu else cpu_device()
        known = ("float32", "tf32") if on_gpu else ("float32",)
        require_precision("onnx", "GPU" if on_gpu else "processor", precision, known)
        with readable_errors(batch_size):
            self._session = _session(onnxruntime, loaded, precision, on_gpu=on_gpu)
        self._input = self._session.get_inputs()[0].name

    def submit(self, images: Images) -> Pending:
        """Encode 1 to ``batch_size`` images; see ``Encoder``."""
        self.check(images)
        with readable_errors(self.batch_size):
            features = self._session.run(None, {self._input: images})[0]
        # Memory of its own: what a session returns may be its own.
        own = np.array(features, dtype=np.float32)
        return lambda timeout=None: own


def has_cuda() -> bool:
    """Tell whether ONNX Runtime is installed with its CUDA provider."""
    import onnxruntime

    return _CUDA in onnxruntime.get_available_providers()


def create(loaded: FrozenBackbone, *, batch_size: int, precision: str) -> OnnxEncoder:
    """Convert a backbone and start a session.

    Raises:
        ConfigError: The batch size is not positive, or the device has not the precision.
        EngineUnavailableError: The backbone is not on TensorFlow, which conversion needs.
        PipelineError: There is not memory enough.
    """
    with usable_network("onnx", loaded.form):
        encoder = OnnxEncoder(loaded, batch_size=batch_size, precision=precision)
        encoder.warm_up()
    return encoder


def _session(onnxruntime: Any, loaded: FrozenBackbone, precision: str, *, on_gpu: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.processors()
    tf32 = "1" if precision == "tf32" else "0"
    providers = [(_CUDA, {"use_tf32": tf32})] if on_gpu else [_CPU]
    convert = onnx_bytes if loaded.form is ONNX else _converted_bytes
    with converted(loaded, ONNX_FILE, convert) as path:
        require_whole(path)
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    # A provider that cannot start is left out without an error.
    require_precision("onnx", "machine", session.get_providers()[0], [_CUDA if on_gpu else _CPU])
    return session


def onnx_model(loaded: FrozenBackbone, *, name: str, rename: tuple[str, str] | None = None) -> Any:
    """Return a backbone as an ONNX model with its weights inside.

    Args:
        loaded: The backbone, or what stands in the place of one.
        name: Name of the graph.
        rename: What its input and output are to be called; by default as in TensorFlow.

    Raises:
        EngineUnavailableError: Keras does not run on TensorFlow.
    """
    graph, images, features = frozen_graph(loaded)
    # After Keras, which makes TensorFlow quiet.
    tf2onnx = import_converter()
    with quiet_loggers("tensorflow", "tf2onnx"):
        model, _ = tf2onnx.convert.from_graph_def(
            graph,
            name=name,
            input_names=[images],
            output_names=[features],
            opset=OPSET,
            tensors_to_rename=dict(zip((images, features), rename, strict=True)) if rename else {},
        )
    return model


def _converted_bytes(loaded: FrozenBackbone) -> bytes:
    content: bytes = onnx_model(loaded, name="encoder").SerializeToString()
    return content
