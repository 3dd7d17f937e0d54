"""Outliers: images that are far from all others in features.

The mean distance to the nearest neighbours (Ramaswamy et al. 2000; Kuan and Mueller 2022, "Back to
the basics: revisiting out-of-distribution detection baselines"), and how far it is above what is
usual (Leys et al. 2013, "Detecting outliers: do not use standard deviation around the mean, use
absolute deviation around the median"). Distances of unit vectors end at two, so that few images of
the data themselves are as far above: 3.5 deviations, as for copies, would find hardly any.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.findings import Outlier
from pipeline.audit.listing import Listing
from pipeline.copies.projection import Units
from pipeline.copies.robust import middle_and_spread
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

NEIGHBOURS: Final = 10
FAR_ABOVE: Final = 2.5
# Images that distances are measured to: enough to know what is usual.
REFERENCES: Final = 5000
# Rows that are compared at once.
_AT_ONCE: Final = 2048


def find_outliers(listing: Listing, reporter: Reporter) -> list[Outlier]:
    """Return the images that are unlike all others, the strangest first."""
    reporter.say(f"Looking for outliers among {counted(len(listing), 'image')}")
    with reporter.bar(-(-len(listing) // _AT_ONCE), "block") as bar:
        scores = outlier_scores(listing.units, bar.advance)
    far = np.flatnonzero(scores >= FAR_ABOVE)
    order = far[np.argsort(-scores[far], kind="stable")]
    return [
        Outlier(path=listing.path(image), label=listing.label_of[image], score=float(scores[image]))
        for image in order.tolist()
    ]


def outlier_scores(
    units: Units, progress: Callable[[], None] = lambda: None
) -> NDArray[np.float64]:
    """Return by how many robust standard deviations each row is farther than usual, ``(n,)``.

    Args:
        units: Rows with a norm of one, ``(n, dim)``.
        progress: Called once a block of rows.
    """
    count = min(NEIGHBOURS, len(units) - 1)
    if count < 1:
        return np.zeros(len(units))
    chosen = np.arange(len(units))
    if len(units) > REFERENCES:
        chosen = np.sort(np.random.default_rng(0).choice(len(units), REFERENCES, replace=False))
    references = units[chosen]
    place = np.full(len(units), -1)
    place[chosen] = np.arange(len(chosen))
    distances = np.empty(len(units))
    for start in range(0, len(units), _AT_ONCE):
        products = units[start : start + _AT_ONCE] @ references.T
        own = place[start : start + _AT_ONCE]
        products[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        near = np.partition(products, -count, axis=1)[:, -count:].astype(np.float64)
        distances[start : start + _AT_ONCE] = np.sqrt(np.maximum(2 - 2 * near, 0)).mean(axis=1)
        progress()
    logs = np.log(np.maximum(distances, 1e-3))
    middle, spread = middle_and_spread(logs)
    scores: NDArray[np.float64] = (logs - middle) / max(spread, 1e-9)
    return scores
