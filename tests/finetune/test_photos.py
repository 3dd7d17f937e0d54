"""Images that fine-tuning trains on: read, decoded, augmented, kept."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEncoder
from finetuning import SIZE, cache_of, photo_rows

from pipeline.errors import ManifestError, StaleFeaturesError
from pipeline.finetune.photos import Photos
from pipeline.system import machine
from pipeline.system.progress import Silence

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_photos_are_those_of_the_decoder_whatever_their_company(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
        together = photos.batch(np.array([4, 1]), 0)
        np.testing.assert_array_equal(together[1], photos.batch(np.array([1]), None)[0])
    assert together.shape == (2, SIZE, SIZE, 3) and together.dtype == np.uint8


def test_augmentation_follows_seed_epoch_and_row(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    with (
        Photos(rows, SIZE, "squash", augment_seed=1) as photos,
        Photos(rows, SIZE, "squash", augment_seed=1) as again,
    ):
        first = photos.batch(np.array([2, 3]), 5)
        np.testing.assert_array_equal(again.batch(np.array([3]), 5)[0], first[1])
        assert not np.array_equal(photos.batch(np.array([2]), 6)[0], first[0])
        plain = Photos(rows, SIZE, "squash", augment_seed=None)
        np.testing.assert_array_equal(
            photos.batch(np.array([2]), None), plain.batch(np.array([2]), None)
        )


def test_images_that_do_not_fit_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = photo_rows(tmp_path)
    kept = Photos(rows, SIZE, "squash", augment_seed=None)
    monkeypatch.setattr(machine, "free_memory", lambda: 0)
    read = Photos(rows, SIZE, "squash", augment_seed=None)
    for photos in (kept, read):
        photos.batch(np.arange(6), None)
    shutil.rmtree(tmp_path / "a")
    kept.batch(np.arange(6), None)
    with pytest.raises(StaleFeaturesError, match=r"a/000\.png"):
        read.batch(np.arange(6), None)


def test_images_that_fill_a_cache_are_not_kept(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
        cache_of(tmp_path / "boundary", rows).fill(photos, FakeEncoder(batch_size=4), Silence())
        shutil.rmtree(tmp_path / "photos")
        with pytest.raises(StaleFeaturesError, match=r"a/000\.png"):
            photos.batch(np.arange(6), None)


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    (tmp_path / "b/001.png").unlink()
    photos = Photos(rows, SIZE, "squash", augment_seed=None)
    with pytest.raises(ManifestError, match=r"1 of 6 are gone: 'b/001\.png'"):
        photos.require()
    with pytest.raises(StaleFeaturesError, match=r"b/001\.png"):
        photos.batch(np.array([4]), None)


def test_an_image_that_changed_is_named(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    shutil.copy(tmp_path / "a/000.png", tmp_path / "b/000.png")
    with (
        Photos(rows, SIZE, "squash", augment_seed=None) as photos,
        pytest.raises(StaleFeaturesError, match=r"b/000\.png.*its content changed"),
    ):
        photos.batch(np.array([3]), None)
