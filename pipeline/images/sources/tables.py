"""A data set as Parquet or Arrow files, with images in a column, or paths of images.

One file, or a folder of them whose names, or those of their folders, may be those of splits, as in
``train-00000-of-00002.parquet``.
"""

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from pipeline.errors import DamagedTableError, ManifestError, mention
from pipeline.files.location import Location, Remote, is_address, join
from pipeline.files.state import FileState
from pipeline.files.table import Row
from pipeline.images import packed
from pipeline.images.manifest import (
    Manifest,
    group_column,
    listing_of,
    split_column,
    with_conflicts,
)
from pipeline.images.packed.row_groups import KEPT_BYTES
from pipeline.images.packed.table_members import TablePack, damage_of, image_columns, name_of
from pipeline.images.place import name_of as place_of
from pipeline.images.place import opened, state_of
from pipeline.images.sources import file_splits
from pipeline.images.sources.columns import Columns, choose, features_of, split_name
from pipeline.images.sources.csv_file import found_rows
from pipeline.images.sources.folder_tree import may_be_image
from pipeline.images.sources.given import Given
from pipeline.images.sources.labels import labels_of, texts_of
from pipeline.images.table_rows import repeated_rows, unique_rows
from pipeline.system.wording import counted

_SUFFIXES: Final = (".parquet", ".arrow")


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a data set.

    Attributes:
        path: Relative to the data, POSIX.
        split: The split that its images are in; empty where a column says it, or nothing does.
        features: What Hugging Face's libraries say of its columns, where that is told elsewhere.
    """

    path: str
    split: str = ""
    features: Mapping[str, Any] | None = None


@dataclass(slots=True)
class _Listed:
    """What was found so far.

    Attributes:
        rows: Path, label, split, group.
        paths: Rows of the same kind that name files, in the order of the tables.
        pathless: Rows of the same kind that should name a file and do not.
        damaged: Files of which some images or all cannot be listed, each with the error.
        columns: The columns of each file that was read.
        states: The state of each file that was read.
        unlabelled: Rows whose label is empty.
        beyond: Rows whose label no class name is for.
        example: Such a label, and where it is.
        slow: Bytes of the largest row group.
        overruled: Rows whose cell says the split although their file does.
        blank: Rows of such files whose cell is blank.
    """

    rows: list[Row] = field(default_factory=list)
    paths: list[Row] = field(default_factory=list)
    pathless: list[Row] = field(default_factory=list)
    damaged: list[tuple[TableFile, str]] = field(default_factory=list)
    columns: dict[str, Columns] = field(default_factory=dict)
    states: dict[str, FileState] = field(default_factory=dict)
    unlabelled: int = 0
    beyond: int = 0
    example: str = ""
    slow: int = 0
    overruled: int = 0
    blank: int = 0


def recognizes(given: Given) -> bool:
    """Tell whether the data is a table, or a folder of tables without images beside them."""
    if given.tree is None:
        return given.is_file(*_SUFFIXES)
    kinds = {packed.kind_of(path) for path in given.tree.paths} - {None}
    others = (path for path in given.tree.paths if packed.kind_of(path) is None)
    return bool(kinds) and kinds <= set(_SUFFIXES) and not any(map(_may_be_image, others))


def _may_be_image(path: str) -> bool:
    """Tell whether a file beside tables may be an image; ``_SUCCESS`` is what Spark leaves."""
    return may_be_image(path) and not path.rpartition("/")[2].startswith("_")


def scan_source(given: Given) -> Manifest:
    """List the images of tables; see ``sources.scan``."""
    if given.tree is None:
        given.require_no_folders("a table", "whose splits a column 'split' says")
        root, name = given.data.parent, given.data.name
        # Of one with a query, the address alone leads to it.
        path = name if join(root, name) == given.data else str(given.data)
        return scan_tables([TableFile(path)], given, root=root)
    given.require_no_unlabelled("tables")
    names = [path for path in given.tree.paths if packed.kind_of(path)]
    splits, notes = _splits_of_files(given, names)
    files = [
        TableFile(path, split)
        for path, split in zip(names, splits, strict=True)
        if split is not None
    ]
    others = [repr(path) for path in given.tree.paths if not packed.kind_of(path)]
    left_out = [*others, *given.left_out]
    if left_out:
        notes.append(f"Left out, beside tables: {mention(left_out, quoted=False)}")
    listing = scan_tables(files, given, root=given.data)
    return replace(listing, notes=(*notes, *listing.notes))


def _splits_of_files(given: Given, paths: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Return the split of each file by its name, None of those left out, and what to say.

    Raises:
        ManifestError: Some are named as splits and some are not, and no column says the splits.
    """
    if given.layout != "splits" and _column_says(given, paths):
        return [""] * len(paths), ["Splits are those of the column 'split', not of names of files"]
    return file_splits.of_files(given, paths, [()] * len(paths))


