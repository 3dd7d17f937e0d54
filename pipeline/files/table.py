"""Tables: CSVs that people write, read strictly or refused, and those that we write.

Header cells are stripped and case-folded; commas, semicolons and tabs part cells; UTF-8, UTF-16
and Windows-1252 are recognised. What was assumed or left out is noted. What ``write_csv`` writes is
read back cell by cell as it was, here and by every other reader of CSV.
"""

import codecs
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Final, TextIO

from pipeline.errors import ManifestError, mention
from pipeline.files.regular import open_regular

Row = tuple[str, ...]

# The longer mark first: that of UTF-32 begins like that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig", ""),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_DELIMITERS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# What spreadsheets write above the header to say how cells are parted.
_SEPARATOR_LINE: Final = re.compile(r"\s*sep=(.)\s*", re.IGNORECASE)
_UNDECODED: Final = re.compile("[\udc80-\udcff]")
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Table:
    """The columns asked for.

    Attributes:
        rows: Cells in the order of the columns asked for; empty where there is no such column.
        notes: What was assumed about the file or not used, one line each.
        columns: Names of all columns of the file, stripped and case-folded.
    """

    rows: list[Row]
    notes: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(slots=True)
class _Header:
    """The first line, understood."""

    cells: list[str]
    delimiter: str
    line: int
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [folded(cell) for cell in self.cells]

    @property
    def has_blanks(self) -> bool:
        """Whether a blank follows every delimiter, as in ``path, label``."""
        return len(self.cells) > 1 and all(cell.startswith(" ") for cell in self.cells[1:])


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows, the header first, in UTF-8; bytes of file names that are none are kept.

    Args:
        path: A file that is not in its place yet; see ``files.atomic``.
        rows: Cells, which may hold any text but NUL.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        # Python leaves a lone carriage return unquoted, and then reads a row's end there.
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in rows:
            (quoting if "\r" in "".join(row) else writer).writerow(row)


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    required: Sequence[str],
    exists: Callable[[str], bool],
    is_row: Callable[[Sequence[str]], bool],
) -> Table:
    """Read the columns asked for of a table with a header.

    Args:
        path: The file.
        columns: What is asked for; the first is the path of an image.
        required: Those that must be there.
        exists: Tells whether there is an image at a path; asked only about paths that are no
            UTF-8, which may be the very bytes of a file's name, or text in another encoding.
        is_row: Tells whether cells, in the order of the columns asked for, are surely a row; asked
            only about lines within a quoted cell, which a forgotten quote would swallow.

    Raises:
        ManifestError: The file cannot be read, lacks a column, has one twice, or a row that is
            none.
    """
    encoding, name = _encoding(path)
    notes = [f"{path}: read as {name}"] if name else []
    try:
        with TextIOWrapper(
            open_regular(path), encoding=encoding, errors="surrogateescape", newline=""
        ) as file:
            header = _header(file, path, required)
            places = _places(header, path, columns)
            rows = list(_rows(file, path, header, places, is_row))
    except (OSError, UnicodeError) as error:
        raise ManifestError(
            f"The manifest {str(path)!r} cannot be read: {error}.",
            hint="Save it as a CSV in UTF-8.",
        ) from error
    rows, undecoded = _decoded(path, rows, exists)
    return Table(rows, (*notes, *header.notes, *undecoded), tuple(filter(None, header.names)))


def _encoding(path: Path) -> tuple[str, str]:
    """Return the encoding that a file's first bytes tell, and its name where it is not UTF-8."""
    try:
        with open_regular(path) as file:
            start = file.read(4)
    except OSError as error:
        raise ManifestError(f"The manifest {str(path)!r} cannot be read: {error}.") from error
    for mark, encoding, name in _MARKS:
        if start.startswith(mark):
            return encoding, name
    return "utf-8", ""


def folded(cell: str) -> str:
    """Return the name of a column as headers are compared."""
    return cell.strip(" \t\r\n\u00a0\u200b\ufeff").casefold()


def _header(file: TextIO, path: Path, required: Sequence[str]) -> _Header:
    """Find the header and what parts its cells.

    Raises:
        ManifestError: The first line does not name the columns.
    """
    line, number = _next_line(file, 0)
    separator = _SEPARATOR_LINE.fullmatch(line)
    delimiters = [separator[1]] if separator else list(_DELIMITERS)
    if separator:
        line, number = _next_line(file, number)
    if "\0" in line:
        raise _not_text(path, number)
    parsed = [(_cells(line, delimiter), delimiter) for delimiter in delimiters]
    for cells, delimiter in parsed:
        if set(required) <= set(map(folded, cells)):
            notes = (
                []
                if delimiter == ","
                else [f"{path}: columns are separated by {_named(delimiter)}"]
            )
            return _Header(cells, delimiter, number, notes)
    cells, _ = max(parsed, key=lambda pair: len(pair[0]))
    raise ManifestError(
        f"{path}: expected the columns {','.join(required)}. "
        f"Received: {','.join(cells) or 'an empty file'}.",
        hint="The first line must name the columns, separated by commas.",
    )


