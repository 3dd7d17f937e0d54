"""Processes that read and decode images, where threads of one process would wait for each other.

Pillow decodes without the interpreter's lock, but what surrounds it holds the lock for a seventh of
the time, and whoever comes back to it stands in line: 16 threads on 16 processors decoded no more
than 8, and 4 each in 4 processes two and a half times as much (docs/performance.md). A thread hands
what it would do to a process, and waits; everything that counts stays in the threads.

A process holds nothing that could be lost. It ends with the one that started it, and leaves the
interrupts that a terminal or a scheduler sends to both to that one.
"""

import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Final, Self, TypeAlias

import numpy as np

from pipeline.errors import DecodeError, PipelineError
from pipeline.images import decoder, memory_budget, reading
from pipeline.images.reading import Content, ReadFile, Reference
from pipeline.system import machine

# Threads of one process: so many hardly wait for each other, and a process takes 50 MB.
THREADS: Final = 4
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


# How the bytes of an image are had, which views of it are wanted given their key, side and rule of
# resizing: ``reading.decoded``, here or elsewhere.
Decode: TypeAlias = Callable[
    [Callable[[], Content], Callable[[str], Iterable[str]], int, str], ReadFile
]


@contextmanager
def decoding(workers: int, *, images: int, pixels: int) -> Iterator[Decode]:
    """Yield what reads and decodes an image for so many threads, in processes where that is faster.

    Args:
        workers: Threads that ask, each for one image at a time.
        images: How many images they will ask for at most.
        pixels: Bytes of the pixels that are wanted of one image, in all its views.
    """
    at_once = min(workers, machine.processors())
    if at_once <= THREADS or images < LEAST_IMAGES or not sys.executable:
        yield reading.decoded
        return
    with ReadingProcesses(-(-at_once // THREADS), workers, pixels) as processes:
        yield processes.decoded


class ReadingProcesses:
    """Processes for a number of threads, from the start of a ``with`` block to its end.

    Example:
        with ReadingProcesses(4, 16, 3 * 224 * 224) as processes:
            file = processes.decoded(reading.reference(listing, 0), lambda key: [""], 224, "squash")
    """

    def __init__(self, count: int, workers: int, pixels: int) -> None:
        """Set up.

        Args:
            count: Processes, among which the threads that ask are divided.
            workers: Threads that ask, each for one image at a time.
            pixels: Bytes of the pixels that are wanted of one image, in all its views.
        """
        self._count = count
        self._workers = workers
        self._pixels = pixels
        self._budget = memory_budget.part_of(count)
        self._processes: list[_Process] = []
        # A line to a process for each thread; None in place of one that is out of use.
        self._idle: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self._is_closed = False

    def __enter__(self) -> Self:
        each, more = divmod(self._workers, self._count)
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
        self,
        get: Callable[[], Content],
        wanted: Callable[[str], Iterable[str]],
        size: int,
        resize: str,
    ) -> ReadFile:
        """Do what ``reading.decoded`` does, in another process; safe to call from many threads.

        A plain file is read there as well; the bytes of anything else are read here.

        Raises:
            PipelineError: The process ended; names the image.
        """
        if not (isinstance(get, Reference) and get.is_file):
            try:
                get = partial(_given, get())
            except DecodeError as error:
                return ReadFile(reason=str(error))
        line = self._idle.get()
        try:
            if line is None:
                line = self._replacement()
            file = line.ask(get, wanted, size, resize)
        except BaseException:
            # Whatever was said on this line belongs to this image alone: nobody hears it.
            if line is not None:
                line.close()
            self._idle.put(None)
            raise
        self._idle.put(line)
        return file

    def _start(self, threads: int) -> "_Process":
        process = _Process(threads, self._pixels, self._budget)
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

    def ask(
        self,
        get: Callable[[], Content],
        wanted: Callable[[str], Iterable[str]],
        size: int,
        resize: str,
    ) -> ReadFile:
        """Have an image read, say which views of it are wanted, and take their pixels."""
        try:
            self._connection.send((get, size, resize))
            answer = self._connection.recv()
            if isinstance(answer, str):
                self._connection.send(list(wanted(answer)))
                answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            name = get.name if isinstance(get, Reference) else "an image"
            raise PipelineError(
                f"Expected {name} to be decoded. Received: the process that does it "
                f"{self._process.ending()}.",
                hint="Run the same again; with fewer --workers if memory is short.",
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        file: ReadFile
        file, views = answer
        area, bytes_each = np.frombuffer(self._memory, np.uint8), 3 * size * size
        found = [area[at * bytes_each : (at + 1) * bytes_each] for at in range(len(views))]
        squares = [pixels.reshape(size, size, 3).copy() for pixels in found]
        return replace(file, pixels=dict(zip(views, squares, strict=True)))

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
    decoder.take_at_most(budget)
    threads = [
        threading.Thread(target=_serve, args=(Connection(line), mmap.mmap(memory, size)))
        for line, memory in lines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(connection: Connection, memory: mmap.mmap) -> None:
    area = np.frombuffer(memory, np.uint8)

    def wanted(key: str) -> list[str]:
        connection.send(key)
        views: list[str] = connection.recv()
        return views

    with suppress(EOFError, ConnectionError):
        while True:
            get, size, resize = connection.recv()
            try:
                file = reading.decoded(get, wanted, size, resize)
            except Exception as error:
                connection.send(error)
                continue
            for place, pixels in enumerate(file.pixels.values()):
                area[place * pixels.size : (place + 1) * pixels.size] = pixels.ravel()
            connection.send((replace(file, pixels={}), list(file.pixels)))


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


def _given(content: Content) -> Content:
    return content
