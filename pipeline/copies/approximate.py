"""Near pairs among very many rows: nearly all of them, in a small part of the time.

The library faiss (Johnson et al. 2019, "Billion-scale similarity search with GPUs") puts rows into
cells around centres, and each is compared with those of the nearest cells alone. How many cells is
learned from some rows whose near ones are known exactly, and what share of their pairs was found is
the recall that is told. Where too few pairs are known for that, the most cells are looked into, and
no recall is told.
"""

import math
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.copies import neighbours
from pipeline.copies.in_threads import in_threads
from pipeline.copies.neighbours import Pairs
from pipeline.copies.projection import Units, principal, projected
from pipeline.system import machine

# Principal components that rows are put into cells by.
COMPONENTS: Final = 64
# Cells by which the number of components is chosen that their rows are compared by.
_TRIED: Final = 32
PIP_LINE: Final = "pip install 'embedding-pipeline[faiss]'"
# Cells, in the root of the number of rows (faiss' own advice: 4 to 16), and rows per cell that
# their centres are learned from.
_CELLS: Final = 4
_TRAINED: Final = 48
# Numbers of nearest cells, of which the first with this recall counts, or the last.
PROBES: Final = (2, 4, 8, 16, 32, 64, 128)
RECALL: Final = 0.995
# Known pairs that recall is measured on, at the least.
KNOWN: Final = 100
# Rows that are asked for their pairs at once, and at most: of a million they take as long as 7 % of
# the exact search.
ASKED: Final = 8192
MOST_ASKED: Final = 4 * ASKED
# Rows that are looked up at once: enough that each cell is asked by hundreds of them together.
_AT_ONCE: Final = 65_536

Rows = NDArray[np.intp]


def is_installed() -> bool:
    """Tell whether faiss is there."""
    return find_spec("faiss") is not None


def pairs_within(
    units: Units, similarity: float, *, progress: Callable[[], None] = lambda: None
) -> tuple[Pairs, float | None]:
    """Return nearly every pair of rows whose cosine similarity is at least so high.

    Args:
        units: Rows with a norm of one, float32 ``(n, dim)``.
        similarity: From -1 to 1.
        progress: Called as often as ``neighbours.num_steps`` says.

    Returns:
        The pairs, none of which is wrong, and the share of all that were found, measured on
        up to ``MOST_ASKED`` rows; None where these have fewer than ``KNOWN`` pairs.

    Raises:
        PipelineError: There are more than ``neighbours.MOST_PAIRS``.
    """
    search = _Cells(units, similarity)
    recall = search.choose_probes()
    found = search.pairs_of(np.arange(len(units)), progress)
    return _once(found, len(units)), recall


