"""Processes that read and decode: the answers of this one, each to whoever asked; their end."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_classes, write_image
from PIL import Image, ImageFile

from pipeline.errors import PipelineError, UnreadableImageError
from pipeline.images import memory_budget, probe_images, reading, reading_processes
from pipeline.images import readers as readers_module
from pipeline.images.manifest import Manifest, listing_of
from pipeline.images.readers import Readers
from pipeline.images.reading import Content, Get, ReadFile, Reference
from pipeline.images.reading_processes import ReadingProcesses, readers
from pipeline.system import machine

SIZE = 24
VIEWS = ("", "flip", "crop1")
PIXELS = 3 * SIZE * SIZE * len(VIEWS)


@pytest.fixture(scope="module")
def processes() -> Iterator[ReadingProcesses]:
    with ReadingProcesses(2, 5, PIXELS) as found:
        yield found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The probe images, which are of every kind, and some that are none."""
    folder = tmp_path_factory.mktemp("photos")
    for name, data in probe_images.contents().items():
        (folder / name).write_bytes(data)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "cut.jpg").write_bytes(probe_images.contents()["photo.jpg"][:300])
    return folder


def listed(folder: Path, *more: str) -> Manifest:
    names = [path.name for path in sorted(folder.iterdir())] + list(more)
    return listing_of(folder, [(name, "a", "") for name in names])


def here(listing: Manifest, row: int, resize: str = "squash") -> ReadFile:
    return reading.decoded(reading.reference(listing, row), lambda key: VIEWS, SIZE, resize)


def asked(readers: Readers, listing: Manifest, row: int, resize: str = "squash") -> ReadFile:
    (file,) = readers.decoded([reading.reference(listing, row)], lambda key: VIEWS, SIZE, resize)
    return file


def require_equal(made: ReadFile, expected: ReadFile) -> None:
    assert (made.key, made.state, made.reason) == (expected.key, expected.state, expected.reason)
    assert list(made.pixels) == list(expected.pixels)
    for view, pixels in expected.pixels.items():
        np.testing.assert_array_equal(made.pixels[view], pixels)


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_they_answer_as_this_process_does(
    processes: ReadingProcesses, photos: Path, resize: str
) -> None:
    listing = listed(photos, "gone.png")
    for row in range(len(listing)):
        require_equal(asked(processes, listing, row, resize), here(listing, row, resize))
    assert here(listing, row).reason == "cannot be read: No such file or directory"


@pytest.mark.slow
def test_images_asked_for_at_once_have_each_their_own(
    processes: ReadingProcesses, photos: Path
) -> None:
    listing = listed(photos, "gone.png")
    gets = [reading.reference(listing, row) for row in range(len(listing))]
    views = {here(listing, row).key: VIEWS[: row % 4] for row in range(len(listing))}
    for start in range(0, len(gets), processes.group):
        some = gets[start : start + processes.group]
        files = processes.decoded(some, views.__getitem__, SIZE, "crop")
        expected = Readers(1).decoded(some, views.__getitem__, SIZE, "crop")
        for made, wanted in zip(files, expected, strict=True):
            require_equal(made, wanted)
            assert made.seconds > 0 and made.computing > 0


@pytest.mark.slow
def test_rows_come_in_order_and_what_is_late_is_waited_for(
    processes: ReadingProcesses, tmp_path: Path
) -> None:
    write_classes(tmp_path, {"a": 45})
    listing = listed(tmp_path / "a")
    images = ((row, reading.reference(listing, row)) for row in range(45))
    waited: list[Future[list[ReadFile]]] = []

    def late(future: Future[list[ReadFile]]) -> None:
        waited.append(future)
        wait([future])

    found = list(processes.read(images, lambda key: VIEWS, SIZE, "squash", late=late))
    assert [row for row, _ in found] == list(range(45))
    assert waited
    for row, file in found:
        require_equal(file, here(listing, row))


@pytest.mark.slow
def test_only_the_views_that_are_wanted_of_these_bytes_are_made(
    processes: ReadingProcesses, photos: Path
) -> None:
    path, asked = photos / "plain.png", []
    known = Content(path.read_bytes()).key

    def wanted(key: str) -> list[str]:
        asked.append(key)
        return ["flip"]

    (file,) = processes.decoded([Reference(path)], wanted, SIZE, "squash")
    assert list(file.pixels) == ["flip"]
    (file,) = processes.decoded([Reference(path)], lambda key: [], SIZE, "squash")
    assert (asked, file.key, file.reason, dict(file.pixels)) == ([known], known, "", {})


