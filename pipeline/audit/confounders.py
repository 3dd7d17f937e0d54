"""Confounders: what tells the class without a look at the picture.

A data set whose classes differ in file size, dimensions, mean colour or camera teaches a head to
look at these. A small decision tree tries each of them alone, cross-validated, against always
naming the most frequent class.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.findings import Confounder
from pipeline.audit.listing import Listing
from pipeline.copies.photos import Photo, Photos
from pipeline.runs import metrics

FOLDS: Final = 5
# Images that it is tried on.
MOST: Final = 20_000
# Share of the errors of the most frequent class that a confounder must save: with many images the
# least trace is more than chance.
SAVED: Final = 0.25
_LEAVES: Final = 32
# Fewest images of a class: one in every fold.
_FEWEST: Final = FOLDS


def find_confounders(listing: Listing, photos: Photos) -> tuple[list[Confounder], str]:
    """Try what tells the class.

    Returns:
        What was tried, and why nothing was; empty if something was.
    """
    kept, y = _rows(listing, photos)
    if len(np.unique(y)) < 2:
        return [], f"confounders need two classes of {_FEWEST} images or more that can be read"
    chosen = [photos.photos[place] for place in kept]
    return [_tried(name, values, y) for name, values in _properties(chosen)], ""


def _rows(listing: Listing, photos: Photos) -> tuple[list[int], NDArray[np.int64]]:
    """Return places in ``photos`` of labelled images, and their class numbers from 0."""
    number = dict(zip(listing.labelled.tolist(), listing.y.tolist(), strict=True))
    places = [place for place, image in enumerate(photos.images.tolist()) if image in number]
    if len(places) > MOST:
        drawn = np.random.default_rng(0).choice(len(places), MOST, replace=False)
        places = [places[place] for place in np.sort(drawn).tolist()]
    labels = np.array([number[photos.images[place]] for place in places], np.int64)
    if not len(labels):
        return [], labels
    counts = np.bincount(labels)
    enough = counts[labels] >= _FEWEST
    _, y = np.unique(labels[enough], return_inverse=True)
    return [place for place, is_kept in zip(places, enough, strict=True) if is_kept], y


def _properties(photos: list[Photo]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the name of each property that differs among images, and its numbers, ``(n, k)``."""
    cameras = {name: place for place, name in enumerate(sorted({p.camera for p in photos}))}
    properties = {
        "file size": [[photo.file_bytes] for photo in photos],
        "dimensions": [[photo.width, photo.height] for photo in photos],
        "mean colour": [list(photo.colour) for photo in photos],
        "camera": [_one_hot(cameras[photo.camera], len(cameras)) for photo in photos],
    }
    for name, rows in properties.items():
        values = np.array(rows, np.float64)
        if (values != values[0]).any():
            yield name, values


def _one_hot(place: int, count: int) -> list[int]:
    # Of many cameras the first ones by name; a tree cannot use more anyway.
    return [int(place == other) for other in range(min(count, 64))]


def _tried(name: str, values: NDArray[np.float64], y: NDArray[np.int64]) -> Confounder:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_leaf_nodes=_LEAVES, min_samples_leaf=2, random_state=0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    correct = int((cross_val_predict(tree, values, y, cv=folds) == y).sum())
    low, high = metrics.wilson(correct, len(y))
    majority = float(np.bincount(y).max() / len(y))
    return Confounder(
        name=name,
        n=len(y),
        accuracy=correct / len(y),
        accuracy_ci95=[low, high],
        majority=majority,
        tells=low > majority + SAVED * (1 - majority),
    )
