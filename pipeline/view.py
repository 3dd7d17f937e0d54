"""The view: ``features.h5``, one plain HDF5 file of virtual datasets over every shard.

For users and other programs; rebuilt by ``store`` whenever its shards change. HDF5 reads the rows
of a missing source as the fill value without an error, so that value is NaN, never zero.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_atomically
from pipeline.key_index import KeyIndex


def write_view(path: Path, index: KeyIndex, dim: int) -> None:
    """Write ``/features`` float32 ``(n, dim)`` and ``/keys`` ``S64`` ``(n,)``, atomically.

    Rows are grouped by shard; sources are named relative to the view, so a store can be moved.
    """

    def fill(temporary: Path) -> None:
        order = np.lexsort((index.row_of, index.shard_of))
        layout = h5py.VirtualLayout(shape=(len(order), dim), dtype="<f4")
        for start, stop, shard, row in _runs(index, order):
            source = index.shards[shard]
            name = f"{source.path.parent.name}/{source.path.name}"
            dataset = h5py.VirtualSource(name, "features", shape=(len(source), dim), dtype="<f4")
            layout[start:stop] = dataset[row : row + stop - start]
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
            file.create_virtual_dataset("features", layout, fillvalue=np.nan)
            file.create_dataset("keys", data=index.keys[order])

    write_atomically(path, fill)


def sources(path: Path) -> list[str]:
    """Return the names of the shards that a view reads from."""
    with h5py.File(path, "r") as file:
        names = {source.file_name for source in file["features"].virtual_sources()}
    return sorted(Path(name).stem for name in names)


def _runs(index: KeyIndex, order: NDArray[np.intp]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, stop, shard, first row) for rows that lie side by side in one shard."""
    shard_of, row_of = index.shard_of[order], index.row_of[order]
    breaks = np.flatnonzero((np.diff(shard_of) != 0) | (np.diff(row_of) != 1)) + 1
    edges = [0, *breaks.tolist(), len(order)] if len(order) else [0]
    for start, stop in pairwise(edges):
        yield start, stop, int(shard_of[start]), int(row_of[start])
