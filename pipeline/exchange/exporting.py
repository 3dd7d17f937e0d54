"""The ``export-features`` command: the features of a store as one plain file."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.config.exchanging import ExportFeaturesOptions
from pipeline.config.options import CommonOptions
from pipeline.errors import ManifestError
from pipeline.exchange import formats, parquet
from pipeline.exchange.feature_table import BLOCK_ROWS, KEY, LABEL, PATH, SPLIT, FeatureTable
from pipeline.exchange.room import require_room
from pipeline.files import outputs
from pipeline.files.arrays import AnyArray
from pipeline.files.atomic import rename_durably, temporary_sibling, write_atomically
from pipeline.files.location import local, locate
from pipeline.files.records import canonical_json
from pipeline.files.table import write_csv
from pipeline.images.manifest import CONFLICT, GROUP, OK, Manifest
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures
from pipeline.system.progress import Bar, Reporter
from pipeline.system.wording import counted


def export_features(
    options: ExportFeaturesOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, object]:
    """Write features and what the manifest says of them; see docs/json.md for the keys.

    Args:
        options: What to write where.
        common: ``force`` replaces files that are there.
        reporter: Where notes and progress go.
        started: ``time.monotonic()`` at the start of the process.

    Raises:
        ConfigError: The suffix is unknown, or something is in the way.
        EngineUnavailableError: What writes the format is not installed.
        ManifestError: The manifest cannot be used, or no row has features.
        StoreError: There is no store, it lacks features or the view, or is damaged.
    """
    path = Path(options.file)
    form = formats.of_file(path)
    if form is formats.FORMATS[".parquet"]:
        parquet.require_installed()
    listed = None if form.has_texts else formats.beside(path)
    Store.unchecked(locate(options.store))
    written = [path] if listed is None else [path, listed]
    outputs.require_new_files("FILE", written, reporter, force=common.force)
    store = Store.open(locate(options.store))
    chosen = local("--manifest", options.manifest) if options.manifest else None
    rows = _rows(store, store.read_manifest(chosen), everything=options.all)
    require_room(path, len(rows), store.dim)
    reporter.say(f"Writing features of {counted(len(rows), 'row')}")
    with reporter.bar(-(-len(rows) // BLOCK_ROWS), "block") as bar:
        table = _table(store, rows, options.view, bar)
        path.parent.mkdir(parents=True, exist_ok=True)
        if listed is None:
            write_atomically(path, lambda temporary: form.write(temporary, table))
        else:
            _write_both(path, listed, form, table)
    return {
        "file": str(path),
        "list": None if listed is None else str(listed),
        "format": form.name,
        "images": len(rows),
        "dim": store.dim,
        "labelled": sum(bool(label) for label in rows.labels),
        "view": options.view,
        "bytes": sum(item.stat().st_size for item in written),
        "store": options.store,
        "seconds": round(time.monotonic() - started, 3),
    }


def _rows(store: Store, manifest: Manifest, *, everything: bool) -> Manifest:
    """Return the rows to write: those with features, and on request what no row has.

    Raises:
        ManifestError: There are none.
    """
    rows = manifest.take(
        [row for row, status in enumerate(manifest.statuses) if status in (OK, CONFLICT)]
    )
    if everything:
        rows = _with_others(rows, np.setdiff1d(store.index.keys, rows.keys))
    if not len(rows):
        raise ManifestError(
            f"Expected rows with features in the manifest of {str(store.place)!r}. Received: none.",
            hint="Give another with --manifest, or --all for all features of the store.",
        )
    return rows


def _with_others(rows: Manifest, keys: AnyArray) -> Manifest:
    """Return rows followed by one for each of some keys, of which nothing else is known."""
    names, nothing = [key.decode() for key in keys.tolist()], [""] * len(keys)
    return Manifest(
        root=rows.root,
        paths=[*rows.paths, *names],
        labels=[*rows.labels, *nothing],
        splits=[*rows.splits, *nothing],
        keys=np.concatenate([rows.keys, keys]),
        statuses=[*rows.statuses, *[OK] * len(keys)],
        groups=[*rows.groups, *nothing] if rows.groups else (),
    )


def _table(store: Store, rows: Manifest, view: str | None, bar: Bar) -> FeatureTable:
    """Return what is written; features are read as they are asked for."""
    features = StoredFeatures.of(store.set_of(view), rows.keys)

    def blocks() -> Iterator[AnyArray]:
        for start in range(0, len(rows), BLOCK_ROWS):
            yield features.read(np.arange(start, min(start + BLOCK_ROWS, len(rows))))
            bar.advance()

    return FeatureTable(
        source=store.path,
        shape=features.shape,
        dtype="float32",
        columns={
            PATH: rows.paths,
            LABEL: rows.labels,
            SPLIT: rows.splits,
            KEY: [key.decode() for key in rows.keys.tolist()],
            **({GROUP: rows.groups} if rows.groups else {}),
        },
        blocks=blocks,
        made_with=canonical_json({**store.identity.as_json(), **({"view": view} if view else {})}),
    )


def _write_both(path: Path, listed: Path, form: formats.Format, table: FeatureTable) -> None:
    """Write features and the table beside them; features that are there have their own table."""
    with temporary_sibling(path) as features, temporary_sibling(listed) as texts:
        form.write(features, table)
        columns = table.columns
        write_csv(texts, [tuple(columns), *zip(*columns.values(), strict=True)])
        path.unlink(missing_ok=True)
        rename_durably(texts, listed)
        rename_durably(features, path)
