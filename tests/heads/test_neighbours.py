"""Nearest rows: the same bits alone and in company, on every kernel and number of threads."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.heads import neighbours
from pipeline.heads.knn import KnnHead
from pipeline.heads.neighbours import nearest, normalized


def rows_of(seed: int, n: int, dim: int, alike: float = 1.0) -> NDArray[np.float32]:
    """Rows that differ by ``alike`` around one direction; a third of them stand twice."""
    rng = np.random.default_rng(seed)
    rows = (3 + alike * rng.normal(size=(n, dim))).astype(np.float32)
    rows[: n // 3] = rows[n // 3 : 2 * (n // 3)]
    return rows


def by_integers(train: NDArray[np.float32], query: NDArray[np.float32], k: int) -> list[int]:
    """The same neighbours from sums of Python's integers."""
    counted = np.rint(train.astype(np.float64) * neighbours.SCALE).astype(np.int64).tolist()
    asked = np.rint(query.astype(np.float64) * neighbours.SCALE).astype(np.int64).tolist()
    sums = [sum(a * b for a, b in zip(row, asked, strict=True)) for row in counted]
    return sorted(range(len(sums)), key=lambda row: (-sums[row], row))[:k]


@given(
    st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 30), st.sampled_from([1, 1e-4, 1e-7])
)
@settings(max_examples=60, deadline=None)
def test_neighbours_are_those_of_exact_sums(seed: int, n: int, dim: int, alike: float) -> None:
    train = normalized(rows_of(seed, n, dim, alike))
    queries = normalized(rows_of(seed + 1, 5, dim, alike))
    k = 1 + seed % n
    values, rows = nearest(train, queries, k)
    for place, query in enumerate(queries):
        assert rows[place].tolist() == by_integers(train, query, k)
    expected = np.einsum("mkd,md->mk", train[rows].astype(np.float64), queries.astype(np.float64))
    np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("alike", [1, 1e-3, 1e-6])
@pytest.mark.parametrize("dim", [3, 300])
def test_a_query_has_the_same_neighbours_alone_and_in_any_company(dim: int, alike: float) -> None:
    head = KnnHead(grid=(7,)).fit(rows_of(0, 400, dim, alike), np.arange(400) % 3)
    X = rows_of(1, 90, dim, alike)
    together = head.scores(X)
    for company in (1, 2, 31, 64):
        parts = [head.scores(X[start : start + company]) for start in range(0, 90, company)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    order = np.random.default_rng(2).permutation(90)
    np.testing.assert_array_equal(head.scores(X[order]), together[order])
    np.testing.assert_array_equal(head.scores(np.asfortranarray(X)), together)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, queries = normalized(rows_of(0, 200, 20)), normalized(rows_of(1, 30, 20, 1e-6))
    whole = nearest(train, queries, 9)
    for few in (neighbours.FEW, 0):
        monkeypatch.setattr(neighbours, "FEW", few)
        monkeypatch.setattr(neighbours, "ENTRIES", 500)
        monkeypatch.setattr(neighbours, "COUNTED", 70)
        for found, expected in zip(nearest(train, queries, 9), whole, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_of_equal_rows_the_first_are_taken() -> None:
    train = normalized(np.ones((50, 4)))
    values, rows = nearest(train, normalized(np.ones((2, 4))), 3)
    assert rows.tolist() == [[0, 1, 2]] * 2
    np.testing.assert_allclose(values, 1, atol=1e-6)


def test_lengths_do_not_matter_and_nothing_overflows() -> None:
    rows = rows_of(0, 10, 6)
    expected = normalized(rows)
    for factor in (1e-15, 1e30):
        np.testing.assert_allclose(normalized(rows * np.float32(factor)), expected, rtol=1e-6)
    assert normalized(np.zeros((2, 3))).tolist() == np.zeros((2, 3)).tolist()


def test_no_queries_have_no_neighbours() -> None:
    values, rows = nearest(normalized(rows_of(0, 5, 4)), np.empty((0, 4), np.float32), 2)
    assert values.shape == rows.shape == (0, 2)


DIGEST = """
import hashlib, sys
import numpy as np
from pipeline.heads.neighbours import nearest, normalized
rng = np.random.default_rng(0)
train, queries = (normalized(1 + rng.random((n, 517), np.float32)) for n in (700, 90))
found = [hashlib.sha256(part.tobytes()).hexdigest() for part in nearest(train, queries, 20)]
print(*found)
"""


def digests(**environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", DIGEST], env={**os.environ, **environment},
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout


def kernels() -> list[str]:
    """Kernels of OpenBLAS that this processor can run; others take no notice of the variable."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    wanted = {"Nehalem": "sse4_2", "Haswell": "avx2", "Zen": "avx2", "SkylakeX": "avx512f"}
    return [name for name, needed in wanted.items() if needed in flags]


@pytest.mark.slow
def test_the_same_bits_on_every_kernel_and_number_of_threads() -> None:
    here = digests(OPENBLAS_NUM_THREADS="1")
    assert len(here.split()) == 2 and hashlib.sha256(b"").hexdigest() not in here
    assert {here, digests(OPENBLAS_NUM_THREADS="2")} == {here}
    for name in kernels():
        assert digests(OPENBLAS_CORETYPE=name) == here, name
