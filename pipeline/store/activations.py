"""Boundary shards: HDF5 files of frozen activations, immutable and named by their own digest.

They lie in ``STORE/boundary``, in a folder for each way to make activations, and say themselves
how they were made. ``finetune.cache`` writes and reads them; ``verify``, ``prune`` and ``info``
look after them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CorruptShardError, StoreError
from pipeline.files.arrays import AnyArray, row_sums
from pipeline.files.atomic import (
    complete,
    exclusive,
    remove_leftovers,
    rename_durably,
    shared,
    temporary_sibling,
)
from pipeline.files.hdf5 import HDF5_ERRORS, opened, plain_dataset, set_text, text_of
from pipeline.files.hdf5_writer import writing
from pipeline.files.records import canonical_json
from pipeline.files.regular import UnfitFileError, sha256_file
from pipeline.images.manifest import KEY_DTYPE
from pipeline.system.progress import Reporter

# What activations are made from, of a store: its identity, under this name.
FEATURES: Final = "features"

_SUFFIX: Final = ".h5"
# Held alone by whoever fills the cache, one at a time.
_FILLING: Final = ".filling"
# Shared by all that need what is in the cache; held alone by whoever deletes from it.
_IN_USE: Final = ".in-use"
_DIGITS: Final = 16
_KEYS_DIGEST: Final = "keys_sha256"
_HINT: Final = "Delete that file; finetune computes its images again when it needs them."

Keys = NDArray[np.bytes_]


def folder_of(parent: Path, identity: Mapping[str, object]) -> Path:
    """Return the folder of activations that are made in one way."""
    return parent / _name_of(canonical_json(identity))


def paths(folder: Path) -> list[Path]:
    """Return the shards in one folder, in a fixed order."""
    return complete(folder, _SUFFIX)


def all_paths(parent: Path) -> list[Path]:
    """Return the shards of all folders; none where there is no cache."""
    return [path for folder in _folders(parent) for path in paths(folder)]


def in_use(parent: Path, reporter: Reporter) -> AbstractContextManager[None]:
    """Keep others from pruning the cache while the context lasts; they may fill and use it too.

    Args:
        parent: The folder of folders.
        reporter: Where it is said that there is a prune to wait for.
    """
    busy = f"A prune is deleting from {str(parent)!r}."
    return shared(parent / _IN_USE, busy, reporter=reporter)


def filling(parent: Path, reporter: Reporter) -> AbstractContextManager[None]:
    """Keep others from filling the cache, which is in use, while the context lasts.

    Args:
        parent: The folder of folders.
        reporter: Where it is said that there is another to wait for.
    """
    busy = f"Another finetune is filling {str(parent)!r}, which may take long."
    return exclusive(parent / _FILLING, busy, wait=True, reporter=reporter)


def pruning(parent: Path) -> AbstractContextManager[None]:
    """Keep others from using the cache while the context lasts.

    Args:
        parent: The folder of folders.

    Raises:
        StoreError: A finetune is using it, from its first image to its last epoch, or a prune.
    """
    return exclusive(parent / _IN_USE, f"A finetune or another prune is using {str(parent)!r}.")


def write(folder: Path, identity: Mapping[str, object], keys: Keys, activations: AnyArray) -> Path:
    """Write activations as one new shard; returns where it is.

    Args:
        folder: Its folder; made if there is none.
        identity: How they were made, as JSON values.
        keys: Content keys of the images, ``S64``, ``(n,)``.
        activations: ``(n, ...)``, little-endian.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_sibling(folder / f"shard{_SUFFIX}") as temporary:
        with writing(temporary) as file:
            # A header has room for 64 KB of text; an identity has a hundredth of that.
            set_text(file, "identity", canonical_json(identity))
            set_text(file, _KEYS_DIGEST, _digest_of(keys))
            file.create_dataset("keys", data=keys)
            file.create_dataset("activations", data=activations)
            file.create_dataset("sums", data=row_sums(np.ascontiguousarray(activations)))
        path = folder / (sha256_file(temporary) + _SUFFIX)
        rename_durably(temporary, path)
    return path


