"""What images are compared by: features, and beside them the edges of small grey copies.

Features are made to be blind to what does not matter for a class; two photos of white cars are
nearer in them than a photo and its smaller, cut copy. Where edges run tells those apart.
"""

from pathlib import Path
from typing import Final

import numpy as np

from pipeline.copies import scratch
from pipeline.copies.distinct import bytes_beside
from pipeline.copies.pixels import Greys
from pipeline.copies.projection import Units

# Directions and cells of the histograms of oriented gradients (Dalal and Triggs 2005): with a sign,
# since a negative is no copy.
_DIRECTIONS: Final = 8
_CELLS: Final = 8
# Weight of the edges beside that of the features.
EDGES: Final = 0.5
_AT_ONCE: Final = 2048


def edges(greys: Greys) -> Units:
    """Return histograms of oriented gradients with a norm of one, float32 ``(n, 512)``.

    Args:
        greys: Small grey copies, uint8 ``(n, side, side)``.
    """
    n, side = greys.shape[:2]
    found = np.empty((n, _DIRECTIONS * _CELLS**2), np.float32)
    for start in range(0, n, _AT_ONCE):
        part = greys[start : start + _AT_ONCE].astype(np.float32)
        across = np.diff(part, axis=2)[:, :-1]
        down = np.diff(part, axis=1)[:, :, :-1]
        size = np.hypot(across, down)
        direction = (np.arctan2(down, across) + np.pi) / (2 * np.pi) * _DIRECTIONS
        number = direction.astype(np.intp) % _DIRECTIONS
        histogram = np.zeros((len(part), _DIRECTIONS, side, side), np.float32)
        for place in range(_DIRECTIONS):
            histogram[:, place, :-1, :-1] = np.where(number == place, size, 0)
        step = side // _CELLS
        cells = histogram.reshape(len(part), _DIRECTIONS, _CELLS, step, _CELLS, step)
        # The root lets strong edges speak without being all that is heard.
        flat = np.sqrt(cells.mean(axis=(3, 5))).reshape(len(part), -1)
        flat -= flat.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(flat, axis=1, keepdims=True)
        found[start : start + _AT_ONCE] = flat / np.where(norms > 0, norms, 1)
    return found


def with_edges(units: Units, greys: Greys, folder: Path | None = None) -> Units:
    """Return features and edges side by side, with a norm of one, float32 ``(n, dim + 512)``.

    Args:
        units: Features with a norm of one, float32 ``(n, dim)``.
        greys: Small grey copies, uint8 ``(n, side, side)``.
        folder: Where they may lie if they do not fit into memory.
    """
    whole, (count, dim) = 1 + EDGES, units.shape
    width = dim + _DIRECTIONS * _CELLS**2
    joined = scratch.table(count, width, folder, beside=bytes_beside(count, width))
    for start in range(0, count, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        joined[part, :dim] = units[part] * np.float32(np.sqrt(1 / whole))
        joined[part, dim:] = edges(greys[part]) * np.float32(np.sqrt(EDGES / whole))
    return joined
