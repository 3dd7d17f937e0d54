"""The check of every byte of a store, and the repair of what is bad.

Everything is read and hashed again, whatever earlier checks found. What a repair drops is made
again by the next ``extract``, and nothing else is.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.backbones import kept_file, probe, quantized_file, weights
from pipeline.errors import CorruptShardError, PipelineError, StoreError
from pipeline.files.atomic import complete
from pipeline.files.hdf5 import HDF5_ERRORS
from pipeline.files.location import Location
from pipeline.files.regular import sha256_file
from pipeline.images.manifest import OK
from pipeline.store import activations, features_file
from pipeline.store.lock import lock
from pipeline.store.shard import Shard
from pipeline.store.shard_set import ShardSet
from pipeline.store.storage import LOCAL, Storage
from pipeline.store.store import COPIES, Store
from pipeline.system.wording import counted
from pipeline.verify.problems import Problem, repaired, without

_EXTRACT: Final = "Run extract again; only those are encoded."
_KEEP_AGAIN: Final = (
    "Delete it; extract with --backbone FILE{} keeps it again, or give it with --weights."
)
_DAMAGED: Final = ".damaged"


def verify(place: Location, *, repair: bool = False) -> dict[str, object]:
    """Check a store's shards, its view and that no image of its manifest lacks features.

    Args:
        place: The store.
        repair: Whether to drop what is bad, and to make the view anew.

    Returns:
        ``ok``; ``shards`` and ``rows`` of features that are good, ``boundary_shards`` of frozen
        activations that are; ``problems``, each with ``shard``, ``problem``, ``fix``; ``repaired``,
        what was done about them.

    Raises:
        StoreError: There is no store, its record is bad, or with ``repair`` another process writes.
    """
    Store.unchecked(place)
    with lock(place) if repair else nullcontext():
        store = Store.unchecked(place)
        store.storage.forget()
        return _verify(Store.unchecked(place), repair=repair)


def _verify(store: Store, *, repair: bool) -> dict[str, object]:
    good: dict[str, list[Shard]] = {}
    problems = []
    for name, shard_set in {"": store.plain, **store.views}.items():
        good[name] = []
        for shard_path in shard_set.shard_paths():
            try:
                good[name].append(_verified(shard_set, shard_path))
            except (StoreError, OSError) as error:
                problems.append(_of_shard(shard_path, error, store.storage))
    boundary = activations.all_paths(store.boundary_folder)
    bad = [problem for path in boundary for problem in _of_activations(path)]
    # What is left in the view then reads from shards that are there.
    is_remade = bool(problems) and store.storage.has_view
    remade = [Problem("", "", "", _remaking(store))] if is_remade else []
    problems += [*bad, *_of_encoder(store), *_of_probe(store), *_of_copies(store)]
    problems += _of_manifests(store)
    problems += _of_view(store)
    problems += _without_features(store, good[""])
    return {
        "ok": not problems,
        "shards": sum(len(shards) for shards in good.values()),
        "rows": sum(_rows(shards) for shards in good.values()),
        "boundary_shards": len(boundary) - len(bad),
        "problems": [problem.as_json() for problem in problems],
        "repaired": repaired([*problems, *remade]) if repair else [],
    }


def _verified(shard_set: ShardSet, path: Path) -> Shard:
    shard_set.bring([path])
    shard = shard_set.open_shard(path, is_checked=lambda path: False)
    if len(shard):
        shard_set.read_shard(shard)
    return shard


def _of_shard(path: Path, error: StoreError | OSError, storage: Storage = LOCAL) -> Problem:
    """Return a problem with a shard; what the system does not let be read is not removed."""
    if isinstance(error, StoreError):
        is_bad = isinstance(error, CorruptShardError)
        mend = without(path, storage) if is_bad else None
        return Problem(path.stem, error.message, error.hint, mend)
    problem = f"{storage.named(path)} cannot be read: {error}."
    return Problem(path.stem, problem, "Check its permissions.")


def _of_activations(path: Path) -> Iterator[Problem]:
    """Yield what is wrong with a shard of frozen activations, if anything."""
    try:
        activations.checked_keys(path, is_checked=lambda path: False)
    except (StoreError, OSError) as error:
        yield _of_shard(path, error)


def _of_encoder(store: Store) -> Iterator[Problem]:
    """Yield what is wrong with the weights in use and the converted copies of the network."""
    fix = "Delete it; it is made again when it is needed."
    for path in complete(store.encoder_folder, ""):
        if path.suffix == ".h5":
            try:
                weights.load(path)
            except PipelineError as error:
                yield Problem(path.name, error.message, fix, without(path, store.storage))
            continue
        if kept_file.is_one(path):
            try:
                kept_file.require_as_kept(path)
            except PipelineError as error:
                fix_it = _KEEP_AGAIN.format(path.suffix)
                yield Problem(path.name, error.message, fix_it, without(path, store.storage))
            continue
        if quantized_file.is_one(path):
            continue
        try:
            kept = weights.converted_digest(store.identity.weights_sha256, sha256_file(path))
            is_bad = path.name.partition(".")[0] != kept
        except OSError:
            is_bad = True
        if is_bad:
            problem = f"{store.named(path)} is not the network that was converted."
            yield Problem(path.name, problem, fix, without(path, store.storage))
    yield from _of_quantized(store)


def _of_quantized(store: Store) -> Iterator[Problem]:
    """Yield what is wrong with the network in int8, if anything; nothing makes the same again."""
    path = quantized_file.of_store(store.encoder_folder, store.identity.quantized)
    if path is None:
        return
    try:
        quantized_file.require_as_kept(path)
    except PipelineError as error:
        yield Problem(path.name, error.message, str(error.hint))


def _of_probe(store: Store) -> Iterator[Problem]:
    """Yield what is wrong with the store's probe, if anything."""
    try:
        probe.find(store.path, store.identity, store.dim)
    except PipelineError as error:
        fix = "Delete it; the next extract makes another."
        mend = without(store.path / probe.FILE, store.storage)
        yield Problem(probe.FILE, error.message, fix, mend)