def _next_line(file: TextIO, number: int) -> tuple[str, int]:
    """Return the next line that is not blank, and its number."""
    for line in file:
        number += 1
        if line.strip():
            return line, number
    return "", number


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _named(delimiter: str) -> str:
    return _DELIMITERS.get(delimiter, repr(delimiter))


def _places(header: _Header, path: Path, columns: Sequence[str]) -> list[int]:
    """Return where the columns asked for are, -1 for none; note those that nobody asked for."""
    names = header.names
    for name in columns:
        if names.count(name) > 1:
            said = [cell for cell in header.cells if folded(cell) == name]
            raise ManifestError(
                f"{path}: expected one column {name!r}. Received: {mention(said)}.",
                hint="Remove or rename the others.",
            )
    unused = [cell.strip() for cell in header.cells if folded(cell) not in (*columns, "")]
    if unused:
        header.notes.append(f"{path}: columns not used: {mention(unused)}")
    return [names.index(name) if name in names else -1 for name in columns]


def _rows(
    file: TextIO,
    path: Path,
    header: _Header,
    places: Sequence[int],
    is_row: Callable[[Sequence[str]], bool],
) -> Iterator[Row]:
    """Yield the rows; those of a spreadsheet that are blank are none."""
    reader = csv.reader(
        file, delimiter=header.delimiter, strict=True, skipinitialspace=header.has_blanks
    )
    width = len(header.cells)
    while True:
        line = header.line + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _open_quote(path, line, str(error)) from error
        text = "".join(cells)
        if not text.strip():
            continue
        if "\0" in text:
            raise _not_text(path, line)
        if len(cells) != width:
            cells = _fitted(path, line, cells, width)
        row = tuple(cells[place] if place >= 0 else "" for place in places)
        if not row[0]:
            raise ManifestError(f"{path}: line {line} has no path.")
        if header.line + reader.line_num > line:
            _require_one_row(path, line, cells, header, places, is_row)
        yield row


def _fitted(path: Path, line: int, cells: list[str], width: int) -> list[str]:
    """Return cells with those that are left out at the end, without blank ones too many.

    Raises:
        ManifestError: There are more cells than columns: most often a name with a comma in it.
    """
    if any(cell.strip() for cell in cells[width:]):
        raise ManifestError(
            f"{path}: line {line}: expected {width} cells, as in the first line. "
            f"Received: {len(cells)}: {mention(cells)}.",
            hint="Put a cell that has a comma in it in quotes.",
        )
    return (cells + [""] * width)[:width]


def _require_one_row(
    path: Path,
    line: int,
    cells: Sequence[str],
    header: _Header,
    places: Sequence[int],
    is_row: Callable[[Sequence[str]], bool],
) -> None:
    """Refuse cells of several lines that hold whole rows.

    Raises:
        ManifestError: A quote was opened in one row and closed in another.
    """
    if _LINE_END.search(cells[places[0]]):  # the name of a file may be anything
        return
    for inner in _LINE_END.split(header.delimiter.join(cells))[1:]:
        swallowed = _cells(inner, header.delimiter)
        if len(swallowed) == len(header.cells) and is_row(
            [swallowed[place] if place >= 0 else "" for place in places]
        ):
            raise _open_quote(path, line, f"the row {inner!r} within a quoted cell")


def _open_quote(path: Path, line: int, received: str) -> ManifestError:
    return ManifestError(
        f"{path}: line {line}: expected every quote that is opened to be closed, before the next "
        f"cell. Received: {received[:_SHOWN]}.",
        hint=f"Close the quote in line {line}, or double one that belongs to the text.",
    )


def _not_text(path: Path, line: int) -> ManifestError:
    return ManifestError(
        f"{path}: expected text in UTF-8. Received: NUL characters in line {line}, as in UTF-16 "
        "without a byte order mark.",
        hint="Save it as a CSV in UTF-8.",
    )


def _decoded(
    path: Path, rows: list[Row], exists: Callable[[str], bool]
) -> tuple[list[Row], list[str]]:
    """Decode cells that are no UTF-8, unless they hold the very bytes of file names.

    File names of Linux may be any bytes; manifests write them as they are. Otherwise such a cell
    is text of a spreadsheet in the Windows encoding of Western Europe.
    """
    places = [
        number
        for number, row in enumerate(rows)
        if not (text := "".join(row)).isascii() and _UNDECODED.search(text)
    ]
    if not places:
        return rows, []
    named = [rows[number][0] for number in places if _UNDECODED.search(rows[number][0])]
    if any(map(exists, named)):
        return rows, []
    if named and not any(exists(_windows(text)) for text in named):
        return rows, [f"{path}: rows that are not UTF-8, kept as they are: {len(places):,}"]
    rows = list(rows)
    for number in places:
        rows[number] = tuple(map(_windows, rows[number]))
    example = next(cell for cell in rows[places[0]] if not cell.isascii())
    return rows, [
        f"{path}: rows that are not UTF-8, read as Windows-1252: {len(places):,}, such as "
        f"{example!r}; if that is wrong, save it as UTF-8"
    ]


def _windows(text: str) -> str:
    """Return a cell whose undecoded bytes are read as Windows-1252; others as they are."""
    if not _UNDECODED.search(text):
        return text
    data = text.encode("utf-8", errors="surrogateescape")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:  # five bytes that it leaves open
        return data.decode("latin-1")
