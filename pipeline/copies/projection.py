"""Rows in principal components, with what these leave out: no two are farther apart than before.

See ``neighbours`` for what follows from that.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Rows that principal components are computed of; any orthonormal basis is right, better ones are
# quicker.
_SAMPLE: Final = 4096
# Rows that are projected at once.
_AT_ONCE: Final = 8192

Units = NDArray[np.float32]


def principal(units: Units, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean of a sample of rows, ``(dim,)``, and principal components, ``(dim, k)``."""
    step = max(1, len(units) // _SAMPLE)
    sample = units[::step].astype(np.float64)
    mean = sample.mean(axis=0)
    sample -= mean
    _, vectors = np.linalg.eigh(sample.T @ sample)
    return mean.astype(np.float32), np.ascontiguousarray(vectors[:, ::-1][:, :count], np.float32)


def projected(
    units: Units, mean: NDArray[np.float32], basis: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return rows in k components, float32 ``(n, k + 2)``.

    The components are followed by the length of what they leave out, and by half the squared
    length of both. So the product of two rows without their halves, less these, is minus half
    their squared distance in the components and in that length.
    """
    count = basis.shape[1]
    found = np.empty((len(units), count + 2), np.float32)
    basis = np.ascontiguousarray(basis)
    for start in range(0, len(units), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        centred = units[part] - mean
        found[part, :count] = centred @ basis
        whole, kept = _squared(centred), _squared(found[part, :count])
        found[part, count] = np.sqrt(np.maximum(whole - kept, 0.0))
        found[part, count + 1] = _squared(found[part, : count + 1]) / 2
    return found


def side_of(made: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return one side of a product that takes halves off by itself, float32 ``(n, k + 3)``.

    Args:
        made: What ``projected`` returns.
    """
    return np.hstack([made[:, :-1], -made[:, -1:], np.ones_like(made[:, -1:])])


def other_side(side: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return some rows of ``side_of`` as the other side of that product."""
    other = side.copy()
    other[:, -2:] = side[:, :-3:-1]
    return other


def _squared(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared length of each row."""
    found: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return found
