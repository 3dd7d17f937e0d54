"""Features in batches: the rows of ``load``, with a part of them in memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fakes import planted_store

import pipeline
from pipeline.errors import ConfigError, ManifestError, StoreError
from pipeline.heads import rows

COUNTS = {"ant": 31, "bee": 30, "cow": 30}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "BLOCK_ROWS", 20)
    return planted_store(tmp_path / "store", COUNTS).path


@pytest.mark.parametrize("size", [1, 7, 20, 33, 1000])
@pytest.mark.parametrize("split", [None, "train"])
def test_batches_are_the_rows_of_load(store: Path, size: int, split: str | None) -> None:
    X, y, names = pipeline.load(store, split=split)
    batches = pipeline.batches(store, split=split, size=size)
    assert (batches.names, batches.shape) == (names, X.shape)
    for _ in range(2):
        parts = list(batches)
        assert [len(part) for part, _ in parts[:-1]] == [size] * (len(parts) - 1)
        np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), X)
        np.testing.assert_array_equal(np.concatenate([numbers for _, numbers in parts]), y)
    np.testing.assert_array_equal(batches.y, y)


def test_a_seed_gives_another_order_in_each_pass_and_the_same_in_all(store: Path) -> None:
    X, y, _ = pipeline.load(store)
    batches = pipeline.batches(store, size=8, seed=3)
    first, second = (np.concatenate([part for part, _ in batches]) for _ in range(2))
    assert not np.array_equal(first, second)
    again = pipeline.batches(store, size=8, seed=3)
    np.testing.assert_array_equal(np.concatenate([part for part, _ in again]), first)
    label_of = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
    seen = [(row.tobytes(), n) for part, ns in batches for row, n in zip(part, ns, strict=True)]
    assert len(dict(seen)) == len(X) and all(label_of[row] == label for row, label in seen)


def test_what_cannot_be_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size of 1 or more"):
        pipeline.batches(store, size=0)
    with pytest.raises(ManifestError, match="'mid'"):
        pipeline.batches(store, split="mid")
    with pytest.raises(StoreError, match="no view 'flip'"):
        pipeline.batches(store, view="flip")
    with pytest.raises(StoreError, match="no feature store"):
        pipeline.batches(tmp_path / "none")


def test_a_part_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_ROWS", 64)
    dim, count = 512, 2000
    store = planted_store(tmp_path / "wide", {"a": count // 2, "b": count // 2}, dim=dim)
    batches = pipeline.batches(store.path, size=32)
    everything = 4 * dim * count
    tracemalloc.start()
    try:
        total = sum(float(part.sum()) for part, _ in batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.isfinite(total)
    assert peak < everything / 3
