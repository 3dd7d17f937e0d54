"""Interrupts: a row holds the features of its own image, wherever one comes; the end comes soon."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import tiny_resnet
from fakes import DIM, IDENTITY, Command, FakeEncoder, save_nothing, write_classes

from pipeline import engines
from pipeline.backbones import frozen, weights
from pipeline.backbones.forms import KERAS
from pipeline.cli.main import main
from pipeline.engines import base, openvino, probing
from pipeline.engines import queue as encoding_queue
from pipeline.engines.encoder import Encoder
from pipeline.errors import PipelineError
from pipeline.extract import extraction, ledger
from pipeline.images import readers, reading_processes
from pipeline.store import shard, writer
from pipeline.store.store import Store
from pipeline.system import machine

ARGUMENTS = ("--weights", "random", "--image-size", "32", "--batch-size", "6", "--quiet")
VISITS = 2

Error = type[BaseException]


@dataclass(frozen=True)
class Point:
    """The n-th time that a line is reached, in the main thread or in another."""

    file: str
    line: int
    visit: int
    is_main: bool


class Tracer:
    """See every line of some modules, in all threads; raise at one of them."""

    def __init__(self, modules: list[Any], at: Point | None = None) -> None:
        self.points: list[Point] = []
        self.has_raised = False
        self._files = {module.__file__ for module in modules}
        self._at = at
        self._visits: Counter[tuple[str, int, bool]] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line":
            is_main = threading.current_thread() is threading.main_thread()
            where = (frame.f_code.co_filename, frame.f_lineno, is_main)
            self._visits[where] += 1
            point = Point(*where[:2], self._visits[where], is_main)
            self.points.append(point)
            if point == self._at:
                self.has_raised = True
                # In another thread no interrupt ever comes, but memory runs out there too.
                raise (KeyboardInterrupt if is_main else MemoryError)
        return self


@contextmanager
def traced(tracer: Tracer) -> Iterator[None]:
    before = sys.gettrace()
    threading.settrace(tracer)
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(None)  # type: ignore[arg-type]


def stored(store: Path) -> dict[bytes, np.ndarray]:
    rows: dict[bytes, np.ndarray] = {}
    for path in store.glob("shards/*.h5"):
        with h5py.File(path) as file:
            assert len(file["keys"]) == len(file["features"])
            rows |= zip(file["keys"][:].tolist(), file["features"][:], strict=True)
    return rows


def projecting_network(count: int) -> Any:
    """A network of OpenVINO's own that takes each image to some of its pixels."""
    import openvino as ov
    from openvino import opset13 as ops

    pixels = ops.parameter([count, 32, 32, 3], ov.Type.u8)
    flat = ops.reshape(ops.convert(pixels, ov.Type.f32), np.array([count, -1]), False)
    weights = np.random.default_rng(0).normal(size=(32 * 32 * 3, DIM)).astype(np.float32)
    features = ops.matmul(flat, ops.constant(weights), False, False)
    return ov.Core().compile_model(ov.Model([features], [pixels]), "CPU")


