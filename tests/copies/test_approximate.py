"""The search by cells finds no wrong pair, and says what share of the right ones it finds."""

import numpy as np
import pytest

from pipeline.copies import approximate, duplicates, neighbours
from pipeline.errors import PipelineError


def units_with_copies(count: int, dim: int, copies: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    made = rng.normal(size=(count, dim)) * (1 / np.sqrt(1 + np.arange(dim))) + rng.normal(size=dim)
    of, to = np.arange(copies), count - 1 - np.arange(copies)
    made[to] = made[of] + 0.01 * rng.normal(size=(copies, dim))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def listed(pairs: neighbours.Pairs) -> list[tuple[int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_pairs_are_those_of_the_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "ASKED", 200)
    monkeypatch.setattr(approximate, "_AT_ONCE", 300)
    units = units_with_copies(1000, 80, 100)
    told: list[int] = []
    found, recall = approximate.pairs_within(units, 0.995, progress=lambda: told.append(1))
    exact = neighbours.pairs_within(units, 0.995)
    assert recall >= approximate.RECALL
    assert set(listed(found)) <= set(listed(exact))
    assert len(found) >= 0.97 * len(exact) >= 97
    assert len(set(listed(found))) == len(found) and listed(found) == sorted(listed(found))
    assert len(told) >= neighbours.num_steps(1000)


def test_recall_is_what_was_found_of_the_asked_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one cell to look into, and rows on the borders of cells, some pairs are missed."""
    monkeypatch.setattr(approximate, "PROBES", (1,))
    monkeypatch.setattr(approximate, "_CELLS", 8)
    units = units_with_copies(800, 40, 300)
    found, recall = approximate.pairs_within(units, 0.9)
    exact = neighbours.pairs_within(units, 0.9)
    share = len(found) / len(exact)
    assert 0 < recall < 1
    # A pair is asked for from both sides, and found from either.
    assert recall <= share <= 2 * recall


def test_too_many_pairs_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 100)
    with pytest.raises(PipelineError, match="tells no copies"):
        approximate.pairs_within(np.ones((60, 4), np.float32) / 2, 0.9)


def test_many_images_are_compared_by_cells_where_faiss_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert duplicates.is_exact(duplicates.LARGE)
    assert not duplicates.is_exact(duplicates.LARGE + 1)
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    assert duplicates.is_exact(duplicates.LARGE + 1)
