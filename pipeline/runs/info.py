"""What a store or a run is, from its record."""

from collections import Counter
from pathlib import Path

from pipeline.errors import ConfigError, StoreError
from pipeline.files.location import Location
from pipeline.runs import per_class as class_scores
from pipeline.runs.run import Run
from pipeline.store import activations
from pipeline.store.prune import boundary_size_of, size_of
from pipeline.store.store import Store


def info(place: Location, *, per_class: bool = False, head: str | None = None) -> dict[str, object]:
    """Describe the store or run at a path; ``kind`` says which.

    Args:
        place: The directory, or the address of a store.
        per_class: Whether to add the scores of each class by one head, as ``shown``.
        head: Name of that head; None for the run's best.

    Raises:
        ConfigError: Scores of classes are asked of a store, or of a head that the run lacks.
        StoreError: It is neither.
    """
    if head is not None and not per_class:
        raise ConfigError("--head: expected --per-class beside it.", hint="Add --per-class.")
    if isinstance(place, Path) and Run.exists(place):
        run = Run.open(place)
        shown = class_scores.of_head(run, head) if per_class else None
        return {
            "kind": "run",
            "path": str(place),
            **run.record.as_json(),
            "store": str(run.store_path),
            "shown": shown,
        }
    if not Store.exists(place):
        raise StoreError(
            f"Expected a store or a run. Received: {str(place)!r}, which is neither.",
            hint="A store holds store.json, a run run.json.",
        )
    if per_class:
        raise ConfigError(
            f"--per-class: expected a run. Received: the store {str(place)!r}.",
            hint="Train on it with train-head, and give that run.",
        )
    return _of_store(Store.open(place))


def _of_store(store: Store) -> dict[str, object]:
    manifest = store.read_manifest() if store.has_manifest() else None
    return {
        "kind": "store",
        "path": str(store.place),
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
        "root": store.record.root,
        "identity": store.identity.as_json(),
        "provenance": store.record.provenance.as_json(),
    }
