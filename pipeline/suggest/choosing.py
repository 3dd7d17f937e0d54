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
CANDIDATES: Final = 4
# Images that clusters are made of: enough to know where images are many.
SAMPLE: Final = 10_000
# Clusters, of which each round compares all images with all.
MOST_CLUSTERS: Final = 500
# Images within a cluster whose similarity says how typical one is.
NEIGHBOURS: Final = 20
_ROUNDS: Final = 20
_BLOCK: Final = 4096

Rows = NDArray[np.intp]


def uncertainties(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one less the margin between the two most probable classes, from 0 to 1, ``(n,)``.

    Args:
        probabilities: ``(n, classes)``, of two classes or more.
    """
    ordered = np.partition(probabilities, -2, axis=1)
    margins: NDArray[np.float64] = ordered[:, -1] - ordered[:, -2]
    return 1 - margins


def choose(
    units: Units,
    candidates: Rows,
    labelled: Rows,
    uncertainty: NDArray[np.float64],
    count: int,
) -> Rows:
    """Return the candidates to label next, the one to begin with first.

    Args:
        units: Features of all images with a norm of one, float32 ``(images, dim)``.
        candidates: Row numbers of the images to choose from, ``(n,)``.
        labelled: Row numbers of the images with a label, ``(m,)``.
        uncertainty: Of each candidate, ``(n,)``.
        count: How many, from 1 to n.

    Returns:
        Row numbers, ``(count,)``.
    """
    order = np.argsort(-uncertainty, kind="stable")[: CANDIDATES * count]
    return farthest_first(units, candidates[order], labelled, count)


def farthest_first(units: Units, candidates: Rows, centres: Rows, count: int) -> Rows:
    """Return candidates, each the farthest from all centres and from all before, ``(count,)``.

    Args:
        units: Rows with a norm of one, float32 ``(images, dim)``.
        candidates: Row numbers, ``(n,)``.
        centres: Row numbers, ``(m,)``; without any, the first candidate is the first.
        count: How many, from 1 to n.
    """
    rows = units[candidates]
    nearest = np.full(len(rows), -1.0, np.float32)
    for start in range(0, len(centres), _BLOCK):
        products = rows @ units[centres[start : start + _BLOCK]].T
        np.maximum(nearest, products.max(axis=1), out=nearest)
    chosen = np.empty(count, np.intp)
    for place in range(count):
        # Of equally far rows the first, which is the more uncertain one.
        chosen[place] = nearest.argmin()
        np.maximum(nearest, rows @ rows[chosen[place]], out=nearest)
        nearest[chosen[place]] = np.inf
    return candidates[chosen]


def choose_typical(units: Units, candidates: Rows, labelled: Rows, count: int) -> Rows:
    """Return the most typical candidate of each of some clusters, of the largest one first.

    Clusters that hold a labelled image come last. Of many candidates, a part is looked at.

    Args:
        units: Features of all images with a norm of one, float32 ``(images, dim)``.
        candidates: Row numbers of the images to choose from, ``(n,)``.
        labelled: Row numbers of the images with a label, ``(m,)``.
        count: How many, from 1 to n.

    Returns:
        Row numbers, ``(count,)``.
    """
    most = max(SAMPLE, 4 * count)
    if len(candidates) > most:
        drawn = np.random.default_rng(0).choice(len(candidates), most, replace=False)
        candidates = candidates[np.sort(drawn)]
    together = units[np.concatenate([candidates, labelled])]
    sample = together[: len(candidates)]
    clusters = _clusters(together, min(count + len(labelled), MOST_CLUSTERS, len(sample)))
    of_rows, of_labelled = clusters[: len(sample)], clusters[len(sample) :]
    sizes = np.bincount(of_rows, minlength=int(clusters.max()) + 1)
    order = np.lexsort((-sizes, np.isin(np.arange(len(sizes)), of_labelled)))
    places = [
        _most_typical(sample, np.flatnonzero(of_rows == cluster))
        for cluster in order[sizes[order] > 0][:count].tolist()
    ]
    chosen = candidates[places]
    if len(chosen) < count:
        # Fewer clusters than images asked for.
        others = np.delete(candidates, places)
        more = farthest_first(units, others, chosen, count - len(chosen))
        chosen = np.concatenate([chosen, more])
    return chosen


def _clusters(units: Units, count: int) -> Rows:
    """Return the number of each row's cluster, ``(n,)``."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Where there are fewer different rows than clusters, some clusters stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, max_iter=_ROUNDS, random_state=0).fit(units)
    return np.asarray(found.labels_, np.intp)


def _most_typical(units: Units, rows: Rows) -> int:
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
