"""Tables, numbers, sizes and bad images as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final, TypeAlias

_ERRORS_SHOWN: Final = 10
CLASS: Final = ("class", "classes")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text; the first row names the columns, the first column the rows.

    Attributes:
        rows: The cells.
        has_words: Whether the last column holds words, which begin at the left as names do.
    """

    rows: Sequence[Sequence[str]]
    has_words: bool = False


Text = Sequence[str | Table]
# What a command found, as ``--json`` prints it, or a part of it.
Result: TypeAlias = Mapping[str, Any]


def as_lines(text: Text) -> Iterator[str]:
    """Yield the lines that a terminal shows; columns are aligned."""
    for block in text:
        if isinstance(block, Table):
            yield from _aligned(block)
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


def _aligned(table: Table) -> list[str]:
    """Return lines with names and words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table.rows, strict=True)]
    left = {0, len(widths) - 1} if table.has_words else {0}
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table.rows
    ]


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
