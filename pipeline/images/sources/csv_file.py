"""A data set as a CSV with columns ``path,label[,split][,group]``."""

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from pipeline.errors import ConfigError, ManifestError, mention
from pipeline.files import remote
from pipeline.files.location import Location, Remote
from pipeline.files.table import Row, Table, read_table
from pipeline.images import place
from pipeline.images.manifest import (
    GROUP,
    SUFFIX,
    Manifest,
    group_column,
    listing_of,
    split_column,
    with_conflicts,
)
from pipeline.images.sources.given import Given
from pipeline.images.table_rows import repeated_rows, unique_rows

_SUFFIXES: Final = (".csv", ".tsv", ".txt")


def recognizes(given: Given) -> bool:
    """Tell whether the data is a table."""
    return given.is_file(*_SUFFIXES)


def scan_source(given: Given) -> Manifest:
    """List the images of a table; see ``sources.scan``."""
    given.require_no_folders("a table", "whose splits a column 'split' says")
    return scan_csv(given.data)


def scan_csv(data: Location) -> Manifest:
    """List the images of a table, paths relative to it; keys and statuses are empty.

    Raises:
        ManifestError: A column is missing, a row has no path, a path has two splits or groups, or
            none of the files exists.
        StorageError: A storage refuses, or cannot be reached.
    """
    root = data.parent if isinstance(data, Remote) else data.resolve().parent
    table = _read(data, root)
    if not table.rows:
        raise ManifestError(f"{data} has no rows.", hint="Add one row path,label per image.")
    found, notes = found_rows(data, root, table.rows)
    conflicts: dict[str, str] = {}
    rows = unique_rows(data, found, conflicts)
    splits = split_column(data, [row[2] for row in rows])
    # A hundred thousand copies of ten names would take more memory than the paths.
    labels = [sys.intern(label if label.strip() else "") for _, label, _, _ in rows]
    groups = [row[3] for row in rows]
    listed = sorted(zip([row[0] for row in rows], labels, splits, groups, strict=True))
    notes += repeated_rows(data, found, rows, conflicts)
    listing = listing_of(root, [row[:3] for row in listed], (*table.notes, *notes))
    listing = replace(listing, groups=group_column([row[3] for row in listed]))
    return with_conflicts(listing, conflicts)


def _read(data: Location, root: Location) -> Table:
    """Read a table; one at an address from its copy, which nobody knows."""
    path = remote.local_copy(data) if isinstance(data, Remote) else data
    try:
        table = read_table(
            path,
            ("path", "label", "split", GROUP),
            required=("path", "label"),
            exists=lambda text: place.exists(root, text),
            is_row=lambda cells: bool(SUFFIX.search(cells[0])) or place.exists(root, cells[0]),
        )
    except ManifestError as error:
        message = error.message.replace(str(path), str(data))
        raise ManifestError(message, hint=error.hint) from error
    notes = tuple(note.replace(str(path), str(data)) for note in table.notes)
    return replace(table, notes=notes)


def found_rows(
    data: Location, root: Location, rows: Sequence[Row], *, are_all: bool = True
) -> tuple[list[Row], list[str]]:
    """Return rows with the paths under which their files are, and what to note about them.

    Args:
        data: The table that they are from.
        root: What their paths are relative to.
        rows: Each with its path first.
        are_all: Whether the table has no others.

    Raises:
        ManifestError: None of the files exists and there are no other rows, or an address holds
            credentials.
        StorageError: A storage is out of reach.
    """
    _look_up(data, root, [row[0] for row in rows])
    found: list[Row] = []
    missing, respelled = [], []
    for path, *cells in rows:
        name = next((text for text in _spellings(path) if place.exists(root, text)), None)
        if name is None:
            missing.append(path)
        elif name != path:
            respelled.append(f"{path!r} as {name!r}")
        found.append((name or path, *cells))
    if missing and are_all and len(missing) == len(rows):
        raise ManifestError(
            f"{data}: {len(missing):,} of {len(rows):,} files do not exist: {mention(missing)}.",
            hint=f"Paths are relative to the folder of {data.name!r}, {str(root)!r}; correct them.",
        )
    notes = []
    if respelled:
        listed = mention(respelled, quoted=False)
        notes.append(f"{data}: files found under another spelling, {len(respelled):,}: {listed}")
    if missing:
        notes.append(
            f"{data}: {len(missing):,} of {len(rows):,} files do not exist and count as bad "
            f"images: {mention(missing)}"
        )
    return found, notes


def _look_up(data: Location, root: Location, paths: Sequence[str]) -> None:
    """Ask for the images at addresses together, then for other spellings of those not there."""
    try:
        if place.look_up(root, paths):
            gone = [path for path in paths if not place.exists(root, path)]
            place.look_up(root, (text for path in gone for text in _spellings(path)))
    except ConfigError as error:
        raise ManifestError(f"{data}: {error.message}", hint=error.hint) from error


def _spellings(path: str) -> Iterator[str]:
    """Yield a path as it is written, then as other systems may have changed it."""
    yield path
    slashed = path.replace("\\", "/")
    texts = dict.fromkeys((path, slashed, path.strip(), slashed.strip()))
    forms = (unicodedata.normalize(form, text) for text in texts for form in ("NFC", "NFD"))
    yield from dict.fromkeys((*texts, *forms))
