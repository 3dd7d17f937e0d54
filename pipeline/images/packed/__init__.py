"""Files that hold many images, read in place: a packed file counts as a folder of its members.

A row of the table names the module of a kind by what names of such files end in. A path into a
packed file is that file's path, a slash, and the name of the member.
"""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast

from pipeline.errors import UnreadableImageError
from pipeline.files.regular import require_regular
from pipeline.files.state import FileState
from pipeline.images.packed import compressed_tar
from pipeline.images.packed.kinds import ChangedPackError, Pack

# Members whose places are kept in memory, 50 bytes each: shuffled reading of millions of images
# lists no file twice.
_KEPT: Final = 8_000_000
# How often a file that changes is listed for one member.
_TRIES: Final = 2

_TAR: Final = "pipeline.images.packed.tar_file"
_ZIP: Final = "pipeline.images.packed.zip_file"
# From suffixes in lower case to the module, whose ``open_pack(path: Path) -> Pack`` raises
# ManifestError where a file is damaged or of another kind.
KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".arrow": "pipeline.images.packed.arrow_file",
        ".parquet": "pipeline.images.packed.parquet_file",
        ".tar": _TAR,
        ".tar.bz2": _TAR,
        ".tar.gz": _TAR,
        ".tar.xz": _TAR,
        ".tar.zst": _TAR,
        ".tbz2": _TAR,
        ".tfrecord": "pipeline.images.packed.tfrecord_file",
        ".tgz": _TAR,
        ".txz": _TAR,
        ".zip": _ZIP,
    }
)
# Those whose members are files, which count as a folder.
FOLDERS: Final = tuple(suffix for suffix, module in KINDS.items() if module in (_TAR, _ZIP))

# After the suffix, as in ``flowers-train.tfrecord-00000-of-00002``.
_NUMBER: Final = re.compile(r"-\d+-of-\d+$")
_SUFFIXES: Final = tuple(KINDS)
_INSIDE: Final = re.compile(
    rf"(?:{'|'.join(map(re.escape, KINDS))})(?:-\d+-of-\d+)?/", re.IGNORECASE
)

_opened: OrderedDict[str, Pack] = OrderedDict()
_lock = threading.Lock()
_listing = threading.Lock()


def kind_of(name: str) -> str | None:
    """Return the suffix by which a file is known as packed; None of others."""
    lowered = name.lower()
    if not lowered.endswith(_SUFFIXES):
        lowered = _NUMBER.sub("", lowered)
    return max((suffix for suffix in KINDS if lowered.endswith(suffix)), key=len, default=None)


def among(names: Iterable[str]) -> list[str]:
    """Return those names by which files are known as packed folders."""
    return [name for name in names if name.lower().endswith(FOLDERS)]


def split(path: str) -> tuple[str, str] | None:
    """Return the packed file in a path and the member's name; None where none is on the way.

    Folders may be named as packed files are: only a file that is there counts.
    """
    for match in _INSIDE.finditer(path):
        end = match.end() - 1
        if os.path.isfile(path[:end]):  # noqa: PTH113
            return path[:end], path[end + 1 :]
    return None


def outer(path: str) -> str | None:
    """Return what would be the packed file in a path, by its name alone; None where none is."""
    match = _INSIDE.search(path)
    return None if match is None else path[: match.end() - 1]


def state_of(path: str) -> FileState | None:
    """Return the state of a packed file, which is that of its members; None where it is gone."""
    try:
        return FileState.of(os.stat(path))  # noqa: PTH116
    except OSError:
        return None


def opened(path: str | Path) -> Pack:
    """Return a packed file, listed once as long as it does not change.

    Raises:
        ManifestError: It is damaged, or of another kind than its name says.
        OSError: It cannot be read.
    """
    name = str(path)
    state = FileState.of(os.stat(name))  # noqa: PTH116
    pack = _kept(name, state)
    if pack is not None:
        return pack
    with _listing:
        pack = _kept(name, state)
        return _listed(name) if pack is None else pack


def read(
    path: str | Path, name: str, *, limit: int, known: FileState | None = None
) -> tuple[bytes, FileState]:
    """Return the bytes of a member, and the state of the file that they are of.

    Args:
        path: The file.
        name: The member.
        limit: Most bytes that it may have.
        known: The state in which the file was listed, and its labels read; None where that does
            not matter.

    Raises:
        ManifestError: The file is damaged, or of another kind than its name says.
        OSError: It cannot be read.
        UnreadableImageError: See ``Pack.read``; or the file is in another state than the known one.
    """
    for _ in range(_TRIES):
        pack = opened(path)
        if known is not None:
            require_listed(pack.state, known)
        try:
            return pack.read(name, limit=limit), pack.state
        except ChangedPackError:
            forget(path)
    raise UnreadableImageError("cannot be read: the packed file changed while it was read")


def require_listed(state: FileState, known: FileState) -> None:
    """Refuse a packed file that is not the one that was listed: what was labelled is elsewhere.

    Raises:
        UnreadableImageError: Its state is another.
    """
    if known.is_proof and not state.is_of(known):
        raise UnreadableImageError(
            "cannot be read: the packed file changed since it was listed: run this again"
        )


def forget(path: str | Path | None = None) -> None:
    """Drop what is known of a packed file, or of all."""
    with _lock:
        if path is None:
            _opened.clear()
        else:
            _opened.pop(str(path), None)


def _kept(name: str, state: FileState) -> Pack | None:
    with _lock:
        pack = _opened.get(name)
        if pack is None or pack.state != state:
            return None
        _opened.move_to_end(name)
        return pack


def _listed(name: str) -> Pack:
    path = Path(name)
    require_regular(path)
    suffix = kind_of(name)
    if suffix is None:
        raise UnreadableImageError("cannot be read: no packed file")
    pack = cast(Callable[[Path], Pack], import_module(KINDS[suffix]).open_pack)(path)
    with _lock:
        _opened[name] = pack
        _opened.move_to_end(name)
        total = sum(len(kept.members) for kept in _opened.values())
        while total > _KEPT and len(_opened) > 1:
            total -= len(_opened.popitem(last=False)[1].members)
    return pack


def _after_fork() -> None:
    """Make locks anew that another thread may have held, and drop what has locks or positions."""
    global _lock, _listing
    _lock, _listing = threading.Lock(), threading.Lock()
    _opened.clear()
    compressed_tar.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
