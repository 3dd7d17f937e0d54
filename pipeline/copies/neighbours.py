"""All pairs of rows within a distance, exactly, without comparing all pairs in full.

An orthonormal projection never lengthens a distance, and neither does the length of what it leaves
out, as one more coordinate: by the reverse triangle inequality
``|x - y|^2 >= |Px - Py|^2 + (|x - Px| - |y - Py|)^2``. So pairs that are too far apart in a few
principal components are too far apart, and only the others are compared in full. Rounding is
allowed for, so nothing is lost.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.errors import PipelineError
from pipeline.system import machine

# Principal components of the first look, at all pairs; as many as make the whole search quickest.
LOOKS: Final = (64, 128, 192, 256, 384)
# Components of the second look, at the pairs that the first leaves.
SECOND: Final = 512
# Rows of the block of products that stays in a processor's cache.
BLOCK: Final = 1024
# Fetching and multiplying a feature of one pair, in what a component of the product of two blocks
# takes for a pair.
_FETCHED: Final = 25
# What looking at a product takes, in the same unit.
_LOOKED_AT: Final = 16
# Pairs of rows, squared, by which the number of components is chosen.
_TRIED: Final = 1024
# Rows that principal components are computed of; any orthonormal basis is right, better ones are
# quicker.
_SAMPLE: Final = 4096
# Pairs kept: 0.5 GB. Features with more say that the distance is no near one.
MOST_PAIRS: Final = 20_000_000
# Pairs that are compared at once: 1 MB of 2,048 float32 features, twice, stay in the cache.
_AT_ONCE: Final = 128
_ULP: Final = 2.0**-24

Units = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of rows and their cosine similarity.

    Attributes:
        first: Row numbers, ``(k,)``; below those of ``second`` in what a search returns.
        second: Row numbers, ``(k,)``.
        similarity: float64 ``(k,)``.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    similarity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)

    def where(self, kept: NDArray[np.bool_]) -> "Pairs":
        """Return some of the pairs."""
        return Pairs(self.first[kept], self.second[kept], self.similarity[kept])

    @classmethod
    def together(cls, parts: "list[Pairs]") -> "Pairs":
        """Return the pairs of several parts, ordered by row numbers."""
        if not parts:
            nothing = np.zeros(0, np.intp)
            return cls(nothing, nothing, np.zeros(0))
        first = np.concatenate([part.first for part in parts])
        second = np.concatenate([part.second for part in parts])
        similarity = np.concatenate([part.similarity for part in parts])
        order = np.lexsort((second, first))
        return cls(first[order], second[order], similarity[order])


def nearest_similarities(units: Units, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the similarity of the most similar other row, float64 ``(len(rows),)``.

    Args:
        units: Rows with a norm of one, ``(n, dim)``; two or more.
        rows: Those that are asked about.
    """
    best = np.full(len(rows), -np.inf, dtype=np.float32)
    size = max(1, (1 << 24) // max(1, len(rows)))
    queries = units[rows]
    for start in range(0, len(units), size):
        products = queries @ units[start : start + size].T
        inside = np.flatnonzero((rows >= start) & (rows < start + products.shape[1]))
        products[inside, rows[inside] - start] = -np.inf
        np.maximum(best, products.max(axis=1), out=best)
    return best.astype(np.float64)


def pairs_within(
    units: Units, similarity: float, *, progress: Callable[[], None] = lambda: None
) -> Pairs:
    """Return every pair of rows whose cosine similarity is at least so high.

    Args:
        units: Rows with a norm of one, float32 ``(n, dim)``.
        similarity: From -1 to 1.
        progress: Called once a block of rows; see ``num_steps``.

    Raises:
        PipelineError: There are more than ``MOST_PAIRS``.
    """
    if len(units) < 2:
        return Pairs.together([])
    search = _Search(units, similarity)
    blocks = [(start, other) for start in range(0, len(units), BLOCK)
              for other in range(start, len(units), BLOCK)]  # fmt: skip
    found: list[Pairs] = []
    count = 0
    workers = machine.processors()
    # Every thread multiplies and looks on its own: a product of one block is too small to share.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        for start, part in _ahead(pool, search.of_block, blocks, workers):
            if len(part):
                found.append(part)
                count += len(part)
            try:
                require_few(count, similarity)
            except PipelineError:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            if start[1] + BLOCK >= len(units):
                progress()
    return Pairs.together(found)


def require_few(count: int, similarity: float) -> None:
    """Refuse to go on with more pairs than memory is for.

    Raises:
        PipelineError: Says how many are similar, and what helps.
    """
    if count > MOST_PAIRS:
        raise PipelineError(
            f"More than {MOST_PAIRS:,} pairs of images have a similarity of {similarity:g} or "
            "more, which therefore tells no copies.",
            hint="Give a higher --threshold.",
        )


def num_steps(rows: int) -> int:
    """Return how often ``pairs_within`` tells of its progress."""
    return -(-rows // BLOCK)


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[int, int], Pairs],
    blocks: list[tuple[int, int]],
    workers: int,
) -> Iterator[tuple[tuple[int, int], Pairs]]:
    """Yield (block, its pairs) in order, a bounded number computed ahead."""
    waiting: list[tuple[tuple[int, int], Future[Pairs]]] = []
    remaining = iter(blocks)
    while True:
        for block in islice(remaining, 4 * workers - len(waiting)):
            waiting.append((block, pool.submit(function, *block)))
        if not waiting:
            return
        block, future = waiting.pop(0)
        yield block, future.result()


