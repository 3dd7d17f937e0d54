"""What lies around the pixels in an image file: metadata, and the scans of a JPEG.

A profile, a text or a date that is broken or too large must not cost an image whose pixels are
whole. What is kept is what decides over the pixels and over which way is up.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
# Chunks of a PNG beside its pixels that Pillow reads at once, or else: a thousand compressed
# profiles would take minutes.
_MOST_CHUNKS: Final = 1000
# Texts by which Pillow turns an image upright, if the file has no eXIf chunk.
_UPRIGHT_TEXTS: Final = frozenset({b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif"})
# Of one text, and of all: half of what Pillow takes.
_MOST_TEXT: Final = 16 << 20
_MOST_TEXTS: Final = 32 << 20
_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_NO_PAYLOAD: Final = frozenset({0x01, 0xD8, 0xD9})
_EOI: Final = 0xD9
_SOS: Final = 0xDA
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ONE_SCAN_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC9})
# Segments that decide over pixels, by the least length with which libjpeg heeds them: JFIF and
# Adobe tell the colours apart; APP1 holds EXIF.
_LEAST_LENGTHS: Final = MappingProxyType({0xE0: 14, 0xE1: 0, 0xEE: 12})
_WEBP_PIXELS: Final = frozenset({b"ALPH", b"ANIM", b"ANMF", b"VP8 ", b"VP8L", b"VP8X"})
_WEBP_METADATA: Final = MappingProxyType({b"EXIF": 0x08, b"ICCP": 0x20, b"XMP ": 0x04})
# From the subfile's type to the colours of CMYK, orientation among them.
_TIFF_PIXELS: Final = frozenset(
    {*range(254, 260), 262, 266, 273, 274, *range(277, 282), 284, 292, 293, 297, 301, 317}
    | {*range(318, 326), *range(332, 345), 347, *range(512, 522), *range(529, 533)}
)
_JP2_PIXELS: Final = frozenset({b"jP  ", b"ftyp", b"jp2h"})
_EXIF_ITEM: Final = re.compile(rb"(infe[\x02\x03].{7,9}?)Exif", re.DOTALL)


class _Piece(NamedTuple):
    """A named part of a file: a chunk or a segment, from ``start`` to ``end``."""

    name: bytes
    start: int
    end: int


def without_metadata(data: bytes) -> bytes | None:
    """Return a file without what has no say in its pixels, None where nothing can be dropped."""
    for signature, drop in _DROP.items():
        if signature.match(data):
            try:
                kept = drop(data)
            except (IndexError, OverflowError, ValueError, struct.error):
                return None
            return kept if kept and kept != data else None
    return None


def is_littered(data: bytes) -> bool:
    """Tell whether a PNG has so many chunks of metadata that reading them could take minutes."""
    if not data.startswith(_PNG):
        return False
    others = 0
    for chunk in _png_chunks(data):
        others += chunk.name != b"IDAT"
        if others > _MOST_CHUNKS:
            return True
    return False


def jpeg_scans(data: bytes) -> int:
    """Count the passes over all pixels that a JPEG asks for: 1 unless it is progressive."""
    frame = layers = scans = 0
    for segment in _jpeg_segments(data):
        marker = segment.name[0]
        if marker in _FRAMES and not scans:
            frame, layers = marker, data[min(segment.start + 9, len(data) - 1)]
        elif marker == _SOS:
            scans += 1
            holds_all = data[min(segment.start + 4, len(data) - 1)] == layers
            if frame in _ONE_SCAN_FRAMES and holds_all:
                break
    return max(scans, 1)


def _png(data: bytes) -> bytes:
    kept, room = [_PNG], _MOST_TEXTS
    for chunk in _png_chunks(data):
        is_critical = not chunk.name[0] & 0x20
        if is_critical or chunk.name == b"tRNS":
            kept.append(data[chunk.start : chunk.end])
        elif _is_sound(data, chunk) and room >= len(turning := _turning(data, chunk)):
            kept.append(turning)
            room -= len(turning)
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[_Piece]:
    """Yield the chunks up to the end of the image or of what makes sense."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        yield _Piece(name, position, min(end, len(data)))
        if name == b"IEND":
            return
        position = end


def _is_sound(data: bytes, chunk: _Piece) -> bool:
    """Tell whether a chunk is whole and its checksum right."""
    if chunk.end - chunk.start < 12 + int.from_bytes(data[chunk.start : chunk.start + 4], "big"):
        return False
    checksum = int.from_bytes(data[chunk.end - 4 : chunk.end], "big")
    return zlib.crc32(data[chunk.start + 4 : chunk.end - 4]) == checksum


