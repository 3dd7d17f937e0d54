"""PBM, PGM and PPM whose values have to be converted: as Pillow has them, and quickly."""

import io
import time

import numpy as np
import photos
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DecodeError
from pipeline.images.decoder import decode

SIZE = 12
LARGEST = [1, 2, 7, 100, 254, 255, 256, 1000, 4095, 65534, 65535]
SEPARATORS = [b" ", b"\n", b"\t\r\n", b" \v\f "]


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """Decode with Pillow's own reader; its 16-bit grey by our rule."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.mode == "I":
            grey = np.rint(np.asarray(image) * (255 / 65535)).astype(np.uint8)
            rgb = Image.fromarray(grey).convert("RGB")
        else:
            rgb = image.convert("RGB")
    return np.asarray(rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def values(colours: int, largest: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(largest)
    return rng.integers(0, largest + 1, (17, 23 * colours))


def text(colours: int, largest: int, separator: bytes, after: bytes = b"\n") -> bytes:
    kind = 3 if colours == 3 else 2
    numbers = separator.join(b"%d" % value for value in values(colours, largest).flat)
    return b"P%d 23 17 %d\n" % (kind, largest) + numbers + after


@pytest.mark.slow
@pytest.mark.parametrize("largest", LARGEST)
@pytest.mark.parametrize("colours", [1, 3])
def test_text_is_read_as_pillow_reads_it(largest: int, colours: int) -> None:
    for separator in SEPARATORS:
        for after in (b"", b"\n", b" 1 2 3", b" and more", b"\n# the end"):
            data = text(colours, largest, separator, after)
            np.testing.assert_array_equal(decode(data, SIZE), by_pillow(data))


@pytest.mark.parametrize("largest", LARGEST)
@pytest.mark.parametrize("colours", [1, 3])
def test_binary_values_are_scaled_as_pillow_does(largest: int, colours: int) -> None:
    pixels = values(colours, largest).astype("u1" if largest < 256 else ">u2")
    # Values above the largest are possible in binary files, and mean the largest.
    pixels.flat[:5] = np.iinfo(pixels.dtype).max
    data = b"P%d 23 17 %d\n" % (6 if colours == 3 else 5, largest) + pixels.tobytes()
    np.testing.assert_array_equal(decode(data, SIZE), by_pillow(data))


@pytest.mark.parametrize("separator", [b"", *SEPARATORS])
def test_bitmaps_in_text(separator: bytes) -> None:
    bits = separator.join(b"%d" % value for value in values(1, 1).flat)
    for after in (b"", b"\n", b"1 0"):
        data = b"P1 # a bitmap\n23 17\n# of bits\n" + bits + after
        np.testing.assert_array_equal(decode(data, SIZE), by_pillow(data))


@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\r\n"])
def test_comments_amid_pixels(ending: bytes) -> None:
    whole = text(3, 255, b" ")
    for at in range(20, 120, 7):
        data = whole[:at] + b"# 9 8 7" + ending + whole[at:]
        np.testing.assert_array_equal(decode(data, SIZE), by_pillow(data))


@pytest.mark.slow
def test_numbers_are_not_split_between_blocks() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (900, 1000), dtype=np.uint8)
    numbers = b" ".join(b"%d" % value for value in pixels.flat)
    assert len(numbers) > 3 * 2**20
    data = b"P2 1000 900 255\n" + numbers
    expected = (
        Image.fromarray(pixels).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(decode(data, SIZE), np.asarray(expected))


BAD = {
    "bits that are none": b"P1 2 2 0 1 2 1",
    "cut": b"P2 2 2 255 1 2 3",
    "cut bits": b"P1 2 2 0 1 1",
    "cut, binary": b"P5 2 2 100 ab",
    "large": b"P2 2 2 100 1 2 3 101",
    "large, far beyond": b"P2 2 2 255 1 2 3 99999999",
    "letters": b"P2 2 2 255 1 x 3 4",
    "long": b"P2 2 2 255 1 2 3 " + b"0" * 11 + b"4",
    "long, without an end": b"P2 2 2 255 1 2 3 " + b"4" * (3 << 20),
    "negative": b"P2 2 2 255 1 2 -3 4",
    "none": b"P2 2 2 255 ",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_pixel_is_refused(name: str) -> None:
    with pytest.raises(DecodeError, match="truncated or corrupt PPM"):
        decode(BAD[name], SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deep colours", "text"])
def test_a_photo_takes_a_moment(kind: str) -> None:
    pixels = photos.natural(800, 600, 1)
    if kind == "text":
        data = b"P3 800 600 255\n" + b" ".join(b"%d" % value for value in pixels.flat)
    else:
        data = b"P6 800 600 65535\n" + (pixels.astype(">u2") * 257).tobytes()
    began = time.process_time()
    found = decode(data, SIZE)
    # Pillow's own reader takes about a second, and minutes for the largest.
    assert time.process_time() - began < 0.7
    expected = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(expected))
