"""The ``import-features`` command: features that were made elsewhere become a store.

The file is read twice: once to look at it, once to store it. What is refused is refused before
anything is written, and an interrupted import goes on where it stopped.
"""

import os
import posixpath
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import identity as identities
from pipeline.backbones.identity import Identity
from pipeline.config.exchanging import ImportFeaturesOptions
from pipeline.config.options import CommonOptions
from pipeline.dataset.examples import notes_of
from pipeline.dataset.labels import merged as merge_labels
from pipeline.errors import ConfigError, ManifestError, mention
from pipeline.exchange import formats
from pipeline.exchange.checks import Examined, examine, num_blocks
from pipeline.exchange.feature_table import KEY, LABEL, PATH, SPLIT, FeatureTable
from pipeline.exchange.keys import RowKeys, keys_of
from pipeline.exchange.room import require_room
from pipeline.files import outputs
from pipeline.images.manifest import (
    CONFLICT,
    GROUP,
    OK,
    Manifest,
    group_column,
    listing_of,
    mark_conflicts,
    none_usable,
    split_column,
    unique_rows,
)
from pipeline.store.lock import lock
from pipeline.store.record import StoreProvenance
from pipeline.store.shard import Shard
from pipeline.store.store import Store
from pipeline.store.writer import ShardWriter
from pipeline.system.progress import Reporter
from pipeline.system.provenance import provenance
from pipeline.system.wording import counted

