"""The decoder against independent computations, and against hostile bytes."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import photos
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipeline.errors import DecodeError
from pipeline.images import decoder
from pipeline.images.decoder import decode
from pipeline.images.memory_budget import MemoryBudget

SIZE = 16


def squashed(image: Image.Image, size: int = SIZE) -> NDArray[np.int64]:
    """The last step of the rule alone: one antialiased bilinear resize."""
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized.convert("RGB")).astype(int)


def difference(pixels: NDArray[np.uint8], expected: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.abs(pixels.astype(int) - expected)


def over_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> Image.Image:
    weight = alpha[..., np.newaxis] / 255
    return Image.fromarray(np.rint(colour * weight + 255 * (1 - weight)).astype(np.uint8))


def reason(data: bytes, size: int = SIZE) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, size)
    assert caught.value.hint == ""
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", photos.GOOD)
def test_every_kind_gives_rgb_of_the_asked_size(kind: str) -> None:
    pixels = decode(photos.GOOD[kind](1), SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert pixels.std() > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "animated.png",
        "bits-16-rgb.png",
        "deflate.tif",
        "lossless.webp",
        "lzw.tif",
        "rgb.bmp",
        "rgb.jp2",
        "rgb.png",
        "rgb.ppm",
        "rgb.qoi",
        "rgb.ras",
        "rgb.sgi",
        "rgb.tif",
        "text.ppm",
    ],
)
@pytest.mark.parametrize("size", [1, SIZE, 100])
def test_lossless_kinds_are_the_picture_resized_once(kind: str, size: int) -> None:
    expected = squashed(photos.picture(2), size)
    np.testing.assert_array_equal(decode(photos.GOOD[kind](2), size), expected)


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("adobe-cmyk.jpg", 1),
        ("animated.gif", 6),
        ("animated.webp", 10),
        ("cmyk.tif", 1),
        ("jpeg.tif", 2),
        ("palette.bmp", 3),
        ("palette.png", 3),
        ("progressive.jpg", 10),
        ("rgb.avif", 10),
        ("rgb.jpg", 10),
        ("rgb.webp", 10),
        ("ycbcr.tif", 2),
    ],
)
def test_lossy_kinds_are_near_the_picture(kind: str, bound: float) -> None:
    off = difference(decode(photos.GOOD[kind](2), SIZE), squashed(photos.picture(2)))
    assert off.mean() < bound


@pytest.mark.parametrize("kind", ["grey.bmp", "grey.jpg", "grey.png"])
def test_grey_has_three_equal_channels(kind: str) -> None:
    pixels = decode(photos.GOOD[kind](3), SIZE)
    off = difference(pixels, squashed(photos.picture(3).convert("L")))
    assert off.mean() < 3
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("kind", ["bits-1.png", "bits-1.tif"])
def test_one_bit_is_black_and_white_before_resizing(kind: str) -> None:
    expected = squashed(photos.picture(3).convert("1").convert("L"))
    np.testing.assert_array_equal(decode(photos.GOOD[kind](3), SIZE), expected)


SCALED: dict[str, Callable[[NDArray[np.uint16]], NDArray[np.float64]]] = {
    "bits-12.tif": lambda grey: (grey >> 4) * (255 / 4095),
    "bits-16-big.tif": lambda grey: grey / 257,
    "bits-16-key.png": lambda grey: np.where(grey == grey[0, 0], 255, grey / 257),
    "bits-16-white-is-zero.tif": lambda grey: 255 - np.rint(grey / 257),
    "bits-16.jp2": lambda grey: grey / 257,
    "bits-16.pgm": lambda grey: grey / 257,
    "bits-16.png": lambda grey: grey / 257,
    "bits-16.tif": lambda grey: grey / 257,
}


@pytest.mark.parametrize("kind", SCALED)
def test_deep_grey_is_scaled_with_rounding(kind: str) -> None:
    grey = np.rint(SCALED[kind](photos.grey16(4))).astype(np.uint8)
    pixels = decode(photos.GOOD[kind](4), SIZE)
    np.testing.assert_array_equal(pixels, squashed(Image.fromarray(grey)))


def test_sixteen_bits_round_to_the_nearest_level() -> None:
    grey = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]] * 8, dtype=np.uint16)
    pixels = decode(photos.png(grey, depth=16, colour=0), 8)
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 2, 254, 255, 255]


@pytest.mark.parametrize(
    "tiff",
    [
        photos.grey_tiff(np.zeros((4, 4), "<i2"), bits=16, photometric=1, sample_format=2),
        photos.grey_tiff(np.zeros((4, 4), "<u4"), bits=32, photometric=1),
        photos.grey_tiff(np.zeros((4, 4), "<f4"), bits=32, photometric=1, sample_format=3),
    ],
    ids=["signed", "32-bit", "float"],
)
def test_pixels_without_a_known_white_are_refused(tiff: bytes) -> None:
    assert "no fixed white" in reason(tiff)


@pytest.mark.parametrize("kind", ["alpha.png", "alpha.tif", "alpha.webp"])
def test_alpha_lies_over_white(kind: str) -> None:
    values = np.asarray(photos.with_alpha(5))
    expected = squashed(over_white(values[..., :3], values[..., 3]))
    np.testing.assert_array_equal(decode(photos.GOOD[kind](5), SIZE), expected)


def test_grey_alpha_lies_over_white() -> None:
    values = np.asarray(photos.with_alpha(5).convert("LA"))
    expected = squashed(over_white(values[..., :1].repeat(3, axis=-1), values[..., 1]))
    np.testing.assert_array_equal(decode(photos.GOOD["grey-alpha.png"](5), SIZE), expected)


def test_premultiplied_alpha_is_not_multiplied_again() -> None:
    values = np.asarray(photos.with_alpha(5).convert("LA")).astype(int)
    grey = values[..., 0] * values[..., 1] // 255 + 255 - values[..., 1]
    expected = squashed(Image.fromarray(grey.astype(np.uint8)))
    assert difference(decode(photos.GOOD["premultiplied.tif"](5), SIZE), expected).max() <= 1


def test_palette_alpha_lies_over_white() -> None:
    indices = photos.picture(5).quantize(16)
    alpha = (np.asarray(indices) * 16).astype(np.uint8)
    expected = squashed(over_white(np.asarray(indices.convert("RGB")), alpha))
    np.testing.assert_array_equal(decode(photos.GOOD["alpha-palette.png"](5), SIZE), expected)


def test_a_transparent_palette_entry_is_white() -> None:
    indices = photos.picture(5).quantize(32)
    opaque = np.where(np.asarray(indices) == 3, 0, 255).astype(np.uint8)
    expected = squashed(over_white(np.asarray(indices.convert("RGB")), opaque))
    np.testing.assert_array_equal(decode(photos.GOOD["palette-key.gif"](5), SIZE), expected)


def test_a_transparent_colour_is_white() -> None:
    colour = np.asarray(photos.picture(5)).copy()
    colour[(colour == colour[0, 0]).all(axis=-1)] = 255
    expected = squashed(Image.fromarray(colour))
    np.testing.assert_array_equal(decode(photos.GOOD["rgb-key.png"](5), SIZE), expected)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_transparent_grey_of_few_bits_is_white(depth: int) -> None:
    grey = np.arange(16).reshape(4, 4) % 2**depth
    data = photos.png(grey, depth=depth, colour=0, chunks={b"tRNS": struct.pack(">H", 1)})
    expected = np.where(grey == 1, 255, grey * 255 // (2**depth - 1))
    np.testing.assert_array_equal(decode(data, 4)[..., 0], expected)


def test_lab_is_converted_by_its_definition() -> None:
    stored = np.frombuffer(photos.lab(6).tobytes(), np.uint8).reshape(-1, 3)
    lightness = stored[:, 0] * (100 / 255)
    a, b = stored[:, 1:].astype(np.int8).astype(float).T
    f = (lightness + 16) / 116
    f = np.stack([f + a / 500, f, f - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    xyz *= [0.9642, 1, 0.8249]  # the white of CIELAB in files: D50
    to_linear = np.array(
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = (xyz @ to_linear.T).clip(0, 1)
    srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    picture = np.rint(srgb * 255).astype(np.uint8).reshape(photos.HEIGHT, photos.WIDTH, 3)
    expected = squashed(Image.fromarray(picture))
    off = difference(decode(photos.GOOD["lab.tif"](6), SIZE), expected)
    assert off.mean() < 2
    assert off.max() <= 8


@pytest.mark.slow
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_gives_the_same_upright_image(kind: str, orientation: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(photos.turned(orientation, kind, 7, **options), SIZE)
    np.testing.assert_array_equal(pixels, squashed(photos.picture(7)))


@pytest.mark.slow
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["AVIF", "JPEG"])
def test_orientation_of_lossy_kinds(kind: str, orientation: int) -> None:
    data = photos.turned(orientation, kind, 7, quality=95, subsampling="4:4:4")
    assert difference(decode(data, SIZE), squashed(photos.picture(7))).mean() < 2


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_of_heic(orientation: int) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    data = photos.turned(orientation, "HEIF", 7, quality=95, chroma=444)
    assert difference(decode(data, SIZE), squashed(photos.picture(7))).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "metadata", [b"II*\0", b"II*\0\xff\xff\xff\xff", b"no metadata", b"\xff" * 99]
)
def test_broken_exif_leaves_the_pixels_alone(kind: str, metadata: bytes) -> None:
    plain = photos.encoded(photos.picture(7), kind)
    broken = photos.encoded(photos.picture(7), kind, exif=b"Exif\0\0" + metadata)
    np.testing.assert_array_equal(decode(broken, SIZE), decode(plain, SIZE))


def full_scale(data: bytes, size: int) -> NDArray[np.int64]:
    with Image.open(photos.io.BytesIO(data)) as image:
        return squashed(image, size)


def reduced(data: bytes, size: int, factor: int) -> NDArray[np.int64]:
    with Image.open(photos.io.BytesIO(data)) as image:
        image.draft("RGB", (image.width // factor, image.height // factor))
        assert image.width * factor >= 1000
        return squashed(image, size)


def test_large_jpegs_are_decoded_at_a_reduced_scale() -> None:
    data = photos.encoded(Image.fromarray(photos.natural(1000, 800, 8)), "JPEG", quality=90)
    for size, factor in ((64, 4), (50, 8), (101, 2)):
        np.testing.assert_array_equal(decode(data, size), reduced(data, size, factor))
        off = difference(decode(data, size), full_scale(data, size))
        assert 0 < off.mean() < 2


@pytest.mark.parametrize(("width", "height", "size"), [(500, 375, 224), (1600, 120, 31)])
def test_jpegs_are_never_decoded_under_twice_the_target(width: int, height: int, size: int) -> None:
    data = photos.encoded(Image.fromarray(photos.natural(width, height, 9)), "JPEG")
    np.testing.assert_array_equal(decode(data, size), full_scale(data, size))


def test_reduced_scale_keeps_the_orientation() -> None:
    wide = Image.fromarray(photos.natural(800, 600, 10))
    upright = decode(photos.encoded(wide, "JPEG", quality=95), SIZE)
    held = wide.transpose(Image.Transpose.ROTATE_90)
    turned = decode(photos.encoded(held, "JPEG", quality=95, exif=photos.exif(6)), SIZE)
    assert difference(turned, upright.astype(int)).mean() < 1


def test_cmyk_is_ink_on_paper() -> None:
    ink = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    data = photos.encoded(Image.frombytes("CMYK", (SIZE, SIZE), ink.tobytes()), "TIFF")
    light = 255 - ink.astype(int)
    expected = np.rint(light[..., :3] * light[..., 3:] / 255).astype(int)
    assert difference(decode(data, SIZE), expected).max() <= 1


REASONS = {
    "empty.jpg": "empty file",
    "float.tif": "TIFF of signed, 32-bit or float pixels",
    "text.jpg": "not an image that Pillow can read",
    "truncated.gif": "truncated or corrupt GIF: ",
    "truncated.jpg": "truncated or corrupt JPEG: ",
    "truncated.png": "truncated or corrupt PNG: ",
    "truncated.tif": "not an image that Pillow can read",
    "truncated.webp": "corrupt or unsupported header: ",
}


@pytest.mark.parametrize("kind", photos.BAD)
def test_bad_files_have_a_short_reason(kind: str) -> None:
    text = reason(photos.BAD[kind](0))
    assert text.startswith(REASONS[kind])
    assert len(text) < 200
    assert "0x" not in text, "an object's address would change from run to run"


UNREAD = {
    "DDS": "DDS is not read (a texture, whose channels mean what its program wants): "
    "save it as PNG",
    "EPS": "EPS is not read (a page that a program has to draw): save it as PNG",
    "ICNS": "ICNS is not read (an icon in several sizes, not a picture): save it as PNG",
    "ICO": "ICO is not read (an icon in several sizes, not a picture): save it as PNG",
    "PCX": "PCX is not read (too rare, and its decoder too seldom tried on hostile files): "
    "save it as PNG",
    "PDF": "PDF is not read (a page that a program has to draw): save it as PNG",
    "TGA": "TGA is not read (most have no signature, so that any bytes could be one): "
    "save it as PNG",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNREAD)
def test_a_format_that_is_not_read_is_named(kind: str) -> None:
    assert reason(photos.encoded(photos.picture(), kind)) == UNREAD[kind]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"8BPS\0\1" + bytes(40), "PSD is not read (its merged picture"),
        (b"<?xml version='1.0'?>\n<svg xmlns=", "SVG is not read (a page"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL is not read"),
        (b"\0\0\0\x20ftypisom" + bytes(40), "MPEG is not read (a film"),
        (b"\n<!DOCTYPE html><html>", "a web page, not an image"),
        (b"SIMPLE  =                    T", "FITS is not read (measurements"),
        (bytes(100), "not an image that Pillow can read"),
        (b"\0", "not an image that Pillow can read"),
    ],
)
def test_what_is_no_image_is_named_where_it_can_be(start: bytes, expected: str) -> None:
    assert reason(start).startswith(expected)


def test_a_tga_without_a_footer_is_named_by_its_header() -> None:
    with_footer = photos.encoded(photos.picture(), "TGA")
    assert reason(with_footer[:-26]) == UNREAD["TGA"]
    assert reason(b"\0" * 16 + with_footer[16:-26]) == "not an image that Pillow can read"


def test_too_many_pixels_are_refused_before_any_is_decoded() -> None:
    assert reason(photos.png_header(13_378, 13_378)).startswith("too large: ")
    assert reason(photos.png_header(13_377, 13_377)).startswith("truncated or corrupt PNG")


def test_the_cap_holds_whatever_others_set_in_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(photos.png_header(20_000, 10_000)) == (
        "too large: 20000 x 10000 is more than 178,956,970 pixels"
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is a Linux one")
def test_an_image_that_does_not_fit_into_memory_says_so(tmp_path: Path) -> None:
    blank = tmp_path / "blank.png"
    blank.write_bytes(photos.encoded(Image.new("1", (13_000, 13_000)), "PNG"))
    program = (
        "import pathlib, resource, sys\n"
        "from pipeline import errors\n"
        "from pipeline.images import decoder\n"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))\n"
        "try:\n"
        "    decoder.decode(pathlib.Path(sys.argv[1]).read_bytes(), 16)\n"
        "except errors.DecodeError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(blank)], capture_output=True, check=True, text=True
    )
    assert result.stdout == "too large: no memory for 13000 x 13000 pixels\n"


@pytest.mark.parametrize(("width", "height"), [(1, 178_956_970), (2**20 + 1, 1)])
def test_an_elongated_image_is_refused_before_any_pixel_is_decoded(width: int, height: int) -> None:
    assert reason(photos.png_header(width, height)) == (
        f"too elongated: {width} x {height} has a side over 1,048,576 pixels"
    )


def test_a_long_strip_is_decoded() -> None:
    strip = Image.fromarray(photos.natural(64, 8, 1)).resize((3, 60_000))
    data = photos.encoded(strip, "PNG")
    np.testing.assert_array_equal(decode(data, SIZE), squashed(strip))


def tiled_tiff(side: int) -> bytes:
    """Return a small deflated TIFF whose only tile has this side."""
    packed = zlib.compress(bytes(1 << 20))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0}
    tags |= {325: len(packed)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed


def test_tiles_larger_than_any_image_are_refused() -> None:
    assert decode(tiled_tiff(16), 8).shape == (8, 8, 3)
    assert reason(tiled_tiff(40_000)) == "too large: its tiles have more than 178,956,970 pixels"


def with_scans(data: bytes, more: int) -> bytes:
    """Return a progressive JPEG with its last scan so many times more."""
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * more + data[-2:]


def test_a_jpeg_of_too_many_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos.encoded(photos.picture(1), "JPEG", progressive=True)
    assert decode(with_scans(data, 2000), SIZE).shape == (SIZE, SIZE, 3)
    monkeypatch.setattr(decoder, "_MAX_SCAN_PIXELS", 100 * photos.WIDTH * photos.HEIGHT)
    assert decode(with_scans(data, 90), SIZE).shape == (SIZE, SIZE, 3)
    assert reason(with_scans(data, 91)) == "too slow: JPEG of 101 scans of 48 x 32 pixels"


def test_a_large_jpeg_of_2000_scans_is_refused_at_once() -> None:
    plain = photos.encoded(Image.new("L", (3000, 3000)), "JPEG", progressive=True)
    began = time.process_time()
    assert reason(with_scans(plain, 2000)).startswith(
        "too slow: JPEG of 2,006 scans of 3000 x 3000"
    )
    assert time.process_time() - began < 1


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_scans_of_a_plain_jpeg_are_not_searched_for(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    monkeypatch.setattr(decoder.containers, "jpeg_scans", lambda data: searched.append(0) or 1)
    decode(photos.encoded(photos.picture(1).convert(mode), "JPEG"), SIZE)
    assert searched == []
    decode(photos.encoded(photos.picture(1).convert(mode), "JPEG", progressive=True), SIZE)
    assert searched == [0]


def test_a_plain_jpeg_of_many_scans_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose colours come one after the other, so that all of them are kept and added to."""
    colour = photos.encoded(photos.picture(1), "JPEG", subsampling=0)
    at = colour.rindex(b"\xff\xda")
    one = b"\xff\xda\0\x08\1\1\0\0\x3f\0" + colour[at + 14 : -2]
    monkeypatch.setattr(decoder, "_MAX_SCAN_PIXELS", 100 * photos.WIDTH * photos.HEIGHT)
    assert reason(colour[:at] + one * 101 + b"\xff\xd9").startswith("too slow: JPEG of 101 scans")


