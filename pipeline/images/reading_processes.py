"""Processes that read and decode images, where threads of one process would wait for each other.

Pillow decodes without the interpreter's lock, but what surrounds it holds the lock for a seventh of
the time, and whoever comes back to it stands in line: 16 threads on 16 processors decoded no more
than 8, and 4 each in 4 processes two and a half times as much (docs/performance.md). A thread hands
what it would do to a process, and waits; everything that counts stays in the threads.

A process holds nothing that could be lost. It ends with the one that started it, and leaves the
interrupts that a terminal or a scheduler sends to both to that one.
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
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Final, Self

import numpy as np

from pipeline.errors import DecodeError, PipelineError, mention
from pipeline.images import decoder, memory_budget, reading
from pipeline.images.readers import Get, Readers, Wanted
from pipeline.images.reading import Content, ReadFile, Reference
from pipeline.system import machine

# Threads of one process: so many hardly wait for each other, and a process takes 50 MB.
THREADS: Final = 4
# Images that are asked for at once: asking takes a thread's time, which is every thread's.
GROUP: Final = 8
# Images for which processes are started, which takes each of them half a second.
LEAST_IMAGES: Final = 1000

# What a process runs. Its modules are found where those of this one were.
_PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; from pipeline.images import reading_processes; "
    "reading_processes.serve({lines!r}, {size}, {budget})"
)
_ENDING_SECONDS: Final = 5.0
# What a terminal or a scheduler sends to all processes of a command.
_LEFT_TO_US: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def readers(workers: int, *, images: int, pixels: int) -> Iterator[Readers]:
    """Yield what reads for so many threads, in processes where that is faster.

    Args:
        workers: Threads that ask.
        images: How many images they will ask for at most.
        pixels: Bytes of the pixels that are wanted of one image, in all its views.
    """
    at_once = min(workers, machine.processors())
    if at_once <= THREADS or images < LEAST_IMAGES or not sys.executable:
        yield Readers(workers)
        return
    # Threads beyond the processors wait for images, and each should wait for one of its own.
    group = GROUP if workers <= machine.processors() else 1
    with ReadingProcesses(-(-at_once // THREADS), workers, pixels, group=group) as processes:
        yield processes


class ReadingProcesses(Readers):
    """Processes for a number of threads, from the start of a ``with`` block to its end.

    Example:
        with ReadingProcesses(4, 16, 3 * 224 * 224) as processes:
            gets = [reading.reference(listing, row) for row in range(8)]
            files = processes.decoded(gets, lambda key: [""], 224, "squash")
    """

    def __init__(self, count: int, workers: int, pixels: int, *, group: int = GROUP) -> None:
        """Set up.

        Args:
            count: Processes, among which the threads that ask are divided.
            workers: Threads that ask, each for one image at a time.
            pixels: Bytes of the pixels that are wanted of one image, in all its views.
            group: Most images that a thread asks for at once.
        """
        super().__init__(workers, group)
        self._count = count
        self._memory = group * pixels
        self._budget = memory_budget.part_of(count)
        self._processes: list[_Process] = []
        # A line to a process for each thread; None in place of one that is out of use.
        self._idle: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self._is_closed = False

    def __enter__(self) -> Self:
        each, more = divmod(self.workers, self._count)
        try:
            for place in range(self._count):
                for line in self._start(each + (place < more)).lines:
                    self._idle.put(line)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        self._is_closed = True
        for process in self._processes:
            process.end()

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
            PipelineError: The process ended; names the images.
        """
        told = [get if _is_file(get) else _Read.of(get) for get in gets]
        line = self._idle.get()
        try:
            if line is None:
                line = self._replacement()
            files = line.ask(told, wanted, size, resize)
        except BaseException:
            # Whatever was said on this line belongs to these images alone: nobody hears it.
            if line is not None:
                line.close()
            self._idle.put(None)
            raise
        self._idle.put(line)
        return files

    def _start(self, threads: int) -> "_Process":
        process = _Process(threads, self._memory, self._budget)
        self._processes.append(process)
        return process

    def _replacement(self) -> "_Line":
        if self._is_closed:
            raise PipelineError("Expected to read images. Received: the end of the command.")
        (line,) = self._start(1).lines
        return line


