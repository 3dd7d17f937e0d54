"""The manifest: which images there are, with label, declared split, key and status.

``sources`` lists a data set; stage 1 fills in keys and statuses; stage 2 joins the result with
the store. Labels and splits live here alone, so relabelling or re-splitting never touches a
feature.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ManifestError, mention
from pipeline.files.atomic import write_atomically
from pipeline.files.location import Location, join
from pipeline.files.state import FileState
from pipeline.files.table import folded, read_table, write_csv
from pipeline.images.place import exists
from pipeline.images.split_names import splits_of
from pipeline.images.table_rows import repeated_rows, unique_rows
from pipeline.system.wording import counted

COLUMNS: Final = ("path", "label", "split", "key", "status")
# Beside them where the source has it: what belongs together, such as the photos of one patient.
GROUP: Final = "group"
# In the rows of a run, beside the split that a row is in: what the source declared of it.
DECLARED: Final = "declared"
OK: Final = "ok"
CONFLICT: Final = "conflicting label"
KEY_DTYPE: Final = np.dtype("S64")

_KEY: Final = re.compile(r"[0-9a-f]{64}")
# Columns that are read, in the order of a row's cells; a person may name another one for the group.
_READ: Final = ("path", "label", "split", GROUP, "key", "status", DECLARED)
_KEY_PLACE: Final = _READ.index("key")
# What a path ends in, where it is surely one.
SUFFIX: Final = re.compile(r"\.[A-Za-z]\w{2,4}$")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Examples as columns of equal length, in order of path; those in packed files as stored.

    Attributes:
        root: What the paths are relative to.
        paths: POSIX paths.
        labels: Class names; empty where there is none.
        splits: ``train``, ``val`` or ``test`` as the source declares it, else empty.
        keys: SHA-256 of each file's bytes in hexadecimal, dtype ``S64``; empty when unknown.
        statuses: ``ok``, the reason the image was skipped, or ``conflicting label``.
        notes: What was assumed about the source or left out of it, one line each.
        groups: What each image belongs to; empty where it is alone. No values at all where the
            source names no group.
        declared: Of the rows of a run whose source declares some in train and nothing of the
            others, what it declared of each; no values at all of others.
        states: The state of each image where listing the source told it, None of one that is gone;
            no values at all of others, whose place is asked.
    """

    root: Location
    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    keys: NDArray[np.bytes_]
    statuses: Sequence[str]
    notes: tuple[str, ...] = ()
    groups: Sequence[str] = ()
    declared: Sequence[str] = ()
    states: Sequence[FileState | None] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Location:
        """Return where the image of one row is."""
        return join(self.root, self.paths[index])

    def take(self, rows: Sequence[int]) -> "Manifest":
        """Return some of the rows, in the order given."""
        return replace(
            self,
            paths=[self.paths[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            splits=[self.splits[row] for row in rows],
            keys=self.keys[list(rows)],
            statuses=[self.statuses[row] for row in rows],
            groups=[self.groups[row] for row in rows] if self.groups else (),
            declared=[self.declared[row] for row in rows] if self.declared else (),
            states=[self.states[row] for row in rows] if self.states else (),
        )

    def with_rows(
        self,
        paths: Sequence[str],
        labels: Sequence[str],
        splits: Sequence[str],
        states: Sequence[FileState],
    ) -> "Manifest":
        """Return a listing of other rows, whose images nobody has read yet."""
        keys = np.zeros(len(paths), dtype=KEY_DTYPE)
        statuses = [""] * len(paths)
        return replace(
            self, paths=paths, labels=labels, splits=splits, keys=keys, statuses=statuses,
            states=states,
        )  # fmt: skip

    def skipped(self) -> list[tuple[str, str]]:
        """Return path and status of the rows that are not ``ok``."""
        return [
            (path, status)
            for path, status in zip(self.paths, self.statuses, strict=True)
            if status != OK
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of its file."""
        return (*COLUMNS, GROUP) if self.groups else COLUMNS


def read(path: Path, *, root: Location, group: str | None = None) -> Manifest:
    """Read a manifest that stage 1 wrote, or a copy edited by hand, or a run's manifest.

    Columns ``split`` and ``status`` may be missing (none declared, all ``ok``).

    Args:
        path: The file.
        root: What its paths are relative to.
        group: Column that says what images belong to; None takes ``group`` where there is one.

    Raises:
        ManifestError: A column is missing, a key is malformed, or a path has two labels.
    """
    named = GROUP if group is None else folded(group)
    table = read_table(
        path,
        tuple(named if column == GROUP else column for column in _READ),
        required=("path", "label", "key"),
        exists=lambda text: exists(root, text),
        is_row=lambda cells: bool(_KEY.fullmatch(cells[_KEY_PLACE]) and SUFFIX.search(cells[0])),
    )
    if group is not None and (named in COLUMNS or named not in table.columns):
        others = [column for column in table.columns if column not in COLUMNS]
        raise ManifestError(
            f"--group: expected a column of {str(path)!r} beside {', '.join(COLUMNS)}. Received: "
            f"{group!r}; there is {mention(others) or 'no other one'}.",
            hint="Name one of these, or give a file that has the column, by --manifest.",
        )
    rows = unique_rows(path, table.rows)
    keys, statuses = [], []
    for name, label, _, _, typed, status, _ in rows:
        key = typed.strip()
        # Rows that were added by hand have none.
        is_ok = status.strip().casefold() in ("", OK)
        if not _KEY.fullmatch(key) and (key or (is_ok and label)):
            raise ManifestError(
                f"{path}: expected a key of 64 hexadecimal digits for {name!r}. "
                f"Received: {typed!r}.",
                hint="Keys are written by extract; copy rows from the store's manifest.csv.",
            )
        keys.append(key.encode())
        statuses.append(OK if is_ok else status)
    return Manifest(
        root=root,
        paths=[row[0] for row in rows],
        labels=[sys.intern(row[1]) for row in rows],
        splits=split_column(path, [row[2] for row in rows]),
        keys=np.array(keys, dtype=KEY_DTYPE),
        statuses=statuses,
        notes=(*table.notes, *repeated_rows(path, table.rows, rows)),
        groups=group_column([row[3] for row in rows]),
        declared=declared if any(declared := split_column(path, [row[6] for row in rows])) else (),
    )


def write(path: Path, manifest: Manifest, *, columns: Sequence[str] | None = None) -> None:
    """Write a manifest as CSV, atomically; None stands for all columns."""
    write_atomically(path, lambda temporary: fill(temporary, manifest, columns=columns))


def fill(path: Path, manifest: Manifest, *, columns: Sequence[str] | None = None) -> None:
    """Write a manifest as CSV into a file that is not in its place yet."""
    chosen = manifest.columns if columns is None else columns
    write_csv(path, chain([chosen], _rows(manifest, chosen)))


def cells(manifest: Manifest, row: int, **others: str) -> tuple[str, ...]:
    """Return the cells of a row for a table to edit, in the order of ``Manifest.columns``.

    Args:
        manifest: The rows.
        row: Its number.
        others: Cells to write in the place of the manifest's, by column.
    """
    status = manifest.statuses[row]
    own = {
        "path": manifest.paths[row],
        "label": manifest.labels[row],
        "split": manifest.splits[row],
        "key": manifest.keys[row].decode(),
        # Whether two labels conflict is for the reader to find out, after they were edited.
        "status": OK if status == CONFLICT else status,
        GROUP: manifest.groups[row] if manifest.groups else "",
    }
    return tuple({**own, **others}[column] for column in manifest.columns)


def mark_conflicts(manifest: Manifest) -> Manifest:
    """Give every image that stands under two labels the status ``conflicting label``."""
    labels: dict[bytes, str] = {}
    conflicting = set()
    counted = [
        index
        for index in _repeated(manifest.keys)
        if manifest.labels[index] and manifest.statuses[index] in (OK, CONFLICT)
    ]
    for index in counted:
        key, label = manifest.keys[index], manifest.labels[index]
        if labels.setdefault(key, label) != label:
            conflicting.add(key)
    statuses = list(manifest.statuses)
    for index in counted:
        if manifest.keys[index] in conflicting:
            statuses[index] = CONFLICT
    return replace(manifest, statuses=statuses)


def _repeated(keys: NDArray[np.bytes_]) -> list[int]:
    """Return the rows whose key another row has too."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    repeated = np.zeros(len(keys), dtype=bool)
    repeated[1:] |= same
    repeated[:-1] |= same
    return [int(index) for index in np.sort(order[repeated])]


def _rows(manifest: Manifest, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    values = {
        "path": manifest.paths,
        "label": manifest.labels,
        "split": manifest.splits,
        "key": (key.decode() for key in manifest.keys),
        "status": manifest.statuses,
        GROUP: manifest.groups,
        DECLARED: manifest.declared,
    }
    return zip(*(values[column] for column in columns), strict=True)


def listing_of(
    root: Location, rows: Sequence[tuple[str, str, str]], notes: tuple[str, ...] = ()
) -> Manifest:
    """Return a manifest of (path, label, split) rows whose images nobody has read yet."""
    return Manifest(
        root=root,
        paths=[path for path, _, _ in rows],
        labels=[label for _, label, _ in rows],
        splits=[split for _, _, split in rows],
        keys=np.zeros(len(rows), dtype=KEY_DTYPE),
        statuses=[""] * len(rows),
        notes=notes,
    )


def none_usable(errors: Sequence[Mapping[str, str]], *, hint: str) -> ManifestError:
    """Return the error for a list of files of which not one is an image.

    Args:
        errors: Each file with its ``path`` and the ``reason``.
        hint: What to give instead.
    """
    first, count = errors[0], counted(len(errors), "file")
    return ManifestError(
        f"None of {count} could be used; the first, {first['path']!r}: {first['reason']}.",
        hint=hint,
    )


def with_conflicts(listing: Manifest, conflicts: Mapping[str, str]) -> Manifest:
    """Return a listing in which paths with two labels have none, and ``conflicting label``.

    Args:
        listing: The listing.
        conflicts: Such paths, with what ``unique_rows`` says of each.
    """
    if not conflicts:
        return listing
    listed = mention(list(conflicts.values()), quoted=False)
    note = f"Images with two labels are in no split, {len(conflicts):,}: {listed}"
    return replace(
        listing,
        labels=["" if path in conflicts else label
                for path, label in zip(listing.paths, listing.labels, strict=True)],
        statuses=[CONFLICT if path in conflicts else "" for path in listing.paths],
        notes=(*listing.notes, note),
    )  # fmt: skip


def as_read(listing: Manifest, keys: NDArray[np.bytes_], statuses: Sequence[str]) -> Manifest:
    """Return a listing with what was found of its images: keys, and statuses by ``mark_conflicts``.

    What the source gave two labels has none, and nor have copies of it, so that whoever reads the
    rows again, such as edited ones, does not take one of the two for the right one.
    """
    told = {
        key
        for key, before, found in zip(keys.tolist(), listing.statuses, statuses, strict=True)
        if (before, found) == (CONFLICT, OK)
    }
    labels, marked = listing.labels, list(statuses)
    if told:
        labels = list(labels)
        for row, key in enumerate(keys.tolist()):
            if key in told and marked[row] == OK:
                labels[row], marked[row] = "", CONFLICT
    return mark_conflicts(replace(listing, labels=labels, keys=keys, statuses=marked))


def split_column(path: Location, cells: Sequence[str]) -> list[str]:
    """Return the splits that the cells of a column stand for; empty where they are blank.

    Raises:
        ManifestError: One stands for none.
    """
    splits = splits_of({cell for cell in cells if cell.strip()})
    for cell, split in splits.items():
        if not split:
            raise ManifestError(
                f"{path}: expected a split of train, val, test, a usual name for one, or nothing. "
                f"Received: {cell!r}.",
                hint="Correct the split column.",
            )
    return [splits.get(cell, "") for cell in cells]


def group_column(cells: Sequence[str]) -> Sequence[str]:
    """Return the groups that the cells of a column name, without blanks around; none of none."""
    groups = [sys.intern(cell.strip()) for cell in cells]
    return groups if any(groups) else ()
