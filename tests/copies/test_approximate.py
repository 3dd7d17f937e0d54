"""The search by cells finds no wrong pair, and says what share of the right ones it finds."""

import tracemalloc

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
    assert recall is not None and recall >= approximate.RECALL
    assert set(listed(found)) <= set(listed(exact))
    assert len(found) >= 0.97 * len(exact) >= 97
    assert len(set(listed(found))) == len(found) and listed(found) == sorted(listed(found))
    assert len(told) >= neighbours.num_steps(1000)


@pytest.mark.slow
def test_recall_is_what_was_found_of_the_asked_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one cell to look into, and rows on the borders of cells, some pairs are missed."""
    monkeypatch.setattr(approximate, "PROBES", (1,))
    monkeypatch.setattr(approximate, "_CELLS", 8)
    units = units_with_copies(800, 40, 300)
    found, recall = approximate.pairs_within(units, 0.9)
    exact = neighbours.pairs_within(units, 0.9)
    share = len(found) / len(exact)
    assert recall is not None and 0 < recall < 1
    # A pair is asked for from both sides, and found from either.
    assert recall <= share <= 2 * recall


def test_more_rows_are_asked_until_enough_pairs_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "ASKED", 100)
    monkeypatch.setattr(approximate, "MOST_ASKED", 1000)
    monkeypatch.setattr(approximate, "KNOWN", 50)
    # 200 rows of 1,000 have a pair: among the first hundred are fewer than 50.
    units = units_with_copies(1000, 40, 100)
    search = approximate._Cells(units, 0.995)
    asked, known = search._asked()
    assert 100 < len(asked) < 1000 and len(known) >= 50
    exact = set(listed(neighbours.pairs_within(units, 0.995)))
    expected = {
        (row, a + b - row) for a, b in exact for row in (a, b) if row in set(asked.tolist())
    }
    assert set(listed(known)) == expected
    recall = search.choose_probes()
    assert recall is not None and recall >= approximate.RECALL
    assert search.probes in approximate.PROBES


@pytest.mark.parametrize("copies", [0, 20])
def test_with_few_known_pairs_no_recall_is_told_and_most_cells_are_looked_into(
    copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "ASKED", 50)
    monkeypatch.setattr(approximate, "MOST_ASKED", 100)
    units = units_with_copies(400, 40, copies)
    search = approximate._Cells(units, 0.995)
    assert search.choose_probes() is None
    assert search.probes == approximate.PROBES[-1]
    found, recall = approximate.pairs_within(units, 0.995)
    assert recall is None and listed(found) == listed(neighbours.pairs_within(units, 0.995))


def test_known_pairs_have_a_limit_by_what_all_rows_would_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 100)
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    search = approximate._Cells(np.ones((1600, 4), np.float32) / 2, 0.9)
    looked_at = []
    confirmed = neighbours.confirmed
    monkeypatch.setattr(
        neighbours, "confirmed", lambda *given: (looked_at.append(1), confirmed(*given))[1]
    )
    with pytest.raises(PipelineError, match="tells no copies"):
        search.exactly(np.arange(10))
    # Of a hundred blocks of rows the first, and some that were computed ahead of it.
    assert 1 <= len(looked_at) < 50


def test_rows_that_are_all_alike_take_no_memory_of_their_square() -> None:
    tracemalloc.start()
    approximate._Cells(np.ones((30_000, 4), np.float32) / 2, 0.9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Of each other half of the rows with the other half it would be 900 MB.
    assert peak < 100e6


def test_too_many_pairs_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 100)
    with pytest.raises(PipelineError, match="tells no copies"):
        approximate.pairs_within(np.ones((60, 4), np.float32) / 2, 0.9)


def test_many_images_are_compared_by_cells_where_faiss_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert duplicates.is_exact(duplicates.LARGE)
    assert not duplicates.is_exact(duplicates.LARGE + 1)
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    assert duplicates.is_exact(duplicates.LARGE + 1)
