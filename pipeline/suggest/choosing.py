"""Which images to label next: uncertain ones, unlike each other.

Of the images with the smallest margin between the two most probable classes (Scheffer et al. 2001,
"Active Hidden Markov Models for Information Extraction"), ten times as many as are asked for are
clustered, uncertain ones with more weight, and the middle one of each cluster is taken: Zhdanov
2019, "Diverse mini-batch Active Learning". A copy is in the cluster of its image, so only one of
them is taken. What else was tried is in ``docs/suggest.md``.

Without labels there is nothing to be uncertain about: then the image that is most typical of each
of as many clusters (Hacohen et al. 2022, "Active Learning on a Budget: Opposite Strategies Suit
High and Low Budgets").
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.copies.projection import Units

# Uncertain images for each that is asked for, among which the different ones are looked for.
CANDIDATES: Final = 10
# Images that clusters are made of: enough to know where images are many.
SAMPLE: Final = 10_000
# Clusters: their time grows with the square of how many there are.
MOST_CLUSTERS: Final = 500
# Images within a cluster whose similarity says how typical one is.
NEIGHBOURS: Final = 20
# Images that are suggested at once: the time grows with the square of how many there are.
MOST: Final = 2000
_ROUNDS: Final = 50
# Weights have to be above zero.
_LEAST: Final = 1e-6
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
    uncertainty: NDArray[np.float64],
    count: int,
    advance: Callable[[], None] = lambda: None,
) -> Rows:
    """Return the candidates to label next, the one to begin with first.

    Args:
        units: Features of all images with a norm of one, float32 ``(images, dim)``.
        candidates: Row numbers of the images to choose from, ``(n,)``.
        uncertainty: Of each candidate, ``(n,)``.
        count: How many, from 1 to n.
        advance: Called with each that is chosen.

    Returns:
        Row numbers, ``(count,)``.
    """
    order = np.argsort(-uncertainty, kind="stable")[: CANDIDATES * count]
    rows, weights = candidates[order], np.maximum(uncertainty[order], _LEAST)
    clusters, distances = _clusters(units[rows], min(count, MOST_CLUSTERS, len(rows)), weights)
    # The cluster that stands for most of what is uncertain comes first.
    totals = np.bincount(clusters, weights=weights)
    places = [
        int(members[distances[members].argmin()])
        for cluster in np.argsort(-totals, kind="stable")[: np.count_nonzero(totals)].tolist()
        for members in [np.flatnonzero(clusters == cluster)]
    ]
    return _filled(units, rows, places, count, advance)


def choose_typical(
    units: Units,
    candidates: Rows,
    labelled: Rows,
    count: int,
    advance: Callable[[], None] = lambda: None,
) -> Rows:
    """Return the most typical candidate of each of some clusters, of the largest one first.

    Clusters that hold a labelled image come last. Of many candidates, a part is looked at.

    Args:
        units: Features of all images with a norm of one, float32 ``(images, dim)``.
        candidates: Row numbers of the images to choose from, ``(n,)``.
        labelled: Row numbers of the images with a label, ``(m,)``.
        count: How many, from 1 to n.
        advance: Called with each that is chosen.

    Returns:
        Row numbers, ``(count,)``.
    """
    most = max(SAMPLE, 4 * count)
    if len(candidates) > most:
        drawn = np.random.default_rng(0).choice(len(candidates), most, replace=False)
        candidates = candidates[np.sort(drawn)]
    together = units[np.concatenate([candidates, labelled])]
    sample = together[: len(candidates)]
    number = min(count + len(labelled), MOST_CLUSTERS, len(sample))
    clusters, _ = _clusters(together, number, np.ones(len(together)))
    of_rows, of_labelled = clusters[: len(sample)], clusters[len(sample) :]
    sizes = np.bincount(of_rows, minlength=int(clusters.max()) + 1)
    order = np.lexsort((-sizes, np.isin(np.arange(len(sizes)), of_labelled)))
    places = [
        _most_typical(sample, np.flatnonzero(of_rows == cluster))
        for cluster in order[sizes[order] > 0][:count].tolist()
    ]
    return _filled(units, candidates, places, count, advance)


def _clusters(
    units: Units, count: int, weights: NDArray[np.float64]
) -> tuple[Rows, NDArray[np.float32]]:
    """Return the number of each row's cluster, and its distance to the middle, ``(n,)`` each."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Where there are fewer different rows than clusters, some clusters stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, max_iter=_ROUNDS, random_state=0).fit(
            units, sample_weight=weights
        )
    clusters = np.asarray(found.labels_, np.intp)
    distances = np.linalg.norm(units - found.cluster_centers_[clusters], axis=1)
    return clusters, distances.astype(np.float32)


def _filled(
    units: Units,
    candidates: Rows,
    places: Sequence[int],
    count: int,
    advance: Callable[[], None],
) -> Rows:
    """Return chosen candidates, and as many more as lack, each the farthest from all before.

    They lack where there are fewer clusters than images asked for: of many, or of copies.
    """
    chosen = np.empty(count, np.intp)
    chosen[: len(places)] = places
    if len(places) == count:
        for _ in places:
            advance()
        return candidates[chosen]
    rows = units[candidates]
    nearest = np.full(len(rows), -1.0, np.float32)
    for number in range(count):
        if number >= len(places):
            chosen[number] = nearest.argmin()
        np.maximum(nearest, rows @ rows[chosen[number]], out=nearest)
        nearest[chosen[number]] = np.inf
        advance()
    return candidates[chosen]


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
