"""Files that are complete when they exist: write to a temporary name, fsync, rename.

Nothing else in the package opens a final name in a store or a run for writing.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pipeline.errors import StoreError
from pipeline.system.progress import Reporter, Silence

TEMPORARY_PREFIX: Final = ".tmp-"
_REPLACED: Final = ".replaced"
# What ``tempfile`` puts between prefix and suffix; never a hyphen, so that names do not mix.
_RANDOM: Final = "[a-z0-9_]+"
# Names of files have 255 bytes at most, and a temporary one is longer than what it stands for.
_LONG_NAME: Final = 200

# Gives a finished temporary file its final name.
Put = Callable[[Path, Path], None]


def write_atomically(path: Path, write: Callable[[Path], object], put: Put | None = None) -> None:
    """Make ``path`` by calling ``write(temporary)``, then ``put``: by default fsync and rename.

    Raises:
        OSError: The disk is full or the folder is read-only; the old file, if any, is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_sibling(path) as temporary:
        write(temporary)
        (put or rename_durably)(temporary, path)


def write_text(path: Path, text: str, put: Put | None = None) -> None:
    """Write text in UTF-8 atomically; undecodable bytes of file names survive the round trip."""
    data = text.encode("utf-8", errors="surrogateescape")
    write_atomically(path, lambda temporary: temporary.write_bytes(data), put)


def write_json(path: Path, value: object, put: Put | None = None) -> None:
    """Write a JSON document atomically; NaN is refused, so that every reader can parse it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", put)


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; what is left under it at the end is removed.

    While the context lasts, nobody takes the file for what a killed process left.

    Raises:
        OSError: As inside the context; names ``path`` where the system names no file.
    """
    descriptor, temporary = _new_temporary(path)
    try:
        # mkstemp makes files that only their owner can read; stores are meant to be shared.
        temporary.chmod(0o666 & ~_umask())
        yield temporary
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``, which is removed at the end.

    What was set aside in it is taken back if nothing has taken its place.
    Those that killed processes left beside the same path are removed first.
    """
    recover(path)
    with (
        tempfile.TemporaryDirectory(prefix=_prefix_of(path), dir=path.parent) as folder,
        _locked(Path(folder)),
    ):
        try:
            yield Path(folder)
        finally:
            _take_back(Path(folder), path)


def set_aside(path: Path, folder: Path) -> None:
    """Move a folder that is about to be replaced into a temporary one of ``temporary_folder``."""
    path.rename(folder / f"{path.name}{_REPLACED}")


def recover(path: Path) -> None:
    """Clear up what killed processes left beside ``path``, where they were making it.

    Where ``path`` is missing, what they had set aside to replace it is taken back.
    """
    form = re.compile(rf"{re.escape(_prefix_of(path))}{_RANDOM}({re.escape(path.suffix)})?")
    for leftover in _entries(path.parent):
        if form.fullmatch(leftover.name):
            _remove_unused(leftover, path)


def rename_durably(temporary: Path, path: Path) -> None:
    """Flush a finished file to disk, give it its final name, and flush the folder's entry."""
    _fsync(temporary)
    temporary.replace(path)
    _fsync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder of ours."""
    for leftover in _entries(folder):
        if _is_temporary(leftover):
            _remove_unused(leftover)


def complete(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder of ours that are in their place, sorted."""
    return sorted(path for path in folder.glob(f"*{suffix}") if path.name[0] != ".")


def foreign(folder: Path, own: Collection[str]) -> list[str]:
    """Return the names in a folder of ours that are neither ``own`` nor temporary, sorted.

    Nothing is in a folder that is gone, which another process may have deleted a moment ago.
    """
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return []
    return sorted(item.name for item in found if item.name not in own and not _is_temporary(item))


@contextmanager
def exclusive(
    path: Path, busy: str, *, wait: bool = False, reporter: Reporter | None = None
) -> Iterator[None]:
    """Hold an advisory lock on ``path`` alone; the system drops it when the process dies.

    Args:
        path: The lock file; made if there is none.
        busy: What is said where another process holds it.
        wait: Whether to wait for that process.
        reporter: Where it is said that there is something to wait for.

    Raises:
        StoreError: Another process holds it and ``wait`` is off.
    """
    import fcntl

    with _held(path, fcntl.LOCK_EX, busy, wait=wait, reporter=reporter or Silence()):
        yield


