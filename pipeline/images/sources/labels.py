"""Labels and other texts of a table's columns."""

import sys
from collections.abc import Sequence
from typing import Final

from pipeline.images.packed.table_members import TablePack, arrow
from pipeline.images.sources.columns import Columns

# Hugging Face's label of what has none.
_NONE: Final = -1


def texts_of(table: TablePack, column: str, part: str = "") -> list[str]:
    """Return a column as texts; empty where there is none.

    Raises:
        DamagedTableError: It cannot be decoded.
    """
    values = table.values(column, part).cast(arrow().string())
    return [text or "" for text in values.to_pylist()]


def labels_of(table: TablePack, columns: Columns) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the label of each row, and the rows whose number no class name is for.

    Returns:
        Labels, empty where there is none; and (row, number) of those that are out of range, whose
        labels are empty too.

    Raises:
        DamagedTableError: The column cannot be decoded.
    """
    if not columns.label:
        return [""] * table.rows, []
    if columns.names is None:
        texts = texts_of(table, columns.label)
        # A hundred thousand copies of ten names would take more memory than the images' names.
        return [sys.intern(text if text.strip() else "") for text in texts], []
    return _named(table.values(columns.label).to_pylist(), columns.names)


def _named(
    numbers: Sequence[int | None], names: Sequence[str]
) -> tuple[list[str], list[tuple[int, int]]]:
    labels, beyond = [], []
    for row, number in enumerate(numbers):
        if number is None or number == _NONE:
            labels.append("")
        elif 0 <= number < len(names):
            labels.append(names[number])
        else:
            labels.append("")
            beyond.append((row, number))
    return labels, beyond