@pytest.mark.slow
def test_what_is_no_file_of_its_own_is_read_here(
    processes: ReadingProcesses, photos: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(photos / "photo.jpg", "cat/photo.jpg")
    inside = Reference(tmp_path, "a.tar/cat/photo.jpg")
    assert not inside.is_file
    bytes_alone = Content((photos / "photo.jpg").read_bytes())
    gets = [inside, lambda: bytes_alone]
    files = processes.decoded(gets, lambda key: VIEWS, SIZE, "squash")
    for made, get in zip(files, gets, strict=True):
        require_equal(made, reading.decoded(get, lambda key: VIEWS, SIZE, "squash"))
    assert files[0].key == files[1].key

    def gone() -> Content:
        raise UnreadableImageError("gone")

    assert processes.decoded([gone], lambda key: VIEWS, SIZE, "squash") == [ReadFile(reason="gone")]


@pytest.mark.slow
def test_every_thread_gets_its_own_answers(processes: ReadingProcesses, tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 40})
    listing = listed(tmp_path / "a")
    rows = [row for _ in range(5) for row in range(40)]
    expected = [here(listing, row) for row in range(40)]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(partial(asked, processes, listing), rows))
    for row, made in zip(rows, found, strict=True):
        require_equal(made, expected[row])


@pytest.mark.slow
def test_an_answer_that_nobody_waited_for_is_never_another_images(
    processes: ReadingProcesses, photos: Path
) -> None:
    listing = listed(photos)
    expected = [here(listing, row) for row in range(len(listing))]

    def fail(key: str) -> list[str]:
        raise MemoryError

    for row in range(7):  # more often than there are lines
        with pytest.raises(MemoryError):
            processes.decoded([Reference(photos / "large.jpg")], fail, SIZE, "squash")
        require_equal(asked(processes, listing, row), expected[row])


