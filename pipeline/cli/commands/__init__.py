"""One function a command: options in, a plain result out; nothing is printed here.

Called by ``cli``. Imports are inside the functions: each command loads only what it needs.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pipeline.config.options import (
    CommonOptions,
    CompareOptions,
    ExportOptions,
    ExtractOptions,
    FinetuneOptions,
    InfoOptions,
    PredictOptions,
    PruneOptions,
    SampleOptions,
    SweepOptions,
    TrainHeadOptions,
    VerifyOptions,
)
from pipeline.errors import ConfigError, StoreError
from pipeline.system.progress import Reporter

STARTED: Final = time.monotonic()

Tables = Mapping[str, Mapping[str, Any]]
Result = dict[str, Any]


def sample(
    options: SampleOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Write the sample data set."""
    from pipeline.files import outputs
    from pipeline.images.sample import write_sample

    _require("OUT", options.out)
    outputs.require_folder("OUT", Path(options.out))
    return write_sample(Path(options.out), force=common.force)


def extract(
    options: ExtractOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Run stage 1."""
    from pipeline.cli.commands.extract import extract as run

    return run(options, common, reporter, started=STARTED)


def train_head(
    options: TrainHeadOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Run stage 2."""
    from pipeline.cli.commands.train_head import train_head as run

    return run(options, common, reporter, tables.get("heads", {}))


def sweep(
    options: SweepOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Try many heads and settings."""
    from pipeline.cli.commands.sweep import sweep as run

    return run(options, common, reporter, tables)


def compare(
    options: CompareOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Return the leaderboard of runs."""
    from pipeline.cli.commands.compare import compare as run

    return run(options, reporter)


def finetune(
    options: FinetuneOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Run stage 3."""
    from pipeline.cli.commands.finetune import finetune as run

    return run(options, common, reporter)


def predict(
    options: PredictOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Classify images."""
    from pipeline.cli.commands.predict import predict as run

    return run(options, common, reporter, started=STARTED)


def export(
    options: ExportOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Write a head with its backbone as one model."""
    from pipeline.cli.commands.export import export as run

    return run(options, common, reporter)


def info(options: InfoOptions, common: CommonOptions, reporter: Reporter, tables: Tables) -> Result:
    """Say what a store or run is."""
    from pipeline.store.store import Store

    _require("STORE or RUN", options.path)
    path = Path(options.path)
    if (path / "run.json").is_file():
        from pipeline.runs.run import Run

        run = Run.open(path)
        return {"kind": "run", "path": str(path), **run.record, "store": str(run.store_path)}
    if not Store.exists(path):
        raise StoreError(
            f"Expected a store or a run. Received: {str(path)!r}, which is neither.",
            hint="A store holds store.json, a run run.json.",
        )
    return _store_info(Store.open(path))


def verify(
    options: VerifyOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Check every byte of a store, a run or an exported folder."""
    from pipeline.cli.commands.verify import verify as run

    _require("STORE or RUN", options.store)
    return run(options, reporter)


def prune(
    options: PruneOptions, common: CommonOptions, reporter: Reporter, tables: Tables
) -> Result:
    """Drop the features and frozen activations that no manifest needs."""
    from pipeline.store import activations
    from pipeline.store.store import Store, lock

    _require("STORE", options.store)
    path = Path(options.store)
    Store.unchecked(path)
    with lock(path):
        store = Store.open(path)
        before = _bytes(store) + _boundary_bytes(store)
        store.remove_leftovers()
        needed = store.needed_keys()
        boundary_dropped = _prune_boundary(store, needed)
        with store.scan_cache() as cache:
            dropped = store.compact(cache, keep=needed, everything=True)
        store.refresh_view()
    return {
        "store": str(path),
        "dropped": dropped,
        "rows": len(store),
        "shards": len(store.shard_paths()),
        "boundary_dropped": boundary_dropped,
        "boundary_shards": len(activations.all_paths(store.boundary_folder)),
        "freed_bytes": before - _bytes(store) - _boundary_bytes(store),
    }


def _prune_boundary(store: Any, needed: Any) -> int:
    """Delete frozen activations that no image needs; return how many shards these were."""
    from pipeline.store import activations

    folder = store.boundary_folder
    if not folder.exists():
        return 0
    with activations.pruning(folder):
        return activations.remove_unneeded(folder, store.identity, needed)


def _store_info(store: Any) -> Result:
    from collections import Counter

    from pipeline.store import activations

    has_manifest = store.manifest_path.exists()
    manifest = store.read_manifest() if has_manifest else None
    return {
        "kind": "store",
        "path": str(store.path),
        "rows": len(store),
        "dim": store.dim,
        "shards": len(store.shard_paths()),
        "views": {name: len(view) for name, view in store.views.items()},
        "bytes": _bytes(store),
        "boundary_shards": len(activations.all_paths(store.boundary_folder)),
        "boundary_bytes": _boundary_bytes(store),
        "images": len(manifest) if manifest else 0,
        "classes": dict(sorted(Counter(manifest.labels).items())) if manifest else {},
        "statuses": dict(Counter(manifest.statuses).most_common()) if manifest else {},
        "root": store.record["root"],
        "identity": store.identity,
        "provenance": store.record["provenance"],
    }


def _bytes(store: Any) -> int:
    return sum(path.stat().st_size for path in store.shard_paths())


def _boundary_bytes(store: Any) -> int:
    from pipeline.store import activations

    paths = activations.all_paths(store.boundary_folder)
    return sum(path.stat().st_size for path in paths)


def _require(name: str, value: str) -> None:
    if not value:
        raise ConfigError(f"Expected {name}. Received: nothing.", hint="See --help.")


COMMANDS: Final[Mapping[str, Callable[..., Result]]] = MappingProxyType(
    {
        "sample": sample,
        "extract": extract,
        "train-head": train_head,
        "sweep": sweep,
        "compare": compare,
        "finetune": finetune,
        "predict": predict,
        "export": export,
        "info": info,
        "verify": verify,
        "prune": prune,
    }
)