def test_the_largest_jpegs_of_any_encoder_are_decoded() -> None:
    assert 24 * decoder.MAX_PIXELS <= decoder._MAX_SCAN_PIXELS


def test_formats_that_python_decodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_MAX_SLOW_PIXELS", photos.WIDTH * photos.HEIGHT - 1)
    assert reason(photos.GOOD["rgb.qoi"](1)) == (
        "too slow: QOI of 48 x 32 is more than 1,535 pixels: save it as PNG"
    )
    for kind in ("rgb.ppm", "rgb.ras", "rgb.sgi", "text.ppm"):
        decode(photos.GOOD[kind](1), SIZE)


def test_an_image_without_pixels_is_refused() -> None:
    assert reason(photos.grey_tiff(np.zeros((0, 4), "<u2"), bits=16, photometric=1))
    assert reason(b"P5 0 5 255 ")


def odd_files() -> dict[str, bytes]:
    """Files at which Pillow or libtiff warns, logs or prints."""
    tiff = bytearray(photos.GOOD["deflate.tif"](0))
    tiff[len(tiff) // 2] ^= 0xFF
    samples = photos.grey_tiff(np.zeros((4, 4), np.uint8), bits=8, photometric=1)
    return {
        "bomb warning": photos.png_header(10_000, 10_000),
        "corrupt deflate": bytes(tiff),
        "corrupt exif": photos.encoded(
            photos.picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x0f\x01\x02\0" * 4
        ),
        "samples per pixel": samples.replace(
            struct.pack("<HHII", 277, 4, 1, 1), struct.pack("<HHII", 277, 4, 1, 99)
        ),
    }


def outcome(data: bytes) -> bytes:
    try:
        return decode(data, SIZE).tobytes()
    except DecodeError as error:
        return str(error).encode()


@pytest.mark.slow
@pytest.mark.parametrize("action", ["always", "error"])
def test_no_warning_escapes_or_changes_the_outcome(action: str) -> None:
    expected = {name: outcome(data) for name, data in odd_files().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(outcome, list(odd_files().values()) * 3))
    assert caught == []
    assert found == list(expected.values()) * 3


@pytest.mark.slow
def test_nothing_is_printed_about_odd_files(tmp_path: Path) -> None:
    for number, data in enumerate(odd_files().values()):
        (tmp_path / str(number)).write_bytes(data)
    program = (
        "import pathlib, sys\n"
        "from pipeline import errors\n"
        "from pipeline.images import decoder\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try:\n"
        "        decoder.decode(path.read_bytes(), 16)\n"
        "    except errors.DecodeError:\n"
        "        pass\n"
        "decoder.environment()\n"
        "loaded = {'pillow_heif', 'keras', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, str(tmp_path)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_heic_is_decoded_by_the_extra() -> None:
    pytest.importorskip("pillow_heif")
    off = difference(decode(photos.heic(11), SIZE), squashed(photos.picture(11)))
    assert off.mean() < 10
    assert reason(photos.heic(11)[:200])


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100
    assert "pip install 'embedding-pipeline[heif]'" in reason(data)


def test_avif_in_the_shared_container_does_not_ask_for_heic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    avif = photos.GOOD["rgb.avif"](0)
    shared = avif.replace(b"ftypavif", b"ftypmif1", 1)
    assert shared != avif
    np.testing.assert_array_equal(decode(shared, SIZE), decode(avif, SIZE))


def test_environment_names_what_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise decoder.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(decoder.metadata, "version", lambda name: "1.2.3")
    pillow = decoder.PIL.__version__
    assert decoder.environment() == f"reader 2, pillow {pillow}, heif 1.2.3"
    monkeypatch.setattr(decoder.metadata, "version", absent)
    assert decoder.environment() == f"reader 2, pillow {pillow}"


@pytest.mark.slow
def test_threads_do_not_disturb_each_other() -> None:
    files = [make(12) for make in photos.GOOD.values()] * 4
    expected = [outcome(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files)) == expected


def peak(data: bytes, folder: Path) -> int:
    """Return the bytes by which decoding raises the peak of a new process."""
    (folder / "image").write_bytes(data)
    (folder / "small").write_bytes(photos.GOOD["rgb.png"](1))
    program = (
        "import pathlib, re, sys\n"
        "from pipeline.images import decoder\n"
        "def peak():\n"
        "    status = pathlib.Path('/proc/self/status').read_text()\n"
        "    return 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', status)[1])\n"
        "decoder.decode(pathlib.Path(sys.argv[1], 'small').read_bytes(), 64)\n"
        "data = pathlib.Path(sys.argv[1], 'image').read_bytes()\n"
        "before = peak()\n"
        "decoder.decode(data, 64)\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


BIG = {
    "AVIF": ("RGBA", {"speed": 10}),
    "GIF": ("P", {}),
    "JPEG": ("CMYK", {"progressive": True, "subsampling": 0}),
    "JPEG2000": ("RGB", {}),
    "PNG": ("RGBA", {"compress_level": 1}),
    "PPM": ("I;16", {}),
    "TIFF": ("CMYK", {}),
    "WEBP": ("RGBA", {"method": 0}),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own files")
@pytest.mark.parametrize("kind", BIG)
def test_no_image_takes_more_than_is_drawn_for_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, options = BIG[kind]
    picture = Image.fromarray(photos.natural(200, 200, 1)).resize((2000, 2000))
    wide = picture.convert("I;16") if mode == "I;16" else picture.convert(mode)
    data = photos.encoded(wide, kind, **options)
    drawn = []

    @contextmanager
    def draw(amount: int) -> Iterator[None]:
        drawn.append(amount)
        yield

    monkeypatch.setattr(decoder.BUDGET, "draw", draw)
    decode(data, 64)
    assert len(drawn) == 1
    # Pages of code and the allocator's own share come on top of the estimate.
    assert peak(data, tmp_path) < drawn[0] + (8 << 20)
    assert drawn[0] < 40 * 2000 * 2000


@pytest.mark.slow
def test_two_large_images_are_never_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, most, lock = [0], [0], threading.Lock()
    upright = decoder._upright_rgb

    def slow(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        try:
            return upright(image, data)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(decoder, "_upright_rgb", slow)
    files = [make(12) for make in photos.GOOD.values()]
    for limit, least, at_most in ((1, 1, 1), (2**40, 2, 8)):
        monkeypatch.setattr(decoder, "BUDGET", MemoryBudget(limit))
        most[0] = 0
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(outcome, files))
        assert least <= most[0] <= at_most


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 100_000, 2**40])
def test_eight_threads_decode_as_one_does_under_any_budget(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [make(14) for make in (*photos.GOOD.values(), *photos.BAD.values())]
    expected = [outcome(data) for data in files]
    monkeypatch.setattr(decoder, "BUDGET", MemoryBudget(limit))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files)) == expected
    assert decoder.BUDGET._line == [] or not any(
        share() and share().held.locked() for share in decoder.BUDGET._line
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_decodes_whatever_was_being_decoded() -> None:
    data, everything = photos.GOOD["rgb.png"](1), 2**60
    with decoder.BUDGET.draw(everything):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            decode(data, SIZE)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_an_image_that_fails_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "BUDGET", MemoryBudget(1))
    for _ in range(3):
        reason(photos.BAD["truncated.jpg"](0))
        assert decode(photos.GOOD["rgb.jpg"](0), SIZE).shape == (SIZE, SIZE, 3)


def mutated(seed: int) -> bytes:
    """Return a file of some kind, damaged in one of the ways that files are."""
    rng = np.random.default_rng(seed)
    names = sorted(photos.GOOD)
    data = bytearray(photos.GOOD[names[seed % len(names)]](seed % 5))
    for _ in range(rng.integers(1, 6)):
        at, length = rng.integers(0, len(data)), rng.integers(1, 9)
        kind = rng.integers(6)
        if kind == 0:
            data[at : at + length] = rng.bytes(length)
        elif kind == 1:
            data[at : at + 4] = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"][length % 3]
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + 50 * length]
        elif kind == 4:
            data[at] ^= 1 << (length - 1)
        else:
            head = rng.integers(0, min(100, len(data)))
            data[head] = rng.integers(256)
        if len(data) < 2:
            break
    return bytes(data)


