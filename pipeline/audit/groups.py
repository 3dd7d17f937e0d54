"""Groups of copies, as an audit lists them: files of equal bytes, and near duplicates."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.findings import Group
from pipeline.audit.listing import Listing
from pipeline.copies.duplicates import Duplicates
from pipeline.copies.neighbours import similarities

# Images of a group up to which all of them are compared with each other.
_COMPARED: Final = 500


def equal_files(listing: Listing) -> list[Group]:
    """Return the files of equal bytes, a group for each image that has several."""
    return [
        listing.group(rows, similarity=1.0, lowest=1.0, is_chain=False)
        for rows in listing.rows_of
        if len(rows) > 1
    ]


def near_groups(listing: Listing, found: Duplicates) -> list[Group]:
    """Return the groups of files that are nearly the same, equal ones too, most similar first."""
    number_of = np.full(len(listing), -1, np.intp)
    for number, images in enumerate(found.groups):
        number_of[images] = number
    numbers = number_of[found.pairs.first]
    highest = np.full(len(found.groups), -1.0)
    np.maximum.at(highest, numbers, found.pairs.similarity)
    inside = np.bincount(numbers, minlength=len(found.groups))
    groups = [
        _near_group(listing, found, images, float(highest[number]), int(inside[number]))
        for number, images in enumerate(found.groups)
    ]
    alone = [
        listing.group(rows, similarity=1.0, lowest=1.0, is_chain=False)
        for image, rows in enumerate(listing.rows_of)
        if len(rows) > 1 and number_of[image] < 0
    ]
    return sorted(groups + alone, key=lambda group: (-group.similarity, group.paths))


def _near_group(
    listing: Listing, found: Duplicates, images: NDArray[np.intp], highest: float, pairs: int
) -> Group:
    """Return a group.

    Args:
        listing: What is audited.
        found: What was found.
        images: The images of the group.
        highest: Similarity of its most similar pair.
        pairs: How many of its pairs were found.
    """
    rows = np.sort(np.concatenate([listing.rows_of[image] for image in images.tolist()]))
    lowest = None
    if len(images) <= _COMPARED:
        first, second = np.triu_indices(len(images), 1)
        lowest = float(similarities(found.units, images[first], images[second]).min())
    # Every pair of a group that is no chain was found on its own.
    is_chain = pairs < len(images) * (len(images) - 1) // 2
    similarity = 1.0 if len(rows) > len(images) else highest
    return listing.group(rows, similarity=similarity, lowest=lowest, is_chain=is_chain)
