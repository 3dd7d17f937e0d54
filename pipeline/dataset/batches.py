"""Stored features in batches, for one's own training loops: nothing but a part is in memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config.fields import expanded
from pipeline.dataset.examples import labelled
from pipeline.errors import ConfigError
from pipeline.files.location import locate
from pipeline.heads import rows
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


class Batches:
    """Features with class numbers, read as they are asked for; can be gone through again.

    Attributes:
        shape: ``(n, dim)`` of all features.
        y: Class numbers of all rows, int64 ``(n,)``, in manifest order.
        names: Class names, sorted.

    Example:
        for X, y in pipeline.batches("stores/photos", split="train", size=256, seed=0):
            model.train_on_batch(X, y)
    """

    def __init__(
        self,
        features: StoredFeatures,
        y: NDArray[np.int64],
        names: list[str],
        size: int,
        seed: int | None,
    ) -> None:
        self.shape = features.shape
        self.y = y
        self.names = names
        self._features = features
        self._size = size
        self._generator = None if seed is None else np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Batch]:
        """Yield features float32 ``(k, dim)`` and class numbers int64 ``(k,)``, each row once."""
        for chosen, features in self._parts():
            yield np.asarray(features, np.float32), self.y[chosen]

    def _parts(self) -> Iterator[rows.Block]:
        if self._generator is not None:
            yield from rows.batches(self._features, self._generator, self._size)
            return
        # Read together, since rows of a batch may lie in any shard.
        window = self._size * max(1, rows.BLOCK_ROWS // self._size)
        for start in range(0, len(self.y), window):
            places = np.arange(start, min(start + window, len(self.y)))
            features = self._features.read(places)
            for first in range(0, len(places), self._size):
                part = slice(first, first + self._size)
                yield places[part], features[part]


def batches(
    store: str | Path,
    manifest: str | Path | None = None,
    split: str | None = None,
    view: str | None = None,
    *,
    size: int = 1024,
    seed: int | None = None,
) -> Batches:
    """Return stored features with their labels in batches, without reading all of them.

    Args:
        store: Store directory.
        manifest: See ``load``.
        split: See ``load``.
        view: See ``load``.
        size: Rows of a batch; the last one, and with a seed one in 16,384 rows, may be smaller.
        seed: Of a random order, another one in each pass; None keeps the order of the manifest.

    Returns:
        What yields the very rows of ``load``. About 64 MB of 2,048 features are in memory at a
        time, 128 MB with a seed.

    Raises:
        ConfigError: The size is none.
        ManifestError: The manifest cannot be used, or the split's name is unknown.
        StoreError: The store is missing, damaged, or lacks features.
    """
    if size < 1:
        raise ConfigError(f"Expected a size of 1 or more. Received: {size}.")
    opened = Store.open(locate(expanded(store)))
    keys, y, names = labelled(opened, manifest, split)
    features = StoredFeatures.of(opened.set_of(view), keys)
    return Batches(features, y, names, size, seed)
