"""The manifest: which images there are, with label, declared split, key and status.

``scan`` lists a data set (class folders, split folders, or a CSV); stage 1 fills in keys and
statuses; stage 2 joins the result with the store. Labels and splits live here alone, so
relabelling or re-splitting never touches a feature.
"""

import csv
import errno
import os
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ManifestError
from pipeline.files import write_atomically

COLUMNS: Final = ("path", "label", "split", "key", "status")
OK: Final = "ok"
CONFLICT: Final = "conflicting label"
SPLIT_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"test": "test", "train": "train", "val": "val", "valid": "val", "validation": "val"}
)
KEY_DTYPE: Final = np.dtype("S64")
IGNORED_FILES: Final = frozenset({"thumbs.db"})

_KEY = re.compile(r"[0-9a-f]{64}")
_MENTIONED = 5


@dataclass(frozen=True, slots=True)
class Manifest:
    """Examples as columns of equal length, in order of path.

    Attributes:
        root: What the paths are relative to.
        paths: POSIX paths.
        labels: Class names; empty where there is none.
        splits: ``train``, ``val`` or ``test`` as the source declares it, else empty.
        keys: SHA-256 of each file's bytes in hexadecimal, dtype ``S64``; empty when unknown.
        statuses: ``ok``, the reason the image was skipped, or ``conflicting label``.
    """

    root: Path
    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    keys: NDArray[np.bytes_]
    statuses: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Path:
        """Return where the image of one row is."""
        return self.root / self.paths[index]


def scan(data: Path) -> Manifest:
    """List the images of a data set, without opening any; keys and statuses are empty.

    Args:
        data: A folder with one sub-folder a class (label = first level, searched recursively);
            or split folders (``train``, ``val``, ``test``) above the class folders; or a CSV
            with columns ``path,label[,split]``, paths relative to the CSV.

    Raises:
        ManifestError: The folder is missing or empty, has a loop of symbolic links, or the CSV
            lacks a column, names a missing file, or gives one path two labels or splits.
    """
    if data.is_dir():
        return _scan_folder(data)
    if not data.exists():
        raise ManifestError(
            f"There is no data at {str(data)!r}.",
            hint="Give a folder with one sub-folder a class, or a CSV with columns path,label.",
        )
    if data.suffix.lower() != ".csv":
        raise ManifestError(
            f"Expected a folder or a .csv file. Received: the file {str(data)!r}.",
            hint="Give the folder that holds the class folders.",
        )
    return _scan_csv(data)


def read(path: Path, *, root: Path) -> Manifest:
    """Read a manifest that stage 1 wrote, or a copy edited by hand, or a run's manifest.

    Columns ``split`` and ``status`` may be missing (none declared, all ``ok``).

    Raises:
        ManifestError: A column is missing, a key is malformed, or a path has two labels.
    """
    rows = list(_unique_rows(path, ("path", "label", "key")))
    _require_one_key_a_path(path, _csv_rows(path, ("path", "key")))
    for row in rows:
        usable = row.get("status", OK) == OK and row["label"]
        if not _KEY.fullmatch(row["key"]) and (row["key"] or usable):
            raise ManifestError(
                f"{path}: expected a key of 64 hexadecimal digits for {row['path']!r}. "
                f"Received: {row['key']!r}.",
                hint="Keys are written by extract; copy rows from the store's manifest.csv.",
            )
    return Manifest(
        root=root,
        paths=[row["path"] for row in rows],
        labels=[row["label"] for row in rows],
        splits=[_split_name(row.get("split", ""), path) for row in rows],
        keys=np.array([row["key"].encode() for row in rows], dtype=KEY_DTYPE),
        statuses=[row.get("status", OK) for row in rows],
    )


def write(path: Path, manifest: Manifest, *, columns: Sequence[str] = COLUMNS) -> None:
    """Write a manifest as CSV, atomically."""
    write_atomically(path, lambda temporary: fill(temporary, manifest, columns=columns))


def fill(path: Path, manifest: Manifest, *, columns: Sequence[str] = COLUMNS) -> None:
    """Write a manifest as CSV into a file that is not in its place yet."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        # Python leaves a lone carriage return unquoted, and then reads a row's end there.
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in _rows(manifest, columns):
            (quoting if any("\r" in cell for cell in row) else writer).writerow(row)


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


def mention(names: Sequence[str]) -> str:
    """Return the first few names for a message, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:_MENTIONED])
    more = len(names) - _MENTIONED
    return shown + (f" and {more:,} more" if more > 0 else "")