class _Line:
    """What one thread and one thread of a process say to each other, an image at a time."""

    def __init__(self, process: "_Process", connection: Connection, memory: mmap.mmap) -> None:
        self._process = process
        self._connection = connection
        self._memory = memory

    def ask(self, told: Sequence[Get], wanted: Wanted, size: int, resize: str) -> list[ReadFile]:
        """Have images read, say which views of them are wanted, and take their pixels."""
        try:
            self._connection.send(told)
            keys = self._answer()
            views = [list(wanted(key)) if key else [] for key in keys]
            self._connection.send((views, size, resize))
            files = self._answer()
        except (EOFError, ConnectionError) as error:
            names = [get.name if isinstance(get, Reference) else "an image" for get in told]
            raise PipelineError(
                f"Expected {mention(names)} to be decoded. Received: the process that does it "
                f"{self._process.ending()}.",
                hint="Run the same again; with fewer --workers if memory is short.",
            ) from error
        shape = (sum(len(names) for _, names in files), size, size, 3)
        area = np.frombuffer(self._memory, np.uint8, math.prod(shape))
        squares = iter(area.reshape(shape).copy())
        return [
            replace(file, pixels={name: next(squares) for name in made}) for file, made in files
        ]

    def _answer(self) -> Any:
        """Return what the process says; raise what it raised."""
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Hang up, which ends the thread at the other end."""
        with suppress(OSError):
            self._connection.close()


class _Process:
    """A process that reads and decodes, with a line for each of its threads."""

    def __init__(self, threads: int, pixels: int, budget: int) -> None:
        self.lines: list[_Line] = []
        theirs: list[tuple[int, int]] = []
        try:
            for _ in range(threads):
                ours, other = socket.socketpair()
                memory = _shared_memory(pixels)
                theirs.append((other.detach(), memory))
                connection = Connection(ours.detach())
                self.lines.append(_Line(self, connection, mmap.mmap(memory, pixels)))
            program = _PROGRAM.format(path=sys.path, lines=theirs, size=pixels, budget=budget)
            with _blocked(_LEFT_TO_US):
                self._process = subprocess.Popen(
                    [sys.executable, "-c", program],
                    pass_fds=[number for pair in theirs for number in pair],
                    stdin=subprocess.DEVNULL,
                )
        finally:
            for number in (number for pair in theirs for number in pair):
                os.close(number)

    def ending(self) -> str:
        """Say how the process ended."""
        try:
            status = self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return "hung up"
        return f"was killed (signal {-status})" if status < 0 else f"ended (status {status})"

    def end(self) -> None:
        """End the process; whoever still waits for it hears of that.

        The lines are theirs to close: a descriptor that one thread closes while another reads
        could be another file by then.
        """
        self._process.kill()
        self._process.wait()


def serve(lines: Sequence[tuple[int, int]], size: int, budget: int) -> None:
    """Read and decode until the other end of every line is gone; what a process runs.

    Args:
        lines: Descriptors of a socket and of memory for pixels, for each thread.
        size: Bytes of that memory.
        budget: Bytes that images decoded at once may take in this process.
    """
    decoder.BUDGET.take_at_most(budget)
    threads = [
        threading.Thread(target=_serve, args=(Connection(line), mmap.mmap(memory, size)))
        for line, memory in lines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(connection: Connection, memory: mmap.mmap) -> None:
    """Answer one thread; after an error it hangs up."""
    area = np.frombuffer(memory, np.uint8)
    with suppress(EOFError, ConnectionError):
        while True:
            gets = connection.recv()
            try:
                read = [_Read.of(get) for get in gets]
                connection.send([item.key for item in read])
                views, size, resize = connection.recv()
                files = [
                    item.decoded(names, size, resize)
                    for item, names in zip(read, views, strict=True)
                ]
            except Exception as error:
                connection.send(error)
                return
            made = [pixels for file in files for pixels in file.pixels.values()]
            for place, pixels in enumerate(made):
                area[place * pixels.size : (place + 1) * pixels.size] = pixels.ravel()
            connection.send([(replace(file, pixels={}), list(file.pixels)) for file in files])


@dataclass(frozen=True, slots=True)
class _Read:
    """An image that was read; called, it returns its bytes.

    Attributes:
        content: The bytes; None of one that cannot be read.
        reason: Why it cannot be.
        seconds: How long reading took.
        computing: Of these, seconds of processor time.
    """

    content: Content | None
    reason: str
    seconds: float
    computing: float

    @classmethod
    def of(cls, get: Get) -> "_Read":
        """Read an image; one that was read is taken as it is."""
        if isinstance(get, cls):
            return get
        began, computed = time.monotonic(), time.thread_time()
        content, reason = None, ""
        try:
            content = get()
            _ = content.key  # kept with it
        except DecodeError as error:
            reason = str(error)
        return cls(content, reason, time.monotonic() - began, time.thread_time() - computed)

    def __call__(self) -> Content:
        """Return the bytes.

        Raises:
            DecodeError: There are none.
        """
        if self.content is None:
            raise DecodeError(self.reason)
        return self.content

    @property
    def key(self) -> str:
        """SHA-256 of the bytes; empty without."""
        return "" if self.content is None else self.content.key

    def decoded(self, views: Sequence[str], size: int, resize: str) -> ReadFile:
        """Decode views of it; see ``reading.decoded``."""
        file = reading.decoded(self, lambda key: views, size, resize)
        return replace(
            file,
            seconds=file.seconds + self.seconds,
            computing=file.computing + self.computing,
        )


@contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Block signals in this thread; what is started meanwhile has them blocked to its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
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
    os.ftruncate(number, size)
    return number


def _is_file(get: Get) -> bool:
    return isinstance(get, Reference) and get.is_file
