"""The check of every byte of a store; called by ``commands``.

Everything is read and hashed again, whatever earlier checks found.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline import boundary_shards, view
from pipeline.errors import StoreError
from pipeline.manifest import OK
from pipeline.shard_set import ShardSet
from pipeline.shards import Shard
from pipeline.store import Store
from pipeline.wording import counted


def verify(path: Path) -> dict[str, Any]:
    """Check a store's shards, its view and that no image of its manifest lacks features.

    Returns:
        ``ok``; ``shards`` and ``rows`` of features that are good, ``boundary_shards`` of frozen
        activations that are; ``problems``, each with ``shard``, ``problem``, ``fix``.

    Raises:
        StoreError: There is no store.
    """
    store = Store.unchecked(path)
    problems = []
    good: dict[str, list[Shard]] = {}
    for name, shard_set in {"": store.plain, **store.views}.items():
        good[name] = []
        for shard_path in shard_set.shard_paths():
            try:
                good[name].append(_verified(shard_set, shard_path))
            except StoreError as error:
                problems.append(_problem(shard_path, error))
    problems += _missing_from_view(store)
    problems += _without_features(store, good[""])
    boundary = boundary_shards.all_paths(store.boundary_folder)
    bad = [problem for path in boundary for problem in _of_activations(path)]
    problems += bad
    return {
        "ok": not problems,
        "shards": sum(len(shards) for shards in good.values()),
        "rows": sum(_rows(shards) for shards in good.values()),
        "boundary_shards": len(boundary) - len(bad),
        "problems": problems,
    }


def _verified(shard_set: ShardSet, path: Path) -> Shard:
    shard = shard_set.open_shard(path, is_checked=lambda path: False)
    if len(shard):
        shard_set.read_shard(shard)
    return shard


def _problem(path: Path, error: StoreError) -> dict[str, str]:
    return {"shard": path.stem, "problem": error.message, "fix": error.hint}


def _of_activations(path: Path) -> list[dict[str, str]]:
    """Return what is wrong with a shard of frozen activations, if anything."""
    try:
        boundary_shards.checked_keys(path, is_checked=lambda path: False)
    except StoreError as error:
        return [_problem(path, error)]
    return []


def _rows(good: list[Shard]) -> int:
    return len(np.unique(np.concatenate([shard.keys for shard in good]))) if good else 0


def _missing_from_view(store: Store) -> list[dict[str, str]]:
    """Return the shards that the view reads from and that are gone."""
    if not store.view_path.exists():
        return []
    try:
        sources = view.sources(store.view_path)
    except (OSError, KeyError) as error:
        problem = f"features.h5 cannot be read: {error}"
        return [{"shard": "", "problem": problem, "fix": "Delete it and run extract again."}]
    present = {path.stem for path in store.shard_paths()}
    problem = "The shard is gone; features.h5 reads its rows as NaN."
    fix = "Run extract again; only its images are encoded again."
    gone = [name for name in sources if name not in present]
    return [{"shard": name, "problem": problem, "fix": fix} for name in gone]


def _without_features(store: Store, good: list[Shard]) -> list[dict[str, str]]:
    if not store.manifest_path.exists():
        return []
    manifest = store.read_manifest()
    wanted = {
        key for key, status in zip(manifest.keys, manifest.statuses, strict=True) if status == OK
    }
    absent = wanted.difference(*(shard.keys for shard in good))
    if not absent:
        return []
    problem = f"No good features of {counted(len(absent), 'image')} of the manifest."
    return [{"shard": "", "problem": problem, "fix": "Run extract again; only those are encoded."}]
