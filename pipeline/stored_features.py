"""Stored features as heads stream them: rows of a shard set by number, read when asked for.

Stage 2 hands them to heads instead of an array where the features do not fit into memory.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline import shards
from pipeline.shard_set import ShardSet
from pipeline.shards import Features, Keys


class StoredFeatures:
    """Features of some images of a store, in the order of their keys; a ``heads.rows.FeatureRows``.

    Attributes:
        shape: ``(n, dim)``.
    """

    shape: tuple[int, int]

    def __init__(self, shard_set: ShardSet, keys: Keys) -> None:
        """Look the keys up; no features are read.

        Args:
            shard_set: Where the features are, as of its last ``reindex``.
            keys: ``S64``, shape ``(n,)``; may repeat.

        Raises:
            MissingFeaturesError: Some of the keys are not there.
        """
        index = shard_set.index
        places = index.find(keys)
        if (places < 0).any():
            shard_set.read(keys)  # which refuses, and says which are absent
        self.shape = (len(keys), shard_set.dim)
        self._shards = index.shards
        self._shard_of = index.shard_of[places]
        self._row_of = index.row_of[places]

    def read(self, rows: NDArray[np.intp]) -> Features:
        """Return some rows, float32 ``(k, dim)``, in the order asked for.

        Raises:
            CorruptShardError: A shard is gone, or holds values that are not finite.
        """
        out = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        shard_of, row_of = self._shard_of[rows], self._row_of[rows]
        for number in np.unique(shard_of):
            wanted = np.flatnonzero(shard_of == number)
            shards.read_into(self._shards[number], row_of[wanted], out, wanted)
        return out

    def disk_order(self) -> NDArray[np.intp]:
        """Return all row numbers, ``(n,)``, in the order in which they lie on disk."""
        return np.lexsort((self._row_of, self._shard_of))
