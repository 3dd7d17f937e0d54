"""Shards: immutable HDF5 files of features, named by the digest of their own bytes.

A shard is complete if it is present: it is written under a temporary name, flushed, hashed and
renamed. Each row has a sum of its own, which every read compares: a byte that changes after the
file was hashed is found as well. ``store`` keeps the set of shards; nothing here knows a manifest
or a network.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CorruptShardError, StoreError
from pipeline.files.arrays import Sums, row_sums
from pipeline.files.atomic import temporary_sibling
from pipeline.files.hdf5 import HDF5_ERRORS, UnfitDatasetError, plain_dataset, set_text, text_of
from pipeline.files.hdf5_writer import writing
from pipeline.files.regular import UnfitFileError, sha256_file
from pipeline.images.manifest import KEY_DTYPE
from pipeline.store.storage import LOCAL, SHARD_SUFFIX, Storage

Features = NDArray[np.float32]
Keys = NDArray[np.bytes_]

# Rows that are read, checked and put in place together while they are in the cache: 2 MB.
PIECE_ROWS: Final = 256
# Rows between two wanted ones that are read along rather than read around: 512 KB.
GAP_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Shard:
    """One feature file.

    Attributes:
        path: Where it is; its stem is the SHA-256 of its bytes.
        keys: Content keys of its rows, dtype ``S64``, shape ``(n,)``.
        sums: Of its rows, uint32 ``(n,)``; None in shards of older releases. A row with a value
            that is not finite has a wrong one.
        storage: Where its store keeps its files.
    """

    path: Path
    keys: Keys
    sums: Sums | None = None
    storage: Storage = LOCAL

    @property
    def name(self) -> str:
        """The SHA-256 that the file's bytes must have."""
        return self.path.stem

    def __len__(self) -> int:
        return len(self.keys)


def write(
    folder: Path,
    keys: Keys,
    blocks: Iterable[Features],
    *,
    dim: int,
    identity: str,
    storage: Storage = LOCAL,
) -> Shard:
    """Write rows as one new shard.

    Args:
        folder: Where shards live.
        keys: ``S64``, shape ``(n,)``.
        blocks: float32 ``(k, dim)`` each, n rows in all; taken one at a time.
        dim: Length of a feature row.
        identity: Digest of the store's identity; a shard of another store is refused by it.
        storage: Where its store keeps its files; from there the shard is visible at the end.

    Raises:
        OSError: The disk is full or the folder is read-only; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_sibling(folder / f"shard{SHARD_SUFFIX}") as temporary:
        with writing(temporary) as file:
            set_text(file, "identity", identity)
            keys = keys.astype(KEY_DTYPE, copy=False)
            file.create_dataset("keys", data=keys)
            dataset = file.create_dataset("features", (len(keys), dim), dtype="<f4")
            sums = key_sums(keys)
            start = 0
            for block in blocks:
                rows = slice(start, start + len(block))
                dataset[rows] = block
                sums[rows] += row_sums(np.ascontiguousarray(block, dtype="<f4"))
                # So that reading need not look for these as well.
                sums[rows][~np.isfinite(block).all(axis=1)] ^= 1
                start += len(block)
            _require_whole(start, len(keys))
            file.create_dataset("sums", data=sums)
        path = folder / (sha256_file(temporary) + SHARD_SUFFIX)
        storage.put(temporary, path)
    return Shard(path, keys, sums - key_sums(keys), storage)


def open_shard(
    path: Path,
    *,
    identity: str,
    dim: int,
    is_checked: Callable[[Path], bool],
    storage: Storage = LOCAL,
) -> Shard:
    """Read a shard's keys, after checking the digest of a shard that is not known to be good.

    Raises:
        CorruptShardError: The digest, the shape or the store it belongs to is wrong.
    """
    try:
        if not is_checked(path) and storage.digest(path) != path.stem:
            raise storage.corrupt(path, "its bytes are not those that were written")
        with storage.opened(path) as file:
            belongs = text_of(file, "identity")
            shape = plain_dataset(file, "features").shape
            keys = plain_dataset(file, "keys")[:]
            sums = plain_dataset(file, "sums")[:] if "sums" in file else None
    except HDF5_ERRORS as error:
        raise _unreadable(path, error, storage) from error
    if belongs != identity:
        raise storage.corrupt(path, "it belongs to a store of another identity")
    if keys.dtype != KEY_DTYPE or keys.ndim != 1 or shape != (len(keys), dim):
        received = f"expected features of shape {(len(keys), dim)}, received {shape}"
        raise storage.corrupt(path, received)
    if sums is not None and (sums.dtype != np.uint32 or sums.shape != keys.shape):
        raise storage.corrupt(
            path, f"expected sums of {len(keys)} rows, received {sums.dtype} {sums.shape}"
        )
    return Shard(path, keys, None if sums is None else sums - key_sums(keys), storage)


def read_into(
    shard: Shard, rows: NDArray[np.intp], out: Features, places: NDArray[np.intp]
) -> None:
    """Copy some rows of a shard into some rows of ``out``.

    Args:
        shard: Where from.
        rows: Row numbers within the shard, shape ``(k,)``.
        out: float32, shape ``(n, dim)``.
        places: Row numbers within ``out``, shape ``(k,)``.

    Raises:
        CorruptShardError: The shard is gone, damaged, or holds values that are not finite.
    """
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    rows, places = rows[order], places[order]
    buffer = np.empty((min(PIECE_ROWS, len(shard)), out.shape[1]), dtype=np.float32)
    try:
        with shard.storage.opened(shard.path) as file:
            dataset = plain_dataset(file, "features")
            if dataset.shape != (len(shard), out.shape[1]):
                received = f"its features have become of shape {dataset.shape}"
                raise shard.storage.corrupt(shard.path, received)
            for start, stop in _pieces(rows):
                block = _read_piece(dataset, rows[start:stop], out, places[start:stop], buffer)
                _require_sound(shard, rows[start:stop], block)
    except HDF5_ERRORS as error:
        raise _unreadable(shard.path, error, shard.storage) from error


def key_sums(keys: Keys) -> Sums:
    """Return the sum of each key, as ``row_sums`` does; it tells rows of one content apart."""
    return row_sums(np.ascontiguousarray(keys))


def _require_sound(shard: Shard, rows: NDArray[np.intp], block: Features) -> None:
    """Refuse rows that are not as they were written, or hold values that are not finite."""
    if shard.sums is None:
        is_sound = _all_finite(block)
    else:
        expected = shard.sums[rows[0] : rows[-1] + 1] if _is_run(rows) else shard.sums[rows]
        is_sound = bool((row_sums(block) == expected).all())
    if not is_sound:
        is_finite = np.isfinite(block).all()
        changed = "its rows are not those that were written"
        problem = changed if is_finite else "it holds values that are not finite"
        raise shard.storage.corrupt(shard.path, problem)


def _require_whole(rows: int, expected: int) -> None:
    """Refuse to name a file complete some of whose rows are HDF5's zeros."""
    if rows != expected:
        raise StoreError(f"Expected {expected:,} rows for a shard. Received: {rows:,}.")