def _rows(manifest: Manifest, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    values = {
        "path": manifest.paths,
        "label": manifest.labels,
        "split": manifest.splits,
        "key": (key.decode() for key in manifest.keys),
        "status": manifest.statuses,
    }
    return zip(*(values[column] for column in columns), strict=True)


def listing_of(root: Path, rows: Sequence[tuple[str, str, str]]) -> Manifest:
    """Return a manifest of (path, label, split) rows whose images nobody has read yet."""
    return Manifest(
        root=root,
        paths=[path for path, _, _ in rows],
        labels=[label for _, label, _ in rows],
        splits=[split for _, _, split in rows],
        keys=np.zeros(len(rows), dtype=KEY_DTYPE),
        statuses=[""] * len(rows),
    )


def _scan_folder(data: Path) -> Manifest:
    top = [entry for entry in _entries(data) if _is_folder(entry)]
    split_of = {entry.name: SPLIT_NAMES.get(entry.name.lower(), "") for entry in top}
    has_splits = len(top) >= 2 and all(split_of.values())
    label_level = 1 if has_splits else 0
    rows = []
    for path in sorted(_walk(data, "", ())):
        parts = path.split("/")
        label = parts[label_level] if len(parts) > label_level + 1 else ""
        split = split_of.get(parts[0], "") if has_splits and len(parts) > 1 else ""
        # A hundred thousand copies of ten names would take more memory than the paths.
        rows.append((path, sys.intern(label), split))
    if not rows:
        raise ManifestError(
            f"There are no files in {str(data)!r}.",
            hint="Give a folder with one sub-folder of images a class.",
        )
    return listing_of(data.resolve(), rows)


def _walk(folder: Path, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to where the walk began."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        raise _link_loop(folder)
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*ancestors, identity))
        elif entry.name.lower() not in IGNORED_FILES:
            yield prefix + entry.name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ManifestError(
            f"The folder {str(folder)!r} cannot be listed: {error.strerror}.",
            hint="Check its permissions.",
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link_loop(Path(entry.path)) from error
        return False


def _link_loop(path: Path) -> ManifestError:
    return ManifestError(
        f"{str(path)!r} is part of a loop of symbolic links.",
        hint="Remove the link that points back, then run this again.",
    )


def _scan_csv(data: Path) -> Manifest:
    rows = sorted(
        (row["path"], row["label"], _split_name(row.get("split", ""), data))
        for row in _unique_rows(data, ("path", "label"))
    )
    root = data.resolve().parent
    missing = [path for path, _, _ in rows if not _exists(root / path)]
    if missing:
        raise ManifestError(
            f"{data}: {len(missing):,} of {len(rows):,} files do not exist: {mention(missing)}.",
            hint="Paths are relative to the CSV; correct them or remove the rows.",
        )
    if not rows:
        raise ManifestError(f"{data} has no rows.", hint="Add one row path,label an image.")
    return listing_of(root, rows)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name too long for the file system
        return False


def _unique_rows(path: Path, required: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV, one a path."""
    labelled: dict[str, tuple[str, str]] = {}
    for row in _csv_rows(path, required):
        row["path"] = posixpath.normpath(row["path"])
        said = (row["label"], row.get("split", ""))
        before = labelled.setdefault(row["path"], said)
        if before is said:
            yield row
        elif before != said:
            raise ManifestError(
                f"{path}: expected one label and split a path. Received: {row['path']!r} "
                f"as {_spelled(before)} and as {_spelled(said)}.",
                hint="Keep one of the rows.",
            )


def _require_one_key_a_path(path: Path, rows: Iterator[dict[str, str]]) -> None:
    keys: dict[str, str] = {}
    for row in rows:
        name = posixpath.normpath(row["path"])
        if keys.setdefault(name, row["key"]) != row["key"]:
            raise ManifestError(
                f"{path}: expected one key a path. Received: {name!r} with two.",
                hint="Keep one of the rows.",
            )


def _spelled(label_and_split: tuple[str, str]) -> str:
    return " in ".join(repr(text) for text in label_and_split if text) or "unlabelled"


def _csv_rows(path: Path, required: Sequence[str]) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = reader.fieldnames or []
            for column in required:
                if column not in columns:
                    raise ManifestError(
                        f"{path}: expected the columns {','.join(required)}. "
                        f"Received: {','.join(columns) or 'an empty file'}.",
                        hint="The first line must name the columns, separated by commas.",
                    )
            for row in reader:
                if not row["path"]:
                    raise ManifestError(f"{path}: line {reader.line_num} has no path.")
                yield {name: text for name, text in row.items() if isinstance(name, str)}
    except (OSError, csv.Error) as error:
        raise ManifestError(f"The manifest {str(path)!r} cannot be read: {error}.") from error


def _split_name(text: str, path: Path) -> str:
    name = text.strip().lower()
    if name and name not in SPLIT_NAMES:
        raise ManifestError(
            f"{path}: expected a split of {', '.join(sorted(SPLIT_NAMES))} or nothing. "
            f"Received: {text!r}.",
            hint="Correct the split column.",
        )
    return SPLIT_NAMES.get(name, "")
