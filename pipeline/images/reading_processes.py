"""Processes that read and decode images, where threads of one process would wait for each other.

Pillow decodes without the interpreter's lock, but what surrounds it holds the lock for a seventh of
the time, and whoever comes back to it stands in line: 16 threads on 16 processors decoded no more
than 8, and 4 each in 4 processes two and a half times as much (docs/performance.md). A thread hands
what it would do to a process, and waits; everything that counts stays in the threads.

A process holds nothing that could be lost. It ends with the one that started it, and leaves the
interrupts that a terminal or a scheduler sends to both to that one. An image that takes more than
its share of memory is left to the threads, which have a budget for such.
"""

import math
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import numpy as np
from PIL import ImageFile

from pipeline.errors import PipelineError, mention
from pipeline.images import memory_budget, reading
from pipeline.images.readers import Readers, Wanted, is_file
from pipeline.images.reading import Get, ReadFile, ReadImage, Reference
from pipeline.system import machine

# Threads of one process: so many hardly wait for each other, and a process takes 50 MB.
THREADS: Final = 4
# Images that are asked for at once: asking takes a thread's time, which is every thread's.
GROUP: Final = 8
# Images for which processes are started, which takes each of them half a second.
LEAST_IMAGES: Final = 1000

# What a process runs. Its modules are found where those of this one were.
_PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; from pipeline.images import reading_service; "
    "reading_service.serve({lines!r}, {size}, {budget}, takes_truncated={truncated})"
)
_HOME: Final = str(Path(__file__).resolve().parents[2])
# NumPy would start threads for products that nobody asks for.
_ONE_THREAD: Final = MappingProxyType(
    dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
)
_ENDING_SECONDS: Final = 5.0
# What a terminal or a scheduler sends to all processes of a command.
_LEFT_TO_US: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def readers(workers: int, *, images: int, pixels: int) -> Iterator[Readers]:
    """Yield what reads for so many threads, in processes where that is faster.

    Warns where processes would be, and cannot be started.

    Args:
        workers: Threads that ask.
        images: How many images they will ask for at most.
        pixels: Bytes of the pixels that are wanted of one image, in all its views.
    """
    count = _worthwhile(workers, images)
    if count < 2:
        yield Readers(workers)
        return
    # Threads beyond the processors wait for images, and each should wait for one of its own.
    group = GROUP if workers <= machine.processors() else 1
    processes = ReadingProcesses(count, workers, pixels, group=group)
    if reason := _why_not_started(processes):
        text = f"No processes to decode in can be started ({reason}): threads do it, more slowly."
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        yield Readers(workers)
        return
    with processes:
        yield processes