@pytest.fixture
def small_openvino(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """OpenVINO's engine with a network that is there at once."""
    monkeypatch.setattr(
        openvino, "_compiled", lambda loaded, count, precision: projecting_network(count)
    )
    loaded: Any = SimpleNamespace(dim=DIM, image_size=32, form=KERAS)
    return openvino.create(loaded, batch_size=6, precision="float32")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Of 16 images, batches of 6: whole ones, a short one, several requests each.
    write_classes(tmp_path / "photos", {"cat": 8, "dog": 8})
    return tmp_path / "photos"


def run_extract(store: str) -> int:
    return main(["extract", "photos", "--store", store, *ARGUMENTS])


def raise_everywhere(
    monkeypatch: pytest.MonkeyPatch,
    encoder: Encoder,
    modules: list[Any],
    *,
    keep: Callable[[list[Point]], list[Point]],
) -> tuple[int, int]:
    """Interrupt an extraction at many points; return how many were reached, and rows stored."""
    monkeypatch.setattr(engines, "create", lambda *_, **__: encoder)
    # The probe comes first, and writes no row: what is interrupted is to be the images.
    made = probing.make(encoder, IDENTITY)
    monkeypatch.setattr(probing, "make", lambda encoder, identity: replace(made, identity=identity))
    assert run_extract("whole") == 0
    expected = stored(Path("whole"))
    assert len(expected) == 16
    watching = Tracer(modules)
    with traced(watching):
        assert run_extract("traced") == 0
    reached = rows = 0
    for number, point in enumerate(keep(watching.points)):
        store = f"cut-{number}"
        tracer = Tracer(modules, point)
        with traced(tracer), suppress(BaseException):
            run_extract(store)
        reached += tracer.has_raised
        found = stored(Path(store))
        rows += len(found)
        for key, features in found.items():
            np.testing.assert_allclose(features, expected[key], rtol=1e-4, err_msg=str(point))
        if number % 10 == 0:
            assert run_extract(store) == 0
            assert stored(Path(store)).keys() == expected.keys()
    return reached, rows


def early_visits(points: list[Point]) -> list[Point]:
    return list(dict.fromkeys(point for point in points if point.visit <= VISITS))


def some(points: list[Point], count: int) -> list[Point]:
    """Return a few early points, or with PIPELINE_FAULTS=all every one."""
    early = early_visits(points)
    if os.environ.get("PIPELINE_FAULTS") == "all":
        return early
    places = np.random.default_rng(0).permutation(len(early))[:count]
    return [early[place] for place in sorted(places)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fake", "openvino"])
def test_whatever_is_raised_between_two_lines_no_row_gets_anothers_features(
    data: Path, fake_network: FakeEncoder, small_openvino: Encoder,
    monkeypatch: pytest.MonkeyPatch, kind: str,
) -> None:  # fmt: skip
    encoder = {"fake": fake_network, "openvino": small_openvino}[kind]
    modules = [encoding_queue, writer, shard] if kind == "fake" else [openvino]
    reached, rows = raise_everywhere(monkeypatch, encoder, modules, keep=partial(some, count=50))
    assert reached > 30
    assert rows > reached  # an interrupt does not throw everything away


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("engine", list(engines.ENGINES))
def test_the_same_with_a_network_of_keras_on_every_engine(
    data: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    with tiny_resnet.in_place_of_resnet50():
        loaded = frozen.load("resnet50", weights="random", seed=0, image_size=32, pooling="avg")
    encoder = engines.create(engine, loaded, batch_size=6, precision="float32")
    monkeypatch.setattr(frozen, "load", lambda *_, **__: loaded)
    monkeypatch.setattr(weights, "save", save_nothing)
    modules = [encoding_queue, extraction, ledger, base, sys.modules[type(encoder).__module__]]

    reached, _ = raise_everywhere(monkeypatch, encoder, modules, keep=partial(some, count=25))
    assert reached > 15


@pytest.mark.slow
# Of a process or a socket that was interrupted before anything held it: it ends for lack of us.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_same_where_processes_read(
    data: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processors", lambda: 6)
    monkeypatch.setattr(machine, "free_memory", lambda: 1 << 34)
    monkeypatch.setattr(reading_processes, "LEAST_IMAGES", 1)
    modules = [reading_processes, readers, extraction]
    keep = partial(some, count=12)
    reached, rows = raise_everywhere(monkeypatch, fake_network, modules, keep=keep)
    assert reached > 7
    assert rows > 0
    gc.collect()


def test_features_that_were_not_computed_are_no_numbers(
    small_openvino: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((6, 32, 32, 3), 7, np.uint8)
    assert np.isfinite(small_openvino(pixels)).all()
    for request in requests_of(small_openvino):
        # What an interrupt between two lines leaves: a job, and an engine that has none.
        monkeypatch.setattr(request, "_request", SimpleNamespace(start_async=int, wait=int))
    assert np.isnan(small_openvino(pixels)).all()


def test_a_batch_that_the_engine_failed_on_has_no_features(
    small_openvino: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((6, 32, 32, 3), 7, np.uint8)
    pending = small_openvino.submit(pixels)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(openvino._Request, "_is_over", fail)
        pending()
    with pytest.raises(PipelineError, match="could not encode"):
        pending()
    assert np.isfinite(small_openvino(pixels)).all()


def fail(request: Any, _: object) -> None:
    request._request.wait()
    raise RuntimeError("the driver is gone")


def requests_of(encoder: Any) -> list[Any]:
    return list(islice(encoder._ring, 64))


def test_a_late_batch_is_let_go_and_a_finished_one_kept(fake_network: FakeEncoder) -> None:
    class Slow(FakeEncoder):
        def submit(self, images: np.ndarray) -> Callable[..., np.ndarray]:
            features = self(images)

            def collect(timeout: float | None = None) -> np.ndarray:
                if timeout is not None and images[0, 0, 0, 0]:
                    raise TimeoutError
                return features

            return collect

    delivered: list[int] = []
    queue = encoding_queue.EncodingQueue(
        Slow(batch_size=1),
        deliver=lambda rows, _: delivered.extend(row.index for row in rows),
        clock=extraction.Clock(),
    )
    with pytest.raises(KeyboardInterrupt), queue:
        for index, value in enumerate((0, 1)):
            pixels = np.full((32, 32, 3), value, np.uint8)
            queue._under_way.append(
                ([encoding_queue.EncodingRow(index, "", "", pixels)],
                 queue._encoder.submit(pixels[np.newaxis]))
            )  # fmt: skip
        raise KeyboardInterrupt
    assert delivered == [0]


# The process

PROGRAM = """
import functools, hashlib, sys, time
from pipeline import __main__
from pipeline.cli import main as cli
from pipeline.system import interrupts
def hang(arguments=None):
    print("ready", flush=True)
    {body}
cli.main = hang
interrupts.bounded = functools.partial(interrupts.bounded, {grace})
sys.exit(__main__.main())
"""
# A library that does not come back: no instruction of Python's is executed meanwhile.
LIBRARY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**30)"
SAVING = "\n    try: time.sleep(60)\n    finally: time.sleep(60)"


def started(body: str, grace: float = 0.5) -> subprocess.Popen[str]:
    program = PROGRAM.format(body=body, grace=grace)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> int:
    status = process.wait(timeout=30)
    assert process.stdout is not None
    process.stdout.close()
    return status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
@pytest.mark.parametrize("body", [LIBRARY, SAVING], ids=["library", "saving"])
def test_the_end_comes_soon_wherever_the_process_hangs(
    body: str, number: signal.Signals, status: int
) -> None:
    process = started(body)
    process.send_signal(number)
    began = time.monotonic()
    assert ended(process) == status
    assert time.monotonic() - began < 20  # not the 60 seconds of the hang; no timing is asserted


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once() -> None:
    process = started(LIBRARY, grace=60)
    time.sleep(0.5)  # between the line that was read and the library
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process) == 130


IN_A_CALLBACK = """
import os, signal, sys
import numpy as np
from pipeline import __main__
from pipeline.cli import main as cli
from pipeline.files import hdf5_writer
def seek(self, *given, real=hdf5_writer._Sink.seek):
    hdf5_writer._Sink.seek = real
    os.kill(os.getpid(), signal.{name})
    return real(self, *given)
def run(arguments):
    with hdf5_writer.writing(hdf5_writer.Path(sys.argv[2])) as file:
        file["x"] = np.zeros(100_000)
        hdf5_writer._Sink.seek = seek
cli._run = run
sys.exit(__main__.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_that_a_library_makes_an_error_of_stays_one(
    name: str, status: int, tmp_path: Path
) -> None:
    """HDF5 calls back for every piece that it writes, and for the last ones when it closes."""
    program = [sys.executable, "-c", IN_A_CALLBACK.format(name=name), "extract", tmp_path / "x.h5"]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("Interrupted; what was finished is kept.")


IN_A_FINALIZER = """
import gc, os, signal, sys, time
from pipeline import __main__
from pipeline.cli import main as cli
def collecting(phase, facts):
    gc.callbacks.remove(collecting)
    os.kill(os.getpid(), signal.{name})
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
def run(arguments):
    {body}
    for _ in range(600):
        time.sleep(0.1)
cli._run = run
sys.exit(__main__.main())
"""
LOST = ["gc.callbacks.append(collecting); gc.collect()", "Dying()"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("body", LOST, ids=["collector", "finalizer"])
def test_an_interrupt_where_nothing_can_be_raised_is_not_lost(
    body: str, name: str, status: int
) -> None:
    script = IN_A_FINALIZER.format(name=name, body=body)
    program = [sys.executable, "-c", script, "extract"]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert (
        done.stderr == "Interrupted; what was finished is kept. Run the same command again to "
        "go on.\n"
    )


def test_an_ignored_sigterm_stays_ignored() -> None:
    body = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1); return 7"
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    done = subprocess.run(
        [sys.executable, "-c", program + PROGRAM.format(body=body, grace=1)], check=False, stdout=-1
    )
    assert done.returncode == 7


def test_a_command_that_is_over_ends_with_its_own_status() -> None:
    process = started("return 1")
    assert ended(process) == 1
    assert os.path.exists


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_error_of_the_encoder_keeps_what_was_encoded_before(
    command: Command, data: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch,
    error: Error,
) -> None:  # fmt: skip
    original = FakeEncoder.__call__

    def stop(self: FakeEncoder, pixels: np.ndarray) -> np.ndarray:
        if self.images >= 8 + 12:  # the probe comes first
            raise error
        return original(self, pixels)

    with monkeypatch.context() as patch, suppress(MemoryError):
        patch.setattr(FakeEncoder, "__call__", stop)
        run_extract("store")
    kept = len(Store.open(Path("store")))
    assert kept >= 6
    status, result = command("extract", "photos", "--store", "store", *ARGUMENTS)
    assert status == 0 and result["encoded"] == 16 - kept
