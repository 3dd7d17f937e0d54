"""Shards: immutable HDF5 files of features, named by the digest of their own bytes.

A shard is complete if it is present: it is written under a temporary name, flushed, hashed and
renamed. ``store`` keeps the set of them; nothing here knows a manifest or a network.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CorruptShardError, StoreError
from pipeline.files import rename_durably, sha256_file, temporary_sibling
from pipeline.manifest import KEY_DTYPE

Features = NDArray[np.float32]
Keys = NDArray[np.bytes_]

SUFFIX: Final = ".h5"


@dataclass(frozen=True, slots=True)
class Shard:
    """One feature file.

    Attributes:
        path: Where it is; its stem is the SHA-256 of its bytes.
        keys: Content keys of its rows, dtype ``S64``, shape ``(n,)``.
    """

    path: Path
    keys: Keys

    @property
    def name(self) -> str:
        """The SHA-256 that the file's bytes must have."""
        return self.path.stem

    def __len__(self) -> int:
        return len(self.keys)


def write(folder: Path, keys: Keys, features: Features, *, identity: str) -> Shard:
    """Write rows as one new shard.

    Args:
        folder: Where shards live.
        keys: ``S64``, shape ``(n,)``.
        features: float32, shape ``(n, dim)``.
        identity: Digest of the store's identity; a shard of another store is refused by it.

    Raises:
        OSError: The disk is full or the folder is read-only; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_sibling(folder / f"shard{SUFFIX}") as temporary:
        try:
            with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
                file.attrs["identity"] = identity
                file.create_dataset("keys", data=keys.astype(KEY_DTYPE, copy=False))
                file.create_dataset("features", data=features, dtype="<f4")
        except RuntimeError as error:
            # On a full disk HDF5 fails once more while closing, which hides the first error.
            raise OSError(errno.EIO, f"{folder} cannot be written: {error.__context__}") from error
        path = folder / (sha256_file(temporary) + SUFFIX)
        rename_durably(temporary, path)
    return Shard(path, keys)


def open_shard(path: Path, *, identity: str, dim: int, is_checked: Callable[[Path], bool]) -> Shard:
    """Read a shard's keys, after checking the digest of a shard that is not known to be good.

    Raises:
        CorruptShardError: The digest, the shape or the store it belongs to is wrong.
    """
    if not is_checked(path) and sha256_file(path) != path.stem:
        raise corrupt(path, "its bytes are not those that were written")
    try:
        with h5py.File(path, "r") as file:
            keys = file["keys"][:]
            shape = file["features"].shape
            belongs = file.attrs["identity"]
    except (OSError, KeyError) as error:
        raise _unreadable(path, error) from error
    if belongs != identity:
        raise corrupt(path, "it belongs to a store of another identity")
    if shape != (len(keys), dim):
        raise corrupt(path, f"expected features of shape {(len(keys), dim)}, received {shape}")
    return Shard(path, keys)


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
    try:
        with h5py.File(shard.path, "r") as file:
            dataset = file["features"]
            if _is_run(rows) and _is_run(places):
                block = out[places[0] : places[0] + len(places)]
                dataset.read_direct(block, np.s_[rows[0] : rows[0] + len(rows)])
            else:
                first, last = rows.min(), rows.max() + 1
                block = dataset[first:last][rows - first]
                out[places] = block
    except (OSError, KeyError) as error:
        raise _unreadable(shard.path, error) from error
    if not np.isfinite(block).all():
        raise corrupt(shard.path, "it holds values that are not finite")


def corrupt(path: Path, problem: str) -> CorruptShardError:
    """Return the error for a bad shard, with the way out."""
    return CorruptShardError(
        f"The shard {str(path)!r} cannot be trusted: {problem}.",
        shard=path.stem,
        hint="Delete that file and run extract again; only its images are encoded again.",
    )


def _unreadable(path: Path, error: Exception) -> StoreError:
    if not path.exists():
        return CorruptShardError(
            f"The shard {str(path)!r} is gone.",
            shard=path.stem,
            hint="Run extract again; only its images are encoded again.",
        )
    if isinstance(error, KeyError):
        return corrupt(path, "it is no feature shard")
    # Its digest was right when it was last looked at, so this may well be the system's doing
    # (permissions, the open-file limit): no reason to tell anyone to delete it.
    return StoreError(
        f"The shard {str(path)!r} cannot be read: {error}.",
        hint="Check permissions and the open-file limit, then run pipeline verify on the store.",
    )


def _is_run(numbers: NDArray[np.intp]) -> bool:
    """Tell whether numbers count up by one."""
    return len(numbers) > 0 and bool((np.diff(numbers) == 1).all())
