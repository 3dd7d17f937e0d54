"""The rows of a file that is imported, and the manifest that they make."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config.exchanging import ImportFeaturesOptions
from pipeline.dataset.examples import notes_of
from pipeline.dataset.labels import merged as merge_labels
from pipeline.errors import ManifestError, mention
from pipeline.exchange.checks import Examined
from pipeline.exchange.feature_table import KEY, LABEL, PATH, SPLIT, FeatureTable
from pipeline.exchange.keys import RowKeys, keys_of
from pipeline.files.location import Location, normalized
from pipeline.images.manifest import (
    GROUP,
    OK,
    Manifest,
    group_column,
    listing_of,
    mark_conflicts,
    none_usable,
    split_column,
)
from pipeline.images.table_rows import unique_rows
from pipeline.system.progress import Reporter

NOT_FINITE: Final = "features that are not finite"
# Types that float32 holds exactly.
_EXACT: Final = ("float32", "float16", "int16", "int8", "uint16", "uint8")


@dataclass(frozen=True, slots=True)
class ImportedRows:
    """The rows of a file, and the manifest that they make.

    Attributes:
        listing: One row a path, in the order of the file.
        of_file: Row of the listing of each row of the file, ``(n,)``.
        keys: The key of each row of the listing.
    """

    listing: Manifest
    of_file: NDArray[np.intp]
    keys: RowKeys


def rows_of(
    table: FeatureTable, options: ImportFeaturesOptions, root: Location, reporter: Reporter
) -> ImportedRows:
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
    return ImportedRows(listing, of_file, keys_of(listing, [row[4] for row in unique], reporter))


def _normal(name: str, known: dict[str, int]) -> str:
    return name if name in known else normalized(name)


def _listing(
    root: Location, source: Path, rows: Sequence[tuple[str, ...]], options: ImportFeaturesOptions
) -> Manifest:
    splits = split_column(source, [row[2] for row in rows])
    labels = [sys.intern(row[1] if row[1].strip() else "") for row in rows]
    notes: Sequence[str] = ()
    if options.merge_labels:
        labels, notes = merge_labels(labels)
    names = [row[0] for row in rows]
    listing = listing_of(root, list(zip(names, labels, splits, strict=True)), tuple(notes))
    return replace(listing, groups=group_column([row[3] for row in rows]))


def notes_of_rows(table: FeatureTable, rows: ImportedRows) -> list[str]:
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


def judged(
    rows: ImportedRows, found: Examined, options: ImportFeaturesOptions
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


def notes_of_zeros(rows: ImportedRows, found: Examined) -> list[str]:
    """Return that there are rows of zeros, which say nothing of their images."""
    names = [rows.listing.paths[row] for row in rows.of_file[found.zeros]]
    return [f"Rows of zeros alone, {len(names):,}: {mention(names)}"] if names else []
