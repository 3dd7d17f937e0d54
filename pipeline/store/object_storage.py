"""Where the files of a store are: at an address of an object storage.

A folder in the user's cache is a working copy. It is never trusted and may be deleted at any time:
small files are read anew, shards have their digest for a name. What is written is uploaded first,
and gets its name in the folder afterwards, so that nothing is in the folder alone that matters.
Shards come whole as long as the disk has room, and are read in place otherwise.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import h5py

from pipeline.errors import CorruptShardError, StorageError, StoreError
from pipeline.files import remote
from pipeline.files.atomic import (
    complete,
    rename_durably,
    temporary_sibling,
    write_atomically,
)
from pipeline.files.hdf5 import opened
from pipeline.files.location import Location, Remote
from pipeline.files.object_file import ObjectFile
from pipeline.files.records import MAX_BYTES
from pipeline.files.regular import UnfitFileError, sha256_file
from pipeline.files.state import FileState
from pipeline.store.record import RECORD
from pipeline.store.storage import LOCK, SHARD_SUFFIX, Storage
from pipeline.store.working_copy import Room, folder_of

# Says who is writing; it keeps nobody out.
MARK: Final = ".writing"
_THREADS: Final = 8
_PIECE_BYTES: Final = 8 << 20
_MARK_BYTES: Final = 1 << 16
# Files whose headers are kept, each of a few blocks, to be read in place again.
_KEPT_OPEN: Final = 64
# What a store in a folder has that is not kept at an address.
_OF_THIS_MACHINE: Final = ("boundary", "features.h5", "scan.sqlite", LOCK)


def storage_of(place: Location) -> Storage:
    """Return where the files of a store are that users call by a place."""
    return ObjectStorage(place) if isinstance(place, Remote) else Storage(place)


class ObjectStorage(Storage):
    """Objects below an address, with a working copy on this machine."""

    has_view = False

    def __init__(self, place: Remote) -> None:
        super().__init__(folder_of(place), place)
        self._root = place
        self._sizes: dict[Path, int] = {}
        self._fetched: set[Path] = set()
        self._kept_open: dict[Path, ObjectFile] = {}
        # Of the record, as it was last read or written.
        self._record: FileState | None = None

    def named(self, path: Path) -> Location:
        """Return the address of a file of the store; a path of any other."""
        return self._at(path) if path.is_relative_to(self.folder) else path

    def corrupt(self, path: Path, problem: str) -> CorruptShardError:
        """Return the error for a bad shard, with the way out."""
        error = super().corrupt(path, problem)
        error.hint = (
            f"Remove it with pipeline verify {self.place} --repair and run extract again; only its "
            "images are encoded again."
        )
        return error

    # -- reading ---------------------------------------------------------------------------

    def exists(self, path: Path) -> bool:
        """Tell whether there is an object."""
        return remote.state(self._at(path)) is not None

    def others(self, own: set[str]) -> list[str]:
        """Return the first parts of the names of objects that are not ``own``, sorted."""
        found = {name.partition("/")[0] for name in remote.listing(self._root)}
        return sorted(found - own - {MARK, LOCK})

    def shards(self, folder: Path) -> dict[Path, int]:
        """Return the shards of a folder in a fixed order, with their bytes, as of now."""
        found = {
            folder / name: state.size
            for name, state in remote.listing(self._at(folder)).items()
            if name.endswith(SHARD_SUFFIX) and "/" not in name and name[0] != "."
        }
        self._sizes |= found
        for path in complete(folder, SHARD_SUFFIX):
            if path not in found:  # merged or pruned by others
                path.unlink(missing_ok=True)
        return found

    def status(self, path: Path) -> os.stat_result | None:
        """Return the state of a shard in the working copy."""
        try:
            return path.stat()
        except FileNotFoundError:
            return None

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a shard's bytes, of those in the storage if it is there alone."""
        if path.exists():
            return sha256_file(path)
        digest, size = hashlib.sha256(), self._size(path)
        for start in range(0, size, _PIECE_BYTES):
            stop = min(start + _PIECE_BYTES, size)
            digest.update(remote.read_range(self._at(path), start, stop - start))
        return digest.hexdigest()

    @contextmanager
    def opened(self, path: Path) -> Iterator[h5py.File]:
        """Open a shard for reading, in place where the working copy has none."""
        if path.exists():
            with opened(path) as file:
                yield file
            return
        try:
            file = h5py.File(self._in_place(path), "r")
        except FileNotFoundError:
            raise
        except OSError as error:  # of HDF5: what a storage refuses is no such error
            raise UnfitFileError("it is not a feature shard") from error
        with file:
            yield file

    def bring(self, paths: Sequence[Path]) -> None:
        """Fetch shards whole into the working copy, as long as there is room.

        None of the store is dropped for another: whoever reads all again and again would find none.

        Raises:
            CorruptShardError: One is not what was written.
        """
        absent = [path for path in paths if not path.exists()]
        if not absent:
            return
        room = Room.of(self.folder)
        fitting = [path for path in absent if room.take(self._size(path))]
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(self._bring, fitting))

    def fetch(self, path: Path, *, sha256: str | None = None) -> None:
        """Make a file what the store has; of a file elsewhere nothing happens."""
        if not path.is_relative_to(self.folder):
            return
        try:
            if sha256 is not None and self._is_right(path, sha256):
                return
            if path == self.folder / RECORD:
                self._record = None
                self._fetch_record(path)
            else:
                self._download(path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)

    def fetch_folder(self, folder: Path) -> None:
        """Complete a folder of files that have a digest for a name."""
        if folder not in self._fetched:
            for name in remote.listing(self._at(folder)):
                if not (folder / name).exists():
                    self._download(folder / name)
            self._fetched.add(folder)

    def forget(self) -> None:
        """Drop what the working copy has of the store."""
        for name in remote.listing(self._root):
            if name.partition("/")[0] not in _OF_THIS_MACHINE:
                (self.folder / name).unlink(missing_ok=True)

    # -- writing ---------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep a mark beside the store while the context lasts, which tells others who writes.

        Raises:
            ConfigError: The storage may show half of an object.
            StorageError: It cannot be written to.
        """
        remote.require_whole(self._root)
        mark = self._at(self.folder / MARK)
        remote.write(mark, self._me())
        try:
            yield
        finally:
            # A mark that stays says no more than that somebody began.
            with suppress(StorageError):
                if self._writer() == self._me():
                    remote.delete(mark)

    def put(self, temporary: Path, path: Path) -> None:
        """Upload a finished file, then give it its name in the working copy.

        Raises:
            StoreError: It is the record, and another process wrote one meanwhile.
        """
        if not path.is_relative_to(self.folder):
            super().put(temporary, path)
            return
        size = temporary.stat().st_size
        if path == self.folder / RECORD:
            self._put_record(temporary.read_bytes())
        else:
            remote.upload(self._at(path), temporary)
        self._sizes[path] = size
        if path.suffix != SHARD_SUFFIX or Room.of(self.folder).take(size):
            super().put(temporary, path)

    def share(self, path: Path) -> None:
        """Upload a small file that another room wrote into the working copy."""
        remote.upload(self._at(path), path)

    def share_folder(self, folder: Path) -> None:
        """Upload the files of a folder that the store lacks, which have a digest for a name."""
        known = remote.listing(self._at(folder))
        for path in complete(folder, ""):
            if path.name not in known:
                remote.upload(self._at(path), path)

    def move(self, path: Path, aside: Path) -> None:
        """Give a file of the store another name."""
        remote.upload(self._at(aside), path)
        remote.delete(self._at(path))
        super().move(path, aside)

    def remove(self, path: Path) -> None:
        """Remove an object, then its working copy."""
        if path.is_relative_to(self.folder):
            remote.delete(self._at(path))
        super().remove(path)

    def remove_folder(self, path: Path) -> None:
        """Remove the objects of a folder, then their working copies."""
        for name in remote.listing(self._at(path)):
            remote.delete(self._at(path / name))
        super().remove_folder(path)

    def _is_right(self, path: Path, sha256: str) -> bool:
        """Tell whether a file was written as this one last, and nobody edited it since."""
        found = remote.state(self._at(path))
        is_whole = found is not None and path.is_file() and path.stat().st_size == found.size
        return is_whole and sha256_file(path) == sha256

    def _fetch_record(self, path: Path) -> None:
        data, self._record = remote.read(self._at(path), limit=MAX_BYTES)
        if self._record is None:  # replaced while it was read
            data, self._record = remote.read(self._at(path), limit=MAX_BYTES)
        write_atomically(path, lambda temporary: temporary.write_bytes(data))

    def _put_record(self, data: bytes) -> None:
        try:
            place = self._at(self.folder / RECORD)
            self._record = remote.replace(place, data, before=self._record)
        except remote.ChangedError as error:
            writer = self._writer()
            who = "" if writer in (None, self._me()) else f": {_described(writer)}"
            raise StoreError(
                f"Another process wrote into the store {str(self.place)!r} since this one read "
                f"it{who}. What was encoded is kept.",
                hint="Run the same command again; one extract at a time, where that can be.",
            ) from error

    def _me(self) -> bytes:
        return json.dumps({"host": platform.node(), "process": os.getpid()}).encode()

    def _writer(self) -> bytes | None:
        """Return the mark of whoever began to write last; None where all have ended."""
        with suppress(FileNotFoundError):
            return remote.read(self._at(self.folder / MARK), limit=_MARK_BYTES)[0]
        return None

    # -- the working copy ------------------------------------------------------------------

    def _at(self, path: Path) -> Remote:
        return Remote(f"{self._root.url}/{path.relative_to(self.folder).as_posix()}")

    def _size(self, path: Path) -> int:
        if path not in self._sizes:
            found = remote.state(self._at(path))
            if found is None:
                raise FileNotFoundError(f"{self._at(path)} is gone")
            self._sizes[path] = found.size
        return self._sizes[path]

    def _in_place(self, path: Path) -> ObjectFile:
        """Return a shard as a file in the storage; headers of the last few are kept."""
        kept = self._kept_open.pop(path, None)
        found = kept or ObjectFile(self._size(path), partial(remote.read_range, self._at(path)))
        self._kept_open[path] = found
        while len(self._kept_open) > _KEPT_OPEN:
            self._kept_open.pop(next(iter(self._kept_open)))
        return found

    def _bring(self, path: Path) -> None:
        """Fetch a shard whole; once more where what came is not what was sent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            with temporary_sibling(path) as temporary:
                remote.download(self._at(path), temporary)
                if sha256_file(temporary) == path.stem:
                    rename_durably(temporary, path)
                    return
        raise self.corrupt(path, "its bytes are not those that were written")

    def _download(self, path: Path) -> None:
        write_atomically(path, lambda temporary: remote.download(self._at(path), temporary))


def _described(mark: bytes) -> str:
    try:
        said = json.loads(mark)
        return f"process {said['process']} on {said['host']}"
    except (ValueError, TypeError, KeyError):
        return "one that does not say who it is"
