"""Files that hold many images, read in place: a packed file counts as a folder of its members.

A row of the table names the module of a kind by what names of such files end in. A path into a
packed file is that file's path, a slash, and the name of the member.
"""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, cast

from pipeline.errors import UnreadableImageError
from pipeline.files.atomic import require_regular
from pipeline.files.state import FileState

# Packed files that are kept open, each with the names of its members.
_OPEN: Final = 64


class Pack(Protocol):
    """A packed file, open; safe to use from many threads.

    Attributes:
        names: POSIX paths of the members that are files, in the order in which they are stored,
            so that reading in this order never goes back.
    """

    names: Sequence[str]

    @property
    def members(self) -> Container[str]:
        """The same names, in which one is found at once."""

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the bytes of a member.

        Raises:
            UnreadableImageError: There is none of that name, it is cut short or damaged, or has
                more bytes than ``limit``; the message is the reason alone.
        """

    def close(self) -> None:
        """Close the file; whoever reads at this moment gets an error, or what was asked for."""


# From suffixes in lower case to the module, whose ``open_pack(path: Path) -> Pack`` raises
# ManifestError where a file is damaged or of another kind.
KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".arrow": "pipeline.images.packed.arrow_file",
        ".parquet": "pipeline.images.packed.parquet_file",
        ".tfrecord": "pipeline.images.packed.tfrecord_file",
        ".zip": "pipeline.images.packed.zip_file",
    }
)

# After the suffix, as in ``flowers-train.tfrecord-00000-of-00002``.
_NUMBER: Final = re.compile(r"-\d+-of-\d+$")

_opened: OrderedDict[Path, tuple[FileState, Pack]] = OrderedDict()
_lock = threading.Lock()


def kind_of(name: str) -> str | None:
    """Return the suffix by which a file is known as packed; None of others."""
    lowered = _NUMBER.sub("", name.lower())
    return max((suffix for suffix in KINDS if lowered.endswith(suffix)), key=len, default=None)


def split(path: str) -> tuple[str, str] | None:
    """Return the packed file in a path and the member's name; None where none is on the way.

    Folders may be named as packed files are: only a file that is there counts.
    """
    start = 0
    while (end := path.find("/", start)) >= 0:
        if kind_of(path[start:end]) and os.path.isfile(path[:end]):  # noqa: PTH113
            return path[:end], path[end + 1 :]
        start = end + 1
    return None


def state_of(path: str) -> FileState | None:
    """Return the state of a packed file, which is that of its members; None where it is gone."""
    try:
        return FileState.of(os.stat(path))  # noqa: PTH116
    except OSError:
        return None


def opened(path: Path) -> Pack:
    """Return a packed file, opened once as long as it does not change.

    Raises:
        ManifestError: It is damaged, or of another kind than its name says.
        OSError: It cannot be read.
    """
    state = FileState.of(path.stat())
    with _lock:
        kept = _opened.get(path)
        if kept is not None and kept[0] == state:
            _opened.move_to_end(path)
            return kept[1]
    require_regular(path)
    suffix = kind_of(path.name)
    if suffix is None:
        raise UnreadableImageError("cannot be read: no packed file")
    module = import_module(KINDS[suffix])
    pack = cast(Callable[[Path], Pack], module.open_pack)(path)
    with _lock:
        _opened[path] = (state, pack)
        closing = [_opened.popitem(last=False)[1][1] for _ in range(len(_opened) - _OPEN)]
    for old in closing:
        old.close()
    return pack


def forget() -> None:
    """Drop what is open without closing it: a forked process would share positions in files."""
    global _lock
    _lock = threading.Lock()
    _opened.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