def _of_copies(store: Store) -> Iterator[Problem]:
    """Yield what is wrong with the kept searches for near duplicates."""
    store.storage.fetch_folder(store.path / COPIES)
    for path in complete(store.path / COPIES, ""):
        from pipeline.copies import kept  # SciPy takes long to import

        try:
            kept.read(path)
        except StoreError as error:
            fix = "Delete it; it is made again when it is needed."
            yield Problem(path.name, error.message, fix, without(path, store.storage))


def _of_manifests(store: Store) -> Iterator[Problem]:
    """Yield the manifests in the store that are not as they were written."""
    for name in sorted({store.manifest_path.name, *store.record.manifests}):
        path = store.path / name
        if Path(name).name != name or not store.has_manifest(path):
            continue

        def move(path: Path = path) -> str:
            aside = path.with_name(path.name + _DAMAGED)
            store.storage.move(path, aside)
            return f"moved {store.named(path)} to {aside.name}; run extract again"

        try:
            store.read_manifest(path)
        except PipelineError as error:
            yield Problem("", error.message, error.hint, move)


def _rows(good: list[Shard]) -> int:
    return len(np.unique(np.concatenate([shard.keys for shard in good]))) if good else 0


def _of_view(store: Store) -> Iterator[Problem]:
    """Yield what users read otherwise from the view than from the shards."""
    if not store.view_path.exists():
        return
    fix = "Delete it and run extract again."
    try:
        # First, since HDF5 may crash on what is damaged.
        if not store.has_view_as_written():
            yield Problem("", "features.h5 is not as it was written.", fix, _remaking(store))
            return
        sources = features_file.sources(store.view_path)
    except HDF5_ERRORS as error:
        yield Problem("", f"features.h5 cannot be read: {error}", fix, _remaking(store))
        return
    present = {path.stem for path in store.shard_paths()}
    problem = "The shard is gone; features.h5 reads its rows as NaN."
    fix = "Run extract again; only its images are encoded again."
    gone = [name for name in sources if name not in present]
    for name in gone:
        yield Problem(name, problem, fix, _remaking(store))


def _remaking(store: Store) -> Callable[[], str]:
    return lambda: _remade_view(store)


def _remade_view(store: Store) -> str:
    with store.scan_cache() as cache:
        store.reindex(cache)
    store.refresh_view()
    return f"made {store.view_path} anew"


def _without_features(store: Store, good: list[Shard]) -> list[Problem]:
    """Return that images of the manifest lack features; that it is bad is said elsewhere."""
    try:
        manifest = store.read_manifest()
    except PipelineError:
        return []
    wanted = {
        key for key, status in zip(manifest.keys, manifest.statuses, strict=True) if status == OK
    }
    absent = wanted.difference(*(shard.keys for shard in good))
    if not absent:
        return []
    problem = f"No good features of {counted(len(absent), 'image')} of the manifest."
    return [Problem("", problem, _EXTRACT)]
