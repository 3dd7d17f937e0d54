"""Broken or large metadata never costs an image whose pixels are whole."""

import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import photos
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from pipeline.errors import DecodeError
from pipeline.images import containers
from pipeline.images.decoder import decode

SIZE = 24
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:D tiff:Orientation="%d"/></x:xmpmeta>'
LARGE = 2 << 20


def chunk(name: bytes, payload: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(name + payload) ^ damage
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", checksum)


def png(seed: int = 1) -> tuple[bytes, int, int]:
    """Return a PNG and where its pixels start and end."""
    data = photos.encoded(photos.picture(seed), "PNG")
    return data, data.index(b"IDAT") - 4, data.index(b"IEND") - 4


PIXELS = decode(png()[0], SIZE)
PACKED = zlib.compress(bytes(LARGE))
BAD_CHUNKS = {
    "ICC of 2 MiB": chunk(b"iCCP", b"name\0\0" + PACKED),
    "ICC without a name": chunk(b"iCCP", b"name"),
    "ICC packed in another way": chunk(b"iCCP", b"name\0\7abc"),
    "XMP of 2 MiB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED),
    "bad checksum of a profile": chunk(b"iCCP", b"name\0\0" + zlib.compress(ICC), damage=1),
    "bad checksum of a text": chunk(b"tEXt", b"a\0bc", damage=1),
    "bad checksum of an animation": chunk(b"acTL", struct.pack(">II", 2, 0), damage=1),
    "bad checksum of EXIF": chunk(b"eXIf", photos.exif(6)[6:], damage=1),
    "bad checksum of something private": chunk(b"prVt", b"abc", damage=1),
    "frames without an order": chunk(b"acTL", struct.pack(">II", 2, 0))
    + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 7, 48, 32, 0, 0, 1, 1, 0, 0)),
    "short animation": chunk(b"acTL", b"abc"),
    "short gamma": chunk(b"gAMA", b"ab"),
    "short resolution": chunk(b"pHYs", b"ab"),
    "short white point": chunk(b"cHRM", b"ab"),
    "short rendering": chunk(b"sRGB", b""),
    "text of 2 MiB": chunk(b"zTXt", b"workflow\0\0" + PACKED),
    "text of 2 MiB, international": chunk(b"iTXt", b"workflow\0\1\0\0\0" + PACKED),
    "text packed in another way": chunk(b"zTXt", b"workflow\0\7abc"),
    "texts of 70 MiB": 70 * chunk(b"tEXt", b"a\0" + b"b" * (1 << 20)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_CHUNKS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_chunk_beside_the_pixels_of_a_png_costs_nothing(name: str, place: str) -> None:
    data, start, end = png()
    if (name, place) == ("bad checksum of EXIF", "after"):
        pytest.skip("Pillow takes it as it is: it compares no checksum after the pixels")
    at = start if place == "before" else end
    np.testing.assert_array_equal(decode(data[:at] + BAD_CHUNKS[name] + data[at:], SIZE), PIXELS)


@pytest.mark.parametrize("cut", [1, 5, 11, 13, 20])
def test_a_png_cut_in_a_text_after_its_pixels_is_whole(cut: int) -> None:
    data, _, end = png()
    text = chunk(b"tEXt", b"comment\0" + b"a" * 20)
    np.testing.assert_array_equal(decode(data[:end] + text[:-cut], SIZE), PIXELS)


def test_a_thousand_packed_profiles_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacked(*arguments: object) -> bytes:
        raise AssertionError("Pillow unpacks a profile")

    monkeypatch.setattr(PngImagePlugin, "_safe_zlib_decompress", unpacked)
    data, start, _ = png()
    profiles = 1001 * chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(1 << 20)))
    np.testing.assert_array_equal(decode(data[:start] + profiles + data[start:], SIZE), PIXELS)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS"])
