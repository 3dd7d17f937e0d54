"""The eight probe images: that they are the same bytes for ever, and of every kind."""

import hashlib
import io
from pathlib import Path
from typing import Final

import draw_probe
import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.errors import PipelineError
from pipeline.images import decoder, probe_images, resizing

# Stores keep what encoders made of these bytes: other bytes are another probe.
SHA256: Final = {
    "alpha.png": "476580aa373bafd5aafc6d1b2021eef70114b360643d22a61da663291a7202de",
    "grey.jpg": "af391ee7607fa83a383a687c98caee5fcabe3cf764214e1cd4213c5b7798d083",
    "grey16.png": "861e01934836ca62e524d4e1d4fef5060845a1080148b4bd105bbf6f9dee5d63",
    "large.jpg": "f40bd1798917ff21f577158a173f915ac4b0502c062d7226880a3d73c8efa5d2",
    "photo.jpg": "f4089f14a18deefdf5d7514dde470df647d3f16e15a168dc4888936c2aeda335",
    "plain.png": "444739e9089ca0a4b544ff99663b505e24c7df1f8d603be087ca1673c6a621c6",
    "progressive.jpg": "42275ff3d3e8de1fc61a26e5bd6351a2047fe737e335440f8badd1ae553cc525",
    "turned.jpg": "78af6f1ad3e8eca537491dd74f040ec448641140954db315fcc111e93dc11c88",
}
DIGEST: Final = "b857c577b20be3881feabea95019a34fd720b561d424072b7de283aec39d52d4"


def image(name: str) -> Image.Image:
    return Image.open(io.BytesIO(probe_images.contents()[name]))


def test_the_bytes_are_those_that_stores_know() -> None:
    contents = probe_images.contents()
    assert {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()} == SHA256
    assert tuple(contents) == probe_images.NAMES == tuple(sorted(SHA256))
    assert probe_images.digest() == DIGEST
    assert max(map(len, contents.values())) < 8192


def test_they_are_of_the_kinds_that_decoders_differ_in() -> None:
    assert {name: image(name).mode for name in probe_images.NAMES} == {
        **dict.fromkeys(("large.jpg", "photo.jpg", "plain.png", "progressive.jpg"), "RGB"),
        "alpha.png": "RGBA",
        "grey.jpg": "L",
        "grey16.png": "I;16",
        "turned.jpg": "RGB",
    }
    sampling = {name: image(name).layer for name in ("photo.jpg", "turned.jpg")}  # type: ignore[attr-defined]
    assert [layer[1:3] for layer in sampling["photo.jpg"]] == [(2, 2), (1, 1), (1, 1)]
    assert [layer[1:3] for layer in sampling["turned.jpg"]] == [(1, 1)] * 3
    assert [name for name in probe_images.NAMES if image(name).info.get("progressive")] == [
        "progressive.jpg"
    ]
    assert image("turned.jpg").getexif()[ExifTags.Base.Orientation] == 6
    large = image("large.jpg")
    large.draft(None, (2 * 224, 2 * 224))
    assert large.size == (452, 450), "decoded at half its size"


@pytest.mark.parametrize("resize", sorted(resizing.RESIZES))
def test_they_are_decoded_as_any_image(resize: str) -> None:
    pixels = probe_images.pixels(48, resize)
    assert (pixels.shape, pixels.dtype) == ((8, 48, 48, 3), np.uint8)
    for row, data in zip(pixels, probe_images.contents().values(), strict=True):
        np.testing.assert_array_equal(row, decoder.decode(data, 48, resize))
        assert row.std() > 20, "it shows something"


def test_they_were_drawn_by_the_script() -> None:
    for name, data in draw_probe.drawn().items():
        now, kept = decoder.decode(data, 64), decoder.decode(probe_images.contents()[name], 64)
        assert np.abs(now.astype(int) - kept).mean() < 2, name


def test_codecs_are_named() -> None:
    codecs = probe_images.codecs()
    assert {name.partition("-")[0] for name in codecs} == {"Pillow", "libjpeg", "zlib"}
    assert all(version[0].isdigit() for version in codecs.values())


def test_a_package_without_them_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda room: tmp_path)
    with pytest.raises(PipelineError, match="8 probe images in the package") as caught:
        probe_images.pixels(32, "squash")
    assert "Install the package again" in caught.value.hint


def test_one_that_cannot_be_decoded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_images, "contents", lambda: {"grey.jpg": b"\xff\xd8\xff"})
    with pytest.raises(PipelineError, match=r"grey\.jpg to be decoded"):
        probe_images.pixels(32, "squash")
