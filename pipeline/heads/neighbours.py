"""Nearest rows by cosine, without rounding: a row's neighbours never depend on its company.

A product of matrices rounds each of its sums in an order of its own, which depends on the kernel,
the threads and the rows beside it. So it only proposes candidates here; the similarities that count
are sums of integers, which are the same in every order.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Components of unit vectors are counted in multiples of 2**-24, half a unit in the last place of a
# float32 near one. By Cauchy and Schwarz every sum of products of such integers, in whatever order,
# is at most about 2**48: float64 holds each exactly.
SCALE: Final = 2.0**24
# Products that are made at once: 64 MB of float32.
ENTRIES: Final = 2**24
# Components that are counted at once: 4 MB of float64 stay in the cache.
COUNTED: Final = 2**19
# Candidates of a query up to which they are looked at one by one, for each neighbour asked for.
# Where rows are more alike than float32 can tell, all of train is.
FEW: Final = 3

Neighbours = tuple[NDArray[np.float64], NDArray[np.intp]]


def normalized(X: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return rows with an L2 norm of one, float32 ``(n, dim)``; a row of zeros stays as it is."""
    units = np.empty(X.shape, np.float32)
    size = max(1, COUNTED // X.shape[1])
    for start in range(0, len(X), size):
        # Row by row in memory, so that each is summed in the same order whatever its company.
        rows = np.ascontiguousarray(X[start : start + size], dtype=np.float32).astype(np.float64)
        norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
        units[start : start + size] = rows / np.where(norms, norms, 1.0)
    return units


def nearest(train: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Neighbours:
    """Find the k rows of train that are most similar to each query, the nearest first.

    Of equally similar rows, those of lower number come first.

    Args:
        train: Rows with a norm of one, ``(n, dim)``.
        queries: The same, ``(m, dim)``.
        k: At most n.

    Returns:
        Cosine similarities, float64 ``(m, k)``, and row numbers, ``(m, k)``.
    """
    values = np.empty((len(queries), k))
    rows = np.empty((len(queries), k), np.intp)
    size = max(1, ENTRIES // len(train))
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        values[part], rows[part] = _of_block(train, queries[part], k)
    return values, rows


def _of_block(train: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Neighbours:
    is_candidate = _candidates(train, queries, k)
    few = is_candidate.sum(axis=1) <= FEW * k
    values = np.empty((len(queries), k))
    rows = np.empty((len(queries), k), np.intp)
    if few.any():
        values[few], rows[few] = _among(train, queries[few], is_candidate[few], k)
    if not few.all():
        values[~few], rows[~few] = _among_all(train, queries[~few], k)
    return values / SCALE**2, rows


def _candidates(
    train: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> NDArray[np.bool_]:
    """Tell which rows may be among the k nearest, ``(m, n)``: those, ties included, and few others.

    A float32 product of unit vectors is off by at most ``dim * 2**-24`` in whatever order it is
    summed (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1), and
    counting in multiples of 2**-24 moves it by far less: by half more together. The k highest
    products say that k similarities are no lower than the k-th less that, so a row whose product
    is lower than the k-th by more than twice that has k rows before it.
    """
    products = queries @ train.T
    error = 1.5 * (train.shape[1] + 16) / SCALE
    bounds = np.partition(products, -k, axis=1)[:, -k, None].astype(np.float64) - 2 * error
    is_candidate: NDArray[np.bool_] = products >= bounds.astype(np.float32)
    return is_candidate


def _among(
    train: NDArray[np.float32],
    queries: NDArray[np.float32],
    is_candidate: NDArray[np.bool_],
    k: int,
) -> Neighbours:
    """Find neighbours among few candidates, at least k a query."""
    counts = is_candidate.sum(axis=1)
    candidates, places = np.nonzero(is_candidate)[1], np.arange(counts.max())
    is_used = places < counts[:, None]
    rows = np.zeros(is_used.shape, np.intp)
    rows[is_used] = candidates
    values = np.empty(rows.shape)
    size = max(1, COUNTED // (rows.shape[1] * train.shape[1]))
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        near = _counted(train[rows[part]])
        values[part] = (near @ _counted(queries[part])[:, :, None])[:, :, 0]
    values[~is_used] = -np.inf
    return _first(values, rows, k)


def _among_all(train: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Neighbours:
    """Find neighbours among all rows of train."""
    counted = _counted(queries)
    size = max(1, COUNTED // train.shape[1])
    blocks = [
        counted @ _counted(train[start : start + size]).T for start in range(0, len(train), size)
    ]
    values = np.concatenate(blocks, axis=1)
    return _first(values, np.broadcast_to(np.arange(len(train)), values.shape), k)


def _first(values: NDArray[np.float64], rows: NDArray[np.intp], k: int) -> Neighbours:
    """Return the k highest values of each line and their rows; of equal ones the first."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _counted(units: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return components in multiples of ``1 / SCALE``, as integers in float64."""
    counted = np.multiply(units, SCALE, dtype=np.float64)
    return np.rint(counted, out=counted)
