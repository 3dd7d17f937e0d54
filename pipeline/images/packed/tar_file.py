"""Tar files, read in place: plain ones at any place by any number of threads.

Compressed ones have a module of their own; which it is, the first bytes tell, not the name.
"""

import os
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from pipeline.errors import ManifestError, UnreadableImageError
from pipeline.files.state import FileState
from pipeline.images.packed.compressed_tar import CompressedTar, compression
from pipeline.images.packed.kinds import ChangedPackError, Pack
from pipeline.images.packed.members import Members
from pipeline.images.packed.positional import PositionalPack, pread, unchanged
from pipeline.images.packed.tar_headers import BLOCK, DamagedHeaderError, walk

# Where members are small and lie close, much is read at once; else little more than a header.
_NEAR: Final = 1 << 16
_MUCH: Final = 1 << 20
_LITTLE: Final = 1 << 12
# What a zip file begins with, which may be called tar.
_ZIP: Final = b"PK\x03\x04"


class TarPack(PositionalPack):
    """A plain tar file."""

    kind = "tar"

    def __init__(self, path: Path, descriptor: int) -> None:
        """Read the headers of an open file.

        Raises:
            DamagedHeaderError: It does not begin as a tar file does.
        """
        state = FileState.of(os.fstat(descriptor))
        walked = walk(_Window(descriptor).at, None)
        super().__init__(path, state, Members(walked.names))
        self.notes = [*walked.notes, *self.members.note()]
        self._starts, self._sizes = walked.starts, walked.sizes
        self._headers = walked.headers

    def texts(self, suffixes: Collection[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of small members; see ``Pack``."""
        descriptor = unchanged(self.path, self.state)
        try:
            at = _Window(descriptor).at
            ends = tuple(suffixes)
            for number, name in enumerate(self.members.all):
                size = self._sizes[number]
                if name.lower().endswith(ends) and size <= limit:
                    data = at(self._starts[number], size)
                    if len(data) == size:
                        yield name, data
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, number: int, limit: int) -> bytes:
        size, start = self._sizes[number], self._starts[number]
        if size > limit:
            raise UnreadableImageError(f"too large: {size:,} bytes")
        # With its header: a file that was written over in place has another one there.
        data = pread(descriptor, size + BLOCK, start - BLOCK)
        if zlib.adler32(data[:BLOCK]) != self._headers[number]:
            raise ChangedPackError
        if len(data) < size + BLOCK:
            raise UnreadableImageError(
                f"cut short: the tar file ends after {len(data) - BLOCK:,} of {size:,} bytes"
            )
        return data[BLOCK:]


class _Window:
    """Bytes of a file by place, read ahead as far as it pays."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""
        self._start = self._end = 0

    def at(self, place: int, size: int) -> bytes:
        """Return bytes; fewer at the end of the file."""
        first = place - self._start
        if not (first >= 0 and place + size <= self._end):
            ahead = _MUCH if place - self._end < _NEAR else _LITTLE
            self._data = pread(self._descriptor, max(size, ahead), place)
            self._start, self._end = place, place + len(self._data)
            first = 0
        return self._data[first : first + size]


def open_pack(path: Path) -> Pack:
    """Open a tar file, compressed or not.

    Raises:
        ManifestError: It is none.
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = os.pread(descriptor, 8, 0)
        if start.startswith(_ZIP):
            raise ManifestError(
                f"Expected a tar file at {str(path)!r}. Received: a zip file.",
                hint="Rename it to end in .zip.",
            )
        kind = compression(start)
        return TarPack(path, descriptor) if kind is None else CompressedTar(path, kind)
    except DamagedHeaderError as error:
        raise ManifestError(
            f"Expected a tar file at {str(path)!r}. Received: another content ({error} in its "
            "first header).",
            hint="Fetch or make it again.",
        ) from error
    finally:
        os.close(descriptor)