class _Cells:
    """Rows in cells.

    Attributes:
        points: The rows in principal components, by which they are in cells.
        search: The rows as the exact search compares them.
        probes: How many of the nearest cells are looked into.
    """

    def __init__(self, units: Units, similarity: float) -> None:
        faiss: Any = import_module("faiss")  # its types are made at run time

        self.count, self.similarity = len(units), similarity
        self.probes = PROBES[0]
        mean, basis = principal(units, min(COMPONENTS, units.shape[1]))
        self.points = np.ascontiguousarray(projected(units, mean, basis)[:, :-1])
        cells = max(1, int(_CELLS * math.sqrt(self.count)))
        step = max(1, self.count // (_TRAINED * cells))
        faiss.omp_set_num_threads(machine.processors())
        centres = faiss.Kmeans(self.points.shape[1], cells, niter=10, min_points_per_centroid=1)
        centres.train(self.points[::step])
        self.centres: Any = centres.index
        home = np.concatenate(
            [
                self._nearest(np.arange(start, min(start + _AT_ONCE, self.count)), 1)[:, 0]
                for start in range(0, self.count, _AT_ONCE)
            ]
        )
        self.members = np.argsort(home, kind="stable")
        self.limits = np.searchsorted(home[self.members], np.arange(cells + 1))
        # Rows of one cell are alike, so that more components are needed to tell them apart.
        step = max(1, cells // _TRIED)
        some = [self._members(cell)[: 2 * neighbours.BLOCK] for cell in range(0, cells, step)]
        tried = [(rows[::2], rows[1::2]) for rows in some]
        self.search = neighbours.Search(units, similarity, tried)

    def choose_probes(self) -> float | None:
        """Look into as many cells as are enough; return the recall that comes of it.

        None where too few pairs are known to tell: then into the most.
        """
        asked, truth = self._asked()
        if len(truth) < KNOWN:
            self.probes = PROBES[-1]
            return None
        known = _codes(truth.first, truth.second, self.count)
        recall = 0.0
        for self.probes in PROBES:
            pairs = self.pairs_of(asked)
            found = _codes(pairs.first, pairs.second, self.count)
            recall = float(np.isin(known, found).mean())
            if recall >= RECALL:
                break
        return recall

    def _asked(self) -> tuple[NDArray[np.intp], Pairs]:
        """Return rows drawn at random until enough pairs are known, and all pairs of these."""
        order = np.random.default_rng(0).permutation(self.count)[:MOST_ASKED]
        count, found = 0, Pairs.together([])
        while count < len(order) and len(found) < KNOWN:
            rows = np.sort(order[count : count + ASKED])
            found = Pairs.together([found, self.exactly(rows)])
            count += len(rows)
        return order[:count], found

    def pairs_of(
        self, rows: NDArray[np.intp], progress: Callable[[], None] = lambda: None
    ) -> Pairs:
        """Return the pairs of some rows, each row first, that cells show.

        Raises:
            PipelineError: There are more than ``neighbours.MOST_PAIRS``.
        """
        found: list[Pairs] = []
        count = 0
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            blocks = list(self._blocks(part))
            total = sum(len(first) * len(second) for first, second in blocks)
            done, told, steps = 0, 0, neighbours.num_steps(len(part))
            with in_threads(self.search.between, blocks) as compared:
                for (first, second), pairs in compared:
                    if len(pairs):
                        found.append(pairs)
                        count += len(pairs)
                    # Most pairs are found twice, once from either row.
                    neighbours.require_few(count // 2, self.similarity)
                    done += len(first) * len(second)
                    while told < steps * done // total:
                        told += 1
                        progress()
        return Pairs.together(found)

    def exactly(self, rows: NDArray[np.intp]) -> Pairs:
        """Return all pairs of some rows, each row first.

        Raises:
            PipelineError: By what these have, all have more than twice ``neighbours.MOST_PAIRS``.
        """
        found: list[Pairs] = []
        count = 0
        blocks = product(_cut(rows), _cut(np.arange(self.count)))
        with in_threads(self.search.between, blocks) as compared:
            for _, pairs in compared:
                found.append(pairs)
                count += len(pairs)
                # Half of what is to be expected of all, so that chance refuses nothing.
                neighbours.require_few(count * self.count // (4 * len(rows)), self.similarity)
        return Pairs.together(found)

    def _blocks(self, rows: NDArray[np.intp]) -> Iterator[tuple[Rows, Rows]]:
        """Yield (some of the rows, members of a cell that is near to them)."""
        cells = self._nearest(rows, self.probes)
        order = np.argsort(cells, axis=None, kind="stable")
        asking = rows[order // cells.shape[1]]
        limits = np.searchsorted(cells.ravel()[order], np.arange(len(self.limits)))
        for cell in np.flatnonzero(np.diff(limits)).tolist():
            asked = asking[limits[cell] : limits[cell + 1]]
            yield from product(_cut(asked), _cut(self._members(cell)))

    def _members(self, cell: int) -> Rows:
        return self.members[self.limits[cell] : self.limits[cell + 1]]

    def _nearest(self, rows: Rows, count: int) -> NDArray[np.int32]:
        """Return the numbers of the nearest cells of some rows, ``(k, count)`` or all there are."""
        count = min(count, self.centres.ntotal)
        _, cells = self.centres.search(self.points[rows], count)
        return np.asarray(cells, np.int32)


def _cut(rows: Rows) -> list[Rows]:
    """Return rows in parts of a block."""
    size = neighbours.BLOCK
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _codes(first: NDArray[np.intp], second: NDArray[np.intp], count: int) -> NDArray[np.int64]:
    """Return a number for each pair of rows, which puts them in order."""
    return first.astype(np.int64) * count + second


def _once(pairs: Pairs, count: int) -> Pairs:
    """Return pairs once, however often and in whichever order they were found."""
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    _, kept = np.unique(_codes(low, high, count), return_index=True)
    return Pairs(low[kept], high[kept], pairs.similarity[kept])
