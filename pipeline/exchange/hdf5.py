"""Features as HDF5: ``/features`` ``(n, dim)`` with ``/paths``, ``/keys``, ``/labels`` and others.

What is read may be chunked and compressed, and be called by other names; it has to lie in the file
itself.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import h5py
import numpy as np

from pipeline.errors import ManifestError, mention
from pipeline.exchange.feature_table import (
    BLOCK_ROWS,
    COLUMNS,
    KEY,
    FeatureTable,
    refusing,
    require_table,
    texts,
)
from pipeline.files.arrays import AnyArray
from pipeline.files.hdf5 import UnfitDatasetError, opened, plain_member, set_text, text_of
from pipeline.files.hdf5_writer import writing
from pipeline.images.manifest import KEY_DTYPE

FEATURES: Final = "features"
_MADE_WITH: Final = "made_with"


def read(path: Path, column: str | None) -> FeatureTable:
    """Describe the features of a file; they are read as they are asked for.

    Args:
        path: The file.
        column: Name of the dataset; None for ``features``, or the only table of numbers.

    Raises:
        ManifestError: There is no such dataset, or it is no table of numbers.
    """
    with refusing(path), opened(path) as file:
        name = _chosen(file, path, column)
        features = _dataset(file, path, name)
        shape = require_table(path, features.shape, features.dtype)
        columns = dict(_columns(file, path))
        dtype, made_with = features.dtype.name, text_of(file, _MADE_WITH)

    def blocks() -> Iterator[AnyArray]:
        with opened(path) as file:
            features = _dataset(file, path, name)
            for start in range(0, shape[0], BLOCK_ROWS):
                yield features[start : start + BLOCK_ROWS]

    return FeatureTable(
        source=path, shape=shape, dtype=dtype, columns=columns, blocks=blocks, made_with=made_with
    )


def write(path: Path, table: FeatureTable) -> None:
    """Write features and texts, a block of features at a time.

    Raises:
        OSError: It cannot be written.
    """
    with writing(path) as file:
        if table.made_with:
            set_text(file, _MADE_WITH, table.made_with)
        for name, cells in table.columns.items():
            encoded = [cell.encode("utf-8", errors="surrogateescape") for cell in cells]
            if name == KEY:
                file.create_dataset("keys", data=np.array(encoded, KEY_DTYPE))
            else:
                file.create_dataset(f"{name}s", data=encoded, dtype=h5py.string_dtype())
        features = file.create_dataset(FEATURES, table.shape, dtype="<f4")
        start = 0
        for block in table.rows():
            features[start : start + len(block)] = block
            start += len(block)


def _chosen(file: h5py.File, path: Path, column: str | None) -> str:
    """Return the name of the dataset that holds the features.

    Raises:
        ManifestError: Nobody can tell.
    """
    if column is not None or FEATURES in file:
        name = column or FEATURES
        if name not in file:
            raise ManifestError(
                f"{path}: expected a dataset {name!r}. Received: {mention(list(file)) or 'none'}.",
                hint="Name the one that holds the features, with --column.",
            )
        return name
    tables = [
        name
        for name, item in file.items()
        if isinstance(item, h5py.Dataset) and item.ndim == 2 and item.dtype.kind in "fiu"
    ]
    if len(tables) != 1:
        raise ManifestError(
            f"{path}: expected a dataset {FEATURES!r}, or one table of numbers. "
            f"Received: {mention(list(file)) or 'an empty file'}.",
            hint="Name the one that holds the features, with --column.",
        )
    return str(tables[0])


def _dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """Return a dataset whose values lie in this file.

    Raises:
        ManifestError: They lie in others, or it is none.
    """
    try:
        item = plain_member(file, name)
    except UnfitDatasetError as error:
        raise ManifestError(
            f"{path}: {error}.",
            hint="If it is features.h5 of a store, which reads from its shards, write a plain file "
            "first: pipeline export-features STORE FILE.h5.",
        ) from error
    if not isinstance(item, h5py.Dataset):
        raise ManifestError(f"{path}: expected a dataset {name!r}. Received: a group.")
    return item


def _columns(file: h5py.File, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield what the file says of its rows, called in the plural or the singular."""
    for column in COLUMNS:
        names = [name for name in (f"{column}s", column) if name in file]
        if len(names) > 1:
            raise ManifestError(
                f"{path}: expected one dataset of {column}s. Received: {mention(names)}.",
                hint="Remove or rename one of them.",
            )
        for name in names:
            yield column, _texts(_dataset(file, path, name), path, name)


def _texts(dataset: h5py.Dataset, path: Path, name: str) -> list[str]:
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if dataset.ndim != 1 or not (is_text or dataset.dtype.kind in "iu"):
        raise ManifestError(
            f"{path}: expected texts or whole numbers, one a row, in {name!r}. "
            f"Received: {dataset.dtype} of shape {dataset.shape}."
        )
    return texts(dataset[:].tolist())
