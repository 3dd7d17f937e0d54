"""Features that do not fit into memory: compared from a file, as they are from memory."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Notes, planted_store
from numpy.typing import NDArray

from pipeline.copies import distinct, scratch
from pipeline.copies.descriptors import edges, with_edges
from pipeline.copies.distinct import distinct_images
from pipeline.copies.neighbours import Pairs
from pipeline.copies.pixels import correlations
from pipeline.copies.search import search, without_photos
from pipeline.errors import ConfigError
from pipeline.store.shard import Shard, read_into

COUNTS = {"ant": 40, "bee": 41}


def mapped(array: np.ndarray) -> bool:
    """Tell whether an array lies in a file."""
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


def test_images_are_compared_from_a_file_as_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = planted_store(tmp_path / "store", COUNTS)
    manifest = store.read_manifest()
    kept = distinct_images(store, manifest)
    beside = distinct.bytes_beside(len(kept), store.dim)
    monkeypatch.setattr("pipeline.system.machine.free_memory", lambda: beside)
    found = distinct_images(store, manifest)
    assert mapped(found.units) and not mapped(kept.units)
    np.testing.assert_array_equal(found.units, kept.units)
    assert not [name for name in os.listdir(store.path) if name.startswith(".tmp-")]
    one, other = (search(item, without_photos(item), Notes()) for item in (kept, found))
    assert one.threshold == other.threshold
    np.testing.assert_array_equal(one.pairs.similarity, other.pairs.similarity)


def test_what_memory_and_disk_lack_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = planted_store(tmp_path / "store", COUNTS)
    manifest = store.read_manifest()
    monkeypatch.setattr("pipeline.system.machine.free_memory", lambda: 100)
    with pytest.raises(ConfigError, match="memory to compare 81 images"):
        distinct_images(store, manifest)
    assert scratch.table(0, 12, store.path, beside=1000).shape == (0, 12)
    usage = scratch.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ConfigError, match="disk space for the features of 81 images"):
        scratch.table(81, 12, store.path)


def test_edges_stand_beside_features_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    units = rng.normal(size=(9, 4)).astype(np.float32)
    greys = rng.integers(0, 256, (9, 32, 32), dtype=np.uint8)
    kept = with_edges(units, greys)
    parts = [units * np.float32(np.sqrt(1 / 1.5)), edges(greys) * np.float32(np.sqrt(0.5 / 1.5))]
    np.testing.assert_array_equal(kept, np.concatenate(parts, axis=1))
    # Room for these, and none for a search beside them.
    monkeypatch.setattr("pipeline.system.machine.free_memory", lambda: kept.nbytes)
    found = with_edges(units, greys, tmp_path)
    assert mapped(found)
    np.testing.assert_array_equal(found, kept)


def test_pixels_of_a_few_pairs_take_no_memory_for_all_images() -> None:
    greys = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32), dtype=np.uint8)
    last = len(greys) - 1
    pairs = Pairs(np.array([0, 1]), np.array([last, last]), np.zeros(2))
    few = Pairs(np.array([0, 1]), np.array([2, 2]), np.zeros(2))
    expected = correlations(greys[[0, 1, last]], few)
    tracemalloc.start()
    found = correlations(greys, pairs)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
    assert most < greys.nbytes / 2


def test_features_are_read_in_the_order_in_which_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = planted_store(tmp_path / "store", COUNTS)
    manifest = store.read_manifest()
    kept = distinct_images(store, manifest)
    order = np.random.default_rng(0).permutation(81)
    read: list[int] = []

    def remember(shard: Shard, rows: NDArray[np.intp], *others: NDArray[Any]) -> None:
        read.extend(rows.tolist())
        read_into(shard, rows, *others)

    monkeypatch.setattr("pipeline.store.shard.read_into", remember)
    monkeypatch.setattr(distinct, "_AT_ONCE", 10)
    reporter = Notes()
    found = distinct_images(store, manifest.take(order.tolist()), reporter)
    assert read == list(range(81))
    np.testing.assert_array_equal(found.units, kept.units[order])
    assert reporter.lines == ["Reading the features of 81 images"]
