"""Near pairs among very many rows: nearly all of them, in a small part of the time.

The library faiss (Johnson et al. 2019, "Billion-scale similarity search with GPUs") puts rows into
cells around centres, and each is compared with those of the nearest cells alone. How many cells is
learned from some rows whose near ones are known exactly, and what share of their pairs was found is
the recall that is told.
"""

import math
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.copies import neighbours
from pipeline.copies.neighbours import Pairs, Units
from pipeline.system import machine

# Principal components that rows are put into cells by.
COMPONENTS: Final = 64
# Cells, in the root of the number of rows (faiss' own advice: 4 to 16), and rows per cell that
# their centres are learned from.
_CELLS: Final = 4
_TRAINED: Final = 48
# Numbers of nearest cells, of which the first with this recall counts, or the last.
PROBES: Final = (2, 4, 8, 16, 32, 64, 128)
RECALL: Final = 0.995
# Rows that recall is measured on.
ASKED: Final = 8192
_AT_ONCE: Final = 8192


def is_installed() -> bool:
    """Tell whether faiss is there."""
    return find_spec("faiss") is not None


def pairs_within(
    units: Units, similarity: float, *, progress: Callable[[], None] = lambda: None
) -> tuple[Pairs, float]:
    """Return nearly every pair of rows whose cosine similarity is at least so high.

    Args:
        units: Rows with a norm of one, float32 ``(n, dim)``.
        similarity: From -1 to 1.
        progress: Called as often as ``neighbours.num_steps`` says.

    Returns:
        The pairs, none of which is wrong, and the share of all that were found, measured on
        ``ASKED`` rows; 1 if none of these has a pair.

    Raises:
        PipelineError: There are more than ``neighbours.MOST_PAIRS``.
    """
    search = _Cells(units, similarity)
    asked = np.arange(len(units))
    if len(units) > ASKED:
        asked = np.sort(np.random.default_rng(0).choice(len(units), ASKED, replace=False))
    recall = search.choose_probes(asked, search.exactly(asked))
    found: list[Pairs] = []
    for start in range(0, len(units), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(units)))
        found.append(search.pairs_of(rows))
        neighbours.require_few(sum(map(len, found)) // 2, similarity)
        for _ in range(neighbours.num_steps(len(rows))):
            progress()
    return _once(Pairs.together(found)), recall


class _Cells:
    """Rows in principal components, in cells."""

    def __init__(self, units: Units, similarity: float) -> None:
        faiss: Any = import_module("faiss")  # its types are made at run time

        self.units, self.similarity = units, similarity
        self.bound = neighbours.bound_of(similarity, units.shape[1])
        mean, basis = neighbours.principal(units, min(COMPONENTS, units.shape[1]))
        made = neighbours.projected(units, mean, basis)
        self.rows, self.halves = np.ascontiguousarray(made[:, :-1]), made[:, -1].copy()
        faiss.omp_set_num_threads(machine.processors())
        cells = max(1, int(_CELLS * math.sqrt(len(units))))
        step = max(1, len(units) // (_TRAINED * cells))
        self.index: Any = faiss.index_factory(self.rows.shape[1], f"IVF{cells},Flat")
        self.index.cp.min_points_per_centroid = 1
        self.index.train(np.ascontiguousarray(self.rows[::step]))
        self.index.add(self.rows)

    def choose_probes(self, asked: NDArray[np.intp], truth: Pairs) -> float:
        """Look into as many cells as are enough; return the recall that comes of it."""
        known = _codes(truth, len(self.units))
        recall = 1.0
        for probes in PROBES:
            self.index.nprobe = probes
            found = _codes(self.pairs_of(asked), len(self.units))
            recall = float(np.isin(known, found).mean()) if len(known) else 1.0
            if recall >= RECALL:
                break
        return recall

    def pairs_of(self, rows: NDArray[np.intp]) -> Pairs:
        """Return the pairs of some rows, each row first, that cells show."""
        limits, _, places = self.index.range_search(self.rows[rows], 2 * self.bound)
        first = np.repeat(rows, np.diff(limits).astype(np.intp))
        return self._near(first, places.astype(np.intp))

    def exactly(self, rows: NDArray[np.intp]) -> Pairs:
        """Return all pairs of some rows, each row first."""
        return Pairs.together(list(self._of_blocks(rows)))

    def _of_blocks(self, rows: NDArray[np.intp]) -> Iterator[Pairs]:
        size = neighbours.BLOCK
        for start in range(0, len(self.units), size):
            part = slice(start, start + size)
            products = self.rows[rows] @ self.rows[part].T
            products -= self.halves[rows][:, None]
            passes = np.flatnonzero(products >= self.halves[part] - np.float32(self.bound))
            lines, columns = np.divmod(passes, products.shape[1])
            yield self._near(rows[lines], columns + start)

    def _near(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> Pairs:
        others = first != second
        return neighbours.confirmed(self.units, first[others], second[others], self.similarity)


def _codes(pairs: Pairs, count: int) -> NDArray[np.int64]:
    """Return a number for each pair of rows."""
    return pairs.first.astype(np.int64) * count + pairs.second


def _once(pairs: Pairs) -> Pairs:
    """Return pairs once, however often and in whichever order they were found."""
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    _, kept = np.unique(np.stack([low, high]), axis=1, return_index=True)
    return Pairs.together([Pairs(low[kept], high[kept], pairs.similarity[kept])])
