"""The ``import-features`` command: features that were made elsewhere become a store.

The file is read twice: once to look at it, once to store it. What is refused is refused before
anything is written, and an interrupted import goes on where it stopped.
"""

import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import identity as identities
from pipeline.backbones.identity import Identity
from pipeline.config.exchanging import ImportFeaturesOptions
from pipeline.config.options import CommonOptions
from pipeline.errors import ConfigError, ManifestError
from pipeline.exchange import formats
from pipeline.exchange.checks import Examined, examine, num_blocks
from pipeline.exchange.feature_table import FeatureTable
from pipeline.exchange.imported_rows import judged, notes_of_rows, notes_of_zeros, rows_of
from pipeline.exchange.room import folder_near, require_room
from pipeline.files import outputs
from pipeline.files.location import Location, local, locate
from pipeline.images.manifest import CONFLICT, Manifest
from pipeline.store import features_file
from pipeline.store.lock import lock
from pipeline.store.record import StoreProvenance
from pipeline.store.shard import Shard
from pipeline.store.shard_set import remember_check
from pipeline.store.store import Store
from pipeline.store.writer import ShardWriter
from pipeline.system.progress import Reporter, say_notes
from pipeline.system.provenance import provenance
from pipeline.system.wording import counted

_NAME: Final = re.compile(r"[\w.-]{1,100}", re.ASCII)
_UNNAMED: Final = re.compile(r"[^\w.-]+", re.ASCII)


def import_features(
    options: ImportFeaturesOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, object]:
    """Make a store of a file of features; see docs/json.md for the keys of the result.

    Args:
        options: What to import.
        common: ``force`` replaces a store of other features, or an edited manifest.
        reporter: Where notes and progress go.
        started: ``time.monotonic()`` at the start of the process.

    Raises:
        ConfigError: An option cannot be used, or the disk has no room.
        EngineUnavailableError: What reads the file is not installed.
        ManifestError: The file cannot be used.
        StaleFeaturesError: The store holds other features.
        StoreError: The store is damaged, or in use.
    """
    source = local("FILE", options.file)
    place = locate(options.store or Path("stores") / source.stem)
    name = _name(options, source)
    if isinstance(place, Path):
        outputs.require_folder("--store", place)
    root = locate(options.data) if options.data else None
    listed = local("--paths", options.paths) if options.paths else None
    table = formats.read(source, paths=listed, column=options.column, root=root)
    before = source.stat()
    rows = rows_of(table, options, root or (listed or source).resolve().parent, reporter)
    notes = say_notes(reporter, notes_of_rows(table, rows))
    keys = rows.keys.keys[rows.of_file]
    reporter.say(f"Looking at {counted(table.shape[0], 'row')} of {table.shape[1]:,} features")
    names = [rows.listing.paths[row] for row in rows.of_file]
    found = examine(table, names, keys, reporter, folder_near(place))
    manifest, errors = judged(rows, found, options)
    notes += say_notes(reporter, notes_of_zeros(rows, found))
    identity = identities.imported(name, found.digest)
    with lock(place):
        store = _opened(place, identity, table, manifest, force=common.force)
        new = _store_rows(store, table, keys, found, reporter)
        _require_unchanged(source, before)
        store.adopt(replace(store.record, provenance=_provenance(source, table)))
        store.save_manifest(store.manifest_path, manifest)
    if store.storage.has_view:
        notes += say_notes(reporter, features_file.notes_of(len(store.index.shards)))
    return {
        "images": len(manifest),
        "imported": new,
        "reused": len(manifest) - new - len(errors),
        "skipped": len(errors),
        "conflicting": sum(status == CONFLICT for status in manifest.statuses),
        "errors": errors,
        "dim": table.shape[1],
        "keys": rows.keys.counts(),
        "name": name,
        "digest": found.digest,
        "store": str(place),
        "manifest": str(store.named(store.manifest_path)),
        "notes": notes,
        "seconds": round(time.monotonic() - started, 3),
    }


def _name(options: ImportFeaturesOptions, source: Path) -> str:
    if options.name is None:
        return _UNNAMED.sub("-", source.stem)[:100]
    if not _NAME.fullmatch(options.name):
        raise ConfigError(
            "--name: expected up to 100 letters, digits, dots, hyphens and underscores. "
            f"Received: {options.name!r}.",
            hint="Name what made the features, such as clip-vit-b32.",
        )
    return options.name


def _opened(
    place: Location, identity: Identity, table: FeatureTable, manifest: Manifest, *, force: bool
) -> Store:
    """Open the store, or make it; refuse one of other features.

    Raises:
        StaleFeaturesError: Its features are others.
        ManifestError: Its manifest was edited.
    """
    if Store.exists(place):
        store = Store.unchecked(place)
        if store.identity == identity or not force:
            store.require_identity(identity)
            store.remove_leftovers()
            if not force:
                store.require_own_manifest(store.manifest_path)
            return Store.open(place)
        _require_room(place, table)
        store.remove_features()
    _require_room(place, table)
    return Store.create(place, identity=identity, dim=table.shape[1], root=manifest.root)


def _require_room(place: Location, table: FeatureTable) -> None:
    """Refuse a disk that is too small; an object storage has room."""
    if isinstance(place, Path):
        require_room(place, table.shape[0], table.shape[1])


def _store_rows(
    store: Store,
    table: FeatureTable,
    keys: NDArray[np.bytes_],
    found: Examined,
    reporter: Reporter,
) -> int:
    """Store the rows that a store lacks; return how many these were."""
    missing = found.stored & (store.index.find(keys) < 0)
    new = int(missing.sum())
    if not new and store.view_path.exists():
        return 0
    with store.scan_cache() as cache:

        def remember(shard: Shard) -> None:
            remember_check(cache, shard)

        with (
            reporter.bar(num_blocks(table), "block") as bar,
            ShardWriter(store.plain, on_shard=remember) as writer,
        ):
            start = 0
            for block in table.rows():
                rows = np.flatnonzero(missing[start : start + len(block)])
                writer.add([key.decode() for key in keys[start + rows].tolist()], block[rows])
                start += len(block)
                bar.advance()
        store.reindex(cache)
        store.compact(cache)
    store.refresh_view()
    return new


def _require_unchanged(source: Path, before: os.stat_result) -> None:
    """Refuse to call a store complete whose file changed while it was read.

    Raises:
        ManifestError: It did.
    """
    after = source.stat()
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ManifestError(
            f"The file {str(source)!r} changed while it was read.",
            hint="Run this again with --force, when it is as it is to be.",
        )


def _provenance(source: Path, table: FeatureTable) -> StoreProvenance:
    """Return where imported features came from; recorded and never compared."""
    made = {"imported_from": str(source.absolute()), "dtype": table.dtype}
    if table.made_with:
        made["made_with"] = table.made_with
    return StoreProvenance(other={**provenance(), **made})
