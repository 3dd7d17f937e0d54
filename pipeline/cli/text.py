"""What several commands show: the leaderboard, verdicts, sizes; pure functions to lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from pipeline.system.wording import counted

_ERRORS_SHOWN: Final = 10
CLASS: Final = ("class", "classes")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text; the first row names the columns, the first column the rows."""

    rows: Sequence[Sequence[str]]


Text = Sequence[str | Table]


def as_lines(text: Text) -> Iterator[str]:
    """Yield the lines that a terminal shows; columns are aligned."""
    for block in text:
        if isinstance(block, Table):
            yield from _aligned(block.rows)
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


def of_run(result: Mapping[str, Any]) -> Text:
    """Show the leaderboard of a run, the verdicts, and what was written."""
    rows = head_rows(result)
    run = result["run"]
    return [
        leaderboard(rows),
        *uncertainty(result["split"]["test"]),
        *map(verdict, result["pairs"]),
        *rejected(result["heads"]),
        f"Wrote {run}/run.json, {run}/predictions.csv, {run}/manifest.csv, {run}/heads/",
    ]


def head_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the leaderboard rows of one run, best test accuracy first."""
    rows = [
        {
            "head": head + (" *" if head == result["best"] else ""),
            "val_accuracy": record["val"]["accuracy"],
            "fit_seconds": record["fit_seconds"],
            "predict_seconds": record["predict_seconds"],
            **record["test"],
        }
        for head, record in result["heads"].items()
    ]
    return sorted(rows, key=lambda row: -row["accuracy"])


def verdict(pair: Mapping[str, Any]) -> str:
    """Say in plain words what a paired test shows, after correction for many pairs."""
    points = f"{abs(100 * pair['difference']):.1f} points"
    where = f"on {counted(pair['n'], 'image')} ({interval(pair)}"
    p_value = f"p = {pair['p_adjusted']:.2g})"
    if not pair["is_real"]:
        return (
            f"{pair['a']} and {pair['b']} differ by {points} {where}): no real difference shown "
            f"({p_value}"
        )
    word = "better" if pair["difference"] > 0 else "worse"
    return f"{pair['a']} is {points} {word} than {pair['b']} {where}, {p_value}"


def interval(compared: Mapping[str, Any]) -> str:
    """Return the interval that goes with a verdict, in points."""
    low, high = (100 * end for end in compared["simultaneous_ci95"])
    simultaneous = "simultaneous " if compared["comparisons"] > 1 else ""
    return f"{simultaneous}95 % interval {low:+.1f} to {high:+.1f}"


def errors(errors: Sequence[Mapping[str, str]], listed: str) -> list[str]:
    """Show the first bad images, and where the others are listed."""
    lines = [f"  skipped {item['path']}: {item['reason']}" for item in errors[:_ERRORS_SHOWN]]
    more = len(errors) - _ERRORS_SHOWN
    return lines + ([f"  and {more:,} more, listed {listed}"] if more > 0 else [])


def leaderboard(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of heads with their scores, one row per head."""
    table = [("head", "test acc", "95 % interval", "balanced", "macro F1", "log loss", "ECE",
              "val acc", "fit", "predict")]  # fmt: skip
    for row in rows:
        low, high = row["accuracy_ci95"]
        table.append(
            (
                row["head"],
                number(row["accuracy"]),
                f"{low:.3f} - {high:.3f}",
                number(row["balanced_accuracy"]),
                number(row["macro_f1"]),
                number(row["log_loss"]),
                number(row["ece"]),
                number(row["val_accuracy"]),
                f"{row['fit_seconds']:.1f} s",
                f"{1e3 * row['predict_seconds']:.0f} ms",
            )
        )
    return Table(table)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the first column to the left and the others to the right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def uncertainty(count: int) -> list[str]:
    """Say what the star and the intervals of a leaderboard mean."""
    return [
        f"* chosen on val. Accuracy on {counted(count, 'test image')}, scored once; "
        "Wilson interval."
    ]


def rejected(heads: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what withholding answers below the threshold does, if there is one."""
    lines = []
    for head, record in heads.items():
        threshold, test = record["reject"]["threshold"], record["reject"]["test"]
        if threshold > 0:
            accuracy = "-" if test["accuracy"] is None else f"{test['accuracy']:.3f}"
            lines.append(
                f"{head}: at probability {threshold:g} and above it answers "
                f"{100 * test['coverage']:.1f} % of test, accuracy {accuracy} among them"
            )
    return lines


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