class _Search:
    """Rows with their projections."""

    def __init__(self, units: Units, similarity: float) -> None:
        self.units, self.similarity = units, similarity
        dim = units.shape[1]
        self.bound = bound_of(similarity, dim)
        mean, basis = principal(units, min(dim, SECOND))
        count = _components(units, mean, basis, self.bound)
        self.left, self.right = sides(projected(units, mean, basis[:, :count]))
        self.second: NDArray[np.float32] | None = None
        self.halves = np.zeros(0, np.float32)
        if count < basis.shape[1] < dim:
            wide = projected(units, mean, basis)
            self.second, self.halves = np.ascontiguousarray(wide[:, :-1]), wide[:, -1]
        self._local = threading.local()

    def of_block(self, start: int, other: int) -> Pairs:
        """Return the pairs of two blocks of rows."""
        left, right = self.left[start : start + BLOCK], self.right[other : other + BLOCK]
        products, passes = self._buffers(len(left), len(right))
        np.matmul(left, right.T, out=products)
        least = np.float32(-self.bound)
        np.greater_equal(products, least, out=passes)
        # Of a flat array NumPy finds places ten times faster than of one with lines.
        rows, columns = np.divmod(np.flatnonzero(passes), len(right))
        rows, columns = rows + start, columns + other
        if start == other:
            above = columns > rows
            rows, columns = rows[above], columns[above]
        width = self.units.shape[1] if self.second is None else self.second.shape[1]
        if len(rows) * _FETCHED * width > products.size * self.units.shape[1]:
            rows, columns = self._dense(start, other)
        elif self.second is not None:
            halves = self.halves[rows] + self.halves[columns]
            is_near = _products(self.second, rows, columns, self._local.pairs) - halves >= least
            rows, columns = rows[is_near], columns[is_near]
        return confirmed(self.units, rows, columns, self.similarity, self._local.pairs)

    def _buffers(self, rows: int, columns: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return memory for the products of a block, and for which of them pass, per thread."""
        if not hasattr(self._local, "products"):
            self._local.products = np.empty(BLOCK * BLOCK, np.float32)
            self._local.passes = np.empty(BLOCK * BLOCK, bool)
            self._local.pairs = pair_memory(self.units)
        size, shape = rows * columns, (rows, columns)
        return self._local.products[:size].reshape(shape), self._local.passes[:size].reshape(shape)

    def _dense(self, start: int, other: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the pairs of two blocks that may be near, from all features at once."""
        products = self.units[start : start + BLOCK] @ self.units[other : other + BLOCK].T
        rows, columns = np.nonzero(
            products >= np.float32(self.similarity - _slack(self.units.shape[1]))
        )
        rows, columns = rows + start, columns + other
        above = columns > rows
        return rows[above], columns[above]


def confirmed(
    units: Units,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    similarity: float,
    memory: NDArray[np.float32] | None = None,
) -> Pairs:
    """Return those pairs that are near in all features.

    Args:
        units: Rows with a norm of one, float32 ``(n, dim)``.
        rows: Row numbers, ``(k,)``.
        columns: Row numbers, ``(k,)``.
        similarity: The least cosine.
        memory: See ``pair_memory``.
    """
    least = np.float32(similarity - _slack(units.shape[1]))
    memory = pair_memory(units) if memory is None else memory
    is_near = _products(units, rows, columns, memory) >= least
    rows, columns = rows[is_near], columns[is_near]
    exactly = similarities(units, rows, columns)
    return Pairs(rows, columns, exactly).where(exactly >= similarity)


def pair_memory(units: Units) -> NDArray[np.float32]:
    """Return memory for the rows of the pairs that are compared at once."""
    return np.empty((2, _AT_ONCE * units.shape[1]), np.float32)


def bound_of(similarity: float, dim: int) -> float:
    """Return half the squared distance of unit vectors of this similarity, rounding allowed for.

    Rounding of the basis, of projecting, and of sums in any order (Higham 2002, "Accuracy and
    Stability of Numerical Algorithms", section 3.1).
    """
    return (1 - similarity) + 4 * _slack(dim)


def _slack(dim: int) -> float:
    return (dim + 16) * _ULP


def _products(
    side: NDArray[np.float32],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    memory: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the product of each pair of rows, float32 ``(len(rows),)``."""
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        # Places are in bounds; with "raise", NumPy would copy what it writes.
        one, other = (
            np.take(side, places[part], axis=0, out=_first(half, places[part], side), mode="clip")
            for places, half in zip((rows, columns), memory, strict=True)
        )
        found[part] = np.einsum("ij,ij->i", one, other)
    return found


def _first(
    memory: NDArray[np.float32], places: NDArray[np.intp], side: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return as much of flat memory as some rows of a side take."""
    shape = (len(places), side.shape[1])
    return memory[: shape[0] * shape[1]].reshape(shape)


def similarities(
    units: Units, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the cosine similarity of each pair of rows, float64, at most one."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        one, other = units[rows[part]], units[columns[part]]
        found[part] = np.einsum("ij,ij->i", one, other, dtype=np.float64, casting="same_kind")
    clipped: NDArray[np.float64] = np.minimum(found, 1.0)
    return clipped


def principal(units: Units, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean of a sample of rows, ``(dim,)``, and principal components, ``(dim, k)``."""
    step = max(1, len(units) // _SAMPLE)
    sample = units[::step].astype(np.float64)
    mean = sample.mean(axis=0)
    sample -= mean
    _, vectors = np.linalg.eigh(sample.T @ sample)
    return mean.astype(np.float32), np.ascontiguousarray(vectors[:, ::-1][:, :count], np.float32)


def _components(
    units: Units, mean: NDArray[np.float32], basis: NDArray[np.float32], bound: float
) -> int:
    """Return how many principal components make the search quickest, by some pairs of rows."""
    dim = units.shape[1]
    counts = [count for count in LOOKS if count <= basis.shape[1]] or [basis.shape[1]]
    # Rows from everywhere, and other rows: of neighbours in a listing many are alike.
    step = max(1, len(units) // (2 * _TRIED))
    tried = units[::step][: 2 * _TRIED]
    cost = {}
    for count in counts:
        left, right = sides(projected(tried, mean, basis[:, :count]))
        passed = float((left[::2] @ right[1::2].T >= -bound).mean()) if len(tried) > 1 else 0.0
        cost[count] = count + _LOOKED_AT + min(passed * _FETCHED * min(SECOND, dim), dim)
    return min(counts, key=lambda count: cost[count])


def projected(
    units: Units, mean: NDArray[np.float32], basis: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return rows in k components, float32 ``(n, k + 2)``.

    The components are followed by the length of what they leave out, and by half the squared
    length of both. So the product of two rows without their halves, less these, is minus half
    their squared distance in the components and in that length.
    """
    count = basis.shape[1]
    found = np.empty((len(units), count + 2), np.float32)
    basis = np.ascontiguousarray(basis)
    for start in range(0, len(units), 8 * BLOCK):
        part = slice(start, start + 8 * BLOCK)
        centred = units[part] - mean
        found[part, :count] = centred @ basis
        whole, kept = _squared(centred), _squared(found[part, :count])
        found[part, count] = np.sqrt(np.maximum(whole - kept, 0.0))
        found[part, count + 1] = _squared(found[part, : count + 1]) / 2
    return found


def sides(made: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both sides of a product that takes halves off by itself, float32 ``(n, k + 3)``."""
    rows, half, one = made[:, :-1], made[:, -1:], np.ones_like(made[:, -1:])
    return np.hstack([rows, -half, one]), np.hstack([rows, one, -half])


def _squared(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared length of each row."""
    found: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return found
