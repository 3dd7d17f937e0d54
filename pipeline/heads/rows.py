"""Features as heads read them: an array in memory, or rows that lie on disk.

Heads that can be fitted in a stream go through ``blocks`` and ``shuffled``, which treat both alike.
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Block = tuple[NDArray[np.intp], NDArray[np.floating]]

# 64 MB of 2,048 float32 features.
BLOCK_ROWS: Final = 8192
# Rows that are read and shuffled together: 128 MB of 2,048 float32 features.
WINDOW_ROWS: Final = 16384
# Neighbours on disk that are read together: 1 MB. Shards hold images in order of their paths, so
# often class by class; a window of many short runs from everywhere is mixed well.
RUN_ROWS: Final = 128


@runtime_checkable
class FeatureRows(Protocol):
    """Features on disk, read when asked for; finite float32.

    Attributes:
        shape: ``(n, dim)``.
    """

    shape: tuple[int, int]

    def read(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return some rows, float32 ``(k, dim)``, in the order asked for."""
        ...

    def disk_order(self) -> NDArray[np.intp]:
        """Return all row numbers, ``(n,)``, in the order in which they lie on disk."""
        ...


def is_stream(X: Any) -> bool:
    """Tell whether features lie on disk."""
    return isinstance(X, FeatureRows)


def blocks(X: Any, size: int = BLOCK_ROWS) -> Iterator[Block]:
    """Yield (row numbers, features) until every row has come once; an array comes as it lies."""
    order = X.disk_order() if is_stream(X) else np.arange(len(X))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, X.read(rows) if is_stream(X) else X[start : start + size]


def shuffled(
    X: Any, generator: np.random.Generator, *, window: int = WINDOW_ROWS
) -> Iterator[Block]:
    """Yield (row numbers, features) in random order until every row has come once.

    An array is permuted as a whole. On disk, short runs of neighbours are permuted, and rows
    within each window of such runs.
    """
    if not is_stream(X):
        order = generator.permutation(len(X))
        for start in range(0, len(order), window):
            rows = order[start : start + window]
            yield rows, X[rows]
        return
    order = X.disk_order()
    runs = generator.permutation(-(-len(order) // RUN_ROWS))
    for start in range(0, len(runs), window // RUN_ROWS):
        chosen = np.sort(runs[start : start + window // RUN_ROWS])
        rows = np.concatenate([order[run * RUN_ROWS : (run + 1) * RUN_ROWS] for run in chosen])
        places = generator.permutation(len(rows))
        yield rows[places], X.read(rows)[places]