def _column_says(given: Given, paths: Sequence[str]) -> bool:
    """Tell whether a column says the split of every row of the tables that can be read."""
    is_said = False
    for path in paths:
        # What is damaged is said when rows are listed.
        with suppress(DamagedTableError), damage_of("a table", join(given.data, path)):
            table, _ = _opened(given.data, path)
            column = split_name(table.schema)
            if table.rows:
                is_said = bool(column) and all(map(str.strip, texts_of(table, column)))
                if not is_said:
                    return False
    return is_said


def scan_tables(files: Sequence[TableFile], given: Given, *, root: Location) -> Manifest:
    """List the images of some tables.

    Args:
        files: The tables.
        given: The data.
        root: What the paths of files are relative to.

    Raises:
        ManifestError: No table can be read, columns differ or are of no use, or there are no rows.
        ConfigError: pyarrow is not installed, or a column that was asked for is not there.
    """
    listed, first = _Listed(), None
    for file in files:
        try:
            with damage_of("a table", join(root, file.path)):
                _add(listed, file, given, root)
        except DamagedTableError as error:
            first = first or error
            listed.damaged.append((file, error.message.rstrip(".")))
    if first is not None and len(listed.damaged) == len(files):
        raise first
    if not (listed.rows or listed.paths or listed.pathless):
        damaged = "".join(f" {file.path!r} is damaged: {why}." for file, why in listed.damaged)
        raise ManifestError(
            f"There are no rows in {str(given.data)!r}.{damaged}", hint="Give one per image."
        )
    data = given.data
    found, notes = found_rows(given.data, root, listed.paths, are_all=not listed.rows)
    # Names of members are unique as they are made.
    named = [*found, *_bad_rows(listed)]
    conflicts: dict[str, str] = {}
    unique = unique_rows(data, named, conflicts)
    rows = [*listed.rows, *listed.pathless, *unique]
    splits = split_column(data, [row[2] for row in rows])
    order = sorted(range(len(rows)), key=lambda place: rows[place][0])
    listing = listing_of(
        root if isinstance(root, Remote) else root.resolve(),
        [(rows[place][0], rows[place][1], splits[place]) for place in order],
        (*_notes(listed, given), *notes, *repeated_rows(data, named, unique, conflicts)),
    )
    groups = group_column([rows[place][3] for place in order])
    states = _states({**given.states, **listed.states}, listing)
    return with_conflicts(replace(listing, groups=groups, states=states), conflicts)


def _add(listed: _Listed, file: TableFile, given: Given, root: Location) -> None:
    """Add the rows of a file.

    Raises:
        ManifestError: Its columns are of no use, or others than those of the files before it.
        DamagedTableError: It cannot be read.
    """
    table, state = _opened(root, file.path)
    if table.cut:
        listed.damaged.append((file, f"it is cut short: {table.cut}"))
    if not table.rows:
        return
    where = repr(str(join(root, file.path)))
    features = file.features or features_of(table.schema)
    columns = choose(
        table.schema, features, where, image=given.image_column, label=given.label_column
    )
    _require_alike(listed, file, columns, given)
    labels, beyond = labels_of(table, columns)
    splits = _splits(listed, table, columns, file)
    groups = texts_of(table, columns.group) if columns.group else [""] * table.rows
    paths = list(_paths(table, columns, file, root))
    for (path, is_file), *cells in zip(paths, labels, splits, groups, strict=True):
        kept = listed.paths if is_file else listed.pathless if columns.has_paths else listed.rows
        kept.append((path, *cells))
    listed.columns[file.path], listed.states[file.path] = columns, state
    listed.slow = max(listed.slow, 0 if columns.has_paths else table.largest_group)
    if columns.label:
        listed.unlabelled += labels.count("")
    if beyond:
        row, number = beyond[0]
        listed.beyond += len(beyond)
        listed.example = listed.example or f"{number} in row {row:,} of {file.path!r}"


def _splits(listed: _Listed, table: TablePack, columns: Columns, file: TableFile) -> list[str]:
    """Return the split of each row: that of its cell, else that of its file."""
    if not columns.split:
        return [file.split] * table.rows
    cells = texts_of(table, columns.split)
    if not file.split:
        return cells
    splits = [cell if cell.strip() else file.split for cell in cells]
    listed.overruled += sum(bool(cell.strip()) for cell in cells)
    listed.blank += sum(not cell.strip() for cell in cells)
    return splits