def test_a_chunk_that_decides_over_pixels_stays_bad(name: bytes) -> None:
    data = photos.encoded(photos.picture(1).quantize(16), "PNG", transparency=bytes(range(16)))
    decode(data, SIZE)
    at = data.index(name) + 4 + int.from_bytes(data[data.index(name) - 4 : data.index(name)], "big")
    with pytest.raises(DecodeError):
        decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], SIZE)


def test_pixels_that_end_early_stay_bad_beside_a_bad_text() -> None:
    data, start, end = png()
    bad = data[:start] + BAD_CHUNKS["bad checksum of a text"] + data[start : end - 200]
    with pytest.raises(DecodeError, match=r"not an image|truncated or corrupt"):
        decode(bad, SIZE)


def turned_png(*chunks: bytes) -> bytes:
    """Return the picture stored as a camera held at a right angle has it, with more chunks."""
    stored = photos.picture(1).transpose(Image.Transpose.ROTATE_90)
    data = photos.encoded(stored, "PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


RAW_EXIF = b"\nexif\n      40\n" + photos.exif(6).hex().encode()
TURNING = {
    "EXIF": chunk(b"eXIf", photos.exif(6)[6:]),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % 6),
    "XMP, packed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP % 6)),
    "XMP of 2 MiB, packed": chunk(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP % 6 + b" " * LARGE)
    ),
    "text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF)),
}


@pytest.mark.parametrize("name", TURNING)
def test_a_png_with_bad_metadata_is_still_turned_upright(name: str) -> None:
    bad = BAD_CHUNKS["bad checksum of a text"]
    np.testing.assert_array_equal(decode(turned_png(bad, TURNING[name]), SIZE), PIXELS)


def test_a_bad_chunk_turns_nothing() -> None:
    stored = decode(turned_png(), SIZE)
    assert (stored != PIXELS).any()
    bad = BAD_CHUNKS["bad checksum of EXIF"]
    np.testing.assert_array_equal(decode(turned_png(bad), SIZE), stored)
    broken = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1")
    text = BAD_CHUNKS["bad checksum of a text"]
    np.testing.assert_array_equal(decode(turned_png(broken, text), SIZE), stored)


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">HH", marker, len(payload) + 2) + payload