def _unreadable(path: Path, error: Exception, storage: Storage) -> StoreError:
    named = str(storage.named(path))
    if not storage.exists(path):
        return CorruptShardError(
            f"The shard {named!r} is gone.",
            shard=path.stem,
            hint="Run extract again; only its images are encoded again.",
        )
    if isinstance(error, UnfitDatasetError | UnfitFileError):
        return storage.corrupt(path, str(error))
    if not isinstance(error, OSError):
        return storage.corrupt(path, "it is not a feature shard")
    # Its digest was right when it was last looked at, so this may well be the system's doing
    # (permissions, the open-file limit): no reason to tell anyone to delete it.
    return StoreError(
        f"The shard {named!r} cannot be read: {error}.",
        hint="Check permissions and the open-file limit, then run pipeline verify on the store.",
    )


def _pieces(rows: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of ascending rows within one piece of the file, with no wide gap."""
    is_edge = (np.diff(rows // PIECE_ROWS) != 0) | (np.diff(rows) > GAP_ROWS)
    edges = [0, *(np.flatnonzero(is_edge) + 1).tolist(), len(rows)]
    return ((start, stop) for start, stop in pairwise(edges) if stop > start)


def _read_piece(
    dataset: h5py.Dataset,
    rows: NDArray[np.intp],
    out: Features,
    places: NDArray[np.intp],
    buffer: Features,
) -> Features:
    """Read ascending rows into their places in ``out``; return them as they are in the cache."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    source = np.s_[first:last]
    if _is_run(rows) and _is_run(places):
        block = out[places[0] : places[0] + len(places)]
        dataset.read_direct(block, source)
        return block
    dataset.read_direct(buffer, source, np.s_[: last - first])
    block = buffer[rows - first]
    out[places] = block
    return block


def _all_finite(block: Features) -> bool:
    """Tell whether all values are finite, in a third of the time of looking at each.

    Times a tiny number, no sum of finite values overflows, and every other value stays what it is.
    """
    sums = block @ np.full(block.shape[1], 1e-30, dtype=np.float32)
    return bool(np.isfinite(sums).all())


def _is_run(numbers: NDArray[np.intp]) -> bool:
    """Tell whether numbers count up by one."""
    return len(numbers) > 0 and bool((np.diff(numbers) == 1).all())


SHARD_ROWS: Final = 8192
