"""The rules by which images become squares, against Pillow asked for each step in turn."""

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import photos
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.extracting import ExtractOptions
from pipeline.config.options import options_of
from pipeline.errors import ConfigError, DecodeError, StaleFeaturesError
from pipeline.images import resizing, views
from pipeline.images.decoder import decode

SIZE = 56
SHAPES = [(90, 60), (60, 90), (80, 80), (20, 33), (333, 7), (1, 300), (300, 1), (1, 1), (57, 56)]
RULES = tuple(resizing.RESIZES)


def stepwise(
    image: Image.Image, resize: str, size: int = SIZE, *, is_wide: bool = False
) -> NDArray[np.int64]:
    """Resize the whole image, then cut its middle out, or lay it in the middle of white."""
    short = round(size * 8 / 7)
    side = short if is_wide else size
    width, height = image.size
    whole = {
        "squash": (side, side),
        "crop": [max(1, round(short * length / min(image.size))) for length in (width, height)],
        "pad": [max(1, round(side * length / max(image.size))) for length in (width, height)],
    }[resize]
    resized = image.resize(tuple(whole), Image.Resampling.BILINEAR)
    left, top = ((length - side) // 2 for length in whole)
    if resize == "crop":
        return np.asarray(resized.crop((left, top, left + side, top + side))).astype(int)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(resized, ((side - whole[0]) // 2, (side - whole[1]) // 2))
    return np.asarray(square).astype(int)


def picture(width: int, height: int, seed: int = 1) -> Image.Image:
    return Image.fromarray(photos.natural(width + 1, height + 1, seed)[:height, :width])


def png_of(image: Image.Image) -> bytes:
    return photos.encoded(image, "PNG")


def off(pixels: NDArray[np.uint8], expected: NDArray[np.int64]) -> NDArray[np.int64]:
    assert pixels.shape == expected.shape and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    return np.abs(pixels.astype(int) - expected)


# Pixels


@pytest.mark.slow
@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("resize", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_the_steps(shape: tuple[int, int], resize: str, is_wide: bool) -> None:
    image = picture(*shape)
    found = decode(png_of(image), SIZE, resize, is_wide=is_wide)
    assert found.shape == ((64, 64, 3) if is_wide else (56, 56, 3))
    # Pillow takes a box in float32, and of the two orders of its passes the one that costs less.
    difference = off(found, stepwise(image, resize, is_wide=is_wide))
    assert difference.max() <= (1 if resize == "crop" else 0)
    assert difference.mean() < 0.3


def test_without_a_rule_images_are_squashed() -> None:
    data = png_of(picture(90, 60))
    np.testing.assert_array_equal(decode(data, SIZE), decode(data, SIZE, "squash"))


def test_all_rules_agree_on_what_they_need_not_change() -> None:
    square = png_of(picture(80, 80))
    np.testing.assert_array_equal(decode(square, SIZE, "pad"), decode(square, SIZE, "squash"))
    small = picture(64, 64)
    expected = np.asarray(small.crop((4, 4, 60, 60)))
    np.testing.assert_array_equal(decode(png_of(small), SIZE, "crop"), expected)


def test_crop_is_the_protocol_of_imagenet() -> None:
    (width, height), side = (500, 375), 224
    place = resizing.Square(resizing.find("crop"), side, False).place((width, height))
    assert place.whole == (341, 256), "the short side to 256, the other by the same factor"
    left, top, right, bottom = place.box(width, height)
    assert (left + right) / 2 == pytest.approx(width / 2, abs=1)
    assert (top, bottom) == pytest.approx((16 * 375 / 256, 240 * 375 / 256))


def test_pad_keeps_every_pixel_and_the_aspect_ratio() -> None:
    black = Image.new("RGB", (300, 100))
    found = decode(png_of(black), 60, "pad")
    assert (found[:20] == 255).all() and (found[20:40] == 0).all() and (found[40:] == 255).all()
    thread = decode(png_of(Image.new("RGB", (1, 5000))), 60, "pad")
    assert (thread == 0).all(axis=2).sum() == 60, "one pixel wide, and not none"


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["crop", "pad"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_before_they_are_placed(orientation: int, resize: str) -> None:
    found = decode(photos.turned(orientation, "PNG", 7), SIZE, resize)
    assert off(found, stepwise(photos.picture(7), resize)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("resize", RULES)
@pytest.mark.parametrize("kind", photos.GOOD)
def test_every_kind_is_placed(kind: str, resize: str) -> None:
    found = decode(photos.GOOD[kind](1), 16, resize)
    assert found.shape == (16, 16, 3) and found.std() > 5


@pytest.mark.slow
@pytest.mark.parametrize("resize", RULES)
@pytest.mark.parametrize("kind", photos.BAD)
def test_a_rule_does_not_change_what_can_be_decoded(kind: str, resize: str) -> None:
    reasons = set()
    for rule in ("squash", resize):
        with pytest.raises(DecodeError) as caught:
            decode(photos.BAD[kind](1), 16, rule)
        reasons.add(str(caught.value))
    assert len(reasons) == 1, "the scan cache keeps one reason for all rules"


@pytest.mark.parametrize("resize", RULES)
@pytest.mark.parametrize("data", [
    photos.grey_tiff(np.zeros((0, 4), "<u2"), bits=16, photometric=1), b"P5 0 5 255 ",
])  # fmt: skip
def test_an_image_without_pixels_is_refused(data: bytes, resize: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(data, 16, resize)
    assert "division" not in str(caught.value)


# Reduced decoding


def scale_of(data: bytes, size: int, resize: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return by how much an image is reduced while it is decoded."""
    seen = []
    original = Image.Image.resize

    def resized(self: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        seen.append(self.size)
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", resized)
        decode(data, size, resize)
    with Image.open(photos.io.BytesIO(data)) as image:
        return round(max(image.size) / max(seen[0]))


@pytest.mark.slow
@pytest.mark.parametrize(("resize", "width", "height", "factor"), [
    ("squash", 1000, 448, 4),
    ("squash", 448, 1000, 4),
    ("squash", 1000, 447, 2),
    ("crop", 1000, 512, 4),
    ("crop", 512, 1000, 4),
    ("crop", 1000, 511, 2),
    ("pad", 448, 200, 4),
    ("pad", 200, 448, 4),
    ("pad", 447, 200, 2),
])  # fmt: skip
def test_a_jpeg_is_never_reduced_under_twice_what_becomes_of_it(
    resize: str, width: int, height: int, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photos.encoded(picture(width, height), "JPEG", quality=90)
    assert scale_of(data, SIZE, resize, monkeypatch) == factor


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["crop", "pad"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_jpeg_is_near_the_full_one(orientation: int, resize: str) -> None:
    image = picture(1000, 700, 8)
    stored = image.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else image
    data = photos.encoded(stored, "JPEG", quality=95, exif=photos.exif(orientation))
    assert off(decode(data, SIZE, resize), stepwise(image, resize)).mean() < 2


# Arithmetic, for every shape and size


@given(
    resize=st.sampled_from(RULES), is_wide=st.booleans(), size=st.integers(1, 1000),
    width=st.integers(1, 2**20), height=st.integers(1, 2**20),
)  # fmt: skip
def test_what_is_kept_lies_in_the_image_and_in_the_square(
    resize: str, is_wide: bool, size: int, width: int, height: int
) -> None:
    square = resizing.Square(resizing.find(resize), size, is_wide)
    place = square.place((width, height))
    left, top, right, bottom = place.box(width, height)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    for at, kept in zip(place.corner, place.kept, strict=True):
        assert kept >= 1 and at >= 0 and at + kept <= square.side
    if resize != "pad":
        assert place.kept == (square.side, square.side)
    else:
        assert max(place.kept) == square.side and (right, bottom) == (width, height)
    turned = square.place((height, width))
    assert turned.whole == place.whole[::-1] and turned.kept == place.kept[::-1]


@pytest.mark.parametrize("resize", RULES)
def test_a_long_strip_takes_no_more_than_a_photo(resize: str) -> None:
    """Whole, at the scale of crop, it would have 256 x 268 million pixels."""
    data = png_of(Image.new("RGB", (1, 2**20), (10, 20, 30)))
    found = decode(data, 224, resize)
    assert found.shape == (224, 224, 3)


# Windows


def windows(data: bytes, resize: str, *names: str) -> dict[str, views.Pixels]:
    return views.pixels(data, hashlib.sha256(data).hexdigest(), names, SIZE, resize)


@pytest.mark.parametrize("resize", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_views_are_of_the_rule(shape: tuple[int, int], resize: str) -> None:
    data = png_of(picture(*shape))
    made = windows(data, resize, views.PLAIN, *views.VIEWS)
    np.testing.assert_array_equal(made[views.PLAIN], decode(data, SIZE, resize))
    np.testing.assert_array_equal(made["flip"], decode(data, SIZE, resize)[:, ::-1])
    wide = decode(data, SIZE, resize, is_wide=True)
    found = np.lib.stride_tricks.sliding_window_view(wide, (SIZE, SIZE), (0, 1))
    every = {np.moveaxis(found[y, x], 0, -1).tobytes()
             for y in range(found.shape[0]) for x in range(found.shape[1])}  # fmt: skip
    for name in ("crop1", "crop5"):
        mirrored = np.ascontiguousarray(made[name][:, ::-1])
        assert {made[name].tobytes(), mirrored.tobytes()} & every


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (80, 80), (500, 375)])
def test_under_crop_the_plain_image_is_the_middle_window(shape: tuple[int, int]) -> None:
    data = png_of(picture(*shape))
    plain, wide = (decode(data, SIZE, "crop", is_wide=is_wide) for is_wide in (False, True))
    middle = wide[4:-4, 4:-4].astype(int)
    assert off(plain, middle).max() <= 1


# Names


def test_the_option_has_the_rules_of_the_table() -> None:
    option = options_of(ExtractOptions)["resize"]
    assert set(option.choices) == set(resizing.RESIZES)
    assert ExtractOptions().resize == "squash"


def test_each_rule_is_a_decoder_of_its_own() -> None:
    decoders = {name: rule.decoder for name, rule in resizing.RESIZES.items()}
    assert decoders == {"squash": "pillow-1", "crop": "pillow-1-crop", "pad": "pillow-1-pad"}
    assert {name: resizing.resize_of(decoder) for name, decoder in decoders.items()} == {
        name: name for name in decoders
    }


def test_an_unknown_decoder_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StaleFeaturesError, match=r"'pillow-1-crop'.*Received.*'pillow-2'"):
        resizing.resize_of("pillow-2")


def test_an_unknown_rule_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'crop'"):
        decode(png_of(picture(8, 8)), SIZE, "crops")
    with pytest.raises(ConfigError, match="resize rule"):
        decode(b"", SIZE, "")


def test_a_rule_is_said_in_a_sentence() -> None:
    said = {name: rule.described(224) for name, rule in resizing.RESIZES.items()}
    assert all("uint8 RGB of shape (n, 224, 224, 3)" in text for text in said.values())
    assert "short side resized to 256 pixels and the middle 224 x 224" in said["crop"]
    assert "white" in said["pad"].partition(";")[2]
    assert "squashed to 224 x 224" in said["squash"]


def test_the_rules_need_no_pillow() -> None:
    code = "import sys, pipeline.images.resizing; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
