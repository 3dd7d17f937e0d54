"""The search for near duplicates as a person sees it: announced where it takes long, with a bar."""

from typing import Final

import numpy as np

from pipeline.copies import approximate
from pipeline.copies.distinct import DistinctImages
from pipeline.copies.duplicates import LARGE, Duplicates, find_duplicates, is_exact
from pipeline.copies.neighbours import num_steps
from pipeline.copies.photos import Photos
from pipeline.copies.pixels import SIDE
from pipeline.copies.threshold import Threshold
from pipeline.system.progress import Reporter

# Images from which the search is announced with the time that it takes.
_LARGE: Final = 100_000
# Pairs per second that two processors compare, at the least.
_RATE: Final = 1e8


def search(
    images: DistinctImages,
    photos: Photos,
    reporter: Reporter,
    *,
    given: float | None = None,
    known: Threshold | None = None,
) -> Duplicates:
    """Find the images that are nearly the same; see ``find_duplicates``."""
    count = len(images)
    if not is_exact(count):
        reporter.say(f"Comparing {count:,} images with those of the nearest cells, by faiss")
    elif count >= _LARGE:
        seconds = count * count / 2 / _RATE
        faster = f"; faiss finds nearly all sooner: {approximate.PIP_LINE}" if count > LARGE else ""
        reporter.say(
            f"Comparing {count:,} images with each other, exactly: about {seconds / 60:.0f} "
            f"minutes on two processors{faster}"
        )
    with reporter.bar(num_steps(count), "block") as bar:
        return find_duplicates(images, photos, given, bar.advance, known=known)


def without_photos(images: DistinctImages) -> Photos:
    """Return that no file of the images was read."""
    nothing = np.zeros((0, SIDE, SIDE), np.uint8)
    return Photos(np.zeros(0, np.intp), (), nothing, missing=len(images))
