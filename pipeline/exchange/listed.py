"""A list of rows for features that come without: a table ``path,label,…``, or one path a line."""

import re
from pathlib import Path
from typing import Final

from pipeline.errors import ManifestError
from pipeline.exchange.feature_table import COLUMNS, PATH
from pipeline.files.location import Location
from pipeline.files.regular import open_regular
from pipeline.files.table import folded, read_table
from pipeline.images import place
from pipeline.images.manifest import SUFFIX

SUFFIXES: Final = (".csv", ".txt")
_TABLES: Final = (".csv", ".tsv")
_DELIMITER: Final = re.compile(r"[,;\t|]")


def beside(path: Path) -> Path | None:
    """Return the list that lies beside a file of features under its name; None of none."""
    places = (path.with_suffix(suffix) for suffix in SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def read(path: Path, root: Location) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Read a list, row by row as it stands.

    Args:
        path: A table with a column ``path``, or a text of one path a line.
        root: What the paths are relative to.

    Returns:
        The columns that there are, by name (``feature_table.COLUMNS``), and notes.

    Raises:
        ManifestError: It cannot be read, or a row has no path.
    """
    try:
        with open_regular(path) as file:
            first = file.readline().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise ManifestError(
            f"The list {str(path)!r} cannot be read: {error.strerror or error}.",
            hint="Give a CSV with a column path, or a text of one path a line, with --paths.",
        ) from error
    names = {folded(cell.strip('"')) for cell in _DELIMITER.split(first)}
    if path.suffix.lower() not in _TABLES and PATH not in names:
        return {PATH: _lines(path)}, ()
    table = read_table(
        path,
        COLUMNS,
        required=(PATH,),
        exists=lambda text: place.exists(root, text),
        is_row=lambda cells: bool(SUFFIX.search(cells[0])),
    )
    places = {name: place for place, name in enumerate(COLUMNS) if name in table.columns}
    return {name: [row[place] for row in table.rows] for name, place in places.items()}, table.notes


def _lines(path: Path) -> list[str]:
    with open_regular(path) as file:
        text = file.read().decode("utf-8-sig", errors="surrogateescape")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip() or "\0" in line:
            raise ManifestError(
                f"{path}: expected a path in line {number}. Received: {line!r}.",
                hint="Save the list as UTF-8, one path a line, in the order of the features.",
            )
    return lines
