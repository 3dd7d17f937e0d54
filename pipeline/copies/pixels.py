"""Whether two images are one picture: shifted, zoomed, mirrored, brighter, or saved again.

Small grey copies are laid over each other. The middle of one, at several sizes and mirrored, is
moved over the other; what counts is the highest normalized correlation (Lewis 1995, "Fast
normalized cross-correlation"), which takes no notice of brightness and contrast. First that of the
images as they are, which is quick at half the size; then that of their details, without what is
smooth: horses on meadows are alike but for these.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.copies.neighbours import Pairs
from pipeline.system import machine

# Side of a small grey copy.
SIDE: Final = 32
# Correlation of details from which two images are one picture.
SAME: Final = 0.55
# Side of the neighbourhood whose mean is taken from a pixel; what is left are details.
_SMOOTH: Final = 5
# How much larger or smaller the middle of one may be in the other.
_ZOOMS: Final = (0.75, 0.87, 1.0, 1.15, 1.33)
# Share of the side that is laid over the other image; the rest is room to move.
_MIDDLE: Final = 0.625
# Correlation at half the side below which details are not looked at.
_PROMISING: Final = 0.75
# Contrast, in levels of 255, below which a middle is flat and correlates with everything.
_FLAT: Final = 0.5
_AT_ONCE: Final = 128

Greys = NDArray[np.uint8]


def correlations(greys: Greys, pairs: Pairs) -> NDArray[np.float32]:
    """Return how well the details of each pair lie over each other, float32 ``(k,)``, at most one.

    Zero stands for pairs that are not alike even without a look at details.

    Args:
        greys: Small grey copies of all images, uint8 ``(n, SIDE, SIDE)``.
        pairs: Pairs of image numbers.
    """
    coarse = _over_each_other(greys, pairs.first, pairs.second, _halves)
    found = np.zeros(len(pairs), np.float32)
    promising = np.flatnonzero(coarse >= _PROMISING)
    first, second = pairs.first[promising], pairs.second[promising]
    found[promising] = _over_each_other(greys, first, second, _details)
    return found


def _halves(greys: Greys) -> NDArray[np.float32]:
    """Return images at half the size, float32 ``(n, SIDE / 2, SIDE / 2)``."""
    blocks = greys.reshape(len(greys), SIDE // 2, 2, SIDE // 2, 2)
    halves: NDArray[np.float32] = blocks.mean(axis=(2, 4)).astype(np.float32)
    return halves


def _details(greys: Greys) -> NDArray[np.float32]:
    """Return images without what is smooth in them, float32 ``(n, SIDE, SIDE)``."""
    from scipy.ndimage import uniform_filter

    exact = greys.astype(np.float32)
    details: NDArray[np.float32] = exact - uniform_filter(exact, (0, _SMOOTH, _SMOOTH))
    return details


def _over_each_other(
    greys: Greys,
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    seen: Callable[[Greys], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return the higher of the two correlations: of one's middle, and of the other's.

    Args:
        greys: Small grey copies of all images, uint8 ``(n, SIDE, SIDE)``.
        first: Image numbers, ``(k,)``.
        second: Image numbers, ``(k,)``.
        seen: Returns what is compared of some copies. It is made for the pairs that are looked at
            together, as all images would take memory for all.
    """
    found = np.zeros(len(first), np.float32)

    def fill(part: slice) -> None:
        one, other = seen(greys[first[part]]), seen(greys[second[part]])
        found[part] = np.maximum(_best(one, other), _best(other, one))

    with ThreadPoolExecutor(machine.processors()) as pool:
        for _ in pool.map(fill, _slices(len(first))):
            pass
    return found


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, count, _AT_ONCE):
        yield slice(start, start + _AT_ONCE)


def _best(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the highest correlation of a middle of ``one`` with a window of ``other``."""
    side = one.shape[1]
    middle = int(side * _MIDDLE)
    windows = sliding_window_view(other, (middle, middle), axis=(1, 2))
    flat = _normalized(windows.reshape(len(other), -1, middle * middle))
    templates = np.stack([_middle(one, middle, zoom) for zoom in _ZOOMS], axis=1)
    both = np.concatenate([templates, templates[..., ::-1]], axis=1)
    laid = _normalized(both.reshape(len(one), -1, middle * middle))
    products = laid @ flat.transpose(0, 2, 1)
    best: NDArray[np.float32] = products.reshape(len(one), -1).max(axis=1)
    return best


def _middle(images: NDArray[np.float32], side: int, zoom: float) -> NDArray[np.float32]:
    """Return the middle of images, ``(n, side, side)``, as it looks when zoomed (bilinear)."""
    whole = images.shape[1]
    centre = (whole - 1) / 2
    at = np.clip(centre + (np.arange(side) - (side - 1) / 2) / zoom, 0, whole - 1)
    low = np.minimum(at.astype(int), whole - 2)
    share = (at - low).astype(np.float32)
    lines = images[:, low] * (1 - share)[:, None] + images[:, low + 1] * share[:, None]
    zoomed: NDArray[np.float32] = lines[:, :, low] * (1 - share) + lines[:, :, low + 1] * share
    return zoomed


def _normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors without their mean, with a norm of one; flat ones become zero."""
    centred = vectors - vectors.mean(axis=-1, keepdims=True)
    norms = np.sqrt(np.einsum("...i,...i->...", centred, centred))[..., None]
    is_flat = norms < _FLAT * np.sqrt(vectors.shape[-1])
    normalized: NDArray[np.float32] = np.where(is_flat, 0, centred / np.where(is_flat, 1, norms))
    return normalized
