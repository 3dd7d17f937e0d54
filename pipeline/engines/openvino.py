"""The OpenVINO engine: the fastest on processors without a GPU.

The network is converted as it is, weights included. Requests of a few images run side by side,
one a stream, so that no core waits for another at the end of every layer.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pipeline import machine
from pipeline.backbone import FrozenBackbone
from pipeline.encoder import Features, Images
from pipeline.engines.base import (
    EngineEncoder,
    cpu_device,
    cpu_precisions,
    readable_errors,
    require_precision,
)
from pipeline.engines.graph import converted, graph_bytes
from pipeline.errors import PipelineError

# Measured on two cores, ResNet50 at 224 pixels, images a second: 54 in requests of 1, 57 of 2,
# 58 of 4, 59 of 8; one request of 32 over all cores 57, one of 32 a core 40.
REQUEST_IMAGES: Final = 4
# Another way to make the graph needs another number.
_GRAPH: Final = ".graph-1.pb"
_TYPES: Final = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_CAPABILITIES: Final = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}


class OpenvinoEncoder(EngineEncoder):
    """Encode images with a ring of requests, each with memory of its own.

    A request copies its images in before it starts and its features out before it is used again:
    memory that callers reuse is never shared with a request under way.
    """

    engine = "openvino"

    def __init__(self, loaded: FrozenBackbone, *, batch_size: int, precision: str) -> None:
        super().__init__(loaded, batch_size=batch_size)
        self.device = cpu_device()
        self._request_images = min(batch_size, REQUEST_IMAGES)
        compiled = _compiled(loaded, self._request_images, precision)
        streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        # Twice the streams: one request runs while the next of its stream waits, filled.
        self._ring = [_Request(compiled.create_infer_request()) for _ in range(2 * streams)]
        self._turn = 0

    def submit(self, images: Images) -> Callable[[], Features]:
        """Start requests for 1 to ``batch_size`` images; see ``Encoder``."""
        self.check(images)
        features = np.empty((len(images), self.dim), np.float32)
        started = []
        with readable_errors(self.batch_size):
            for first in range(0, len(images), self._request_images):
                rows = slice(first, first + self._request_images)
                request = self._ring[self._turn]
                self._turn = (self._turn + 1) % len(self._ring)
                started.append((request, request.start(images[rows], features[rows])))

        def collect() -> Features:
            with readable_errors(self.batch_size):
                for request, ticket in started:
                    request.finish(ticket)
            return features

        return collect


class _Request:
    """One infer request, its buffers, and where its features go."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._images: Images = request.get_input_tensor().data
        self._features: Features = request.get_output_tensor().data
        self._target: Features | None = None
        self._ticket = 0

    def start(self, images: Images, target: Features) -> int:
        """Encode images into ``target``; returns the ticket to finish this very job with."""
        self.finish(self._ticket)
        self._images[: len(images)] = images
        self._target = target
        self._ticket += 1
        self._request.start_async()
        return self._ticket

    def finish(self, ticket: int) -> None:
        """Wait for a job and hand its features over, unless that was done before."""
        target = self._target
        if target is None or ticket != self._ticket:
            return
        self._target = None
        self._request.wait()
        target[:] = self._features[: len(target)]


def create(loaded: FrozenBackbone, *, batch_size: int, precision: str) -> OpenvinoEncoder:
    """Convert and compile a backbone.

    Raises:
        ConfigError: The batch size is not positive, or the processor has not the precision.
        EngineUnavailableError: The backbone is not on TensorFlow, which conversion needs.
        PipelineError: There is not memory enough.
    """
    encoder = OpenvinoEncoder(loaded, batch_size=batch_size, precision=precision)
    encoder.warm_up()
    return encoder


def _compiled(loaded: FrozenBackbone, request_images: int, precision: str) -> Any:
    import openvino

    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    known = [name for name in _TYPES if _CAPABILITIES[name] in capabilities]
    require_precision("openvino", "processor", precision, cpu_precisions(known)[::-1])
    with readable_errors(request_images), converted(loaded, _GRAPH, graph_bytes) as path:
        model = core.read_model(path)
        model.reshape([request_images, loaded.image_size, loaded.image_size, 3])
        compiled = core.compile_model(model, "CPU", _properties(precision))
    # OpenVINO takes bfloat16 by itself where the processor has it, unless told otherwise.
    received = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if received != _TYPES[precision]:
        raise PipelineError(
            f"Expected OpenVINO to compute in {_TYPES[precision]}. Received: {received}.",
            hint="Use another --engine.",
        )
    return compiled


def _properties(precision: str) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": _TYPES[precision],
        "INFERENCE_NUM_THREADS": machine.processors(),
        # Decoding threads move about; a stream that is bound to a core waits for them there.
        "ENABLE_CPU_PINNING": False,
    }
