"""The search for near rows finds exactly what comparing all pairs finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.copies import neighbours
from pipeline.errors import PipelineError


def rows(seed: int, count: int, dim: int, copies: int, noise: float) -> np.ndarray:
    """Unit rows in a few directions mostly, some of them copies of others with noise."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(count, dim)) * (1 / np.sqrt(1 + np.arange(dim))) + rng.normal(size=dim)
    if copies:
        of, to = rng.integers(0, count, (2, copies))
        made[to] = made[of] + rng.normal(size=(copies, dim)) * noise
    made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
    return made.astype(np.float32)


def brute_force(units: np.ndarray, similarity: float) -> dict[tuple[int, int], float]:
    wide = units.astype(np.float64)
    found = wide @ wide.T
    first, second = np.nonzero(np.triu(found >= similarity, 1))
    return {(int(a), int(b)): float(found[a, b]) for a, b in zip(first, second, strict=True)}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(2, 150),
    dim=st.sampled_from([1, 3, 64, 70, 200]),
    copies=st.integers(0, 40),
    noise=st.sampled_from([0.0, 1e-3, 0.1, 1.0]),
    similarity=st.sampled_from([-0.5, 0.3, 0.9, 0.99, 0.9999]),
    looks_twice=st.booleans(),
)
def test_all_pairs_are_found_and_no_others(
    seed: int,
    count: int,
    dim: int,
    copies: int,
    noise: float,
    similarity: float,
    looks_twice: bool,
) -> None:
    units = rows(seed, count, dim, copies, noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", 32)
        if looks_twice:
            patch.setattr(neighbours, "LOOKS", (2, 5))
            patch.setattr(neighbours, "SECOND", 20)
        found = neighbours.pairs_within(units, similarity)
    expected = brute_force(units, similarity)
    listed = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert listed == sorted(listed) and len(set(listed)) == len(listed)
    # At the threshold itself the two sums may round apart.
    for pair in set(listed) ^ set(expected):
        assert abs(float(units[pair[0]].astype(float) @ units[pair[1]]) - similarity) < 1e-6
    for pair, value in zip(listed, found.similarity.tolist(), strict=True):
        assert value == pytest.approx(min(expected.get(pair, similarity), 1), abs=1e-6)


def test_a_projection_never_hides_a_near_pair() -> None:
    """Rows that differ outside of all components alone, and rows that differ within them."""
    units = rows(3, 400, 300, 0, 0)
    units[200:] = units[:200]
    units[200:, -1] += 0.05
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    found = neighbours.pairs_within(units, 0.99)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert {(row, row + 200) for row in range(200)} <= pairs


@pytest.mark.parametrize("second", [20, 512])
@pytest.mark.parametrize("dense", [False, True])
def test_all_ways_to_compare_agree(
    dense: bool, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_FETCHED", 1e12 if dense else 0)
    monkeypatch.setattr(neighbours, "LOOKS", (4, 8))
    monkeypatch.setattr(neighbours, "SECOND", second)
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    units = rows(5, 300, 90, 60, 0.05)
    found = neighbours.pairs_within(units, 0.97)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == set(brute_force(units, 0.97)) and pairs


def test_nearest_similarities_leave_the_row_itself_out() -> None:
    units = rows(1, 50, 20, 5, 0.01)
    full = units.astype(np.float64) @ units.T
    np.fill_diagonal(full, -2)
    asked = np.array([0, 7, 49])
    found = neighbours.nearest_similarities(units, asked)
    np.testing.assert_allclose(found, full[asked].max(axis=1), atol=1e-6)


def test_a_threshold_that_joins_everything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 100)
    with pytest.raises(PipelineError, match="Give a higher --threshold"):
        neighbours.pairs_within(np.ones((40, 4), np.float32) / 2, 0.9)


def test_progress_is_told_as_often_as_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    told = []
    neighbours.pairs_within(rows(0, 50, 8, 0, 0), 0.9, progress=lambda: told.append(1))
    assert len(told) == neighbours.num_steps(50) == 4
    assert len(neighbours.pairs_within(np.ones((1, 3), np.float32), 0.5)) == 0