def _turning(data: bytes, chunk: _Piece) -> bytes:
    """Return a chunk if it may tell which way is up, texts unpacked; nothing otherwise.

    Pillow reads packed texts of up to 1 MiB only, and any that are not packed.
    """
    if chunk.name == b"eXIf":
        return data[chunk.start : chunk.end]
    keyword, _, rest = data[chunk.start + 8 : chunk.end - 4].partition(b"\0")
    if keyword not in _UPRIGHT_TEXTS:
        return b""
    if chunk.name == b"zTXt":
        return _png_chunk(b"tEXt", keyword + b"\0" + _unpacked(rest[1:]))
    if chunk.name == b"iTXt" and rest[:1] == b"\1":
        *languages, text = rest[2:].split(b"\0", 2)
        return _png_chunk(b"iTXt", b"\0".join([keyword, b"\0", *languages, _unpacked(text)]))
    return data[chunk.start : chunk.end] if chunk.name in (b"iTXt", b"tEXt") else b""


def _unpacked(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _MOST_TEXT)
    except zlib.error:
        return b""


def _png_chunk(name: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(name + payload)
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", checksum)


def _jpeg(data: bytes) -> bytes:
    kept, position = [data[:2]], 2
    for segment in _jpeg_segments(data):
        marker = segment.name[0]
        if marker == _SOS:
            break
        length = segment.end - segment.start - 4
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or length >= _LEAST_LENGTHS.get(marker, 1 << 16):
            kept.append(data[segment.start : segment.end])
        position = segment.end
    return b"".join([*kept, data[position:]])


def _jpeg_segments(data: bytes) -> Iterator[_Piece]:
    """Yield marker and segment in order, over the coded pixels, up to the end of the image."""
    position = 2
    while match := _MARKER.search(data, position):
        start, marker = match.start(), data[match.start() + 1]
        if marker == _EOI:
            return
        length = 0 if marker in _NO_PAYLOAD else int.from_bytes(data[start + 2 : start + 4], "big")
        position = start + 2 + length
        yield _Piece(bytes([marker]), start, min(position, len(data)))


def _webp(data: bytes) -> bytes:
    kept, flags = [], 0
    for chunk in _webp_chunks(data):
        payload = data[chunk.start + 8 : chunk.end]
        if chunk.name in _WEBP_PIXELS or chunk.name == b"EXIF":
            kept.append((chunk.name, payload))
        flags |= _WEBP_METADATA[b"EXIF"] if chunk.name == b"EXIF" else 0
    dropped = sum(_WEBP_METADATA.values()) & ~flags
    body = b""
    for name, payload in kept:
        if name == b"VP8X" and payload:
            payload = bytes([payload[0] & ~dropped]) + payload[1:]
        body += name + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_chunks(data: bytes) -> Iterator[_Piece]:
    """Yield the chunks that are known and whole, up to the first that is not."""
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length
        if end > len(data) or name not in (*_WEBP_PIXELS, *_WEBP_METADATA):
            return
        yield _Piece(name, position, end)
        position = end + length % 2


def _tiff(data: bytes) -> bytes:
    """Keep the entries of the first directory that decide over pixels."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    at_offset, offset, count, entry = (8, "Q", "Q", 20) if is_big else (4, "I", "H", 12)
    (start,) = struct.unpack_from(order + offset, data, at_offset)
    (number,) = struct.unpack_from(order + count, data, start)
    first = start + struct.calcsize(order + count)
    if first + number * entry > len(data):
        raise ValueError("a directory longer than the file")
    entries = [data[at : at + entry] for at in range(first, first + number * entry, entry)]
    kept = [one for one in entries if struct.unpack(order + "H", one[:2])[0] in _TIFF_PIXELS]
    # The directory of another image, or nothing, follows; the rest of the old one is slack.
    directory = struct.pack(order + count, len(kept)) + b"".join(kept)
    directory += struct.pack(order + offset, 0)
    return data[:start] + directory + data[start + len(directory) :]


def _jp2(data: bytes) -> bytes:
    """Keep the boxes that a JPEG 2000 needs, up to the pixels."""
    kept, position = b"", 0
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"jp2c":
            end = position + length if length > 1 else len(data)
            return kept + data[position:end]
        if length < 8:
            return b""
        if name in _JP2_PIXELS:
            kept += data[position : position + length]
        position += length
    return b""


def _avif(data: bytes) -> bytes:
    """Give items of EXIF a type that decoders skip; AVIF tells which way is up elsewhere."""
    end = max(data.find(b"mdat"), 0) or len(data)
    return _EXIF_ITEM.sub(rb"\1free", data[:end]) + data[end:]


_DROP: Final[Mapping[re.Pattern[bytes], Callable[[bytes], bytes]]] = MappingProxyType(
    {
        re.compile(re.escape(_PNG)): _png,
        re.compile(re.escape(_JPEG)): _jpeg,
        re.compile(rb"RIFF....WEBP", re.DOTALL): _webp,
        re.compile(rb"\0\0\0\x0cjP  "): _jp2,
        re.compile(rb"II[*+]\0|MM\0[*+]"): _tiff,
        re.compile(rb"....ftyp", re.DOTALL): _avif,
    }
)
