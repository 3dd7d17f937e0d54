"""The key index: which shard and row holds the features of which image.

Built by ``store`` from the shards' keys; used to read, to tell what is missing, and by ``view``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.images.manifest import KEY_DTYPE
from pipeline.store.shard import Keys, Shard


@dataclass(frozen=True)
class KeyIndex:
    """Where each key is.

    Attributes:
        shards: The shards, the largest first.
        keys: Distinct keys in ascending order, dtype ``S64``, shape ``(n,)``.
        shard_of: Position in ``shards`` of each key, shape ``(n,)``.
        row_of: Row within that shard of each key, shape ``(n,)``.
    """

    shards: tuple[Shard, ...]
    keys: Keys
    shard_of: NDArray[np.intp]
    row_of: NDArray[np.intp]

    @classmethod
    def over(cls, parts: Iterable[Shard]) -> "KeyIndex":
        """Index shards; of copies of a key, the one in the largest shard counts."""
        ordered = tuple(sorted(parts, key=lambda shard: (-len(shard), shard.name)))
        everything = np.concatenate(
            [np.zeros(0, dtype=KEY_DTYPE), *(shard.keys for shard in ordered)]
        )
        keys, first = np.unique(everything, return_index=True)
        sizes = [len(shard) for shard in ordered]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
        shard_of = np.searchsorted(starts, first, side="right") - 1
        return cls(ordered, keys, shard_of, first - starts[shard_of])

    def find(self, keys: Keys) -> NDArray[np.intp]:
        """Return the position of each key, or -1, shape of ``keys``.

        Numbers are found five times faster than texts, so the keys' first bytes are looked up
        as one; where those of several keys are equal, the texts are.
        """
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.intp)
        last = len(self.keys) - 1
        places = np.minimum(np.searchsorted(self._prefixes, _prefix(keys)), last)
        other = np.flatnonzero(self.keys[places] != keys)
        places[other] = np.minimum(np.searchsorted(self.keys, keys[other]), last)
        absent = other[self.keys[places[other]] != keys[other]]
        places[absent] = -1
        return places

    @cached_property
    def _prefixes(self) -> NDArray[np.uint64]:
        return _prefix(self.keys)

    def __contains__(self, key: str) -> bool:
        return bool(self.find(np.array([key.encode()], dtype=KEY_DTYPE))[0] >= 0)


def _prefix(keys: Keys) -> NDArray[np.uint64]:
    """Return the first eight bytes of each key as a number; its order is that of the texts."""
    words = np.ascontiguousarray(keys).view(">u8").reshape(-1, KEY_DTYPE.itemsize // 8)
    return words[:, 0].astype(np.uint64)
