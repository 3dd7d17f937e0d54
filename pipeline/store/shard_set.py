"""A set of shards: one folder of features that were all made the same way, read by key.

A store is one such set for the images as they are and one more for each augmented view.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingFeaturesError
from pipeline.store import shard as shards
from pipeline.store.key_index import KeyIndex
from pipeline.store.scan_cache import ScanCache
from pipeline.store.shard import SHARD_ROWS, Features, Keys, Shard
from pipeline.store.storage import SHARD_SUFFIX, Storage

# Small shards are cheap to read until there are many of them.
MAX_SMALL_SHARDS: Final = 16
# Rows below which one is: merging fuller ones would write much to save few.
SMALL_ROWS: Final = SHARD_ROWS // 2


def remember_check(cache: ScanCache, shard: Shard) -> None:
    """Note that the digest of a shard, which was written a moment ago, is right."""
    status = shard.storage.status(shard.path)
    if status is not None:
        cache.remember_check(shard.name, status)


class ShardSet:
    """The shards of one folder.

    Attributes:
        folder: Where they are.
        dim: Length of a feature row.
        index: Which shard holds which key, as of the last ``reindex``.
    """

    def __init__(
        self, folder: Path, *, identity: str, dim: int, storage: Storage, view: str
    ) -> None:
        """Describe a set; nothing is read before ``reindex``.

        Args:
            folder: Where the shards are.
            identity: Digest of how the features are made; a shard of another one is refused.
            dim: Length of a feature row.
            storage: Where its store keeps its files.
            view: Which of its views it is, for messages; empty for the plain one.
        """
        self.folder = folder
        self.dim = dim
        self.index = KeyIndex.over(())
        self._identity = identity
        self._storage = storage
        self._title = f"The store {str(storage.place)!r}"
        self._hint = "Run extract again; only those are encoded."
        if view:
            self._title = f"The view {view!r} of the store {str(storage.place)!r}"
            self._hint = f"Run extract again with --views {view}; only those are encoded."

    def __len__(self) -> int:
        return len(self.index.keys)

    def __contains__(self, key: str) -> bool:
        return key in self.index

    # -- reading ---------------------------------------------------------------------------

    def reindex(self, cache: ScanCache) -> None:
        """Look at the shards again, hashing those that changed since their last good check.

        Raises:
            CorruptShardError: A shard is not what was written.
        """
        self.index = KeyIndex.over(self._opened(path, cache) for path in self.shard_paths())

    def read(self, keys: Keys) -> Features:
        """Return the features of keys, in their order.

        Args:
            keys: ``S64``, shape ``(n,)``; may repeat.

        Returns:
            float32, shape ``(n, dim)``.

        Raises:
            MissingFeaturesError: Some of the keys are not there.
            CorruptShardError: A shard is gone, or holds values that are not finite.
        """
        places = self.places(keys)
        out = np.empty((len(keys), self.dim), dtype=np.float32)
        shard_of = self.index.shard_of[places]
        numbers = np.unique(shard_of)
        self.bring([self.index.shards[number].path for number in numbers])
        for number in numbers:
            wanted = np.flatnonzero(shard_of == number)
            rows = self.index.row_of[places[wanted]]
            shards.read_into(self.index.shards[number], rows, out, wanted)
        return out

    def bring(self, paths: Sequence[Path]) -> None:
        """Make ready to read most rows of some shards.

        Raises:
            CorruptShardError: One is not what was written.
        """
        self._storage.bring(paths)

    def places(self, keys: Keys) -> NDArray[np.intp]:
        """Return where in the index each of some keys is, ``(n,)``.

        Raises:
            MissingFeaturesError: Some of the keys are not there.
        """
        places = self.index.find(keys)
        absent = keys[places < 0]
        if len(absent):
            raise MissingFeaturesError(
                f"{self._title} has no features for {len(absent):,} of {len(keys):,} images.",
                keys=[key.decode() for key in absent],
                hint=self._hint,
            )
        return places

    def path_of(self, name: str) -> Path:
        """Return where the shard of a name is, or would be."""
        return self.folder / f"{name}{SHARD_SUFFIX}"

    def shard_paths(self) -> list[Path]:
        """Return the shard files at hand."""
        return list(self._storage.shards(self.folder))

    def size(self) -> int:
        """Return the bytes of the shard files."""
        return sum(self._storage.shards(self.folder).values())

    def open_shard(self, path: Path, *, is_checked: Callable[[Path], bool]) -> Shard:
        """Read a shard's keys, hashing it unless ``is_checked`` vouches for it.

        Raises:
            CorruptShardError: It is not what was written.
        """
        return shards.open_shard(
            path,
            identity=self._identity,
            dim=self.dim,
            is_checked=is_checked,
            storage=self._storage,
        )

    def read_shard(self, shard: Shard) -> Features:
        """Read all rows of one shard, float32 ``(n, dim)``.

        Raises:
            CorruptShardError: It holds values that are not finite.
        """
        self._storage.bring([shard.path])
        out = np.empty((len(shard), self.dim), dtype=np.float32)
        rows = np.arange(len(shard))
        shards.read_into(shard, rows, out, rows)
        return out

    # -- writing ---------------------------------------------------------------------------

    def add_shard(self, keys: Keys, features: Features) -> Shard:
        """Write rows as a new shard; ``reindex`` makes them readable."""
        return self.add_blocks(keys, [features])

    def add_blocks(self, keys: Keys, blocks: Iterable[Features]) -> Shard:
        """Write rows that come in blocks as a new shard."""
        return shards.write(
            self.folder,
            keys,
            blocks,
            dim=self.dim,
            identity=self._identity,
            storage=self._storage,
        )

    def compact(
        self, cache: ScanCache, *, keep: Keys | None = None, everything: bool = False
    ) -> int:
        """Merge small shards into large ones.

        Args:
            cache: Where the checks of shards are remembered.
            keep: Keys to keep, the others are dropped; None keeps all.
            everything: Merge however few small shards there are.

        Returns:
            How many keys were dropped.
        """
        wanted = np.ones(len(self), dtype=bool) if keep is None else np.isin(self.index.keys, keep)
        counts = np.bincount(self.index.shard_of[wanted], minlength=len(self.index.shards))
        sizes = np.array([len(shard) for shard in self.index.shards], dtype=np.intp)
        shrunk, small = counts < sizes, sizes < SMALL_ROWS
        if shrunk.any() or small.sum() > (1 if everything else MAX_SMALL_SHARDS):
            self._rewrite(np.flatnonzero(shrunk | small), wanted)
            self.reindex(cache)
        return int(len(wanted) - wanted.sum())

    def _rewrite(self, numbers: NDArray[np.intp], wanted: NDArray[np.bool_]) -> None:
        """Replace some shards by large ones that hold their wanted rows.

        Rows come shard by shard, as they were written in each: every shard is read once, and rows
        that lay beside each other stay so.
        """
        index = self.index
        chosen = np.flatnonzero(wanted & np.isin(index.shard_of, numbers))
        chosen = chosen[np.lexsort((index.row_of[chosen], index.shard_of[chosen]))]
        written = set()
        for start in range(0, len(chosen), SHARD_ROWS):
            places = chosen[start : start + SHARD_ROWS]
            written.add(self.add_blocks(index.keys[places], self._blocks(places)).name)
        for number in numbers:
            if self.index.shards[number].name not in written:
                self._storage.remove(self.index.shards[number].path)

    def _blocks(self, places: NDArray[np.intp]) -> Iterator[Features]:
        """Yield the features of rows that lie in the order of the shards, one shard at a time."""
        numbers, starts = np.unique(self.index.shard_of[places], return_index=True)
        self.bring([self.index.shards[number].path for number in numbers])
        for number, part in zip(numbers, np.split(places, starts[1:]), strict=True):
            block = np.empty((len(part), self.dim), dtype=np.float32)
            rows = self.index.row_of[part]
            shards.read_into(self.index.shards[number], rows, block, np.arange(len(part)))
            yield block

    def _opened(self, path: Path, cache: ScanCache) -> Shard:
        # Taken before the bytes are read: what changes them later counts as a change.
        status = self._storage.status(path)
        # What is read in place is checked row by row, by the sums.
        is_checked = status is None or cache.is_checked(path.stem, status)
        shard = self.open_shard(path, is_checked=lambda _: is_checked)
        if status is not None and not is_checked:
            cache.remember_check(path.stem, status)
        return shard
