"""The tables of a report: leaderboard, confusion, scores of classes. Numbers are the run's own."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.report.scored import ScoredHead
from pipeline.runs import leaderboard, metrics
from pipeline.runs.per_class import SCORES, cells
from pipeline.runs.run import Run
from pipeline.runs.verdict import verdict

# Classes of a matrix that fits a screen, pairs of a list that is read, classes of a table.
MATRIX_CLASSES: Final = 30
_PAIRS: Final = 60
_TABLE_CLASSES: Final = 1000


def leaderboard_of(run: Run, split: str) -> dict[str, Any]:
    """Return ``rows`` of heads, best first, and ``verdicts`` of their paired tests.

    Args:
        run: The run.
        split: ``test``; with ``val``, rows are its scores and there are no tests.
    """
    if split == "test":
        found = leaderboard.compare([run])
        rows: Any = found["rows"]
        pairs: Any = found["pairs"]
        return {"rows": rows, "verdicts": [verdict(pair) for pair in pairs], "pairs": pairs}
    rows = [
        {
            "head": name,
            **record.val.as_json(),
            "val_accuracy": record.val.accuracy,
            "fit_seconds": record.fit_seconds,
            "predict_seconds": record.predict_seconds,
            "best": name == run.record.best,
        }
        for name, record in run.record.heads.items()
    ]
    rows.sort(key=lambda row: -(row["accuracy"] or 0.0))
    return {"rows": rows, "verdicts": [], "pairs": []}


def confusion(head: ScoredHead) -> dict[str, Any]:
    """Return the confusion matrix of the classes that are confused most, and pairs of classes.

    Returns:
        ``classes``: numbers of the classes shown, most mistakes first; ``total``, of all classes;
        ``rows``: for each of them ``true`` and ``cells`` of ``predicted``, ``count`` and ``share``
        of its images; ``pairs``: ``true``, ``predicted``, ``count``, ``share``, most frequent
        first; ``num_pairs`` of all; ``mistakes`` in all.
    """
    found = cells(head.shown["confusion_matrix"])
    support = head.shown["per_class"]["support"]
    wrong = [(true, predicted, count) for true, predicted, count in found if true != predicted]
    blame = [0] * len(head.classes)
    for true, predicted, count in wrong:
        blame[true] += count
        blame[predicted] += count
    order = sorted(range(len(blame)), key=lambda number: (-blame[number], number))
    shown = order[:MATRIX_CLASSES]
    counts = {(true, predicted): count for true, predicted, count in found}
    wrong.sort(key=lambda cell: (-cell[2], cell[0], cell[1]))
    return {
        "classes": shown,
        "total": len(blame),
        "rows": [
            {
                "true": true,
                "cells": [
                    _cell(true, predicted, counts.get((true, predicted), 0), support)
                    for predicted in shown
                ],
            }
            for true in shown
        ],
        "pairs": [_cell(*cell, support) for cell in wrong[:_PAIRS]],
        "num_pairs": len(wrong),
        "mistakes": sum(count for *_, count in wrong),
    }


def _cell(true: int, predicted: int, count: int, support: Sequence[int]) -> dict[str, Any]:
    share = count / support[true] if support[true] else 0.0
    return {"true": true, "predicted": predicted, "count": count, "share": share}


def classes_of(head: ScoredHead) -> dict[str, Any]:
    """Return the scores of each class, lowest recall first.

    Returns:
        ``rows`` of ``number``, ``name``, ``precision``, ``recall``, ``f1``, ``support``,
        ``recall_ci95`` (Wilson; None without images) and ``taken``, what it is most often taken
        for; ``left_out``, how many classes there is no room for.
    """
    scores = head.shown["per_class"]
    taken = _most_taken(cells(head.shown["confusion_matrix"]))
    rows = []
    for number, name in enumerate(head.classes):
        row = {score: scores[score][number] for score in SCORES}
        found = taken.get(number)
        rows.append(
            {
                "number": number,
                "name": name,
                **row,
                "recall_ci95": _interval(row["recall"], row["support"]),
                "taken": None if found is None else head.classes[found],
            }
        )
    rows.sort(key=lambda row: (row["recall"] is None, row["recall"] or 0.0, row["number"]))
    return {"rows": rows[:_TABLE_CLASSES], "left_out": max(0, len(rows) - _TABLE_CLASSES)}


def _interval(recall: float | None, support: int) -> tuple[float, float] | None:
    return None if recall is None else metrics.wilson(round(recall * support), support)


def _most_taken(found: Sequence[tuple[int, int, int]]) -> Mapping[int, int]:
    """Return what each class is most often taken for."""
    wrong = sorted((cell for cell in found if cell[0] != cell[1]), key=lambda cell: cell[2])
    return {true: predicted for true, predicted, _ in wrong}
