"""Copies of objects on this machine's disk: packed files and tables, which are read in pieces.

They lie in a folder of their own in the user's cache, named by the digest of their address and
state, so that one of another state is never taken for them. Those that were used last are kept,
within a budget; several processes may share the folder. A copy has its name only once it is whole,
and is never touched again: its times are part of what says that it is unchanged. When it was used
last, a mark beside it tells.

``PIPELINE_CACHE_DIR`` names another cache, ``PIPELINE_CACHE_GB`` another budget.
"""

import errno
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.errors import ConfigError, StorageError, hint_for
from pipeline.files.atomic import exclusive, remove_leftovers, rename_durably, temporary_sibling
from pipeline.files.location import Remote
from pipeline.files.remote import known, objects
from pipeline.files.state import FileState

FOLDER: Final = "PIPELINE_CACHE_DIR"
BUDGET: Final = "PIPELINE_CACHE_GB"
_GIGABYTES: Final = 20.0
# In the cache, which may hold other things, of the user's too.
_COPIES: Final = "copies"
# An object is fetched in pieces, several at once: one that is cut costs little.
_PIECE: Final = 16 << 20
_AT_ONCE: Final = 8
# Of an object that changes while it is fetched.
_TRIES: Final = 3
# At the end of names beside a copy's, which no copy has.
_LOCK: Final = "-lock"
_USED: Final = "-used"
# Seconds for which a use of a copy counts as the last one.
_GRAIN: Final = 60


class Copy(NamedTuple):
    """A copy of an object.

    Attributes:
        path: Where it is.
        state: The state of the object that it is of.
    """

    path: Path
    state: FileState


def local_copy(place: Remote) -> Path:
    """Return a copy of an object on this machine's disk; see ``copied``."""
    return copied(place).path


def copied(place: Remote, wanted: FileState | None = None) -> Copy:
    """Return a copy of an object on this machine's disk, fetched if there is none of its state.

    The state is asked for once a minute, and anew after ``known.forget``.

    Args:
        place: The object.
        wanted: A state that it was in. A copy of that state is returned as long as there is one.

    Raises:
        FileNotFoundError: There is no such object.
        ConfigError: What speaks to such a storage is not installed.
        StorageError: The storage refuses or cannot be reached, or the folder cannot be written.
    """
    if wanted is not None and wanted.is_proof:
        path = folder() / _COPIES / known.name_of(place, wanted.stamp)
        if _is_whole(path, wanted):
            return Copy(path, wanted)
    found = known.look(place)
    if found.state is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(place))
    path = folder() / _COPIES / found.name
    if _is_whole(path, found.state):
        return Copy(path, found.state)
    return _made(place, found.state, path)


def download(place: Remote, target: Path) -> None:
    """Write an object into a file, in pieces; whether it changed meanwhile, its digest tells.

    Raises:
        FileNotFoundError: There is no such object.
        ConfigError, StorageError: As for ``objects.listing``.
    """
    found = objects.state(place)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(place))
    _fetch_pieces(place, found.size, target)


def folder() -> Path:
    """Return the cache, which holds a folder of copies, and one of working copies of stores."""
    named = os.environ.get(FOLDER)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "embedding-pipeline"


def budget() -> int:
    """Return the bytes that copies may take together.

    Raises:
        ConfigError: The variable of the environment holds no number.
    """
    text = os.environ.get(BUDGET, "")
    try:
        gigabytes = float(text) if text else _GIGABYTES
    except ValueError:
        gigabytes = math.nan
    if not gigabytes >= 0 or math.isinf(gigabytes):
        raise ConfigError(
            f"{BUDGET}: expected gigabytes, such as 20. Received: {text!r}.",
            hint="Correct it in the environment, or leave it out.",
        )
    return int(gigabytes * 1e9)


def _is_whole(path: Path, state: FileState) -> bool:
    """Tell whether a copy is there, and take down that it was used."""
    try:
        size = path.stat().st_size
        is_lately_used = time.time() - _last_use(path) <= _GRAIN
    except OSError:
        return False
    if size != state.size and state.size:
        return False
    if not is_lately_used:
        with suppress(OSError):  # a copy can be read where nothing can be written
            _mark(path).touch()
    return True


def _last_use(path: Path) -> float:
    """Return when a copy was used last; one without a mark, when it was made."""
    with suppress(FileNotFoundError):
        return _mark(path).stat().st_mtime
    return path.stat().st_mtime


def _mark(path: Path) -> Path:
    return path.with_name(path.name + _USED)


def _made(place: Remote, state: FileState, path: Path) -> Copy:
    """Fetch an object, unless another thread or process does so or has just done it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        lock = path.with_name(path.name + _LOCK)
        with exclusive(lock, f"{str(place)!r} is being fetched.", wait=True):
            try:
                copy = Copy(path, state) if _is_whole(path, state) else _fetched(place, state, path)
            finally:
                lock.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == str(place):
            raise
        raise StorageError(
            f"The copy of {str(place)!r} cannot be written into {str(path.parent)!r}: "
            f"{error.strerror or error}.",
            hint=f"{hint_for(error)} Another folder is named by {FOLDER}, its size by {BUDGET}.",
            is_lost=True,
        ) from error
    return copy


def _fetched(place: Remote, state: FileState, path: Path) -> Copy:
    """Fetch an object; where it changed meanwhile, in the state that it has then.

    Raises:
        StorageError: It changes all the time.
    """
    in_pieces = state.size > 0 and objects.has_ranges(place)
    for _ in range(_TRIES):
        _make_room(path.parent, state.size)
        with temporary_sibling(path) as temporary:
            if in_pieces:
                _fetch_pieces(place, state.size, temporary)
                after = objects.state(place)
            else:
                after = objects.fetch(place, temporary)
            if after is not None and (after.stamp == state.stamp or not in_pieces):
                if after.stamp != state.stamp:
                    path = path.with_name(known.take_down(place, after).name)
                rename_durably(temporary, path)
                return Copy(path, after)
        if after is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(place))
        path, state = path.with_name(known.take_down(place, after).name), after
    raise StorageError(
        f"{str(place)!r} changed whenever it was read.",
        hint="Run this again when nobody writes it.",
        is_lost=True,
    )


def _fetch_pieces(place: Remote, size: int, target: Path) -> None:
    with target.open("wb") as file, ThreadPoolExecutor(_AT_ONCE) as pool:
        file.truncate(size)
        descriptor = file.fileno()

        def fetch(start: int) -> None:
            data = objects.read_range(place, start, min(_PIECE, size - start))
            os.pwrite(descriptor, data, start)

        for piece in [pool.submit(fetch, start) for start in range(0, size, _PIECE)]:
            piece.result()


def _make_room(place: Path, size: int) -> None:
    """Delete the copies that were used longest ago, until one of a size fits into the budget."""
    found: list[tuple[float, int, Path]] = []
    for path in place.iterdir():
        if known.is_name(path.name):
            with suppress(FileNotFoundError):  # another process makes room
                found.append((_last_use(path), path.stat().st_size, path))
    excess = sum(taken for _, taken, _ in found) + size - budget()
    for _, taken, path in sorted(found):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        _mark(path).unlink(missing_ok=True)
        excess -= taken
