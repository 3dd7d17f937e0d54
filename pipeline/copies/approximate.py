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
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.copies import neighbours
from pipeline.copies.neighbours import Pairs, Units
from pipeline.system import machine

PIP_LINE: Final = "pip install 'embedding-pipeline[faiss]'"
# Principal components that rows are put into cells by.
COMPONENTS: Final = 64
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
# Rows that are looked up at once: 2,048 bound what passes the first look, before it is confirmed.
_AT_ONCE: Final = 2048


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

    def choose_probes(self) -> float | None:
        """Look into as many cells as are enough; return the recall that comes of it.

        None where too few pairs are known to tell: then into the most.
        """
        asked, truth = self._asked()
        if len(truth) < KNOWN:
            self.index.nprobe = PROBES[-1]
            return None
        known = _codes(truth.first, truth.second, len(self.units))
        recall = 0.0
        for probes in PROBES:
            self.index.nprobe = probes
            pairs = self.pairs_of(asked)
            found = _codes(pairs.first, pairs.second, len(self.units))
            recall = float(np.isin(known, found).mean())
            if recall >= RECALL:
                break
        return recall

    def _asked(self) -> tuple[NDArray[np.intp], Pairs]:
        """Return rows drawn at random until enough pairs are known, and all pairs of these."""
        order = np.random.default_rng(0).permutation(len(self.units))[:MOST_ASKED]
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
            limits, _, places = self.index.range_search(self.rows[part], 2 * self.bound)
            first = np.repeat(part, np.diff(limits).astype(np.intp))
            found.append(self._near(first, places.astype(np.intp)))
            count += len(found[-1])
            # Most pairs are found twice, once from either row.
            neighbours.require_few(count // 2, self.similarity)
            for _ in range(neighbours.num_steps(len(part))):
                progress()
        return Pairs.together(found)

    def exactly(self, rows: NDArray[np.intp]) -> Pairs:
        """Return all pairs of some rows, each row first.

        Raises:
            PipelineError: By what these have, all have more than twice ``neighbours.MOST_PAIRS``.
        """
        found: list[Pairs] = []
        count = 0
        for part in self._of_blocks(rows):
            found.append(part)
            count += len(part)
            # Half of what is to be expected of all, so that chance refuses nothing.
            neighbours.require_few(count * len(self.units) // (4 * len(rows)), self.similarity)
        return Pairs.together(found)

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


def _codes(first: NDArray[np.intp], second: NDArray[np.intp], count: int) -> NDArray[np.int64]:
    """Return a number for each pair of rows, which puts them in order."""
    return first.astype(np.int64) * count + second


def _once(pairs: Pairs, count: int) -> Pairs:
    """Return pairs once, however often and in whichever order they were found."""
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    _, kept = np.unique(_codes(low, high, count), return_index=True)
    return Pairs(low[kept], high[kept], pairs.similarity[kept])
