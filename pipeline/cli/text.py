"""Tables, numbers, sizes and bad images as text."""

import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final, TextIO, TypeAlias

from pipeline.files.location import is_address
from pipeline.system.wording import counted

_ERRORS_SHOWN: Final = 10
CLASS: Final = ("class", "classes")
# Columns that a terminal has at least.
WIDTH: Final = 80
_GAP: Final = "  "
# What the cells of a wide table are shortened to at most.
_SHORTEST: Final = 8
# Control characters: those of ASCII have pictures.
_PICTURES: Final = {
    **{number: 0x2400 + number for number in range(32)},
    **dict.fromkeys(range(127, 160), 0xFFFD),
}
# Marks the row of what was chosen.
_CHOSEN: Final = " *"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text; the first row names the columns, the first column the rows.

    Attributes:
        rows: The cells.
        has_words: Whether the last column holds words, which begin at the left as names do.
        spare: Names of columns that are left out, the first first, where all of them are too wide.
        whole: Names of columns whose cells are never shortened, such as paths to open.
    """

    rows: Sequence[Sequence[str]]
    has_words: bool = False
    spare: Sequence[str] = ()
    whole: Sequence[str] = ()


Text = Sequence[str | Table]
# What a command found, as ``--json`` prints it, or a part of it.
Result: TypeAlias = Mapping[str, Any]


def terminal_width(stream: TextIO) -> int | None:
    """Return the columns of the terminal that a stream writes to; None of a pipe or a file."""
    if not stream.isatty():
        return None
    return max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def as_lines(
    text: Text, strong: Callable[[str], str] = str, *, width: int | None = None
) -> Iterator[str]:
    """Yield lines of aligned columns.

    Args:
        text: What to show.
        strong: Makes the line of what was chosen stand out.
        width: Columns that there are, into which cells are shortened. None shortens nothing, for
            programs; columns to spare are left out as on a terminal of ``WIDTH``.
    """
    for block in text:
        if isinstance(block, Table):
            for row, line in zip(block.rows, _aligned(block, width), strict=True):
                yield strong(line) if row[0].endswith(_CHOSEN) else line
        else:
            yield block


def as_html(text: Text) -> str:
    """Return the same for a notebook; whatever comes from data is escaped."""
    return "".join(
        _html_table(block.rows) if isinstance(block, Table) else f"<div>{escape(block)}</div>"
        for block in text
    )


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in (("td" if number else "th", row) for number, row in enumerate(rows))
    )
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def errors(errors: Sequence[Mapping[str, str]], listed: str) -> list[str]:
    """Show the first bad images, and where the others are listed."""
    lines = [f"  skipped {item['path']}: {item['reason']}" for item in errors[:_ERRORS_SHOWN]]
    more = len(errors) - _ERRORS_SHOWN
    return lines + ([f"  and {more:,} more, listed {listed}"] if more > 0 else [])


def conflicting(result: Result) -> list[str]:
    """Return a line on images that stand under two labels; none where there are none."""
    if not result["conflicting"]:
        return []
    return [
        f"{counted(result['conflicting'], 'image')} under two labels, in no split "
        f"(status 'conflicting label' in {result['manifest']})"
    ]


def features_at(result: Result) -> str:
    """Return the line that says where features and manifest are."""
    # At an address there is no file that other programs could read.
    view = "" if is_address(result["store"]) else "/features.h5"
    return f"Features: {result['store']}{view}   Manifest: {result['manifest']}"


def fits(rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether a terminal has room for a table as it is."""
    return _total(_widths([[_visible(cell) for cell in row] for row in rows])) <= WIDTH


def shortened(text: str, room: int) -> str:
    """Return a text that takes no more columns; of a longer one, the middle is left out."""
    kept = len(text)
    short = text
    while _columns(short) > room and kept:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def _aligned(table: Table, width: int | None) -> list[str]:
    """Return lines with names and words to the left and numbers to the right."""
    rows = _with_columns_that_fit(table, width or WIDTH)
    if width is not None:
        rows = _with_cells_that_fit(rows, table.whole, width)
    widths = _widths(rows)
    left = {0, len(widths) - 1} if table.has_words else {0}
    return [
        _GAP.join(
            _padded(cell, width, to_left=column in left)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in rows
    ]


def _with_columns_that_fit(table: Table, room: int) -> list[list[str]]:
    """Return the cells of a table, without columns to spare where all are too wide."""
    rows = [[_visible(cell) for cell in row] for row in table.rows]
    for name in table.spare:
        if _total(_widths(rows)) <= room:
            break
        place = rows[0].index(name)
        rows = [row[:place] + row[place + 1 :] for row in rows]
    return rows


def _with_cells_that_fit(rows: list[list[str]], whole: Sequence[str], room: int) -> list[list[str]]:
    """Return cells of which those of the widest columns are shortened until all fit."""
    widths = _widths(rows)
    places = [place for place, name in enumerate(rows[0]) if name not in whole]
    while places and _total(widths) > room:
        widest = max(places, key=widths.__getitem__)
        if widths[widest] <= _SHORTEST:
            break
        widths[widest] -= 1
    return [
        [shortened(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows
    ]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_columns, column)) for column in zip(*rows, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _padded(cell: str, width: int, *, to_left: bool) -> str:
    blank = " " * (width - _columns(cell))
    return cell + blank if to_left else blank + cell


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "FW" else 1


def _visible(cell: str) -> str:
    """Return a cell with pictures of control characters, which would break the line."""
    return cell if cell.isprintable() else cell.translate(_PICTURES)


def number(value: float | None) -> str:
    """Return a score with three digits; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Return seconds as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def size(count: float) -> str:
    """Return bytes in the unit that a person reads."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
