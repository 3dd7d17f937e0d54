"""What a classifier takes for an image, and what it refuses."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
from fakes import FakeEncoder
from PIL import Image

from pipeline.errors import ConfigError, DecodeError, ImageTypeError
from pipeline.heads import create
from pipeline.images import decoder
from pipeline.serving.classifier import Classifier
from pipeline.serving.inputs import listed

SIZE = 32


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Two classes, told by the pixels' projection."""
    encoder = FakeEncoder(image_size=SIZE, batch_size=4)
    pixels = np.stack([decoder.decode(photos.GOOD["rgb.png"](seed), SIZE) for seed in range(8)])
    X = np.concatenate([encoder(pixels[:4]), encoder(pixels[4:])])
    head = create("ridge", {}, seed=0).fit(X, np.arange(8) % 2, validation=(X, np.arange(8) % 2))
    return Classifier(encoder=encoder, head=head, name="ridge", classes=("a", "b"),
                      image_size=SIZE, resize="squash", workers=2)  # fmt: skip


def pixels_of(value: Any) -> np.ndarray:
    (image,) = listed(value)
    return decoder.decode(image.read().data, SIZE)


def test_every_way_to_give_an_image_is_the_same_image(tmp_path: Path) -> None:
    data = photos.GOOD["rgb.png"](0)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    expected = decoder.decode(data, SIZE)
    opened = Image.open(io.BytesIO(data))
    for value in (str(path), path, data, bytearray(data), opened, np.asarray(opened)):
        np.testing.assert_array_equal(pixels_of(value), expected)
        np.testing.assert_array_equal(pixels_of([value]), expected)
        np.testing.assert_array_equal(pixels_of(v for v in [value]), expected)


def test_grey_and_several_arrays() -> None:
    grey = np.asarray(photos.picture().convert("L"))
    rgb = np.stack([grey] * 3, axis=2)
    np.testing.assert_array_equal(pixels_of(grey), pixels_of(rgb))
    assert [image.name for image in listed(np.stack([rgb, rgb]))] == ["[0]", "[1]"]
    np.testing.assert_array_equal(pixels_of(rgb[:, ::-1]), pixels_of(rgb[:, ::-1].copy()))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"]
)
def test_pil_images_of_every_mode_are_read_as_the_decoder_reads_them(mode: str) -> None:
    image = photos.with_alpha() if "a" in mode.lower() and mode != "1" else photos.picture()
    if mode == "La":
        image = image.convert("LA")
    given = image.convert(mode)
    decoded = pixels_of(given)
    over_white = Image.new("RGB", image.size, "white")
    rgba = (given.convert("LA") if mode == "La" else given).convert("RGBA")
    over_white.paste(rgba, mask=rgba)
    expected = np.asarray(over_white.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(decoded.astype(int), expected, atol=2)


def test_sixteen_bits_are_scaled_and_floats_refused() -> None:
    grey = photos.grey16()
    deep = Image.open(io.BytesIO(photos.GOOD["bits-16.png"](0)))
    expected = decoder.decode(photos.GOOD["bits-16.png"](0), SIZE)
    np.testing.assert_array_equal(pixels_of(deep), expected)
    for mode in ("F", "I"):
        with pytest.raises(DecodeError, match=mode):
            pixels_of(Image.fromarray(grey.astype(np.float32)).convert(mode))


@pytest.mark.parametrize("way", range(1, 9))
def test_an_opened_photo_stands_upright(way: int) -> None:
    data = photos.turned(way, "PNG")
    np.testing.assert_array_equal(
        pixels_of(Image.open(io.BytesIO(data))), decoder.decode(data, SIZE)
    )


@pytest.mark.parametrize(
    "value",
    [
        None, 3, {"a": 1}, [None], [3.5], ["a.png", 7], np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)), [np.zeros((4, 4, 3), np.float32)], np.zeros(5), [[1, 2], [3, 4]],
        io.BytesIO(b"x"), np.zeros((2, 4, 4, 3), np.float32),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_anything_else_is_a_type_error(classifier: Classifier, value: Any) -> None:
    with pytest.raises(TypeError, match="Expected paths") as caught:
        classifier.predict(value)
    assert isinstance(caught.value, ImageTypeError)
    assert "Received" in str(caught.value)


def test_a_single_image_gives_one_prediction(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(photos.GOOD["rgb.png"](3))
    found = classifier.predict(str(path))
    assert [item.path for item in found.predictions] == [str(path)]
    many = classifier.predict([path, photos.GOOD["rgb.jpg"](1), photos.picture(2)])
    assert [item.path for item in many.predictions] == [str(path), "[1]", "[2]"]


def test_probabilities_are_those_of_predict_in_the_order_of_the_classes(
    classifier: Classifier,
) -> None:
    data = [photos.GOOD["rgb.png"](seed) for seed in range(6)]
    rows = classifier.predict_proba(data)
    assert (rows.shape, rows.dtype) == ((6, 2), np.float64)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    for item, row in zip(classifier.predict(data, top=2).predictions, rows, strict=True):
        assert dict(item.top) == dict(zip(classifier.classes, row.tolist(), strict=True))
    assert classifier.predict_proba([]).shape == (0, 2)


def test_a_bad_image_has_no_probabilities(classifier: Classifier) -> None:
    good, bad = photos.GOOD["rgb.png"](0), b"no image"
    with pytest.raises(DecodeError, match=r"\[1\]"):
        classifier.predict_proba([good, bad])
    found = classifier.predict([good, bad, np.zeros((0, 0, 3), np.uint8)])
    assert [item.path for item in found.predictions] == ["[0]"]
    assert [error["path"] for error in found.errors] == ["[1]", "[2]"]
    with pytest.raises(ConfigError, match="top"):
        classifier.predict(good, top=0)


def test_a_broken_image_in_a_list_twice_is_an_error_twice(classifier: Classifier) -> None:
    broken = Image.open(io.BytesIO(photos.BAD["truncated.png"](0)))
    assert len(classifier.predict([broken, broken]).errors) == 2
