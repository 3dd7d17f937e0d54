"""Where the files of a store are: a folder of this machine.

Files are named by their path in that folder. ``object_storage`` keeps them at an address, where
the folder is a working copy.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar, Final

import h5py

from pipeline.errors import CorruptShardError
from pipeline.files.atomic import complete, foreign, rename_durably
from pipeline.files.hdf5 import opened
from pipeline.files.location import Location
from pipeline.files.regular import sha256_file

LOCK: Final = ".lock"
SHARD_SUFFIX: Final = ".h5"


class Storage:
    """A folder of this machine that is all there is of a store.

    Attributes:
        folder: The folder.
        place: What users call it.
        has_view: Whether ``features.h5`` is kept, which reads from shards in the folder.
    """

    has_view: ClassVar[bool] = True

    def __init__(self, folder: Path, place: Location | None = None) -> None:
        self.folder = folder
        self.place: Location = folder if place is None else place

    def named(self, path: Path) -> Location:
        """Return what users call a file."""
        return path

    def corrupt(self, path: Path, problem: str) -> CorruptShardError:
        """Return the error for a bad shard, with the way out."""
        return CorruptShardError(
            f"The shard {str(self.named(path))!r} cannot be trusted: {problem}.",
            shard=path.stem,
            hint="Delete that file and run extract again; only its images are encoded again.",
        )

    # -- reading ---------------------------------------------------------------------------

    def exists(self, path: Path) -> bool:
        """Tell whether there is a file."""
        return path.exists()

    def others(self, own: set[str]) -> list[str]:
        """Return the names in the store that are neither ``own`` nor temporary, sorted."""
        return foreign(self.folder, {LOCK, *own})

    def shards(self, folder: Path) -> dict[Path, int]:
        """Return the shards of a folder in a fixed order, with their bytes."""
        return {path: path.stat().st_size for path in complete(folder, SHARD_SUFFIX)}

    def status(self, path: Path) -> os.stat_result | None:
        """Return the state of a shard; None of one that is not on this machine.

        Raises:
            OSError: It is gone.
        """
        return path.stat()

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a shard's bytes."""
        return sha256_file(path)

    def opened(self, path: Path) -> AbstractContextManager[h5py.File]:
        """Open a shard for reading.

        Raises:
            OSError: It cannot be opened, or is no HDF5 file.
        """
        return opened(path)

    def bring(self, paths: Sequence[Path]) -> None:
        """Make ready to read most rows of some shards."""

    def fetch(self, path: Path, *, sha256: str | None = None) -> None:
        """Make a file what the store has; of a file elsewhere nothing happens.

        Args:
            path: The file.
            sha256: What it was written as last; a copy on this machine that is this is right.
        """

    def fetch_folder(self, folder: Path) -> None:
        """Complete a folder of files that have a digest for a name."""

    def forget(self) -> None:
        """Let all that is read from now on come from where the store is."""

    # -- writing ---------------------------------------------------------------------------

    def require_writable(self) -> None:
        """Refuse a store that cannot be written to, before there is anything to write.

        Raises:
            ConfigError: The storage may show half of an object.
            StorageError: It refuses.
        """
        with self.writing():
            pass

    def writing(self) -> AbstractContextManager[None]:
        """Keep the store for writing while the context lasts.

        Raises:
            StorageError: It cannot be written to.
        """
        return nullcontext()

    def put(self, temporary: Path, path: Path) -> None:
        """Give a finished file its name in the store; this alone makes it visible."""
        rename_durably(temporary, path)

    def share(self, path: Path) -> None:
        """Put a small file that another room wrote into the folder of the store."""

    def share_folder(self, folder: Path) -> None:
        """Put the files of a folder that have a digest for a name, and were written so."""

    def move(self, path: Path, aside: Path) -> None:
        """Give a file of the store another name."""
        path.replace(aside)

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder in its place."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder with what is in it."""
        shutil.rmtree(path, ignore_errors=True)


# Of files that belong to no store.
LOCAL: Final = Storage(Path())
