"""Requests to a storage: what may pass is tried again, more and more slowly, and not for ever.

A storage that many requests in a row got nothing from is lost: whoever works through a list stops,
instead of taking each of its objects for a bad one.
"""

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from pipeline.errors import StorageError
from pipeline.files.location import Remote
from pipeline.files.regular import UnfitFileError
from pipeline.files.remote import refusals, systems
from pipeline.files.remote.refusals import Refusal

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Result = TypeVar("Result")

# Seconds before the second attempt, doubled before each further one; half of each is left to
# chance, so that threads that failed together do not come back together.
PAUSE = 0.25
_LONGEST_PAUSE: Final = 20.0
_ATTEMPTS: Final = 7
# Of a storage that never answered: most likely its address is wrong.
_FIRST_ATTEMPTS: Final = 2
# No attempt begins later than this after the first one.
_SECONDS: Final = 90.0
_LOCAL: Final = frozenset({errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENOSPC, errno.EROFS})
# Objects in a row, of one bucket or host, after which it is lost.
LOST_AFTER: Final = 16


@dataclass(slots=True)
class _Storage:
    """What is known of a bucket or host.

    Attributes:
        has_answered: Whether it ever did.
        failed: Requests in a row that were given up.
        lost: Set while it is lost, so that nobody waits for it.
    """

    has_answered: bool = False
    failed: int = 0
    lost: threading.Event = field(default_factory=threading.Event)

    def note_answer(self) -> None:
        self.has_answered = True
        self.failed = 0
        self.lost.clear()

    def note_failure(self) -> bool:
        """Count a request that was given up; tell whether the storage is lost."""
        with _lock:
            self.failed += 1
        if self.failed >= LOST_AFTER:
            self.lost.set()
        return self.lost.is_set()


_known: dict[str, _Storage] = {}
_lock = threading.Lock()


def request(
    place: Remote, verb: str, call: Callable[["AbstractFileSystem", str], Result]
) -> Result:
    """Ask a storage for something until it answers, or there is no more hope.

    Args:
        place: The object.
        verb: What happens to it, for messages, such as ``read``.
        call: Given the file system and what it calls the object; may be called again.

    Raises:
        FileNotFoundError: There is no such object.
        ConfigError: What speaks to such a storage is not installed.
        StorageError: The storage refuses, or did not answer.
    """
    system = systems.of(place)
    path = systems.path_of(place, system)
    with _lock:
        storage = _known.setdefault(systems.host_of(place), _Storage())
    began, pause, attempt = time.monotonic(), PAUSE, 1
    while True:
        try:
            result = call(system, path)
        except Exception as error:  # every library has its own
            if isinstance(error, UnfitFileError) or _is_of_this_machine(error):
                raise
            refusal = refusals.of(error)
        else:
            storage.note_answer()
            return result
        if refusal.has_answered:
            storage.has_answered = True
        if refusal.is_missing:
            storage.note_answer()
            raise FileNotFoundError(2, refusal.reason, str(place))
        most = _ATTEMPTS if storage.has_answered else _FIRST_ATTEMPTS
        is_late = time.monotonic() - began > _SECONDS
        if not refusal.may_pass or attempt >= most or is_late or storage.lost.is_set():
            raise _given_up(place, verb, refusal, is_lost=storage.note_failure())
        wait = max(pause * random.uniform(0.5, 1), min(refusal.pause, _LONGEST_PAUSE))  # noqa: S311
        storage.lost.wait(wait)
        pause, attempt = min(2 * pause, _LONGEST_PAUSE), attempt + 1


def _is_of_this_machine(error: Exception) -> bool:
    """Tell whether a file of this machine is at fault, which is read or written meanwhile."""
    return isinstance(error, OSError) and error.errno in _LOCAL


def _given_up(place: Remote, verb: str, refusal: Refusal, *, is_lost: bool) -> StorageError:
    message = f"{str(place)!r} cannot be {verb}: {refusal.reason}."
    if is_lost:
        message = (
            f"{systems.host_of(place)}: {LOST_AFTER} requests in a row failed. The last: {message}"
        )
    return StorageError(message, hint=refusal.hint, reason=refusal.reason, is_lost=is_lost)


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _known.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
