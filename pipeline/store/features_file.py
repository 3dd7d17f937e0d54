"""The view: ``features.h5``, one plain HDF5 file of virtual datasets over every shard.

For users and other programs; rebuilt by ``store`` whenever its shards change. HDF5 reads the rows
of a missing source as the fill value without an error, so that value is NaN, never zero.
"""

import resource
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.files.hdf5 import opened
from pipeline.files.hdf5_writer import writing
from pipeline.store.key_index import KeyIndex

_KEYS_A_CHUNK: Final = 16_384
# What a program has open beside shards, at the least.
_OTHER_FILES: Final = 16


def write_view(
    path: Path, store: Path, plain: KeyIndex, views: Mapping[str, KeyIndex], dim: int
) -> None:
    """Write ``/features`` float32 ``(n, dim)`` and ``/keys`` ``S64`` ``(n,)``.

    Augmented views come as groups ``/views/NAME`` with ``features`` and ``keys`` of their own.
    Rows are grouped by shard; sources are named relative to the store, which is
    where the view goes, so that it can be moved.
    """
    with writing(path) as file:
        _write_set(file, plain, dim, store)
        for name, index in views.items():
            _write_set(file.create_group(f"views/{name}"), index, dim, store)


def notes_of(shards: int) -> list[str]:
    """Return that a view of so many shards is more than this system lets a program open at once."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or shards + _OTHER_FILES <= limit:
        return []
    return [
        f"features.h5 reads from {shards:,} shards, and a program may open {limit:,} files: one "
        "that reads it whole gets not-a-number for the rows of others (ulimit -n raises the "
        "limit; pipeline.load, pipeline.batches and export-features need none)"
    ]


def sources(path: Path) -> list[str]:
    """Return the names of the shards that a view reads from."""
    names: set[str] = set()

    def visit(_: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            names.update(source.file_name for source in item.virtual_sources())

    with opened(path) as file:
        if "features" not in file:
            raise KeyError("it has no dataset 'features'")
        file.visititems(visit)
    return sorted(Path(name).stem for name in names)


def _write_set(group: h5py.Group, index: KeyIndex, dim: int, store: Path) -> None:
    order = np.lexsort((index.row_of, index.shard_of))
    layout = h5py.VirtualLayout(shape=(len(order), dim), dtype="<f4")
    for start, stop, shard, row in _runs(index, order):
        source = index.shards[shard]
        name = source.path.relative_to(store).as_posix()
        dataset = h5py.VirtualSource(name, "features", shape=(len(source), dim), dtype="<f4")
        layout[start:stop] = dataset[row : row + stop - start]
    group.create_virtual_dataset("features", layout, fillvalue=np.nan)
    # Whoever reads keys that changed on the disk gets an error: the filter is a part of HDF5. The
    # rest of the file is metadata, which HDF5 itself has given checksums since version 1.10.
    chunks = {"chunks": (min(len(order), _KEYS_A_CHUNK),), "fletcher32": True}
    group.create_dataset("keys", data=index.keys[order], **(chunks if len(order) else {}))


def _runs(index: KeyIndex, order: NDArray[np.intp]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, stop, shard, first row) for rows that lie side by side in one shard."""
    shard_of, row_of = index.shard_of[order], index.row_of[order]
    breaks = np.flatnonzero((np.diff(shard_of) != 0) | (np.diff(row_of) != 1)) + 1
    edges = [0, *breaks.tolist(), len(order)] if len(order) else [0]
    for start, stop in pairwise(edges):
        yield start, stop, int(shard_of[start]), int(row_of[start])
