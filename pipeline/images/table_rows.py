"""Rows of a table of images that are one row a path, and what to say of those that repeat."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pipeline.errors import ManifestError, mention
from pipeline.files.location import Location, normalized
from pipeline.files.table import Row

# Places of cells in a row: path, label, split, group, and what else there is, a key first.
_GROUP: Final = 3
_KEY: Final = 4


def unique_rows(
    path: Location, rows: Iterable[Row], conflicts: dict[str, str] | None = None
) -> list[Row]:
    """Return rows, one a path, with their paths in normal form.

    Args:
        path: The file that they are from.
        rows: Path, label, split, group, and what else there is, of which a key comes first.
        conflicts: Is told of every path with two labels, as which it stands there; None refuses
            such paths.

    Raises:
        ManifestError: A path has two splits, groups or keys, or two labels that nobody is told of.
    """
    found: dict[str, Row] = {}
    for row in rows:
        name = normalized(row[0])
        before = found.setdefault(name, (name, *row[1:]))
        if before[1] != row[1] and conflicts is not None and before[2] == row[2]:
            if before[1].strip() and row[1].strip():
                conflicts[name] = f"{name!r} as {before[1]!r} and as {row[1]!r}"
            elif row[1].strip():  # blank ones say nothing
                found[name] = (name, *row[1:])
        elif before[1:3] != row[1:3]:
            raise ManifestError(
                f"{path}: expected one label and one split per path. Received: {name!r} "
                f"as {_spelled(before[1:3])} and as {_spelled(row[1:3])}.",
                hint="Keep one of the rows.",
            )
        for place, what in ((_GROUP, "group"), (_KEY, "key")):
            if before[place : place + 1] != row[place : place + 1]:
                raise ManifestError(
                    f"{path}: expected one {what} per path. Received: {name!r} with two.",
                    hint="Keep one of the rows.",
                )
    return list(found.values())


def repeated_rows(
    path: Location,
    rows: Sequence[Row],
    unique: Sequence[Row],
    conflicts: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Return what to say of rows that ``unique_rows`` made one; nothing if there are none."""
    if len(rows) == len(unique):
        return []
    counts = Counter(normalized(row[0]) for row in rows)
    again = {name: n - 1 for name, n in counts.items() if n > 1 and name not in conflicts}
    if not again:
        return []
    return [
        f"{path}: rows that repeat others count once, {sum(again.values()):,}: {mention([*again])}"
    ]


def _spelled(label_and_split: Row) -> str:
    return " in ".join(repr(text) for text in label_and_split if text) or "unlabelled"
