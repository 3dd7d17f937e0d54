"""A data set as Parquet or Arrow files, with images in a column, or paths of images.

One file, or a folder of them whose names, or those of their folders, may be those of splits, as in
``train-00000-of-00002.parquet``.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    unique_rows,
)
from pipeline.images.packed.row_groups import KEPT_BYTES
from pipeline.images.packed.table_members import TablePack, damage_of
from pipeline.images.place import name_of, opened, state_of
from pipeline.images.sources.columns import Columns, choose, features_of
from pipeline.images.sources.csv_file import found_rows
from pipeline.images.sources.folder_tree import may_be_image
from pipeline.images.sources.given import Given
from pipeline.images.sources.labels import labels_of, texts_of
from pipeline.images.split_names import splits_of
from pipeline.system.wording import counted

_SUFFIXES: Final = (".parquet", ".arrow")
_NUMBERING: Final = re.compile(r"-\d+-of-\d+$")


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
        damaged: Files of which some images or all cannot be listed, each with the error.
        columns: The columns of each file that was read.
        states: The state of each file that was read.
        unlabelled: Rows whose label is empty.
        beyond: Rows whose label no class name is for.
        example: Such a label, and where it is.
        slow: Bytes of the largest row group.
    """

    rows: list[Row] = field(default_factory=list)
    paths: list[Row] = field(default_factory=list)
    damaged: list[tuple[TableFile, str]] = field(default_factory=list)
    columns: dict[str, Columns] = field(default_factory=dict)
    states: dict[str, FileState] = field(default_factory=dict)
    unlabelled: int = 0
    beyond: int = 0
    example: str = ""
    slow: int = 0


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
        given.require_no_folders()
        root, name = given.data.parent, given.data.name
        # Of one with a query, the address alone leads to it.
        path = name if join(root, name) == given.data else str(given.data)
        return scan_tables([TableFile(path)], given, root=root)
    _require_no_classes(given)
    names = [path for path in given.tree.paths if packed.kind_of(path)]
    files = [TableFile(path, split) for path, split in _splits_of_files(names).items()]
    notes = []
    left_out = [path for path in given.tree.paths if not packed.kind_of(path)]
    unnamed = [file.path for file in files if not file.split]
    if len(unnamed) < len(files):
        counts = Counter(file.split for file in files if file.split)
        listed = [f"{split} ({counted(count, 'file')})" for split, count in counts.items()]
        notes.append(f"Splits go by names of files: {', '.join(listed)}")
        if given.layout == "splits":
            files, left_out = [file for file in files if file.split], [*left_out, *unnamed]
        elif unnamed:
            notes.append(
                f"Files that name no split are divided by hash: {mention(unnamed)}; "
                "--layout splits leaves them out"
            )
    if left_out:
        notes.append(f"Left out: {mention(left_out)}")
    listing = scan_tables(files, given, root=given.data)
    return replace(listing, notes=(*notes, *listing.notes))


def _require_no_classes(given: Given) -> None:
    """Refuse what says that folders are classes.

    Raises:
        ConfigError: They are said to be.
    """
    layout = "auto" if given.layout == "splits" else given.layout
    replace(given, layout=layout).require_no_folders()


def _splits_of_files(paths: Sequence[str]) -> dict[str, str]:
    """Return the split of each file, by its name or that of a folder around it; else empty."""
    names = {path: _names_of(path) for path in paths}
    for level in range(max(map(len, names.values()), default=0)):
        at_level = {
            path: parts[level] if level < len(parts) else "" for path, parts in names.items()
        }
        splits = splits_of(set(at_level.values()))
        if any(splits.values()):
            return {path: splits[name] for path, name in at_level.items()}
    return dict.fromkeys(paths, "")


def _names_of(path: str) -> list[str]:
    """Return a file's name without numbers of shards, then those of its folders from inside."""
    *folders, name = path.split("/")
    return [_NUMBERING.sub("", name.rpartition(".")[0]), *reversed(folders)]


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
    if not listed.rows and not listed.paths:
        raise ManifestError(
            f"There are no rows in {str(given.data)!r}.", hint="Give one per image."
        )
    data = Path(str(given.data))
    found, notes = found_rows(given.data, root, listed.paths) if listed.paths else ([], [])
    # Names of members are unique as they are made.
    rows = [*listed.rows, *unique_rows(data, [*found, *_bad_rows(listed)])]
    splits = split_column(data, [row[2] for row in rows])
    order = sorted(range(len(rows)), key=lambda place: rows[place][0])
    listing = listing_of(
        root if isinstance(root, Remote) else root.resolve(),
        [(rows[place][0], rows[place][1], splits[place]) for place in order],
        (*_notes(listed, given), *notes),
    )
    groups = group_column([rows[place][3] for place in order])
    states = _states({**given.states, **listed.states}, listing)
    return replace(listing, groups=groups, states=states)


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
    splits = texts_of(table, columns.split) if columns.split else [file.split] * table.rows
    groups = texts_of(table, columns.group) if columns.group else [""] * table.rows
    paths = list(_paths(table, columns, file, where))
    for (path, is_file), *cells in zip(paths, labels, splits, groups, strict=True):
        (listed.paths if is_file else listed.rows).append((path, *cells))
    listed.columns[file.path], listed.states[file.path] = columns, state
    listed.slow = max(listed.slow, 0 if columns.has_paths else table.largest_group)
    if columns.label:
        listed.unlabelled += labels.count("")
    if beyond:
        row, number = beyond[0]
        listed.beyond += len(beyond)
        listed.example = listed.example or f"{number} in row {row:,} of {file.path!r}"


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
    table: TablePack, columns: Columns, file: TableFile, where: str
) -> Iterable[tuple[str, bool]]:
    """Yield the path of each row's image relative to the data, and whether it is a file's own."""
    folder = posixpath.dirname(file.path)
    if columns.has_paths:
        for row, text in enumerate(texts_of(table, columns.image)):
            if not text.strip():
                raise ManifestError(f"{where}: row {row:,} has no path.")
            yield posixpath.join(folder, text), True
        return
    names, has_bytes = table.names.of(columns.image), table.has_bytes(columns.image)
    kind = table.schema.field(columns.image).type
    # What was never packed is where it was, as far as the table knows.
    has_paths = not has_bytes.all() and any(name.endswith("path") for name in _fields(kind))
    stored = texts_of(table, columns.image, "path") if has_paths else [""] * len(names)
    for name, is_inside, text in zip(names, has_bytes.tolist(), stored, strict=True):
        if is_inside or not text:
            yield f"{file.path}/{name}", False
        else:
            yield posixpath.join(folder, text), True


def _fields(kind: Any) -> list[str]:
    return [kind.field(place).name for place in range(kind.num_fields)]


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
        The states; nothing if one is at an address, where all are asked for together.
    """
    states = []
    for path in listing.paths:
        state = known.get(path.rsplit("/", 2)[0]) or known.get(path)
        if state is None:
            if is_address(name_of(listing.root, path)):
                return ()
            state = state_of(listing.root, path)
        states.append(state)
    return states
