"""The OpenVINO engine: the fastest on processors without a GPU.

The network is converted as it is, weights included. Requests of a few images run side by side,
one a stream, so that no core waits for another at the end of every layer.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.backbones import quantized_file
from pipeline.backbones.forms import ONNX
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines.base import (
    EngineEncoder,
    cpu_device,
    cpu_precisions,
    readable_errors,
    require_precision,
    usable_network,
)
from pipeline.engines.encoder import Features, Images, Pending
from pipeline.engines.graph import ONNX_FILE, converted, graph_bytes, onnx_bytes, require_whole
from pipeline.errors import PipelineError, WeightsUnavailableError
from pipeline.system import machine

# Measured on two cores, ResNet50 at 224 pixels, images per second: 54 in requests of 1, 57 of 2,
# 58 of 4, 59 of 8; one request of 32 over all cores 57, one of 32 a core 40.
REQUEST_IMAGES: Final = 4
# Another way to make the graph needs another number.
_GRAPH: Final = ".graph-1.pb"
# In int8, what is not quantized is in float32.
_TYPES: Final = {"bfloat16": "bf16", "float16": "f16", "int8": "f32", "float32": "f32"}
_CAPABILITIES: Final = {"bfloat16": "BF16", "float16": "FP16", "int8": "INT8", "float32": "FP32"}


class OpenvinoEncoder(EngineEncoder):
    """Encode images with a ring of requests, each with memory of its own.

    A request copies its images in before it starts and its features out before it is used again:
    memory that callers reuse is never shared with a request under way. Threads take requests in
    turn; each finds its features in an array that no other has.
    """

    engine = "openvino"

    def __init__(self, loaded: FrozenBackbone, *, batch_size: int, precision: str) -> None:
        super().__init__(loaded, batch_size=batch_size)
        self.device = cpu_device()
        self._request_images = min(batch_size, REQUEST_IMAGES)
        compiled = _compiled(loaded, self._request_images, precision)
        streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        # Twice the streams: one request runs while the next of its stream waits, filled.
        self._ring = cycle([_Request(compiled.create_infer_request()) for _ in range(2 * streams)])

    def submit(self, images: Images) -> Pending:
        """Start requests for 1 to ``batch_size`` images; see ``Encoder``."""
        self.check(images)
        # A row that nothing was computed for is no number, whatever goes wrong.
        features = np.full((len(images), self.dim), np.nan, np.float32)
        jobs = []
        with readable_errors(self.batch_size):
            for first in range(0, len(images), self._request_images):
                rows = slice(first, first + self._request_images)
                job = _Job(images[rows], features[rows])
                # One step of the interpreter, so that no two threads get the same turn.
                request = next(self._ring)
                request.start(job)
                jobs.append((request, job))

        def collect(timeout: float | None = None) -> Features:
            deadline = None if timeout is None else time.monotonic() + timeout
            with readable_errors(self.batch_size):
                for request, job in jobs:
                    request.finish(job, deadline)
            return features

        return collect


@dataclass(slots=True, eq=False)
class _Job:
    """Some images, where their features go, and whether they are there."""

    images: Images
    features: Features
    is_done: bool = False


class _Request:
    """One infer request with its buffers, and the job that it is busy with.

    An interrupt may come between any two lines. So a job is done only after its features were
    copied, waiting and copying can be repeated, and the outputs are no numbers until the engine has
    written them.
    """

    def __init__(self, request: Any) -> None:
        self._request = request
        self._images: Images = request.get_input_tensor().data
        self._features: Features = request.get_output_tensor().data
        self._job: _Job | None = None
        # Reentrant, so that a thread that was interrupted while it held it can go on.
        self._lock = threading.RLock()

    def start(self, job: _Job) -> None:
        """Begin a job, after the one before is done."""
        with self._lock:
            self._complete(None)
            self._images[: len(job.images)] = job.images
            self._features[:] = np.nan
            self._job = job
            self._request.start_async()

    def finish(self, job: _Job, deadline: float | None) -> None:
        """Wait for a job and hand its features over, unless that was done before.

        Raises:
            TimeoutError: The deadline passed.
            PipelineError: The engine failed while another waited for this job.
        """
        with self._lock:
            if job.is_done:
                return
            if self._job is not job:
                raise PipelineError("OpenVINO could not encode a batch.", hint="Run this again.")
            self._complete(deadline)

    def _complete(self, deadline: float | None) -> None:
        """Wait for the job at hand, if there is one, and copy its features."""
        job = self._job
        if job is None:
            return
        try:
            is_over = self._is_over(deadline)
        except Exception:
            self._job = None
            raise
        if not is_over:
            raise TimeoutError
        job.features[:] = self._features[: len(job.features)]
        job.is_done = True
        self._job = None

    def _is_over(self, deadline: float | None) -> bool:
        if deadline is None:
            self._request.wait()
            return True
        left = max(0, round(1e3 * (deadline - time.monotonic())))
        return bool(self._request.wait_for(left))


def create(loaded: FrozenBackbone, *, batch_size: int, precision: str) -> OpenvinoEncoder:
    """Convert and compile a backbone.

    Raises:
        ConfigError: The batch size is not positive, or the processor has not the precision.
        EngineUnavailableError: The backbone is not on TensorFlow, which conversion needs.
        PipelineError: There is not memory enough.
    """
    with usable_network("openvino", loaded.form):
        encoder = OpenvinoEncoder(loaded, batch_size=batch_size, precision=precision)
        encoder.warm_up()
    return encoder


def _compiled(loaded: FrozenBackbone, request_images: int, precision: str) -> Any:
    import openvino

    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    known = [name for name in _TYPES if _CAPABILITIES[name] in capabilities]
    require_precision("openvino", "processor", precision, cpu_precisions(known)[::-1])
    with readable_errors(request_images), network_of(loaded, core, precision) as model:
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


@contextmanager
def network_of(loaded: FrozenBackbone, core: Any, precision: str) -> Iterator[Any]:
    """Give a backbone as OpenVINO's model, whose file is there as long as the context lasts.

    Args:
        loaded: The backbone.
        core: OpenVINO's core.
        precision: In int8 the network that was made for it, else the one of every precision.

    Raises:
        WeightsUnavailableError: There is no network in int8, or it is damaged.
        EngineUnavailableError: The backbone is not on TensorFlow, which conversion needs.
    """
    if precision == "int8":
        yield core.read_model(*quantized_file.read(_quantized(loaded)))
        return
    is_onnx = loaded.form is ONNX
    suffix, convert = (ONNX_FILE, onnx_bytes) if is_onnx else (_GRAPH, graph_bytes)
    with converted(loaded, suffix, convert) as path:
        if is_onnx:
            require_whole(path)
        yield core.read_model(path)


def _quantized(loaded: FrozenBackbone) -> Path:
    if loaded.quantized is None:
        raise WeightsUnavailableError(
            f"Expected the network {loaded.name} in int8, which extract makes and keeps in the "
            "store. Received: none.",
            hint="Extract with --precision int8, or say where the store is with --store DIR.",
        )
    return loaded.quantized


def _properties(precision: str) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": _TYPES[precision],
        "INFERENCE_NUM_THREADS": machine.processors(),
        # Decoding threads move about; a stream that is bound to a core waits for them there.
        "ENABLE_CPU_PINNING": False,
    }