FUZZ = """
import resource, signal, sys
sys.path[:0] = sys.argv[1], sys.argv[1] + '/..'
import test_decoder
from pipeline import errors
from pipeline.images import decoder
from pipeline.images.memory_budget import MemoryBudget
used = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), used + (3 << 30)))
decoder.MAX_PIXELS, decoder.BUDGET = 10**7, MemoryBudget(2 << 30)
whole = 0
for seed in range(int(sys.argv[2]), int(sys.argv[3])):
    data = test_decoder.mutated(seed)
    signal.alarm(20)  # ends the process: a hang in C cannot be interrupted otherwise
    try:
        whole += decoder.decode(data, 16).shape == (16, 16, 3)
    except errors.DecodeError as error:
        assert 0 < len(str(error)) < 250, (seed, error)
    except BaseException as error:
        sys.exit(f'seed {seed}: {error!r}')
    signal.alarm(0)
print(whole)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is a Linux one")
def test_hundreds_of_mutated_files_neither_crash_nor_hang() -> None:
    pytest.importorskip("pillow_heif")
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, str(Path(__file__).parent), "0", "300"]
    result = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert 50 < int(result.stdout) < 250


FILES = {**{name: make(13) for name, make in photos.GOOD.items()}, "photo.heic": b""}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a file of any kind with some bytes changed, and perhaps cut short."""
    data = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))] or photos.heic(13))
    # Half of the damage goes where it hurts: into the header.
    for reach in draw(st.lists(st.sampled_from([len(data), min(200, len(data))]), max_size=8)):
        data[draw(st.integers(0, reach - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.slow
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=damaged())
def test_damaged_files_give_an_image_or_a_decode_error(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A changed header may promise 178 megapixels; allowed, but slow to run by the hundred.
    monkeypatch.setattr(decoder, "MAX_PIXELS", 10**6)
    try:
        pixels = decode(data, SIZE)
    except DecodeError as error:
        assert 0 < len(str(error)) < 250
        assert "\n" not in str(error)
    else:
        assert pixels.shape == (SIZE, SIZE, 3)
        assert pixels.dtype == np.uint8


@pytest.mark.slow
def test_a_hundred_mixed_files_are_told_apart(tmp_path: Path) -> None:
    expected = photos.write_mixed(tmp_path)
    assert len(expected) == 100
    found = {}
    for path in tmp_path.rglob("*.*"):
        data = path.read_bytes()
        name = path.relative_to(tmp_path).as_posix()
        try:
            found[name] = decode(data, SIZE).shape == (SIZE, SIZE, 3)
        except DecodeError:
            found[name] = False
    assert found == expected
