"""Compressed tar files, read in place: from front to back, as there is no other way into them.

Whoever asks nearly in stored order waits for no byte twice: members that were passed over stay in
memory, within bounds. Going back further starts again at the front.
"""

import bz2
import gzip
import itertools
import lzma
import sys
import threading
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from io import BufferedIOBase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from pipeline.errors import ConfigError, ManifestError, UnreadableImageError
from pipeline.files.state import FileState
from pipeline.images.packed.kinds import ChangedPackError
from pipeline.images.packed.members import Members
from pipeline.images.packed.tar_headers import BLOCK, DamagedHeaderError, walk
from pipeline.system.wording import counted

# Of members that were passed over, of all such files together.
_PASSED: Final = 256 << 20
# Of texts that are kept from the listing on, for who asks for labels next, with what Python takes
# for each.
_TEXTS: Final = 256 << 20
_OBJECT: Final = 128
# What texts beside images end in.
TEXTS: Final = (".cls", ".json")
# Such files that are open at a time: of xz each takes up to 64 MiB.
_STREAMS: Final = 4
_STEP: Final = 1 << 20
# What may be wrong before a cut: a flipped bit can look like one, and no checksum follows. bzip2
# and xz compress in pieces of up to 2 MB; gzip's code seldom makes sense for as long after a flip.
_DOUBTFUL: Final = 2 << 20
_STARTS: Final[Mapping[bytes, str]] = MappingProxyType(
    {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
)
_ERRORS: Final = (OSError, ValueError, lzma.LZMAError, zlib.error)


def compression(start: bytes) -> str | None:
    """Return by which program a file was compressed, by its first bytes; None if by none."""
    return next((name for first, name in _STARTS.items() if start.startswith(first)), None)


class _Memory:
    """Bytes of members by file and number, the oldest dropped where there are too many.

    Attributes:
        room: Bytes of texts that may be kept, beside these.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.room = _TEXTS
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._size = 0

    def keep(self, serial: int, number: int, data: bytes) -> None:
        with self.lock:
            self._size += len(data) - len(self._kept.pop((serial, number), b""))
            self._kept[serial, number] = data
            while self._size > _PASSED and len(self._kept) > 1:
                self._size -= len(self._kept.popitem(last=False)[1])

    def take_room(self, size: int) -> bool:
        """Take room for texts, or give it back; False where there is none."""
        with self.lock:
            if size > self.room:
                return False
            self.room -= size
            return True

    def find(self, serial: int, number: int) -> bytes | None:
        with self.lock:
            return self._kept.get((serial, number))


_passed = _Memory()
_serials = itertools.count()
_begun: "list[CompressedTar]" = []


def forget() -> None:
    """Drop locks and open files in a forked process, where another thread may have held them."""
    _passed.lock = threading.Lock()
    _begun.clear()


class CompressedTar:
    """A compressed tar file; one thread at a time goes on in it."""

    is_forward = True

    def __init__(self, path: Path, kind: str) -> None:
        """Read all of a file.

        Raises:
            ConfigError: What decompresses it is not installed.
            DamagedHeaderError: What was compressed is no tar file.
            ManifestError: It is damaged.
        """
        self.path = path
        self.state = FileState.of(path.stat())
        self._kind = kind
        self._serial = next(_serials)
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._next = 0
        self._texts: dict[int, bytes] | None = {}
        self._checks = array("L")
        stream = _Stream(path, kind)
        try:
            walked = walk(stream.at, self._seen(stream))
            stream.finish()
        except _ERRORS as error:
            if isinstance(error, DamagedHeaderError):
                raise
            raise ManifestError(
                f"Expected a tar file, compressed by {kind}, at {str(path)!r}. Received: damaged "
                f"bytes ({error}).",
                hint="Fetch or make it again.",
            ) from error
        finally:
            stream.close()
        self._starts, self._sizes = walked.starts, walked.sizes
        self._sure = sys.maxsize
        self.members = Members(walked.names)
        self.notes = [*walked.notes, *self.members.note()]
        if stream.is_cut:
            self._sure = max(0, stream.end - _DOUBTFUL)
            bad = sum(not self._is_sure(number) for number in range(len(self._starts)))
            self.notes.append(
                f"the compressed file is cut short: no checksum vouches for the last "
                f"{counted(bad, 'file')}, which count as bad"
            )

    @property
    def names(self) -> list[str]:
        """See ``Pack``."""
        return self.members.names

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the bytes of a member; see ``Pack``."""
        numbers = self.members.find(name)
        if not numbers:
            raise UnreadableImageError("cannot be read: not in the tar file")
        sizes = {self._sizes[number] for number in numbers}
        if max(sizes) > limit:
            raise UnreadableImageError(f"too large: {max(sizes):,} bytes")
        if len(sizes) > 1 or len({self._checks[number] for number in numbers}) > 1:
            raise UnreadableImageError("members of this name hold different bytes")
        if not self._is_sure(numbers[0]):
            raise UnreadableImageError(
                "cut short: no checksum of the compressed file vouches for it"
            )
        if self._texts is not None:
            self._taken_texts()  # whoever reads images has the labels
        data = _passed.find(self._serial, numbers[0])
        if data is None:
            with self._lock:
                data = _passed.find(self._serial, numbers[0])
                if data is None:
                    data = self._go_to(numbers[0])
        if len(data) < self._sizes[numbers[0]]:
            raise UnreadableImageError("cut short: the tar file ends before it does")
        return data

    def texts(self, suffixes: Collection[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of small members; see ``Pack``."""
        kept = self._taken_texts()
        ends = tuple(suffixes)
        wanted = [
            (number, name)
            for number, name in enumerate(self.members.all)
            if name.lower().endswith(ends)
            and self._sizes[number] <= limit
            and self._is_sure(number)
        ]
        if all(number in kept for number, _ in wanted):
            whole = [(name, kept[number]) for number, name in wanted
                     if len(kept[number]) == self._sizes[number]]  # fmt: skip
            yield from whole
            return
        stream = _Stream(self.path, self._kind)
        try:
            for number, name in wanted:
                data = stream.at(self._starts[number], self._sizes[number])
                if zlib.crc32(data) != self._checks[number]:
                    raise ChangedPackError
                if len(data) == self._sizes[number]:
                    yield name, data
        finally:
            stream.close()

    def _is_sure(self, number: int) -> bool:
        """Tell whether a member lies before what may be wrong."""
        return self._starts[number] + self._sizes[number] <= self._sure

    def _seen(self, stream: "_Stream") -> Callable[[str, int, int], None]:
        """Return what looks at each member while the file is listed."""
        kept: dict[int, bytes] = {}
        self._texts = kept

        def seen(name: str, start: int, size: int) -> None:
            if size <= _STEP and name.lower().endswith(TEXTS):
                data = stream.at(start, size)
                check = zlib.crc32(data)
                if _passed.take_room(size + _OBJECT):
                    kept[len(self._checks)] = data
            else:
                check, place = 0, start
                while place < start + size and (
                    data := stream.at(place, min(_STEP, start + size - place))
                ):
                    check = zlib.crc32(data, check)
                    place += len(data)
            self._checks.append(check)

        return seen

    def _taken_texts(self) -> dict[int, bytes]:
        """Return the texts that were kept, and keep them no longer."""
        with self._lock:
            kept, self._texts = self._texts or {}, None
        _passed.take_room(-sum(len(data) + _OBJECT for data in kept.values()))
        return kept

    def _go_to(self, number: int) -> bytes:
        """Read on up to a member, keeping what is passed over; the lock is held."""
        is_done = False
        try:
            stream = self._stream
            if stream is None or self._next > number:
                self._stop()
                self._stream = stream = _Stream(self.path, self._kind)
                self._next = 0
                _bound_streams(self)
            if FileState.of(self.path.stat()) != self.state:
                raise ChangedPackError
            data = b""
            while self._next <= number:
                data = self._taken(stream, self._next, is_wanted=self._next == number)
                self._next += 1
            is_done = self._next < len(self._starts)
        except _ERRORS as error:
            raise UnreadableImageError(f"cannot be read: {error}") from error
        finally:
            if not is_done:
                self._stop()
        return data

    def _taken(self, stream: "_Stream", number: int, *, is_wanted: bool) -> bytes:
        """Read a member and keep it; one that is only passed over, unless it is too large."""
        start, size = self._starts[number], self._sizes[number]
        if size > _PASSED and not is_wanted:
            return b""
        data = stream.at(start, size)
        if zlib.crc32(data) != self._checks[number]:
            raise ChangedPackError
        _passed.keep(self._serial, number, data)
        return data

    def stop_if_idle(self) -> None:
        """Close the file unless somebody reads; the next one starts at the front."""
        if self._lock.acquire(blocking=False):
            try:
                self._stop()
            finally:
                self._lock.release()

    def _stop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _bound_streams(newest: CompressedTar) -> None:
    """Close the file that was begun first, where there are too many: each takes memory."""
    with _passed.lock:
        _begun[:] = [pack for pack in _begun if pack is not newest] + [newest]
        oldest = _begun.pop(0) if len(_begun) > _STREAMS else None
    if oldest is not None:
        oldest.stop_if_idle()


class _Stream:
    """Decompressed bytes by place, which never decreases."""

    def __init__(self, path: Path, kind: str) -> None:
        self._file = _opened(path, kind)
        self.is_cut = False
        self._data = b""
        self._start = 0

    def at(self, place: int, size: int) -> bytes:
        """Return bytes; fewer at the end, also where the file was cut short."""
        end = self._start + len(self._data)
        while end < place and (skipped := self._more(min(_STEP, place - end))):
            self._data, self._start = skipped, end
            end += len(skipped)
        if place > end:
            return b""
        if place + size > end:
            parts = [self._data[place - self._start :]]
            while end < place + size and (more := self._more(max(BLOCK, place + size - end))):
                parts.append(more)
                end += len(more)
            self._data, self._start = b"".join(parts), place
        first = place - self._start
        return self._data[first : first + size]

    @property
    def end(self) -> int:
        """How far was read."""
        return self._start + len(self._data)

    def finish(self) -> None:
        """Read to the end, where the checksum is."""
        while data := self._more(_STEP):
            self._data, self._start = data, self.end

    def close(self) -> None:
        self._file.close()

    def _more(self, size: int) -> bytes:
        if self.is_cut:
            return b""
        try:
            # Not ``read``, which forgets what it has at the place of a cut.
            return self._file.read1(size)
        except EOFError:
            self.is_cut = True
            return b""


def _opened(path: Path, kind: str) -> BufferedIOBase:
    if kind == "gzip":
        return gzip.GzipFile(path, "rb")
    if kind == "bzip2":
        return bz2.open(path, "rb")
    if kind == "xz":
        return lzma.open(path, "rb")
    return _zstd(path)


def _zstd(path: Path) -> BufferedIOBase:
    """Open with the first library at hand: Python's own from 3.14 on, else one of two packages.

    Raises:
        ConfigError: There is none.
    """
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return cast(BufferedIOBase, cast(Any, import_module(name)).ZstdFile(path))
        except ImportError:
            continue
    try:
        return cast(BufferedIOBase, cast(Any, import_module("zstandard")).open(path, "rb"))
    except ImportError as error:
        raise ConfigError(
            f"{str(path)!r} is compressed by zstd, which needs a library.",
            hint="pip install zstandard, or unpack it: zstd -d FILE.",
        ) from error
