"""Scores of each class, and which classes are mistaken for which.

What is undefined is None, as in ``metrics``. Class numbers are places in the list of class names.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, unknown_name
from pipeline.runs.metrics import counts_by_class
from pipeline.runs.run import Run
from pipeline.runs.scored_rows import scored_rows

# A matrix of more classes is nearly all zeros: its other cells alone are recorded.
DENSE_CLASSES: Final = 100

SCORES: Final = ("precision", "recall", "f1", "support")


def per_class(
    y: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int
) -> dict[str, object]:
    """Score every class.

    Args:
        y: Class numbers, ``(n,)``.
        predicted: Predicted class numbers, ``(n,)``.
        num_classes: Number of classes.

    Returns:
        ``per_class``: ``precision``, ``recall``, ``f1`` and ``support`` (images of the class),
        each a list with an item for every class; None where nothing of the class is present, or
        predicted. ``confusion_matrix``: counts, a row for every true class and a column for every
        predicted one; above ``DENSE_CLASSES`` classes the cells that are not zero, as lists
        ``true``, ``predicted`` and ``count`` of one length.
    """
    return {
        "per_class": _scores(y, predicted, num_classes),
        "confusion_matrix": _matrix(y, predicted, num_classes),
    }


def cells(matrix: Any) -> list[tuple[int, int, int]]:
    """Return the cells of a recorded confusion matrix that are not zero: true, predicted, count."""
    if isinstance(matrix, Mapping):
        return list(zip(matrix["true"], matrix["predicted"], matrix["count"], strict=True))
    return [
        (true, predicted, count)
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count
    ]


def of_head(run: Run, asked: str | None) -> dict[str, object]:
    """Return the scores of each class by one head of a run, on test, or on val without a test.

    Args:
        run: The run; one of an older release, without these scores, is scored now.
        asked: Name of the head; None for the run's best.

    Returns:
        ``head``, ``split``, and what ``per_class`` returns.

    Raises:
        ConfigError: The run has no such head, or no head.
        RunError: What an older run recorded of the head is damaged.
    """
    heads = run.record.heads
    if not heads:
        raise ConfigError(
            f"--per-class: expected a run with a finished head. Received: {str(run.path)!r}.",
            hint="Run train-head.",
        )
    name = asked or str(run.record.best)
    if name not in heads:
        raise unknown_name("head", name, heads, where=str(run.path))
    split = "test" if run.record.split.test or not run.record.split.val else "val"
    recorded = heads[name].test if split == "test" else heads[name].val
    if recorded.per_class is None:
        return {"head": name, "split": split, **_scored_now(run, name, split)}
    return {
        "head": name,
        "split": split,
        "per_class": recorded.per_class,
        "confusion_matrix": recorded.confusion_matrix,
    }


def _scored_now(run: Run, name: str, split: str) -> dict[str, object]:
    found = scored_rows(run.manifest(), run.record.classes, split)
    predicted = run.probabilities(name)[found.places].argmax(axis=1)
    return per_class(found.y, predicted, len(run.record.classes))


def _scores(
    y: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int
) -> dict[str, list[Any]]:
    right, present, taken = counts_by_class(y, predicted, num_classes)
    shares = (right, taken), (right, present), (2 * right, present + taken)
    lists = [
        [int(part) / int(whole) if whole else None for part, whole in zip(*share, strict=True)]
        for share in shares
    ]
    return dict(zip(SCORES, (*lists, present.tolist()), strict=True))


def _matrix(y: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int) -> Any:
    if num_classes > DENSE_CLASSES:
        pairs = np.stack([y, predicted]).astype(np.int64)
        found, counts = np.unique(pairs, axis=1, return_counts=True)
        true, taken_for = found.tolist()
        return {"true": true, "predicted": taken_for, "count": counts.tolist()}
    places = y.astype(np.intp) * num_classes + predicted
    counts = np.bincount(places, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).tolist()
