"""A run as text: its leaderboard, its verdicts, and the classes that it finds worst."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.cli.class_tables import worst_classes
from pipeline.cli.text import Result, Table, Text, number
from pipeline.runs.verdict import verdict
from pipeline.system.wording import counted

# Columns of a leaderboard that a narrow terminal does without; ``--json`` has them all.
_SPARE: Final = ("predict", "ECE", "bal acc", "F1", "fit")


def of_run(result: Result, *said: str) -> Text:
    """Show the leaderboard of a run, the verdicts, and what was written.

    Args:
        result: What the command returned.
        said: What the command says before it tells what was written.
    """
    run = result["run"]
    return [
        leaderboard(head_rows(result)),
        *uncertainty(result["split"]["test"]),
        *map(verdict, result["pairs"]),
        *rejected(result["heads"]),
        *worst_classes(result),
        *said,
        f"Wrote {run}/run.json, {run}/predictions.csv, {run}/manifest.csv, {run}/heads/",
        *_logged(result),
        f"Report: {result['report']}"
        if "report" in result
        else f"A report with pictures: pipeline report {shlex.quote(run)}",
    ]


def _logged(result: Result) -> list[str]:
    """Say how to look at what was logged into MLflow, if anything."""
    if "mlflow" not in result:
        return []
    uri = shlex.quote(result["mlflow"]["uri"])
    return [f"Logged into MLflow: mlflow ui --backend-store-uri {uri}"]


def head_rows(result: Result) -> list[dict[str, Any]]:
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


def leaderboard(rows: Sequence[Result]) -> Table:
    """Return the table of heads with their scores, one row per head."""
    table = [("head", "test acc", "95 % interval", "bal acc", "F1", "loss", "ECE", "val acc",
              "fit", "predict")]  # fmt: skip
    for row in rows:
        low, high = row["accuracy_ci95"]
        table.append(
            (
                row["head"],
                number(row["accuracy"]),
                f"{low:.3f}-{high:.3f}",
                number(row["balanced_accuracy"]),
                number(row["macro_f1"]),
                number(row["log_loss"]),
                number(row["ece"]),
                number(row["val_accuracy"]),
                f"{row['fit_seconds']:.1f} s",
                f"{1e3 * row['predict_seconds']:.0f} ms",
            )
        )
    return Table(table, spare=_SPARE)


def uncertainty(count: int) -> list[str]:
    """Say what the star and the intervals of a leaderboard mean."""
    return [
        f"* chosen on val. Accuracy on {counted(count, 'test image')}, scored once; "
        "Wilson interval."
    ]


def rejected(heads: Mapping[str, Result]) -> list[str]:
    """Say what withholding answers below the threshold does, if there is one."""
    lines = []
    for head, record in heads.items():
        threshold, test = record["reject"]["threshold"], record["reject"]["test"]
        if threshold > 0:
            accuracy = "-" if test["accuracy"] is None else f"{test['accuracy']:.3f}"
            lines.append(
                f"{head}: at probability {threshold:g} or above it answers "
                f"{100 * test['coverage']:.1f} % of test, with accuracy {accuracy}"
            )
    return lines
