"""Features as heads read them: an array in memory, or rows that lie on disk.

Heads that can be fitted in a stream go through ``blocks``, ``shuffled`` or ``batches``, which treat
both alike.
"""

from collections.abc import Iterator
from typing import Final, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.files.arrays import AnyArray

Block = tuple[NDArray[np.intp], NDArray[np.floating]]

# 64 MB of 2,048 float32 features.
BLOCK_ROWS: Final = 8192
# Rows that are read and shuffled together: 128 MB of 2,048 float32 features.
WINDOW_ROWS: Final = 16384
# Neighbours on disk that are read together: 128 KB. Shards hold images in order of their paths, so
# often class by class: a window of 1,024 short runs from everywhere has a fair share of 1,000
# classes, one of 128 long runs has 128 of them.
RUN_ROWS: Final = 16


@runtime_checkable
class FeatureRows(Protocol):
    """Features on disk, read when asked for; finite float32.

    Attributes:
        shape: ``(n, dim)``.
    """

    shape: tuple[int, int]

    def __getitem__(self, rows: NDArray[np.bool_], /) -> "FeatureRows":
        """Return those of the rows that are chosen, ``(n,)``, still on disk."""
        ...

    def read(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return some rows, float32 ``(k, dim)``, in the order asked for."""
        ...

    def disk_order(self) -> NDArray[np.intp]:
        """Return all row numbers, ``(n,)``, in the order in which they lie on disk."""
        ...


# What a head is fitted on, in memory or on disk, once it is checked.
Features = NDArray[np.floating] | FeatureRows
# Features and labels that a head may choose on.
Validation = tuple[Features, AnyArray]


def is_stream(X: object) -> TypeGuard[FeatureRows]:
    """Tell whether features lie on disk."""
    return isinstance(X, FeatureRows)


def taken(X: Features, rows: NDArray[np.intp]) -> NDArray[np.floating]:
    """Return some rows in the order asked for, read where they lie on disk."""
    return X.read(rows) if isinstance(X, FeatureRows) else X[rows]


def row_blocks(X: Features, size: int = BLOCK_ROWS) -> Iterator[NDArray[np.intp]]:
    """Yield row numbers until every row has come once, in the order in which they lie."""
    order = X.disk_order() if isinstance(X, FeatureRows) else np.arange(len(X))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def blocks(X: Features, size: int = BLOCK_ROWS) -> Iterator[Block]:
    """Yield (row numbers, features) until every row has come once; an array is not copied."""
    for rows in row_blocks(X, size):
        yield rows, X.read(rows) if isinstance(X, FeatureRows) else X[rows[0] : rows[-1] + 1]


def shuffled(
    X: Features, generator: np.random.Generator, *, window: int = WINDOW_ROWS, run: int = RUN_ROWS
) -> Iterator[Block]:
    """Yield (row numbers, features) in random order until every row has come once.

    Args:
        X: Features, ``(n, dim)``.
        generator: Draws the order.
        window: Rows that come together. An array is permuted as a whole. On disk, a window is
            made of runs of neighbours from everywhere and permuted within.
        run: Rows of a run.
    """
    if isinstance(X, FeatureRows):
        order = X.disk_order()
        parts = (order[window_places] for window_places in _windows(len(order), generator,
                                                                    window, run))  # fmt: skip
    else:
        order = generator.permutation(len(X))
        parts = (order[start : start + window] for start in range(0, len(order), window))
    for rows in parts:
        yield rows, taken(X, rows)


def batches(X: Features, generator: np.random.Generator, size: int) -> Iterator[Block]:
    """Yield ``shuffled`` rows, at most ``size`` together; on disk, each window has a short rest."""
    window = WINDOW_ROWS if is_stream(X) else size
    for rows, features in shuffled(X, generator, window=window):
        for start in range(0, len(rows), size):
            yield rows[start : start + size], features[start : start + size]


def _windows(
    num_rows: int, generator: np.random.Generator, window: int, run: int
) -> Iterator[NDArray[np.intp]]:
    """Yield the places on disk of each window's rows, permuted.

    The disk is divided into equal stretches of as many runs as there are windows; every window
    takes one run of each. Where rows lie class by class, a window so has nearly its share of
    every class, which runs drawn anywhere would not give it.
    """
    num_runs = -(-num_rows // run)
    num_windows = -(-num_runs // max(1, window // run))
    num_stretches = -(-num_runs // num_windows)
    runs = np.arange(num_stretches * num_windows).reshape(num_stretches, num_windows)
    for chosen in generator.permuted(runs, axis=1).T:
        places = (chosen[:, None] * run + np.arange(run)).ravel()
        yield generator.permutation(places[places < num_rows])
