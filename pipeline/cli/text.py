"""Tables, numbers, sizes and bad images as text; called by whatever shows a result."""

from collections.abc import Mapping, Sequence
from typing import Final

_ERRORS_SHOWN: Final = 10
CLASS: Final = ("class", "classes")


def errors(errors: Sequence[Mapping[str, str]], listed: str) -> list[str]:
    """Show the first bad images, and where the others are listed."""
    lines = [f"  skipped {item['path']}: {item['reason']}" for item in errors[:_ERRORS_SHOWN]]
    more = len(errors) - _ERRORS_SHOWN
    return lines + ([f"  and {more:,} more, listed {listed}"] if more > 0 else [])


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the first column to the left and the others to the right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
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
