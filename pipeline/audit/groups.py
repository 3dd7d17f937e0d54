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
    highest: dict[int, float] = {}
    group_of = {image: number for number, images in enumerate(found.groups) for image in
                images.tolist()}  # fmt: skip
    for image, similarity in zip(
        found.pairs.first.tolist(), found.pairs.similarity.tolist(), strict=True
    ):
        number = group_of[image]
        highest[number] = max(highest.get(number, -1.0), similarity)
    groups = [
        _near_group(listing, found, images, highest[number])
        for number, images in enumerate(found.groups)
    ]
    alone = [
        listing.group(rows, similarity=1.0, lowest=1.0, is_chain=False)
        for image, rows in enumerate(listing.rows_of)
        if len(rows) > 1 and image not in group_of
    ]
    return sorted(groups + alone, key=lambda group: (-group.similarity, group.paths))


def _near_group(
    listing: Listing, found: Duplicates, images: NDArray[np.intp], highest: float
) -> Group:
    rows = np.sort(np.concatenate([listing.rows_of[image] for image in images.tolist()]))
    lowest = None
    if len(images) <= _COMPARED:
        first, second = np.triu_indices(len(images), 1)
        lowest = float(similarities(found.units, images[first], images[second]).min())
    # Every pair of a group that is no chain was found on its own.
    inside = np.isin(found.pairs.first, images).sum() if len(images) > 2 else 1
    is_chain = bool(inside < len(images) * (len(images) - 1) // 2)
    similarity = 1.0 if len(rows) > len(images) else highest
    return listing.group(rows, similarity=similarity, lowest=lowest, is_chain=is_chain)
