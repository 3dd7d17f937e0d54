"""What a store or a run is, from its record."""

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.runs.run import Run
from pipeline.store import activations
from pipeline.store.prune import boundary_size_of, size_of
from pipeline.store.store import Store


def info(path: Path) -> dict[str, Any]:
    """Describe the store or run at a path; ``kind`` says which.

    Raises:
        StoreError: It is neither.
    """
    if Run.exists(path):
        run = Run.open(path)
        return {"kind": "run", "path": str(path), **run.record, "store": str(run.store_path)}
    if not Store.exists(path):
        raise StoreError(
            f"Expected a store or a run. Received: {str(path)!r}, which is neither.",
            hint="A store holds store.json, a run run.json.",
        )
    return _of_store(Store.open(path))


def _of_store(store: Store) -> dict[str, Any]:
    manifest = store.read_manifest() if store.manifest_path.exists() else None
    return {
        "kind": "store",
        "path": str(store.path),
        "rows": len(store),
        "dim": store.dim,
        "shards": len(store.shard_paths()),
        "views": {name: len(view) for name, view in store.views.items()},
        "bytes": size_of(store),
        "boundary_shards": len(activations.all_paths(store.boundary_folder)),
        "boundary_bytes": boundary_size_of(store),
        "images": len(manifest) if manifest else 0,
        "classes": dict(sorted(Counter(manifest.labels).items())) if manifest else {},
        "statuses": dict(Counter(manifest.statuses).most_common()) if manifest else {},
        "root": store.record["root"],
        "identity": store.identity,
        "provenance": store.record["provenance"],
    }
