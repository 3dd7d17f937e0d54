"""Which images to label next: uncertain ones, unlike each other and unlike those with a label.

Of the images with the smallest margin between the two most probable classes (Scheffer et al. 2001,
"Active Hidden Markov Models for Information Extraction"), a few times as many as are asked for,
each next one is the farthest from all that have a label or were chosen before: the greedy k-center
of Sener and Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set
Approach", on candidates chosen as in Zhdanov 2019, "Diverse mini-batch Active Learning". So a copy
of a chosen image comes last, the first half of a list is a good shorter list, and nothing is drawn
at random. What else was tried is in ``docs/suggest.md``.

Without labels there is nothing to be uncertain about: then the image that is most typical of each
of as many clusters (Hacohen et al. 2022, "Active Learning on a Budget: Opposite Strategies Suit
High and Low Budgets").
"""

import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.copies.neighbours import Units

# Uncertain images for each that is asked for, among which the different ones are looked for.
CANDIDATES: Final = 3
# Images that clusters are made of: enough to know where images are many.
SAMPLE: Final = 10_000
# Clusters, of which each round compares all images with all.
MOST_CLUSTERS: Final = 500
# Images within a cluster whose similarity says how typical one is.
NEIGHBOURS: Final = 20
_ROUNDS: Final = 20
_BLOCK: Final = 4096


def uncertainties(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one less the margin between the two most probable classes, from 0 to 1, ``(n,)``.

    Args:
        probabilities: ``(n, classes)``, of two classes or more.
    """
    ordered = np.partition(probabilities, -2, axis=1)
    margins: NDArray[np.float64] = ordered[:, -1] - ordered[:, -2]
    return 1 - margins


def choose(
    units: Units, uncertainty: NDArray[np.float64], labelled: Units, count: int
) -> NDArray[np.intp]:
    """Return the rows to label next, the one to begin with first, ``(count,)``.

    Args:
        units: Features of the candidates with a norm of one, float32 ``(n, dim)``.
        uncertainty: Of each, ``(n,)``.
        labelled: Features of the labelled images with a norm of one, float32 ``(m, dim)``.
        count: How many, from 1 to n.
    """
    order = np.argsort(-uncertainty, kind="stable")[: CANDIDATES * count]
    return order[farthest_first(units[order], labelled, count)]


def farthest_first(units: Units, centres: Units, count: int) -> NDArray[np.intp]:
    """Return rows, each the farthest from all centres and all rows before, ``(count,)``.

    Args:
        units: Rows with a norm of one, float32 ``(n, dim)``.
        centres: Rows with a norm of one, float32 ``(m, dim)``; without any, row 0 is the first.
        count: How many, from 1 to n.
    """
    nearest = np.full(len(units), -1.0, np.float32)
    for start in range(0, len(centres), _BLOCK):
        products = units @ centres[start : start + _BLOCK].T
        np.maximum(nearest, products.max(axis=1), out=nearest)
    chosen = np.empty(count, np.intp)
    for place in range(count):
        # Of equally far rows, such as the first two without a centre, the first.
        chosen[place] = nearest.argmin()
        np.maximum(nearest, units @ units[chosen[place]], out=nearest)
        nearest[chosen[: place + 1]] = np.inf
    return chosen


def choose_typical(units: Units, labelled: Units, count: int) -> NDArray[np.intp]:
    """Return the most typical row of each of some clusters, of the largest one first, ``(count,)``.

    Clusters that hold a labelled row come last. Of many rows, a part is looked at.

    Args:
        units: Features of the candidates with a norm of one, float32 ``(n, dim)``.
        labelled: Features of the labelled images with a norm of one, float32 ``(m, dim)``.
        count: How many, from 1 to n.
    """
    rows = np.arange(len(units))
    if len(units) > max(SAMPLE, 4 * count):
        drawn = np.random.default_rng(0).choice(len(units), max(SAMPLE, 4 * count), replace=False)
        rows = np.sort(drawn)
    sample = units[rows]
    together = np.concatenate([sample, labelled])
    clusters = _clusters(together, min(count + len(labelled), MOST_CLUSTERS, len(sample)))
    of_rows, of_labelled = clusters[: len(sample)], clusters[len(sample) :]
    sizes = np.bincount(of_rows, minlength=int(clusters.max()) + 1)
    order = np.lexsort((-sizes, np.isin(np.arange(len(sizes)), of_labelled)))
    chosen = [
        _most_typical(sample, np.flatnonzero(of_rows == cluster))
        for cluster in order[sizes[order] > 0][:count].tolist()
    ]
    if len(chosen) < count:
        # Fewer clusters than images asked for.
        others = np.setdiff1d(np.arange(len(sample)), chosen)
        more = farthest_first(sample[others], sample[chosen], count - len(chosen))
        chosen += others[more].tolist()
    found: NDArray[np.intp] = rows[chosen]
    return found


def _clusters(units: Units, count: int) -> NDArray[np.intp]:
    """Return the number of each row's cluster, ``(n,)``."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Where there are fewer different rows than clusters, some clusters stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, max_iter=_ROUNDS, random_state=0).fit(units)
    return np.asarray(found.labels_, np.intp)


def _most_typical(units: Units, rows: NDArray[np.intp]) -> int:
    """Return the row that is most similar, in the mean, to its nearest ones among some rows."""
    members = units[rows]
    near = min(NEIGHBOURS, len(rows))
    typicality = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        products = members[start : start + _BLOCK] @ members.T
        typicality[start : start + _BLOCK] = np.partition(products, -near, axis=1)[:, -near:].mean(
            axis=1, dtype=np.float64
        )
    return int(rows[typicality.argmax()])
