"""The ``compare`` command: the leaderboard of runs, over seeds and sizes of train on request."""

from collections.abc import Sequence
from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.leaderboard import leaderboard, uncertainty
from pipeline.cli.text import Result, Table, Text
from pipeline.config.options import CompareOptions
from pipeline.runs.verdict import verdict
from pipeline.system.wording import counted


def run(options: CompareOptions, call: Call) -> Result:
    """Return the leaderboard of runs."""
    from pipeline.train.compare import compare

    return compare(options, call.reporter)


def text(result: Result) -> Text:
    """Show the leaderboard of several runs, one for each group that shares test images."""
    several = sum(len(group["runs"]) for group in result["groups"]) > 1
    lines: list[str | Table] = [
        line for group in result["groups"] for line in ("", *_of_group(group, several=several))
    ][1:]
    lines += [f"Left out: {item['run']}: {item['reason']}" for item in result["left_out"]]
    if len(result["groups"]) > 1:
        lines.append("Runs of different leaderboards share no test image")
    return [*lines, *_seeds(result["seeds"]), *_curve(result["curve"])]


def _of_group(group: Result, *, several: bool) -> Text:
    """Show one leaderboard; where there are several runs, which one each head is of."""
    rows = [
        {**row, "head": (f"{row['run']}:" if several else "") + row["head"] + " *" * row["best"]}
        for row in group["rows"]
    ]
    lines: list[str | Table] = [leaderboard(rows), *uncertainty(group["n"])]
    for run, count in group["n_by_run"].items():
        if count != group["n"]:
            lines.append(
                f"{run} has {counted(count, 'test image')}; {group['n']:,} are shared by all runs"
            )
    return [*lines, *map(verdict, group["pairs"])]


def _seeds(rows: Sequence[Result]) -> Text:
    """Show mean and spread over seeds."""
    if not rows:
        return []
    table: list[Sequence[str]] = [("head", "mean", "sd", "lowest", "highest")]
    for row in rows:
        cells = (row["mean"], row["sd"], row["low"], row["high"])
        table.append((_titled(row, rows), *(f"{cell:.3f}" for cell in cells)))
    title = f"Test accuracy over {rows[0]['seeds']} seeds of {rows[0]['varies']}:"
    return ["", title, Table(table)]


def _curve(rows: Sequence[Result]) -> Text:
    """Show accuracy against the number of training images."""
    if not rows:
        return []
    counts = list(dict.fromkeys(row["n_train"] for row in rows))
    table: list[Sequence[str]] = [("head", *(f"{count:,}" for count in counts))]
    for title in dict.fromkeys(_titled(row, rows) for row in rows):
        cells = {row["n_train"]: row for row in rows if _titled(row, rows) == title}
        table.append(
            (title, *(f"{cells[c]['accuracy']:.3f}" if c in cells else "" for c in counts))
        )
    return ["", "Test accuracy by number of training images:", Table(table)]


def _titled(row: Result, rows: Sequence[Result]) -> str:
    several = len({item["run"] for item in rows}) > 1
    return f"{row['run']}:{row['head']}" if several else str(row["head"])


COMMAND: Final = Command(CompareOptions, run, text, example="pipeline compare runs/sample")