@contextmanager
def shared(path: Path, busy: str, *, reporter: Reporter) -> Iterator[None]:
    """Hold an advisory lock on ``path`` beside others that share it, not beside ``exclusive``.

    Args:
        path: The lock file; made if there is none.
        busy: What is said before waiting for a process that holds it alone.
        reporter: Where that is said.
    """
    import fcntl

    with _held(path, fcntl.LOCK_SH, busy, wait=True, reporter=reporter):
        yield


@contextmanager
def _held(path: Path, kind: int, busy: str, *, wait: bool, reporter: Reporter) -> Iterator[None]:
    """Hold a lock of one kind of ``fcntl``."""
    is_held = False
    while not is_held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # To read and to write: NFS shares a lock with readers alone, and gives one to writers.
            file = path.open("a+")
        except (FileExistsError, FileNotFoundError):
            if path.parent.exists() and not path.parent.is_dir():
                raise
            continue  # whoever held it before deleted the folder meanwhile
        with file:
            _lock(file.fileno(), path, kind, busy, wait=wait, reporter=reporter)
            # Whoever held it before may have deleted the file: the next one makes another.
            is_held = _is_at(path, file.fileno())
            if is_held:
                yield


def _lock(
    descriptor: int, path: Path, kind: int, busy: str, *, wait: bool, reporter: Reporter
) -> None:
    """Lock an open file, or say why that cannot be.

    Raises:
        StoreError: Another process holds it and ``wait`` is off, or the file system has no locks.
    """
    import fcntl

    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise StoreError(busy, hint="Wait for it to end, then run this again.") from error
            reporter.say(f"{busy} Waiting for it to end.")
            fcntl.flock(descriptor, kind)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StoreError(
            f"Expected a file system with locks, which keep two processes from writing at once. "
            f"Received: {str(path)!r} cannot be locked: {error.strerror}.",
            hint="Choose a place on a local disk, or have this file system mounted with locks "
            "(NFS without nolock, Lustre with flock).",
        ) from error


def has_locks(path: Path) -> bool:
    """Tell whether a file lies where files can be locked; other locks on it are left alone."""
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Try to lock a folder or file as long as the context lasts; tells whether nobody holds it."""
    import fcntl

    try:
        descriptor = _open_to_lock(path)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except OSError:  # held, or a file system that has no locks
            is_free = False
        yield is_free
    finally:
        os.close(descriptor)


def _open_to_lock(path: Path) -> int:
    """Open a file for writing, without which NFS locks nothing; a folder allows reading alone.

    Raises:
        OSError: It cannot be opened, or is a link.
    """
    # Without waiting for the other end of a pipe.
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags)
    except (IsADirectoryError, PermissionError):
        return os.open(path, os.O_RDONLY | flags)


def _new_temporary(path: Path) -> tuple[int, Path]:
    """Make a temporary file beside ``path`` and hold it; returns its descriptor and its name."""
    import fcntl

    while True:
        descriptor, name = tempfile.mkstemp(
            prefix=_prefix_of(path), suffix=path.suffix, dir=path.parent
        )
        # Shared: once it has its final name, HDF5 in other programs wants to share its lock.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(Path(name), descriptor):
            return descriptor, Path(name)
        os.close(descriptor)  # taken for a leftover before it was held


def _prefix_of(path: Path) -> str:
    """Return how temporary names begin of what is to become ``path``."""
    name = path.name
    if len(os.fsencode(name)) > _LONG_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{TEMPORARY_PREFIX}{name}-"


def _is_temporary(path: Path) -> bool:
    """Tell whether something is a temporary file, as ``temporary_sibling`` makes them."""
    return path.name.startswith(TEMPORARY_PREFIX) and path.is_file() and not path.is_symlink()


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing where it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _remove_unused(leftover: Path, path: Path | None = None) -> None:
    """Delete a temporary file or folder that no process holds; take back what ``path`` lacks."""
    with _locked(leftover) as is_free:
        if not is_free:
            return
        if path is not None:
            _take_back(leftover, path)
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _take_back(folder: Path, path: Path) -> None:
    aside = folder / f"{path.name}{_REPLACED}"
    if aside.exists() and not path.exists():
        aside.rename(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
