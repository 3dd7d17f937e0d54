"""Faults of single files: too dark, too bright, blurred, tiny, of an odd shape.

What dark, bright and odd are is fixed; what tiny and blurred are depends on the other images. The
measures are those of CleanVision (Apache-2.0), but for sharpness.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from pipeline.audit.findings import Issue
from pipeline.audit.listing import Listing
from pipeline.copies.photos import Photo, Photos
from pipeline.copies.robust import middle_and_spread

# Levels of grey, of 255: 99 % of a dark image is below, 99 % of a bright one above.
DARK: Final = 64
BRIGHT: Final = 192
# Shorter over longer side.
ODD: Final = 0.35
# Shorter side over the median of the shorter sides.
TINY: Final = 0.25
# Robust standard deviations of the logarithm of sharpness below the median.
BLURRED: Final = 3.5


def find_issues(listing: Listing, photos: Photos) -> list[Issue]:
    """Return the files with a fault, by kind, the worst of each kind first."""
    if not photos.photos:
        return []
    sides = np.array([min(photo.width, photo.height) for photo in photos.photos])
    logs = np.log(np.array([photo.sharpness for photo in photos.photos]) + 1.0)
    middle, usual = middle_and_spread(logs)
    spread = max(usual, 1e-9)
    found = [
        (rank, Issue(path=listing.path(image), label=listing.label_of[image], issue=name,
                     value=float(value)))
        for image, photo, log in zip(
            photos.images.tolist(), photos.photos, logs.tolist(), strict=True
        )
        for name, value, rank in _faults(photo, float(np.median(sides)), (log - middle) / spread)
    ]  # fmt: skip
    return [issue for _, issue in sorted(found, key=lambda pair: (pair[1].issue, pair[0]))]


def _faults(photo: Photo, side: float, sharpness: float) -> Iterator[tuple[str, float, float]]:
    """Yield the name of each fault, its measure, and a number that is lower the worse it is."""
    shape = min(photo.width, photo.height) / max(photo.width, photo.height)
    small = min(photo.width, photo.height)
    if photo.brightest < DARK:
        yield "dark", photo.brightest, photo.brightest
    if photo.darkest > BRIGHT:
        yield "bright", photo.darkest, -photo.darkest
    if sharpness < -BLURRED:
        yield "blurred", sharpness, sharpness
    if small < TINY * side:
        yield "tiny", small, small
    if shape < ODD:
        yield "odd shape", shape, shape
