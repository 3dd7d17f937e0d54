"""Stored features as heads stream them: rows of a shard set by number, read when asked for.

Stage 2 hands them to heads instead of an array where the features do not fit into memory.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files.places import absolute
from pipeline.store import shard
from pipeline.store.shard import Features, Keys, Shard
from pipeline.store.shard_set import ShardSet


class StoredFeatures:
    """Features of some images of a store; a ``heads.rows.FeatureRows``.

    Attributes:
        shape: ``(n, dim)``.
    """

    shape: tuple[int, int]

    def __init__(
        self,
        parts: tuple[Shard, ...],
        shard_of: NDArray[np.intp],
        row_of: NDArray[np.intp],
        dim: int,
    ) -> None:
        """Describe rows; no features are read.

        Args:
            parts: The shards.
            shard_of: Position in ``parts`` of each row, ``(n,)``.
            row_of: Row within that shard, ``(n,)``.
            dim: Number of features.
        """
        self.shape = (len(shard_of), dim)
        self._shards = parts
        self._shard_of = shard_of
        self._row_of = row_of

    @classmethod
    def of(cls, shard_set: ShardSet, keys: Keys) -> "StoredFeatures":
        """Return the features of images, in the order of their keys; keys may repeat.

        Raises:
            MissingFeaturesError: The set lacks some of the keys.
        """
        places, index = shard_set.places(keys), shard_set.index
        used = np.unique(index.shard_of[places])
        shard_set.bring([index.shards[number].path for number in used])
        return cls(
            tuple(map(_from_anywhere, index.shards)),
            index.shard_of[places],
            index.row_of[places],
            shard_set.dim,
        )

    def __getitem__(self, rows: slice | NDArray[np.intp] | NDArray[np.bool_]) -> "StoredFeatures":
        """Return some of the images, still on disk."""
        return StoredFeatures(self._shards, self._shard_of[rows], self._row_of[rows], self.shape[1])

    def one(self) -> "StoredFeatures":
        """Return the first image alone, with no more than its shard: little to send."""
        first, none = self._shards[self._shard_of[0]], np.zeros(1, dtype=np.intp)
        return StoredFeatures((first,), none, self._row_of[:1], self.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: NDArray[np.intp]) -> Features:
        """Return some rows, float32 ``(k, dim)``, in the order asked for.

        Raises:
            CorruptShardError: A shard is gone, or holds values that are not finite.
        """
        out = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        shard_of, row_of = self._shard_of[rows], self._row_of[rows]
        for number in np.unique(shard_of):
            wanted = np.flatnonzero(shard_of == number)
            shard.read_into(self._shards[number], row_of[wanted], out, wanted)
        return out

    def disk_order(self) -> NDArray[np.intp]:
        """Return all row numbers, ``(n,)``, in the order in which they lie on disk."""
        return np.lexsort((self._row_of, self._shard_of))


def _from_anywhere(part: Shard) -> Shard:
    """Return a shard by a path that means the same to a process that works in another folder."""
    if not isinstance(part.storage.place, Path):
        return part
    return replace(part, path=Path(absolute(part.path)))
