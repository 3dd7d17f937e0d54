"""Images that are nearly the same picture.

How near is near is told by the data: the distance of each image to its nearest other one, on a
logarithmic scale, has a middle and a spread; copies are far below. See ``docs/audit.md``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.copies import approximate, neighbours
from pipeline.copies.descriptors import with_edges
from pipeline.copies.distinct import DistinctImages
from pipeline.copies.neighbours import Pairs, nearest_similarities
from pipeline.copies.photos import Photos
from pipeline.copies.pixels import SAME, correlations
from pipeline.copies.projection import Units
from pipeline.copies.robust import middle_and_spread
from pipeline.copies.threshold import APPROXIMATE, EXACT, Threshold

# Robust standard deviations below the middle from which a distance is an outlier: Iglewicz and
# Hoaglin 1993, "How to Detect and Handle Outliers".
FAR_BELOW: Final = 3.5
# The same for pairs whose pixels are compared before anything is said of them.
BELOW: Final = 0.5
# Images whose nearest other one is looked for, to learn the middle and the spread.
QUERIES: Final = 2048
# Images from which nearly all copies have to do, where faiss is installed.
LARGE: Final = 200_000
# Distances below are the same: float32 tells no smaller ones apart.
_LEAST: Final = 1e-3
# Candidates of one image whose pixels are compared: the most similar ones.
CANDIDATES: Final = 20


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Which images are nearly the same.

    Attributes:
        threshold: How similar counts as the same, and why.
        pairs: Pairs of image numbers, with their similarity.
        groups: Image numbers of each group; of connected pairs, two or more.
        units: What images were compared by.
    """

    threshold: Threshold
    pairs: Pairs
    groups: Sequence[NDArray[np.intp]]
    units: Units


def find_duplicates(
    images: DistinctImages,
    photos: Photos,
    given: float | None,
    progress: Callable[[], None] = lambda: None,
    *,
    known: Threshold | None = None,
) -> Duplicates:
    """Find the images that are nearly the same.

    Args:
        images: The images.
        photos: Their files; where all were read, their pixels are compared too.
        given: The similarity that counts as the same, by features alone; None lets the data say.
        progress: Called as the search goes on; see ``neighbours.num_steps``.
        known: What an earlier search took, which is taken again where it compared by the same:
            other images beside them then change nothing about two.

    Raises:
        PipelineError: Nearly all pairs are similar by that measure.
    """
    has_pixels = given is None and not photos.missing and len(images) > 1
    units = with_edges(images.units, photos.greys, images.scratch) if has_pixels else images.units
    if given is not None:
        threshold = _given(given)
    elif known is not None and known.chosen and known.compared_by == compared_by(has_pixels):
        threshold = known
    else:
        threshold = choose(units, has_pixels=has_pixels)
    if is_exact(len(images)):
        pairs = neighbours.pairs_within(units, threshold.candidates, progress=progress)
        threshold = replace(threshold, search=EXACT, recall=None)
    else:
        pairs, recall = approximate.pairs_within(units, threshold.candidates, progress=progress)
        threshold = replace(threshold, search=APPROXIMATE, recall=recall)
    if has_pixels:
        pairs = _confirmed(pairs, threshold, photos)
    return Duplicates(threshold, pairs, _components(pairs, len(images)), units)


def is_exact(count: int) -> bool:
    """Tell whether so many images are compared exactly: if they are few, or faiss is not there."""
    return count <= LARGE or not approximate.is_installed()


def compared_by(has_pixels: bool) -> str:
    """Return what images are compared by, in words."""
    return "features and pixels" if has_pixels else "features"


def _given(similarity: float) -> Threshold:
    return Threshold(
        similarity=similarity,
        candidates=similarity,
        median=None,
        spread=None,
        chosen=False,
        compared_by="features",
        pixels=None,
        search=EXACT,
        recall=None,
    )


def choose(units: Units, *, has_pixels: bool = False) -> Threshold:
    """Choose the similarity from which images are copies, by the data alone.

    With d the distance of an image to its nearest other one, images are copies where
    ``log d < median(log d) - 3.5 * 1.4826 * MAD(log d)``; where pixels are compared too, pairs
    below ``median - 0.5 * 1.4826 * MAD`` are looked at. Medians take no notice of copies as long as
    fewer than half of the images have one.

    Args:
        units: Rows with a norm of one, ``(n, dim)``.
        has_pixels: Whether pixels can be compared.
    """
    if len(units) < 2:
        return Threshold(similarity=1.0, candidates=1.0, median=None, spread=None, chosen=True,
                         compared_by=compared_by(has_pixels), pixels=None, search=EXACT,
                         recall=None)  # fmt: skip
    rows = np.arange(len(units))
    if len(rows) > QUERIES:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), QUERIES, replace=False))
    nearest = nearest_similarities(units, rows)
    logs = np.log(np.maximum(np.sqrt(np.maximum(2 - 2 * nearest, 0)), _LEAST))
    middle, spread = middle_and_spread(logs)
    strict, loose = (_similarity(middle - below * spread) for below in (FAR_BELOW, BELOW))
    return Threshold(
        similarity=strict,
        candidates=loose if has_pixels else strict,
        median=_similarity(middle),
        spread=spread,
        chosen=True,
        compared_by=compared_by(has_pixels),
        pixels=SAME if has_pixels else None,
        search=EXACT,
        recall=None,
    )


def _similarity(log_distance: float) -> float:
    """Return the cosine of unit vectors at a distance, with as many digits as are shown."""
    return round(float(1 - np.exp(2 * log_distance) / 2), 4)


def _confirmed(pairs: Pairs, threshold: Threshold, photos: Photos) -> Pairs:
    """Return the pairs that are one picture by their pixels, or too similar to be two."""
    looked_at = _nearest_candidates(pairs)
    same = np.zeros(len(pairs), dtype=bool)
    same[looked_at] = correlations(photos.greys, pairs.where(looked_at)) >= SAME
    return pairs.where(same | (pairs.similarity >= threshold.similarity))


def _nearest_candidates(pairs: Pairs) -> NDArray[np.bool_]:
    """Tell which pairs are among the most similar ones of either of their images.

    It does not matter which of the two comes first: an audit and a leak-free split, which number
    images in ways of their own, look at the same pairs.
    """
    images = np.concatenate([pairs.first, pairs.second])
    order = np.lexsort((-np.tile(pairs.similarity, 2), images))
    starts = np.flatnonzero(np.diff(images[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    chosen = np.zeros(len(pairs), dtype=bool)
    chosen[order[rank < CANDIDATES] % max(1, len(pairs))] = True
    return chosen


def _components(pairs: Pairs, count: int) -> list[NDArray[np.intp]]:
    """Return the groups of images that pairs connect, two or more each, by their first image."""
    ones = np.ones(len(pairs), dtype=bool)
    graph = coo_array((ones, (pairs.first, pairs.second)), shape=(count, count))
    _, group_of = connected_components(graph, directed=False)
    involved = np.unique(np.concatenate([pairs.first, pairs.second]))
    groups: dict[int, list[int]] = {}
    for image in involved.tolist():
        groups.setdefault(int(group_of[image]), []).append(image)
    return [np.array(images, np.intp) for images in groups.values()]