def _opened(root: Location, path: str) -> tuple[TablePack, FileState]:
    """Open a table; return its state, too.

    Raises:
        DamagedTableError: It is damaged, or cannot be read.
    """
    place = join(root, path)
    try:
        table, state = opened(place)
        return cast(TablePack, table), state
    except OSError as error:
        raise DamagedTableError(
            f"{str(place)!r} cannot be read: {error.strerror or error}.",
            hint="Put it back, or check its permissions.",
        ) from error


def _require_alike(listed: _Listed, file: TableFile, columns: Columns, given: Given) -> None:
    """Refuse a file whose columns are others than those of the first.

    Raises:
        ManifestError: They are.
    """
    for other, before in listed.columns.items():
        if before.kind != columns.kind:
            raise ManifestError(
                f"Expected the same columns in all files of {str(given.data)!r}. Received: "
                f"{before.described()} in {other!r}, and {columns.described()} in {file.path!r}.",
                hint="Give files that belong together.",
            )
        return


def _paths(
    table: TablePack, columns: Columns, file: TableFile, root: Location
) -> Iterable[tuple[str, bool]]:
    """Yield the path of each row's image relative to the data, and whether it is a file's own."""
    folder = posixpath.dirname(file.path)
    if columns.has_paths:
        for row, text in enumerate(texts_of(table, columns.image)):
            if text.strip():
                yield posixpath.join(folder, text), True
            else:
                yield f"{file.path}/{name_of(columns.image, row)}", False
        return
    names, has_bytes = table.names.of(columns.image), table.has_bytes(columns.image)
    stored = [""] * len(names)
    if "path" in image_columns(table.schema)[columns.image]:
        # What was never packed is where it was, as far as the table knows.
        stored = texts_of(table, columns.image, "path")
        if has_bytes.any() and not isinstance(root, Remote):
            stored = _there(root / folder, stored)
            if any(stored):
                has_bytes = table.has_bytes(columns.image, exactly=True)
    for name, is_inside, text in zip(names, has_bytes.tolist(), stored, strict=True):
        if is_inside or not text:
            yield f"{file.path}/{name}", False
        else:
            yield posixpath.join(folder, text), True


def _there(folder: Path, paths: Sequence[str]) -> list[str]:
    """Return paths relative to a folder, those empty that are not there."""

    @cache
    def inside(above: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(folder / above))
        except (OSError, ValueError):
            return frozenset()

    split = [(path, *posixpath.split(path)) for path in paths]
    return [path if name in inside(above) else "" for path, above, name in split]


def _bad_rows(listed: _Listed) -> list[Row]:
    """Return a row for each damaged file, which counts as a bad image in place of its own."""
    return [(file.path, "", file.split, "") for file, _ in listed.damaged]


def _notes(listed: _Listed, given: Given) -> list[str]:
    data, columns = given.data.name, next(iter(listed.columns.values()))
    notes = [f"{data}: {columns.described()}"]
    unused = dict.fromkeys(name for found in listed.columns.values() for name in found.unused)
    if unused:
        notes.append(f"{data}: columns not used: {mention(list(unused))}")
    if listed.slow > KEPT_BYTES:
        notes.append(
            f"{data}: row groups of up to {listed.slow / 1e6:,.0f} MB, which are decoded from "
            "their start when images are read in another order; row_group_size=100 avoids it"
        )
    if listed.overruled or listed.blank:
        notes.append(
            f"{data}: splits are those of the column {columns.split!r} "
            f"({counted(listed.overruled, 'row')}), and where it is blank those of files "
            f"({counted(listed.blank, 'row')})"
        )
    if listed.pathless:
        notes.append(
            f"{data}: rows without a path, which count as bad images, {len(listed.pathless):,}: "
            f"{mention([row[0] for row in listed.pathless])}"
        )
    if listed.unlabelled:
        notes.append(
            f"{data}: rows without a label, never trained or scored on: {listed.unlabelled:,}"
        )
    if listed.beyond:
        notes.append(
            f"{data}: labels that no class name is for count as none: {listed.beyond:,}, such as "
            f"{listed.example}"
        )
    notes += [
        f"{file.path!r} counts as one bad image, in place of those that cannot be listed: {reason}"
        for file, reason in listed.damaged
    ]
    return notes


def _states(known: Mapping[str, FileState], listing: Manifest) -> Sequence[FileState | None]:
    """Return the state of each image, which is that of its table if it is in one.

    Args:
        known: States of tables by their paths.
        listing: Its paths are a table, a column and a row; or files, a damaged table among them.

    Returns:
        The states; None of those at addresses, which are asked for together.
    """
    states = []
    for path in listing.paths:
        state = known.get(path.rsplit("/", 2)[0]) or known.get(path)
        if state is None and not is_address(place_of(listing.root, path)):
            state = state_of(listing.root, path)
        states.append(state)
    return states
