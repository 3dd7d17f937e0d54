"""Zip files, read in place at any place by any number of threads, each member with its checksum."""

import bz2
import lzma
import os
import stat
import struct
import zipfile
import zlib
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipeline.errors import ManifestError, UnreadableImageError, mention
from pipeline.files.state import FileState
from pipeline.images.packed.kinds import Pack
from pipeline.images.packed.members import NO_PATHS, SHOWN, Members, usable
from pipeline.images.packed.positional import PositionalPack, pread, unchanged

_LOCAL: Final = struct.Struct("<4s22xHH")
_ERRORS: Final = (EOFError, OSError, ValueError, lzma.LZMAError, struct.error, zlib.error)
_UTF_8: Final = 0x800
_ENCRYPTED: Final = 0x1
_UNICODE_PATH: Final = 0x7075
# What a member may take more than its bytes have, where these cannot be compressed.
_OVERHEAD: Final = 1 << 20


class ZipPack(PositionalPack):
    """A zip file."""

    kind = "zip"

    def __init__(self, path: Path) -> None:
        """Read the directory of a file.

        Raises:
            BadZipFile: It has none, or a damaged one.
        """
        state = FileState.of(path.stat())
        self._places, self._packed, self._sizes = array("q"), array("q"), array("q")
        self._checks, self._methods = array("L"), array("H")
        self._encrypted = bytearray()
        names: list[str] = []
        said: dict[str, list[str]] = defaultdict(list)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = _name(info, said)
                if name is not None:
                    names.append(name)
                    self._add(info)
        super().__init__(path, state, Members(names))
        encrypted = [name for name, is_set in zip(names, self._encrypted, strict=True) if is_set]
        if encrypted:
            said["encrypted, which count as bad images"] = encrypted
        self.notes = [
            *(f"{what}, {len(found):,}: {mention(found)}" for what, found in sorted(said.items())),
            *self.members.note(),
        ]

    def texts(self, suffixes: Collection[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of small members; see ``Pack``."""
        descriptor = unchanged(self.path, self.state)
        try:
            ends = tuple(suffixes)
            for number, name in enumerate(self.members.all):
                if name.lower().endswith(ends) and self._sizes[number] <= limit:
                    with suppress(UnreadableImageError):
                        yield name, self._read(descriptor, number, limit)
        finally:
            os.close(descriptor)

    def _add(self, info: zipfile.ZipInfo) -> None:
        self._places.append(info.header_offset)
        self._packed.append(info.compress_size)
        self._sizes.append(info.file_size)
        self._checks.append(info.CRC)
        self._methods.append(info.compress_type)
        self._encrypted.append(info.flag_bits & _ENCRYPTED)

    def _read(self, descriptor: int, number: int, limit: int) -> bytes:
        size, taken = self._sizes[number], self._packed[number]
        if self._encrypted[number]:
            raise UnreadableImageError("cannot be read: it is encrypted")
        if max(size, taken - _OVERHEAD) > limit:
            raise UnreadableImageError(f"too large: {size:,} bytes")
        place = self._places[number]
        # Where the directory says that it begins elsewhere, members may lie before the file.
        header = os.pread(descriptor, _LOCAL.size, place) if place >= 0 else b""
        if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
            raise UnreadableImageError("cannot be read: damaged in the zip file")
        _, name, extra = _LOCAL.unpack(header)
        stored = pread(descriptor, taken, place + _LOCAL.size + name + extra)
        try:
            data = _unpacked(stored, self._methods[number], size)
        except _ERRORS as error:
            raise UnreadableImageError(f"cannot be read: {error}") from error
        if len(data) != size or zlib.crc32(data) != self._checks[number]:
            raise UnreadableImageError("cannot be read: a wrong checksum in the zip file")
        return data


def open_pack(path: Path) -> Pack:
    """Open a zip file.

    Raises:
        ManifestError: It is none, or cut short.
        OSError: It cannot be read.
    """
    try:
        return ZipPack(path)
    except (NotImplementedError, OverflowError, ValueError, zipfile.BadZipFile) as error:
        raise ManifestError(
            f"Expected a zip file at {str(path)!r}. Received: {error}.",
            hint="Fetch or make it again: it may have been cut short.",
        ) from error


def _name(info: zipfile.ZipInfo, said: dict[str, list[str]]) -> str | None:
    """Return the name of a member that is a file; None of others, with what to say of them."""
    name = _decoded(info, said)
    if "\\" in name:
        said["names whose backslashes were read as slashes"].append(name)
        name = name.replace("\\", "/")
    if name.endswith("/"):
        return None
    if stat.S_ISLNK(info.external_attr >> 16):
        said["left out, links"].append(name)
        return None
    known = usable(name)
    if known is None:
        said[f"left out, {NO_PATHS}"].append(name[:SHOWN])
    return known


def _decoded(info: zipfile.ZipInfo, said: dict[str, list[str]]) -> str:
    """Return a name as its writer meant it, which ``zipfile`` reads as code page 437."""
    name = info.filename
    if name.isascii() or info.flag_bits & _UTF_8:
        return name
    told = _unicode_path(info.extra)
    if told is not None:
        return told
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        said["names in no Unicode, read as code page 437"].append(name)
        return name


def _unicode_path(extra: bytes) -> str | None:
    """Return the name that Info-ZIP writes beside one of another encoding."""
    start = 0
    while start + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, start)
        if kind == _UNICODE_PATH and size > 5:
            return extra[start + 9 : start + 4 + size].decode("utf-8", "replace")
        start += 4 + size
    return None


def _unpacked(data: bytes, method: int, size: int) -> bytes:
    """Return decompressed bytes, at most one more than there should be."""
    if method == zipfile.ZIP_STORED:
        return data
    if method == zipfile.ZIP_DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    if method == zipfile.ZIP_BZIP2:
        return bz2.BZ2Decompressor().decompress(data, size + 1)
    if method == zipfile.ZIP_LZMA:
        # Two bytes of a version, two of a length, then five of properties.
        first, width = struct.unpack_from("<BI", data, 4)
        # No look back is longer than what there is: a file cannot ask for more memory.
        width = min(width, max(size, 1 << 12))
        filters = [{"id": lzma.FILTER_LZMA1, "dict_size": width, "lc": first % 9,
                    "lp": first // 9 % 5, "pb": first // 45}]  # fmt: skip
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        return decompressor.decompress(data[9:], size + 1)
    raise ValueError(f"compressed by method {method}, which is not read")
