"""Image files as they are read: bytes and status of each, in threads, a bounded number ahead."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from pipeline.errors import DecodeError
from pipeline.files.atomic import UnfitFileError, read_regular
from pipeline.images import decoder
from pipeline.images.decoder import Pixels

# Files read ahead, beside 16 a thread: enough to fill a batch while another is encoded.
_AHEAD: Final = 32


Argument = TypeVar("Argument")


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ReadFile:
    """What a file turned out to hold.

    Attributes:
        key: SHA-256 of its bytes; empty if it could not be read.
        status: The state of the file as read; None if it changed meanwhile.
        pixels: uint8 ``(S, S, 3)`` by view; only of those whose features are not at hand.
        reason: Why it is bad; empty if it is not.
    """

    key: str = ""
    status: os.stat_result | None = None
    pixels: Mapping[str, Pixels] = field(default_factory=dict)
    reason: str = ""


def read_bytes(path: Path) -> tuple[bytes, os.stat_result | None]:
    """Return a file's bytes and its state, None where it changed while it was read."""
    try:
        data, before = read_regular(path, limit=decoder.MAX_BYTES)
        after = path.stat()
    except UnfitFileError as error:
        raise DecodeError(str(error.strerror)) from error
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror}") from error
    unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(data))
    return data, after if unchanged else None


def in_threads(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], workers: int
) -> Iterator[tuple[Argument, Future[Result]]]:
    """Yield (argument, future) in order, computed in threads, a bounded number ahead."""
    waiting: deque[tuple[Argument, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    try:
        for argument in arguments:
            waiting.append((argument, pool.submit(function, argument)))
            if len(waiting) > _AHEAD + 16 * workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        # Whoever leaves early does not wait for what nobody will look at.
        pool.shutdown(wait=False, cancel_futures=True)
