"""The headers of a tar file, one after the other: what members there are, and where their bytes.

Read as POSIX ustar and pax, GNU and old tar write them. ``tarfile`` takes ten times as long per
member, stops at the first damaged header, and keeps an object per member.
"""

import re
import struct
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from pipeline.errors import mention
from pipeline.images.packed.members import NO_PATHS, SHOWN, usable
from pipeline.system.wording import counted

BLOCK: Final = 512
# Name, size, checksum, kind, magic, and the first byte of what stands before the name.
_FIELDS: Final = struct.Struct("100s24x11s13x6s2xs100x6s82xs")
_ZEROS: Final = bytes(BLOCK)
_FILES: Final = frozenset((b"0", b"\0", b"7"))
_FOLDERS: Final = frozenset((b"5", b"D"))
# What is no file, and has no bytes after its header.
_OTHERS: Final[Mapping[bytes, str]] = MappingProxyType(
    {b"1": "links", b"2": "links", b"3": "devices", b"4": "devices", b"6": "pipes"}
)
_SPARSE: Final = b"S"
_LONG_NAME: Final = b"L"
_PAX: Final = frozenset((b"x", b"X"))
# What says something of members, which is not wanted here: long targets of links, defaults.
_BESIDE: Final = frozenset((b"K", b"g", b"V", b"N"))
# Of what stands before a member to describe it.
_MOST_DESCRIPTION: Final = 1 << 20
_MODULUS: Final = 65_521  # of Adler-32
# What is read to tell whether there is something behind the end.
_BEHIND: Final = 1 << 16
_MOST: Final = 1 << 62  # so that every place in a file fits into 64 bits
_PAX_LENGTH: Final = re.compile(rb"(\d{1,9}) ")


class DamagedHeaderError(ValueError):
    """A block is no header, or not as it was written."""


@dataclass(slots=True)
class Walk:
    """What the headers of a tar file say.

    Attributes:
        names: Of the members that are files, in stored order.
        starts: Where their bytes begin.
        sizes: How many there are.
        headers: Adler-32 of the block before these, which is the member's header.
        notes: What was left out, or found damaged.
    """

    names: list[str] = field(default_factory=list)
    starts: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    headers: "array[int]" = field(default_factory=lambda: array("I"))
    notes: list[str] = field(default_factory=list)


def walk(at: Callable[[int, int], bytes], seen: Callable[[str, int, int], None] | None) -> Walk:
    """Go through the headers of a tar file.

    Args:
        at: Returns bytes, given a place and their number, fewer at the end; the place never
            decreases.
        seen: Is told name, start and size of every member that is a file; None for nobody.

    Raises:
        DamagedHeaderError: The file does not begin as a tar file does.
    """
    made = Walk()
    left_out: dict[str, list[str]] = defaultdict(list)
    add = _adder(made, left_out, seen)
    pax: dict[str, str] = {}
    long_name, offset = "", 0
    while True:
        block = at(offset, BLOCK)
        if len(block) < BLOCK or block == _ZEROS:
            break
        try:
            name, size, kind, check = parse(block)
            if kind in _FILES and not pax and not long_name:
                add(name, offset + BLOCK, size, check)
                offset += BLOCK + (size + 511 & ~511)
                continue
            if kind == _LONG_NAME:
                long_name = _text(_description(at, offset, size).partition(b"\0")[0])
            elif kind in _PAX:
                pax = _pax(_description(at, offset, size))
            elif kind not in _BESIDE:
                size = _size_of(pax, size)
                name = _name_of(pax, long_name or name)
                offset = _special(at, add, left_out, (name, size, kind, pax), offset, check)
                long_name, pax = "", {}
                continue
            offset += BLOCK + _padded(size)
        except DamagedHeaderError:
            if not offset and block[257:262] != b"ustar":
                raise
            found = _next_header(at, offset + BLOCK)
            made.notes.append(_damaged(offset, found))
            if found is None:
                return _noted(made, left_out)
            long_name, pax, offset = "", {}, found
    made.notes += _end(at, offset, block, len(made.names))
    return _noted(made, left_out)


def parse(block: bytes) -> tuple[str, int, bytes, int]:
    """Return name, size and kind that a header says, and the header's Adler-32.

    Raises:
        DamagedHeaderError: It is none, or its checksum is wrong.
    """
    name, digits, total, kind, magic, prefix = _FIELDS.unpack_from(block)
    try:
        size, stored = int(digits, 8), int(total, 8)
    except ValueError:
        size, stored = _number(block[124:136]), _number(block[148:156])
    # The lower half of Adler-32 is one more than the sum of the bytes, modulo a prime near 2^16,
    # and is had thirty times faster than the sum. The checksum takes its own field for blanks.
    check = zlib.adler32(block)
    expected = (stored - 255 + sum(block[148:156])) % _MODULUS
    if check & 0xFFFF != expected and not _is_signed(block, stored):
        raise DamagedHeaderError("a wrong checksum")
    if size < 0:
        raise DamagedHeaderError("a negative number")
    name = name.partition(b"\0")[0]
    if prefix != b"\0" and magic == b"ustar\0":
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape"), size, kind, check


