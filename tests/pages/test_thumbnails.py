"""Pictures of a page: whatever the images are, they stay within their bytes."""

import hashlib
import io
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import write_image
from PIL import Image

from pipeline.images.manifest import Manifest
from pipeline.pages.thumbnails import encoded, pictures


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Six images, of which one is gone, one has changed and one is none."""
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        write_image(tmp_path / name, number, size=90)
    (tmp_path / "3.png").write_bytes(b"no image")
    keys = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
    (tmp_path / "4.png").unlink()
    write_image(tmp_path / "5.png", 77)
    labels = ["a"] * 6
    return Manifest(tmp_path, names, labels, labels, np.array(keys, dtype="S64"), labels)


@pytest.mark.parametrize("budget", [60_000, 9_000, 900])
def test_pictures_stay_within_their_bytes(manifest: Manifest, budget: int) -> None:
    made = pictures(manifest, range(6), side=64, budget=budget, workers=2)
    assert sum(map(len, made.uris.values())) <= budget
    assert set(made.uris) == {0, 1, 2}
    for uri in made.uris.values():
        image = Image.open(io.BytesIO(b64decode(uri.removeprefix("data:image/webp;base64,"))))
        assert max(image.size) <= 64


def test_what_has_no_picture_is_counted_with_the_reason(manifest: Manifest) -> None:
    made = pictures(manifest, range(6), side=64, budget=60_000)
    assert sum(made.missing.values()) == 3
    assert made.missing["another content than was encoded"] == 1
    elsewhere = replace(manifest, root=manifest.root / "moved")
    made = pictures(elsewhere, range(6), side=64, budget=60_000)
    assert not made.uris and sum(made.missing.values()) == 6


def test_no_room_is_no_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert encoded(noise, 20) == b""
    assert 0 < len(encoded(noise, 400)) <= 400
    assert len(encoded(noise, 400)) < len(encoded(noise, 4000)) <= 4000


def test_a_picture_keeps_its_proportions_and_is_never_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (200, 50), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (10, 20), "red").save(tmp_path / "tiny.png")
    names = ["wide.png", "tiny.png"]
    keys = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
    rows = ["", ""]
    manifest = Manifest(tmp_path, names, rows, rows, np.array(keys, dtype="S64"), rows)
    made = pictures(manifest, [0, 1], side=100, budget=9000)
    sizes = [Image.open(io.BytesIO(b64decode(made.uris[row][23:]))).size for row in (0, 1)]
    assert sizes == [(100, 25), (10, 20)]
