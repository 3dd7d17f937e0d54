"""Scores of classes as text: the few worst ones, all of them, and the confusion matrix.

How they are recorded is imported where it is needed: with it comes NumPy, which ``--help`` does
not wait for.
"""

from collections.abc import Sequence
from typing import Any, Final

from pipeline.cli.text import CLASS, Result, Table, Text, fits, number, shortened
from pipeline.system.wording import counted

_WORST: Final = 3
_MISTAKES: Final = 3
# Columns of the name of a class that another is mistaken for.
_SHORT: Final = 16


def worst_classes(run: Result) -> Text:
    """Show the classes of lowest recall on test by the best head of a run.

    Args:
        run: Its ``heads``, ``best`` and ``classes``; nothing is shown of a run that an older
            release wrote, nor of two classes that are found equally often.
    """
    best = run["heads"].get(run["best"], {}).get("test", {})
    if "per_class" not in best:
        return []
    return worst_of(best, run["classes"], title=f"on test, {run['best']}")


def worst_of(
    scores: Result,
    classes: Sequence[str],
    *,
    title: str,
    all_by: str = "info --per-class",
) -> Text:
    """Show the classes of lowest recall and what they are mistaken for.

    Args:
        scores: ``per_class`` and ``confusion_matrix``.
        classes: Class names.
        title: Of what these scores are.
        all_by: What shows all classes.
    """
    recall, support = (scores["per_class"][name] for name in ("recall", "support"))
    known = [place for place, value in enumerate(recall) if value is not None]
    if len(known) < 3 and len({recall[place] for place in known}) < 2:
        return []
    imperfect = [place for place in known if recall[place] < 1]
    worst = sorted(imperfect, key=lambda place: (recall[place], classes[place]))[:_WORST]
    if not worst:
        return []
    mistakes = _mistakes(scores["confusion_matrix"])
    table = [("class", "recall", "images", "mistaken for")]
    for place in worst:
        taken = _named(mistakes[place], classes)
        table.append((classes[place], number(recall[place]), f"{support[place]:,}", taken))
    more = len(imperfect) - len(worst)
    return [
        f"Lowest recall {title}:",
        Table(table, has_words=True),
        *([f"and {counted(more, *CLASS)} more with mistakes ({all_by})"] if more else []),
    ]


def all_classes(shown: Result, classes: Sequence[str]) -> Text:
    """Show the scores of every class, and the confusion matrix.

    Args:
        shown: ``head``, ``split``, ``per_class`` and ``confusion_matrix``.
        classes: Class names.
    """
    title = f"on {shown['split']}, {shown['head']}"
    return ["", *score_table(shown, classes, title=title), "", *matrix(shown, classes, title=title)]


def score_table(scores: Result, classes: Sequence[str], *, title: str) -> Text:
    """Show precision, recall, F1 and the number of images of every class."""
    from pipeline.runs.per_class import SCORES

    columns = [scores["per_class"][name] for name in SCORES]
    table = [("class", "precision", "recall", "F1", "images")]
    for name, *shares, support in zip(classes, *columns, strict=True):
        table.append((name, *map(number, shares), f"{support:,}"))
    return [f"Scores of every class {title}:", Table(table)]


def matrix(scores: Result, classes: Sequence[str], *, title: str) -> Text:
    """Show the confusion matrix; where it is too wide, its mistakes, the most frequent first."""
    from pipeline.runs.per_class import DENSE_CLASSES, cells

    found = cells(scores["confusion_matrix"])
    if len(classes) <= DENSE_CLASSES:
        counts = {(true, predicted): count for true, predicted, count in found}
        rows: list[Sequence[str]] = [("true", *classes)]
        for true, name in enumerate(classes):
            rows.append((name, *(f"{counts.get((true, p), 0):,}" for p in range(len(classes)))))
        if fits(rows):
            return [
                f"Confusion matrix {title} (rows: true class; columns: predicted):",
                Table(rows),
            ]
    wrong = sorted((cell for cell in found if cell[0] != cell[1]), key=lambda cell: -cell[2])
    table = [("true", "predicted", "images")]
    table += [(classes[true], classes[taken], f"{count:,}") for true, taken, count in wrong]
    return [f"Mistakes {title}, all of them:", Table(table)] if wrong else [f"No mistakes {title}"]


def _mistakes(matrix: Any) -> dict[int, list[tuple[int, int]]]:
    """Return what each class is mistaken for, with counts, the most frequent first."""
    from pipeline.runs.per_class import cells

    found: dict[int, list[tuple[int, int]]] = {}
    for true, predicted, count in cells(matrix):
        if true != predicted:
            found.setdefault(true, []).append((predicted, count))
    return {
        true: sorted(taken, key=lambda pair: (-pair[1], pair[0])) for true, taken in found.items()
    }


def _named(mistakes: Sequence[tuple[int, int]], classes: Sequence[str]) -> str:
    named = [
        f"{shortened(classes[place], _SHORT)} ({count:,})" for place, count in mistakes[:_MISTAKES]
    ]
    return ", ".join(named) + (", …" if len(mistakes) > _MISTAKES else "")