@pytest.mark.slow
def test_one_that_is_killed_is_said_and_replaced(photos: Path) -> None:
    listing = listed(photos)
    with ReadingProcesses(1, 2, PIXELS) as processes:
        require_equal(asked(processes, listing, 0), here(listing, 0))
        os.kill(pids(processes)[0], signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(PipelineError, match=r"alpha\.png' to be decoded.*signal 9"):
                asked(processes, listing, 0)
        for row in range(3):
            require_equal(asked(processes, listing, row), here(listing, row))
        assert len(pids(processes)) == 3
    assert not any(map(is_there, pids(processes)))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_they_leave_interrupts_to_the_command(photos: Path, number: signal.Signals) -> None:
    listing = listed(photos)
    with ReadingProcesses(1, 2, PIXELS) as processes:
        os.kill(pids(processes)[0], number)  # while it starts
        require_equal(asked(processes, listing, 0), here(listing, 0))
        os.kill(pids(processes)[0], number)
        require_equal(asked(processes, listing, 1), here(listing, 1))


@pytest.mark.slow
def test_they_end_with_the_process_that_started_them() -> None:
    program = (
        "import sys; from pipeline.images.reading_processes import ReadingProcesses\n"
        "with ReadingProcesses(2, 4, 3) as found:\n"
        "    print(*(item.pid for item in found._processes), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    started = [int(number) for number in parent.stdout.readline().split()]
    assert len(started) == 2
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while any(map(is_there, started)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("processors", "workers", "images", "count", "group"),
    [(16, 16, 1000, 4, 8), (16, 6, 5000, 2, 8), (6, 128, 1000, 2, 1)],
)
def test_many_threads_with_many_images_ask_processes(
    monkeypatch: pytest.MonkeyPatch,
    processors: int,
    workers: int,
    images: int,
    count: int,
    group: int,
) -> None:
    started: list[int] = []

    class Noted(ReadingProcesses):
        def _started(self, threads: int) -> list[reading_processes._Line]:
            started.append(threads)
            return super()._started(threads)

    monkeypatch.setattr(reading_processes, "ReadingProcesses", Noted)
    monkeypatch.setattr(machine, "processors", lambda: processors)
    monkeypatch.setattr(machine, "free_memory", lambda: 1 << 36)
    with readers(workers, images=images, pixels=3) as found:
        assert isinstance(found, Noted) and found.group == group
    assert (len(started), sum(started)) == (count, workers)
    assert max(started) - min(started) <= 1


@pytest.mark.parametrize(
    ("processors", "workers", "images", "executable", "free"),
    [
        (16, 4, 5000, sys.executable, 1 << 36),
        (4, 64, 5000, sys.executable, 1 << 36),
        (16, 16, 999, sys.executable, 1 << 36),
        (16, 16, 5000, "/opt/application", 1 << 36),
        (16, 16, 5000, "", 1 << 36),
        (16, 16, 5000, sys.executable, 1 << 30),
    ],
)
def test_threads_read_where_processes_bring_nothing_or_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
    processors: int,
    workers: int,
    images: int,
    executable: str,
    free: int,
) -> None:
    monkeypatch.setattr(machine, "processors", lambda: processors)
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    monkeypatch.setattr(sys, "executable", executable)
    with readers(workers, images=images, pixels=3) as found:
        assert type(found) is Readers


def test_threads_read_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(machine, "processors", lambda: 16)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    before = descriptors()
    with (
        pytest.warns(RuntimeWarning, match="Resource temporarily unavailable.*more slowly"),
        readers(16, images=5000, pixels=3) as found,
    ):
        assert type(found) is Readers
        assert descriptors() == before


@pytest.mark.slow
def test_nothing_is_left_of_them(photos: Path) -> None:
    listing, before = listed(photos), descriptors()
    for _ in range(2):
        with ReadingProcesses(2, 5, PIXELS) as processes:
            asked(processes, listing, 0)
            started = pids(processes)
        del processes
        assert descriptors() == before
        assert not any(map(is_there, started))


@pytest.mark.slow
def test_what_is_too_large_for_a_process_is_decoded_here(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, here_decoded = listed(photos), []
    expected = [here(listing, row) for row in range(len(listing))]
    decoded = reading.decoded

    def noted(get: Get, *arguments: Any) -> ReadFile:
        here_decoded.append(get)
        return decoded(get, *arguments)

    monkeypatch.setattr(memory_budget, "part_of", lambda processes: 20_000)
    monkeypatch.setattr(reading, "decoded", noted)
    with ReadingProcesses(1, 1, PIXELS) as processes:
        found = [asked(processes, listing, row) for row in range(len(listing))]
    assert 0 < len(here_decoded) < len(listing)
    for made, wanted in zip(found, expected, strict=True):
        require_equal(made, wanted)


@pytest.mark.slow
def test_large_files_are_read_one_after_the_other(
    processes: ReadingProcesses, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.bmp")
    listing = listed(tmp_path)
    gets = [reading.reference(listing, row) for row in range(3)]
    for row, made in enumerate(processes.decoded(gets, lambda key: VIEWS, SIZE, "squash")):
        require_equal(made, here(listing, row))


@pytest.mark.slow
def test_modules_and_settings_of_this_process_are_theirs(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((photos / "large.jpg").read_bytes()[:-600])
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    for is_taken in (False, True):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_taken)
        with ReadingProcesses(1, 1, PIXELS) as processes:
            (made,) = processes.decoded([Reference(cut)], lambda key: VIEWS, SIZE, "squash")
        require_equal(made, reading.decoded(Reference(cut), lambda key: VIEWS, SIZE, "squash"))
        assert bool(made.reason) != is_taken


@pytest.mark.slow
def test_a_process_that_cannot_start_its_threads_ends() -> None:
    program = (
        "import sys, threading\n"
        "from pipeline.images import reading_service\n"
        "start, started = threading.Thread.start, []\n"
        "def few(thread):\n"
        '    if started: raise RuntimeError("can\'t start new thread")\n'
        "    started.append(thread); start(thread)\n"
        "threading.Thread.start = few\n"
        "numbers = [int(number) for number in sys.argv[1:]]\n"
        "reading_service.serve(list(zip(numbers[::2], numbers[1::2])), 8, 8, takes_truncated=False)"
    )
    pairs = [socket.socketpair() for _ in range(2)]
    theirs = [(other.fileno(), reading_processes._shared_memory(8)) for _, other in pairs]
    numbers = [number for pair in theirs for number in pair]
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, numbers)],
            pass_fds=numbers, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        for ours, other in pairs:
            ours.close()
            other.close()
        for _, memory in theirs:
            os.close(memory)
    assert (done.returncode, "can't start new thread" in done.stderr) == (1, True)


def test_files_are_asked_for_in_groups_and_members_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    with tarfile.open(tmp_path / "b.tar", "w") as file:
        file.add(tmp_path / "a.png", "a.png")
    member, plain = Reference(tmp_path, "b.tar/a.png"), Reference(tmp_path, "a.png")
    images = list(enumerate([plain, plain, plain, member, member, plain]))
    groups = [[row for row, _ in group] for group in readers_module._grouped(images, 2)]
    assert groups == [[0, 1], [2], [3], [4], [5]]
    groups = [[row for row, _ in group] for group in readers_module._grouped(images, 1)]
    assert groups == [[row] for row in range(6)]


def test_a_reference_tells_a_file_from_a_member_and_an_object(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    with tarfile.open(tmp_path / "b.tar", "w") as file:
        file.add(tmp_path / "a.png", "a.png")
    assert Reference(tmp_path, "a.png").is_file
    assert Reference(tmp_path / "a.png").is_file
    assert not Reference(tmp_path, "b.tar/a.png").is_file
    assert not Reference(tmp_path, "https://example.org/a.png").is_file


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def pids(processes: ReadingProcesses) -> list[int]:
    return [process.pid for process in processes._processes]


def is_there(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