NOT_FINITE: Final = "features that are not finite"
_NAME: Final = re.compile(r"[\w.-]{1,100}", re.ASCII)
_UNNAMED: Final = re.compile(r"[^\w.-]+", re.ASCII)
# Types that float32 holds exactly.
_EXACT: Final = ("float32", "float16", "int16", "int8", "uint16", "uint8")


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a file, and the manifest that they make.

    Attributes:
        listing: One row a path, in the order of the file.
        of_file: Row of the listing of each row of the file, ``(n,)``.
        keys: The key of each row of the listing.
    """

    listing: Manifest
    of_file: NDArray[np.intp]
    keys: RowKeys


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
    source = Path(options.file)
    path = Path(options.store or Path("stores") / source.stem)
    name = _name(options, source)
    outputs.require_folder("--store", path)
    root = Path(options.data) if options.data else None
    table = formats.read(source, paths=_optional(options.paths), column=options.column, root=root)
    before = source.stat()
    rows = _rows(table, options, root or _folder(options, source), reporter)
    notes = _notes(table, rows)
    for note in notes:
        reporter.say(f"Note: {note}")
    keys = rows.keys.keys[rows.of_file]
    reporter.say(f"Looking at {counted(table.shape[0], 'row')} of {table.shape[1]:,} features")
    found = examine(table, [rows.listing.paths[row] for row in rows.of_file], keys, reporter)
    manifest, errors = _judged(rows, found, options)
    later = _notes_of_zeros(rows, found)
    for note in later:
        reporter.say(f"Note: {note}")
    identity = identities.imported(name, found.digest)
    with lock(path):
        store = _opened(path, identity, table, manifest, force=common.force)
        new = _store_rows(store, table, keys, found, reporter)
        _require_unchanged(source, before)
        store.adopt(replace(store.record, provenance=_provenance(source, table)))
        store.save_manifest(store.manifest_path, manifest)
    return {
        "images": len(manifest),
        "imported": new,
        "reused": len(manifest) - new - len(errors),
        "skipped": len(errors),
        "conflicting": sum(status == CONFLICT for status in manifest.statuses),
        "errors": errors,
        "dim": table.shape[1],
        "keys": {
            "given": rows.keys.given, "content": rows.keys.content, "paths": rows.keys.paths,
        },
        "name": name,
        "digest": found.digest,
        "store": str(path),
        "manifest": str(store.manifest_path),
        "notes": [*notes, *later],
        "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip


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


def _optional(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _folder(options: ImportFeaturesOptions, source: Path) -> Path:
    """Return the folder of what lists the rows."""
    return Path(options.paths or source).resolve().parent


def _rows(
    table: FeatureTable, options: ImportFeaturesOptions, root: Path, reporter: Reporter
) -> _Rows:
    """Return the rows with their keys.

    Raises:
        ManifestError: There are not as many as features, or two of one path contradict each other.
    """
    columns, count = table.columns, table.shape[0]
    for column, cells in columns.items():
        if len(cells) != count:
            raise ManifestError(
                f"Expected as many {column}s as there are rows of features, {count:,}. "
                f"Received: {len(cells):,}.",
                hint="Give one for each row, in the same order.",
            )
    names = columns.get(PATH) or columns[KEY]
    empty = next((row for row, name in enumerate(names) if not name.strip()), None)
    if empty is not None:
        raise ManifestError(f"{table.source}: row {empty + 1:,} has no path.")
    nothing = [""] * count
    others = [columns.get(column, nothing) for column in (LABEL, SPLIT, GROUP, KEY)]
    unique = unique_rows(table.source, zip(names, *others, strict=True))
    listing = _listing(root, table.source, unique, options)
    place_of = {path: row for row, path in enumerate(listing.paths)}
    # Equal paths are nearly always spelled alike; only others are brought into their normal form.
    of_file = np.array([place_of[_normal(name, place_of)] for name in names], np.intp)
    return _Rows(listing, of_file, keys_of(listing, [row[4] for row in unique], reporter))


def _normal(name: str, known: dict[str, int]) -> str:
    return name if name in known else posixpath.normpath(name)


def _listing(
    root: Path, source: Path, rows: Sequence[tuple[str, ...]], options: ImportFeaturesOptions
) -> Manifest:
    splits = split_column(source, [row[2] for row in rows])
    labels = [sys.intern(row[1] if row[1].strip() else "") for row in rows]
    notes: Sequence[str] = ()
    if options.merge_labels:
        labels, notes = merge_labels(labels)
    names = [row[0] for row in rows]
    listing = listing_of(root, list(zip(names, labels, splits, strict=True)), tuple(notes))
    return replace(listing, groups=group_column([row[3] for row in rows]))


def _notes(table: FeatureTable, rows: _Rows) -> list[str]:
    """Return what was assumed of a file before its features are looked at."""
    notes = [*table.notes, *rows.listing.notes, *notes_of(rows.listing)]
    if table.dtype not in _EXACT:
        notes.append(f"The features are {table.dtype} and are kept as float32")
    repeated = table.shape[0] - len(rows.listing)
    if repeated:
        notes.append(f"Rows whose path stands there before, and that are one with it: {repeated:,}")
    if rows.keys.paths:
        notes.append(
            f"No image at hand of {rows.keys.paths:,} of {len(rows.listing):,} rows, in "
            f"{str(rows.listing.root)!r}: their keys are made of their paths (--data DIR says "
            "where images are)"
        )
    if not any(rows.listing.labels):
        notes.append(
            "No row has a label: suggest says which to label; train-head needs two classes"
        )
    return notes


def _judged(
    rows: _Rows, found: Examined, options: ImportFeaturesOptions
) -> tuple[Manifest, list[dict[str, str]]]:
    """Return the manifest with statuses, and the rows that cannot be used.

    Raises:
        ManifestError: More are bad than are allowed, or all.
    """
    is_good = np.zeros(len(rows.listing), bool)
    is_good[rows.of_file[found.usable]] = True
    errors = [
        {"path": rows.listing.paths[row], "reason": NOT_FINITE}
        for row in np.flatnonzero(~is_good).tolist()
    ]
    allowed = 0 if options.on_error == "raise" else options.max_errors
    if allowed is not None and len(errors) > allowed:
        raise ManifestError(
            f"Expected at most {allowed:,} rows with {NOT_FINITE}. Received: {len(errors):,}: "
            f"{mention([error['path'] for error in errors])}.",
            hint="Correct them, or allow more with --on-error skip and --max-errors.",
        )
    if len(errors) == len(rows.listing):
        raise none_usable(errors, hint="Give finite numbers.")
    statuses = [OK if good else NOT_FINITE for good in is_good.tolist()]
    return mark_conflicts(replace(rows.listing, keys=rows.keys.keys, statuses=statuses)), errors


def _notes_of_zeros(rows: _Rows, found: Examined) -> list[str]:
    names = [rows.listing.paths[row] for row in rows.of_file[found.zeros]]
    return [f"Rows of zeros alone, {len(names):,}: {mention(names)}"] if names else []


def _opened(
    path: Path, identity: Identity, table: FeatureTable, manifest: Manifest, *, force: bool
) -> Store:
    """Open the store, or make it; refuse one of other features.

    Raises:
        StaleFeaturesError: Its features are others.
        ManifestError: Its manifest was edited.
    """
    if Store.exists(path):
        store = Store.unchecked(path)
        if store.identity == identity or not force:
            store.require_identity(identity)
            store.remove_leftovers()
            if not force:
                store.require_own_manifest(store.manifest_path)
            return Store.open(path)
        require_room(path, table.shape[0], table.shape[1])
        store.remove_features()
    require_room(path, table.shape[0], table.shape[1])
    return Store.create(path, identity=identity, dim=table.shape[1], root=manifest.root)


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
            cache.remember_check(shard.name, shard.path.stat())

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