BAD_SEGMENTS = {
    "Adobe": segment(0xFFEE, b"Adobe"),
    "ICC": segment(0xFFE2, b"ICC_PROFILE\0"),
    "JFIF": segment(0xFFE0, b"JFIF\0"),
    "Photoshop": segment(0xFFED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "several": segment(0xFFE2, b"ICC_PROFILE\0") + segment(0xFFE0, b"JFIF\0"),
}


@pytest.mark.parametrize("name", BAD_SEGMENTS)
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_bad_segment_of_a_jpeg_costs_nothing(name: str, orientation: int, mode: str) -> None:
    picture = photos.picture(2).convert(mode)
    good = photos.encoded(picture, "JPEG", exif=photos.exif(orientation), comment=b"hello")
    bad = good[:2] + BAD_SEGMENTS[name] + good[2:]
    np.testing.assert_array_equal(decode(bad, SIZE), decode(good, SIZE))


def webp(orientation: int) -> bytes:
    return photos.turned(orientation, "WEBP", 3, lossless=True, xmp=XMP % 1, icc_profile=ICC)


@pytest.mark.parametrize("cut", [1, 2, 9, 60])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_webp_cut_in_its_metadata_is_whole(cut: int, orientation: int) -> None:
    data = webp(orientation)
    assert data.index(b"EXIF") < data.index(b"XMP ") < len(data) - 60
    np.testing.assert_array_equal(decode(data[:-cut], SIZE), decode(data, SIZE))


@pytest.mark.parametrize("length", [0, 1, 41, 2**31, 2**32 - 1])
def test_a_wrong_length_of_webp_metadata_costs_nothing(length: int) -> None:
    data = webp(1)
    at = data.index(b"XMP ") + 4
    bad = data[:at] + struct.pack("<I", length) + data[at + 4 :]
    np.testing.assert_array_equal(decode(bad, SIZE), decode(data, SIZE))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("junk", [b"junk", b"\xff\xff\xff\xff", b"MM\0*\xff\xff\xff\xff"])
def test_broken_exif_of_avif_costs_nothing(orientation: int, junk: bytes) -> None:
    tags = Image.Exif()
    tags[photos.ORIENTATION] = orientation
    tags[0x010F] = "Maker"
    data = photos.encoded(photos.picture(4), "AVIF", quality=90, exif=tags.tobytes())
    header = max(data.rfind(b"MM\0*"), data.rfind(b"II*\0"))
    assert header > 0
    bad = data[:header] + junk + data[header + len(junk) :]
    np.testing.assert_array_equal(decode(bad, SIZE), decode(data, SIZE))


@pytest.mark.parametrize("length", [0, 3, 7, 10**6])
def test_a_broken_box_after_the_pixels_of_a_jpeg_2000_costs_nothing(length: int) -> None:
    data = photos.GOOD["rgb.jp2"](5)
    bad = data + struct.pack(">I4s", length, b"xml ") + b"<a/>"
    np.testing.assert_array_equal(decode(bad, SIZE), decode(data, SIZE))


def tiff_entries(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield place and tag of the entries of a TIFF's first directory."""
    (start,) = struct.unpack_from("<I", data, 4)
    (number,) = struct.unpack_from("<H", data, start)
    for at in range(start + 2, start + 2 + 12 * number, 12):
        yield at, struct.unpack_from("<H", data, at)[0]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_broken_entry_of_a_tiff_costs_nothing(compression: str, orientation: int) -> None:
    stored = photos.picture(5)
    tags = Image.Exif()
    tags[photos.ORIENTATION] = orientation
    tags[0x010F] = "a camera's maker"
    data = photos.encoded(
        stored, "TIFF", exif=tags, icc_profile=ICC, description="hello", compression=compression
    )
    expected = decode(data, SIZE)
    broken = 0
    for at, tag in tiff_entries(data):
        if tag in (270, 271, 34675):
            broken += 1
            beyond = struct.pack("<HII", 2, 40, 0xFFFFFFF0)
            bad = data[: at + 2] + beyond + data[at + 12 :]
            np.testing.assert_array_equal(decode(bad, SIZE), expected)
    assert broken == 3


@pytest.mark.slow
def test_a_sound_image_is_decoded_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "without_metadata", lambda data: pytest.fail("called"))
    for make in photos.GOOD.values():
        decode(make(6), SIZE)


MENDED = [name for name in photos.GOOD if re.search(r"\.(avif|jp2|jpg|png|tif|webp)$", name)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MENDED)
def test_dropping_metadata_changes_no_pixel(kind: str) -> None:
    data = photos.GOOD[kind](7)
    kept = containers.without_metadata(data) or data
    np.testing.assert_array_equal(decode(kept, SIZE), decode(data, SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MENDED)
def test_any_bytes_can_be_asked_for(kind: str) -> None:
    data = photos.GOOD[kind](8)
    rng = np.random.default_rng(0)
    for cut in (*range(40), *rng.integers(0, len(data), 100)):
        containers.without_metadata(data[:cut])
        containers.is_littered(data[:cut])
        containers.jpeg_scans(data[:cut])


def scans_of(pixels: NDArray[np.uint8], **options: object) -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return containers.jpeg_scans(buffer.getvalue())


def test_scans_are_counted() -> None:
    pixels = photos.natural(64, 48, 1)
    assert scans_of(pixels) == 1
    assert scans_of(pixels, progressive=True) == 10
    assert scans_of(pixels[..., 0], progressive=True) == 6
    thumbnail = photos.encoded(photos.picture(), "JPEG", progressive=True)
    assert scans_of(pixels, progressive=True, exif=b"Exif\0\0" + thumbnail) == 10
    assert scans_of(pixels, comment=b"\xff\xda\xff\xd9" * 5) == 1