def checked_keys(path: Path, *, is_checked: Callable[[Path], bool]) -> Keys:
    """Return the keys of a shard that was checked: its bytes, and that it lies where it belongs.

    Args:
        path: The shard.
        is_checked: Tells whether its bytes are known to be right, so that none is hashed.

    Raises:
        CorruptShardError: It is not what was written.
        OSError: The system does not let it be read, which tells nothing about the shard.
    """
    if not is_checked(path) and _digest(path) != path.stem:
        raise _corrupt(path, "its bytes are not those that were written")
    identity, keys = _described(path)
    if path.parent.name != _name_of(identity):
        raise _corrupt(path, "it belongs to another cut or backbone")
    return keys


def read(path: Path, rows: NDArray[np.intp] | None = None) -> AnyArray:
    """Return activations of a shard as they are stored, ``(k, ...)``; no file stays open.

    Args:
        path: The shard.
        rows: Row numbers within it, ``(k,)``, one or more; None for all.

    Raises:
        CorruptShardError: It is not what was written.
        StoreError: It is gone.
        OSError: The system does not let it be read.
    """
    with _opened(path) as file:
        activations = plain_dataset(file, "activations")
        # Older releases wrote none.
        sums = plain_dataset(file, "sums")[:] if "sums" in file else None
        chosen = slice(None) if rows is None else rows
        if rows is None:
            found = np.asarray(activations[:])
        else:
            found = np.stack([activations[row] for row in rows])
        if sums is not None and not np.array_equal(sums[chosen], row_sums(found)):
            raise _corrupt(path, "its rows are not those that were written")
        return found


def remove_unneeded(parent: Path, features: Mapping[str, object], needed: Keys) -> int:
    """Delete shards of no needed image, and those of other features than the store's.

    A shard with one needed image stays whole: activations are large to rewrite.

    Args:
        parent: The folder of folders.
        features: Identity of the store's features.
        needed: Content keys of the images to keep.

    Returns:
        How many shards were deleted.

    Raises:
        CorruptShardError: A shard cannot be read.
    """
    dropped = 0
    for folder in _folders(parent):
        remove_leftovers(folder)
        for path in paths(folder):
            identity, keys = _described(path)
            if _features_of(identity) != features or not np.isin(keys, needed).any():
                path.unlink()
                dropped += 1
        if not any(folder.iterdir()):
            folder.rmdir()
    return dropped


def _folders(parent: Path) -> Iterator[Path]:
    return (path for path in sorted(parent.glob("*")) if path.is_dir())


def _name_of(identity: str) -> str:
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:_DIGITS]


def _described(path: Path) -> tuple[str, Keys]:
    """Return how a shard was made, as it says, and its keys."""
    with _opened(path) as file:
        keys = plain_dataset(file, "keys")[:]
        shape = plain_dataset(file, "activations").shape
        if keys.dtype != KEY_DTYPE or keys.shape != shape[:1]:
            raise _corrupt(path, f"it has {len(keys)} keys and activations of shape {shape}")
        # Older releases wrote none.
        if text_of(file, _KEYS_DIGEST) not in ("", _digest_of(keys)):
            raise _corrupt(path, "its keys are not those that were written")
        return text_of(file, "identity"), keys


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a shard; what HDF5 cannot parse is corrupt, what the system refuses is not."""
    try:
        with opened(path) as file:
            yield file
    except UnfitFileError as error:
        raise _corrupt(path, str(error.strerror)) from error
    except FileNotFoundError as error:
        raise StoreError(
            f"The shard {str(path)!r} is gone.",
            hint="Run finetune again: it computes what is missing, and goes on where it stopped.",
        ) from error
    except HDF5_ERRORS as error:
        # The number of a system's error (a limit, permissions, the disk); HDF5 has none of its own.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _corrupt(path, str(error)) from error


def _features_of(identity: str) -> object:
    """Return the identity of the features that activations go with; None where it tells none."""
    try:
        return json.loads(identity).get(FEATURES)
    except (ValueError, AttributeError):
        # Whatever wrote it, it is not of this store.
        return None


def _digest_of(keys: Keys) -> str:
    return hashlib.sha256(np.ascontiguousarray(keys).tobytes()).hexdigest()


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except UnfitFileError as error:
        raise _corrupt(path, str(error.strerror)) from error


def _corrupt(path: Path, problem: str) -> CorruptShardError:
    return CorruptShardError(
        f"The shard {str(path)!r} cannot be trusted: {problem}.", shard=path.stem, hint=_HINT
    )