def _number(digits: bytes) -> int:
    if digits[0] & 0x80:  # GNU writes numbers too large for octal digits in base 256
        if digits[0] != 0x80:
            raise DamagedHeaderError("a negative number")
        number = int.from_bytes(digits[1:], "big")
        if number >= _MOST:
            raise DamagedHeaderError("a number too large")
        return number
    text = digits.partition(b"\0")[0].strip()
    if not text:
        return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass
    raise DamagedHeaderError("no number")


def _is_signed(block: bytes, stored: int) -> bool:
    """Tell whether a checksum is one of bytes with a sign, as some old programs wrote it."""
    summed = block[:148] + b" " * 8 + block[156:]
    return sum(byte - 256 if byte > 127 else byte for byte in summed) == stored


def _adder(
    made: Walk, left_out: dict[str, list[str]], seen: Callable[[str, int, int], None] | None
) -> Callable[[str, int, int, int], None]:
    names, starts, sizes = made.names.append, made.starts.append, made.sizes.append
    headers = made.headers.append

    def add(name: str, start: int, size: int, check: int) -> None:
        if name[-1:] == "/":  # a folder, as old tar wrote them
            return
        known = usable(name)
        if known is None or "\0" in known:
            left_out[NO_PATHS].append(name[:SHOWN])
            return
        names(known)
        starts(start)
        sizes(size)
        headers(check)
        if seen is not None:
            seen(known, start, size)

    return add


def _special(
    at: Callable[[int, int], bytes],
    add: Callable[[str, int, int, int], None],
    left_out: dict[str, list[str]],
    member: tuple[str, int, bytes, Mapping[str, str]],
    offset: int,
    check: int,
) -> int:
    """Take a member that is described beforehand, or no file; return where the next header is."""
    name, size, kind, pax = member
    start = offset + BLOCK
    if kind in _FOLDERS:
        return start
    if kind in _OTHERS:
        left_out[_OTHERS[kind]].append(name)
        return start
    if kind == _SPARSE:
        is_more = at(offset, BLOCK)[482]
        while is_more:
            is_more = at(start, BLOCK)[504:505] == b"\1"
            start += BLOCK
    if kind == _SPARSE or any(key.startswith("GNU.sparse.") for key in pax):
        left_out["sparse files"].append(pax.get("GNU.sparse.name", name))
    elif kind not in _FILES:
        left_out["members of an unknown kind"].append(name)
    else:
        add(name, start, size, check)
    return start + _padded(size)


def _description(at: Callable[[int, int], bytes], offset: int, size: int) -> bytes:
    if size > _MOST_DESCRIPTION:
        raise DamagedHeaderError("a description too long")
    return at(offset + BLOCK, size)


def _pax(data: bytes) -> dict[str, str]:
    """Return what a pax header says, by keyword."""
    found, start = {}, 0
    while start < len(data) and data[start]:
        match = _PAX_LENGTH.match(data, start)
        end = start + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
            raise DamagedHeaderError("no pax header")
        key, _, value = data[match.end() : end - 1].partition(b"=")
        found[_text(key)] = _text(value)
        start = end
    return found


def _size_of(pax: Mapping[str, str], size: int) -> int:
    said = pax.get("size")
    if said is None:
        return size
    if not (said.isascii() and said.isdigit() and len(said) < 18):
        raise DamagedHeaderError("no number")
    return int(said)


def _name_of(pax: Mapping[str, str], name: str) -> str:
    return pax.get("path", name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _next_header(at: Callable[[int, int], bytes], offset: int) -> int | None:
    """Return where the next header is that is as it was written; None if there is none."""
    while len(block := at(offset, BLOCK)) == BLOCK:
        if block[257:262] == b"ustar":
            try:
                parse(block)
            except DamagedHeaderError:
                pass
            else:
                return offset
        offset += BLOCK
    return None


def _damaged(offset: int, found: int | None) -> str:
    if found is None:
        return f"a damaged header at byte {offset:,}: what follows is lost"
    lost = found - offset
    return f"a damaged header at byte {offset:,}: {lost:,} bytes, up to the next one, are lost"


def _end(at: Callable[[int, int], bytes], offset: int, block: bytes, found: int) -> list[str]:
    """Return what to say of how a tar file ends: two blocks of zeros are its end mark."""
    files = counted(found, "file")
    if len(block) == BLOCK:
        behind = at(offset, _BEHIND).strip(b"\0")
        if behind:
            return [f"bytes behind its end mark, after {files}, are not read (tar --ignore-zeros)"]
        return []
    if not offset and not block:
        return ["it is empty"]
    return [f"cut short, or without an end mark: it has {files}"]


def _noted(made: Walk, left_out: Mapping[str, list[str]]) -> Walk:
    for what, names in sorted(left_out.items()):
        made.notes.append(f"left out, {what}, {len(names):,}: {mention(names)}")
    return made
