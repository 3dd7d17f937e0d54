"""The pixels of PBM, PGM and PPM files whose values have to be converted.

Pillow converts text, and any largest value but 255 and 65535 of grey, one value at a time in
Python: up to minutes an image. This gives the same pixels in array operations.
"""

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipeline.files.arrays import AnyArray

_BLOCK: Final = 1 << 20
_COMMENT: Final = re.compile(rb"#[^\n\r]*[\n\r]?")
_WHITESPACE: Final = b" \t\n\r\v\f"
_MOST_DIGITS: Final = 10
_IS_SPACE: Final = np.isin(np.arange(256, dtype=np.uint8), np.frombuffer(_WHITESPACE, np.uint8))
# Pillow's names of its two decoders that are written in Python.
_BINARY: Final = "ppm"
_TEXT: Final = "ppm_plain"


def read(image: ImageFile.ImageFile, data: bytes) -> Image.Image | None:
    """Decode the pixels, given the header.

    Args:
        image: The opened file, its pixels not loaded yet.
        data: The file's bytes.

    Returns:
        The image, with 16-bit grey as mode ``I;16``; None where Pillow decodes fast itself.

    Raises:
        ValueError: The pixels end early or are no numbers.
    """
    tile = image.tile[0]
    if tile.codec_name not in (_BINARY, _TEXT):
        return None
    arguments: Any = tile.args
    if image.mode == "1":
        return _bits(image.size, _without_comments(data[tile.offset :]))
    largest = int(arguments[-1])
    count = image.width * image.height * len(image.getbands())
    if tile.codec_name == _TEXT:
        values = _numbers(_without_comments(data[tile.offset :]), count, largest)
    else:
        values = np.frombuffer(data, "u1" if largest < 256 else ">u2", -1, tile.offset)
    if len(values) < count:
        raise ValueError("image file is truncated")
    return _image(image, _scale(image.mode, largest)[values[:count]])


def _scale(mode: str, largest: int) -> AnyArray:
    """Return the level of every value that can be stored, by Pillow's rule."""
    deep = mode == "I"
    white = 65535 if deep else 255
    stored = np.arange(256 if largest < 256 else 65536)
    levels = np.rint(stored / largest * white).clip(0, white)
    return levels.astype(np.uint16 if deep else np.uint8)


def _image(image: ImageFile.ImageFile, levels: AnyArray) -> Image.Image:
    if image.mode == "I":
        return Image.fromarray(levels.reshape(image.height, image.width))
    return Image.frombytes(image.mode, image.size, levels.tobytes())


def _without_comments(text: bytes) -> bytes:
    return _COMMENT.sub(b"", text) if b"#" in text else text


def _bits(size: tuple[int, int], text: bytes) -> Image.Image:
    """Read a bitmap in text, one digit a pixel with any space between them or none."""
    digits = text.translate(None, delete=_WHITESPACE)[: size[0] * size[1]]
    if digits.strip(b"01"):
        raise ValueError("pixels that are neither 0 nor 1")
    if len(digits) < size[0] * size[1]:
        raise ValueError("image file is truncated")
    return Image.frombytes(
        "1", size, digits.translate(bytes.maketrans(b"01", b"\xff\0")), "raw", "1;8"
    )


def _numbers(text: bytes, count: int, largest: int) -> NDArray[np.uint16]:
    """Read the first numbers of a text, up to ``count``; a block at a time, to save memory."""
    found = np.zeros(count, np.uint16)
    filled = position = 0
    while filled < count and position < len(text):
        end = _end_of_block(text, position)
        values, is_clean = _parse(np.frombuffer(text, np.uint8, end - position, position))
        values = values[: count - filled]
        if len(values) and values.max() > largest:
            raise ValueError(f"a value of {values.max()} where {largest} is the largest")
        found[filled : filled + len(values)] = values
        filled += len(values)
        if filled < count and not is_clean:
            raise ValueError("pixels that are not numbers")
        position = end
    return found[:filled]


def _end_of_block(text: bytes, start: int) -> int:
    """Return where a block ends that splits no number."""
    end = start + _BLOCK
    if end >= len(text):
        return len(text)
    while end > start and not _IS_SPACE[text[end - 1]]:
        end -= 1
    if end == start:
        raise ValueError("a number of too many digits")
    return end


def _parse(codes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], bool]:
    """Read numbers between spaces.

    Returns:
        The numbers before the first character that is neither digit nor space, and whether
        there is no such character.
    """
    digits = codes - np.uint8(ord("0"))
    is_digit = digits < 10
    odd = np.flatnonzero(~is_digit & ~_IS_SPACE[codes])
    if len(odd):
        is_digit[odd[0] :] = False
    edges = np.flatnonzero(np.diff(is_digit, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    lengths = ends - starts
    longest = int(lengths.max(initial=0))
    if longest > _MOST_DIGITS:
        raise ValueError("a number of too many digits")
    values = np.zeros(len(starts), np.int64)
    for place in range(longest):
        has_place = lengths > place
        values[has_place] += digits[ends[has_place] - 1 - place].astype(np.int64) * 10**place
    return values, not len(odd)
