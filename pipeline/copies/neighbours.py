"""All pairs of rows within a distance, exactly, without comparing all pairs in full.

An orthonormal projection never lengthens a distance, and neither does the length of what it leaves
out, as one more coordinate: by the reverse triangle inequality
``|x - y|^2 >= |Px - Py|^2 + (|x - Px| - |y - Py|)^2``. So pairs that are too far apart in a few
principal components are too far apart, and only the others are compared in full. Rounding is
allowed for, so nothing is lost.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.copies.in_threads import in_threads
from pipeline.copies.projection import Units, other_side, principal, projected, side_of
from pipeline.errors import PipelineError

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
# Pairs kept: 0.5 GB. Features with more say that the distance is no near one.
MOST_PAIRS: Final = 20_000_000
# Pairs that are compared at once: 1 MB of 2,048 float32 features, twice, stay in the cache.
_AT_ONCE: Final = 128
_ULP: Final = 2.0**-24

# Numbers of rows, and of those that each of them is compared with.
Block = tuple[NDArray[np.intp], NDArray[np.intp]]


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
    search = Search(units, similarity)
    blocks = [(start, other) for start in range(0, len(units), BLOCK)
              for other in range(start, len(units), BLOCK)]  # fmt: skip
    found: list[Pairs] = []
    count = 0
    with in_threads(search.of_block, blocks) as compared:
        for block, part in compared:
            if len(part):
                found.append(part)
                count += len(part)
            require_few(count, similarity)
            if block[1] + BLOCK >= len(units):
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


def numbers_beside(dim: int) -> int:
    """Return how many float32 numbers a search holds for each row, beside its features, at most."""
    return min(dim, LOOKS[-1]) + 3 + (SECOND + 3 if dim > SECOND else 0)


def num_steps(rows: int) -> int:
    """Return how often ``pairs_within`` tells of its progress."""
    return -(-rows // BLOCK)


class Search:
    """Rows with their projections, of which blocks are compared by any number of threads.

    Attributes:
        side: One side of the product that tells which pairs pass the first look; see ``side_of``.
    """

    def __init__(
        self, units: Units, similarity: float, tried: Sequence[Block] | None = None
    ) -> None:
        """Choose components, and project.

        Args:
            units: Rows with a norm of one, float32 ``(n, dim)``.
            similarity: The least cosine.
            tried: Blocks such as will be compared, by which the number of components is chosen;
                None for rows from everywhere.
        """
        self.units, self.similarity = units, similarity
        dim = units.shape[1]
        self.bound = bound_of(similarity, dim)
        mean, basis = principal(units, min(dim, SECOND))
        blocks = _anywhere(len(units)) if tried is None else tried
        count = _components(units, mean, basis, self.bound, blocks)
        self.side = side_of(projected(units, mean, basis[:, :count]))
        self.second: NDArray[np.float32] | None = None
        self.halves = np.zeros(0, np.float32)
        if count < basis.shape[1] < dim:
            self.second = projected(units, mean, basis)
            self.halves = self.second[:, -1].copy()
            # So that it adds nothing to a product; a copy without it would be of that size.
            self.second[:, -1] = 0
        self._local = threading.local()

    def of_block(self, start: int, other: int) -> Pairs:
        """Return the pairs of two blocks of rows, that from ``start`` first."""
        first, second = (
            np.arange(place, min(place + BLOCK, len(self.units))) for place in (start, other)
        )
        return self._of(first, second, np.less if start == other else np.not_equal)

    def between(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> Pairs:
        """Return the pairs of some rows with others, none with itself.

        Args:
            first: Row numbers, at most ``BLOCK``.
            second: Row numbers, at most ``BLOCK``.
        """
        return self._of(first, second, np.not_equal)

    def _of(self, first: NDArray[np.intp], second: NDArray[np.intp], wanted: np.ufunc) -> Pairs:
        """Return the near pairs of two blocks, of those that are wanted."""
        left, right = self.side[first], other_side(self.side[second])
        products, passes = self._buffers(len(left), len(right))
        np.matmul(left, right.T, out=products)
        least = np.float32(-self.bound)
        np.greater_equal(products, least, out=passes)
        # Of a flat array NumPy finds places ten times faster than of one with lines.
        lines, places = np.divmod(np.flatnonzero(passes), len(right))
        rows, columns = _wanted(first[lines], second[places], wanted)
        width = self.units.shape[1] if self.second is None else self.second.shape[1]
        if len(rows) * _FETCHED * width > products.size * self.units.shape[1]:
            rows, columns = self._dense(first, second, wanted)
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

    def _dense(
        self, first: NDArray[np.intp], second: NDArray[np.intp], wanted: np.ufunc
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the pairs of two blocks that may be near, from all features at once."""
        products = self.units[first] @ self.units[second].T
        lines, places = np.nonzero(
            products >= np.float32(self.similarity - _slack(self.units.shape[1]))
        )
        return _wanted(first[lines], second[places], wanted)


def _wanted(
    rows: NDArray[np.intp], columns: NDArray[np.intp], wanted: np.ufunc
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    kept = wanted(rows, columns)
    return rows[kept], columns[kept]


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


def _anywhere(count: int) -> list[Block]:
    """Return rows from everywhere, and other rows: of neighbours in a listing many are alike."""
    tried = np.arange(0, count, max(1, count // (2 * _TRIED)))[: 2 * _TRIED]
    return [(tried[::2], tried[1::2])]


def _components(
    units: Units,
    mean: NDArray[np.float32],
    basis: NDArray[np.float32],
    bound: float,
    tried: Sequence[Block],
) -> int:
    """Return how many principal components make the search quickest, by some blocks of rows."""
    dim = units.shape[1]
    counts = [count for count in LOOKS if count <= basis.shape[1]] or [basis.shape[1]]
    pairs = max(1, sum(len(rows) * len(columns) for rows, columns in tried))
    cost = {}
    for count in counts:
        passed = 0.0
        for block in tried:
            rows, columns = (
                side_of(projected(units[part], mean, basis[:, :count])) for part in block
            )
            passed += float((rows @ other_side(columns).T >= -bound).sum()) / pairs
        cost[count] = count + _LOOKED_AT + min(passed * _FETCHED * min(SECOND, dim), dim)
    return min(counts, key=lambda count: cost[count])
