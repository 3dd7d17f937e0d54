"""Dropping what no manifest needs: features of images that are gone, and frozen activations."""

import numpy as np
from numpy.typing import NDArray

from pipeline.files.location import Location
from pipeline.store import activations
from pipeline.store.lock import lock
from pipeline.store.store import Store


def prune(place: Location) -> dict[str, object]:
    """Drop the features and frozen activations that no manifest row needs; merge small shards.

    Kept searches for near duplicates stay: once the images are elsewhere, those that compared their
    pixels cannot be made again.

    Returns:
        ``store``, ``dropped`` and ``rows`` (features), ``shards``, ``boundary_dropped`` and
        ``boundary_shards`` (shards of frozen activations), ``freed_bytes``.

    Raises:
        StoreError: There is no store, or it is damaged.
    """
    Store.unchecked(place)
    with lock(place):
        store = Store.open(place)
        before = size_of(store) + boundary_size_of(store)
        store.remove_leftovers()
        needed = store.needed_keys()
        boundary_dropped = _prune_boundary(store, needed)
        with store.scan_cache() as cache:
            dropped = store.compact(cache, keep=needed, everything=True)
        store.refresh_view()
    return {
        "store": str(place),
        "dropped": dropped,
        "rows": len(store),
        "shards": len(store.shard_paths()),
        "boundary_dropped": boundary_dropped,
        "boundary_shards": len(activations.all_paths(store.boundary_folder)),
        "freed_bytes": before - size_of(store) - boundary_size_of(store),
    }


def size_of(store: Store) -> int:
    """Return the bytes of a store's shards."""
    return sum(item.size() for item in store.sets)


def boundary_size_of(store: Store) -> int:
    """Return the bytes of a store's frozen activations."""
    return sum(path.stat().st_size for path in activations.all_paths(store.boundary_folder))


def _prune_boundary(store: Store, needed: NDArray[np.bytes_]) -> int:
    """Delete frozen activations that no image needs; return how many shards these were."""
    folder = store.boundary_folder
    if not folder.exists():
        return 0
    with activations.pruning(folder):
        return activations.remove_unneeded(folder, store.identity.as_json(), needed)