def _why_not_started(processes: "ReadingProcesses") -> str:
    """Start processes; return why that was refused, if it was."""
    try:
        processes.start()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def _worthwhile(workers: int, images: int) -> int:
    """Return in how many processes images are decoded sooner than in threads of this one."""
    at_once = min(workers, machine.processors())
    # An application of its own, or a server with Python in it, would start itself.
    is_python = Path(sys.executable or "").name.lower().startswith(("python", "pypy"))
    if at_once <= THREADS or images < LEAST_IMAGES or not is_python:
        return 1
    return min(-(-at_once // THREADS), memory_budget.most_processes())


class ReadingProcesses(Readers):
    """Processes for a number of threads, until the end of a ``with`` block.

    Example:
        with ReadingProcesses(4, 16, 3 * 224 * 224) as processes:
            gets = [reading.reference(listing, row) for row in range(8)]
            files = processes.decoded(gets, lambda key: [""], 224, "squash")
    """

    def __init__(self, count: int, workers: int, pixels: int, *, group: int = GROUP) -> None:
        """Set up.

        Args:
            count: Processes, among which the threads that ask are divided.
            workers: Threads that ask.
            pixels: Bytes of the pixels that are wanted of one image, in all its views.
            group: Most images that a thread asks for at once.
        """
        super().__init__(workers, group)
        self._count = count
        self._memory = group * pixels
        self._budget = memory_budget.part_of(count)
        self._processes: list[subprocess.Popen[bytes]] = []
        # A line to a process for each thread; None in place of one that is out of use.
        self._idle: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self._is_closed = False

    def start(self) -> None:
        """Start the processes.

        Raises:
            OSError: One cannot be started; none is left.
        """
        each, more = divmod(self.workers, self._count)
        try:
            for place in range(self._count):
                for line in self._started(each + (place < more)):
                    self._idle.put(line)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        if not self._processes:
            self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        """End the processes; whoever still waits for one hears of it.

        Lines in use are theirs to close: a descriptor that one thread closes while another reads
        could be another file by then.
        """
        self._is_closed = True
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_SECONDS)

    def decoded(
        self, gets: Sequence[Get], wanted: Wanted, size: int, resize: str
    ) -> list[ReadFile]:
        """Do what ``reading.decoded`` does, in another process; safe to call from many threads.

        Plain files are read there as well; the bytes of anything else are read here.

        Args:
            gets: How the bytes of at most ``group`` images are had.
            wanted: Returns the views that are wanted, given the key of the bytes.
            size: Side of the encoder's input in pixels.
            resize: How an image of another shape becomes a square.

        Raises:
            OSError: A process has to be replaced, and cannot be.
            PipelineError: The process ended; names the images.
        """
        files: list[ReadFile] = []
        while len(files) < len(gets):
            if self._is_closed:
                raise PipelineError("Expected to read images. Received: the end of the command.")
            told = [get if is_file(get) else ReadImage.of(get) for get in gets[len(files) :]]
            for get, file in zip(told, self._asked(told, wanted, size, resize), strict=False):
                # What is too large for a process has the budget of this one.
                files.append(file or reading.decoded(get, wanted, size, resize))
        return files

    def _asked(
        self, told: Sequence[Get], wanted: Wanted, size: int, resize: str
    ) -> list[ReadFile | None]:
        """Have a process read images, on a line that nobody else has; see ``_Line.ask``."""
        line = self._idle.get()
        try:
            if line is None:
                (line,) = self._started(1)
            files = line.ask(told, wanted, size, resize)
        except BaseException:
            # Whatever was said on this line belongs to these images alone: nobody hears it.
            if line is not None:
                line.close()
            self._idle.put(None)
            raise
        self._idle.put(line)
        return files

    def _started(self, threads: int) -> "list[_Line]":
        """Start a process; return a line to each of its threads."""
        process, lines = _started(threads, self._memory, self._budget)
        self._processes.append(process)
        if self._is_closed:
            process.kill()
        return lines


class _Line:
    """What one thread and one thread of a process say to each other."""

    def __init__(self, connection: Connection, memory: mmap.mmap) -> None:
        self._connection = connection
        self._memory = memory
        self.process: subprocess.Popen[bytes] | None = None

    def ask(
        self, told: Sequence[Get], wanted: Wanted, size: int, resize: str
    ) -> list[ReadFile | None]:
        """Have images read, say which views of them are wanted, and take their pixels.

        Returns:
            The first of the images, as many as the process reads at once, and at least one; None
            in place of what is too large for it.

        Raises:
            PipelineError: The process ended.
        """
        keys = self._answer(told, told)
        views = [list(wanted(key)) if key else [] for key in keys]
        files = self._answer((views, size, resize), told)
        shape = (sum(len(names) for _, names in files), size, size, 3)
        area = np.frombuffer(self._memory, np.uint8, math.prod(shape))
        squares = iter(area.reshape(shape).copy())
        return [
            file and replace(file, pixels={name: next(squares) for name in names})
            for file, names in files
        ]

    def _answer(self, said: object, told: Sequence[Get]) -> Any:
        """Say something of these images, and return the answer; raise what the process raised."""
        try:
            self._connection.send(said)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            names = [get.name if isinstance(get, Reference) else "an image" for get in told]
            raise PipelineError(
                f"Expected {mention(names)} to be decoded. Received: the process that does it "
                f"{self._ending()}.",
                hint="Run the same again; with fewer --workers if memory is short.",
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ending(self) -> str:
        """Say how the process ended."""
        try:
            status = self.process.wait(_ENDING_SECONDS) if self.process else 0
        except subprocess.TimeoutExpired:
            return "hung up"
        return f"was killed (signal {-status})" if status < 0 else f"ended (status {status})"

    def close(self) -> None:
        """Hang up, which ends the thread at the other end."""
        with suppress(OSError):
            self._connection.close()


def _started(threads: int, size: int, budget: int) -> tuple["subprocess.Popen[bytes]", list[_Line]]:
    """Start a process with so many threads, each with a line and so many bytes for pixels."""
    lines: list[_Line] = []
    theirs: list[int] = []
    try:
        for _ in range(threads):
            ours, other = socket.socketpair()
            theirs.append(other.detach())
            connection = Connection(ours.detach())
            theirs.append(_shared_memory(size))
            lines.append(_Line(connection, mmap.mmap(theirs[-1], size)))
        program = _PROGRAM.format(
            # Others Python ignores; and this package, had it been found by where we were.
            path=[entry for entry in sys.path if isinstance(entry, str)] + [_HOME],
            lines=list(zip(theirs[::2], theirs[1::2], strict=True)),
            size=size,
            budget=budget,
            truncated=ImageFile.LOAD_TRUNCATED_IMAGES,
        )
        # As multiprocessing does: of files' names, for one, the mode of UTF-8 decides.
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        with _blocked(_LEFT_TO_US):
            process = subprocess.Popen(
                [sys.executable, *flags, "-c", program],
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
            )
    finally:
        for number in theirs:
            os.close(number)
    for line in lines:
        line.process = process
    return process, lines


@contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Block signals in this thread; what is started meanwhile has them blocked to its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shared_memory(size: int) -> int:
    """Return the descriptor of memory that another process can have too."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("pixels")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    try:
        os.ftruncate(number, size)
    except OSError:
        os.close(number)
        raise
    return number
