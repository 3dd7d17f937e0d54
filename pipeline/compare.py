"""The leaderboard: heads of one or more runs on the test images that all of them share.

Called by ``commands``. Pairs are tested on the same images (McNemar), which shows differences
that two intervals side by side would hide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.errors import RunError
from pipeline.run import Run

BASELINE: Final = "logreg"


@dataclass(frozen=True, slots=True)
class Scored:
    """One head of one run on the common test images.

    Attributes:
        run: Path of the run.
        head: Name of the head.
        row: What the leaderboard shows.
        correct: Whether each common image is classified rightly, bool ``(n,)``.
    """

    run: str
    head: str
    row: Mapping[str, Any]
    correct: NDArray[np.bool_]


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Return leaderboard rows, best test accuracy first, and pairs against the baseline.

    Pairs hold every head beside the best logistic regression, or beside the first row where
    there is none; ``difference`` is the accuracy of ``a`` less that of ``b``, with its 95 %
    interval, and ``p_adjusted`` the p-value corrected for the number of pairs.

    Raises:
        RunError: A run has no head, or the runs share no test image.
    """
    test_rows = [_test_rows(run) for run in runs]
    common = _common(test_rows)
    if not common:
        raise RunError(
            "Expected runs that share test images. Received: runs that share none.",
            hint="Compare runs of the same data and split seed.",
        )
    scored = [
        item
        for run, rows in zip(runs, test_rows, strict=True)
        for item in _scored(run, [rows[key] for key in common])
    ]
    scored.sort(key=lambda item: (-item.row["accuracy"], item.row["log_loss"] or 0.0))
    reference = next((item for item in scored if item.head == BASELINE), scored[0])
    pairs = [_pair(item, reference) for item in scored if item is not reference]
    adjusted = metrics.holm([pair["p_value"] for pair in pairs])
    return {
        "rows": [dict(item.row) for item in scored],
        "pairs": [{**pair, "p_adjusted": p} for pair, p in zip(pairs, adjusted, strict=True)],
        "n": len(common),
        "n_by_run": {str(run.path): len(rows) for run, rows in zip(runs, test_rows, strict=True)},
    }


def _test_rows(run: Run) -> dict[tuple[bytes, str], tuple[int, int]]:
    """Return, by key and label, the row among val and test rows, and the class number."""
    if not run.record["heads"]:
        raise RunError(f"The run {str(run.path)!r} has no finished head.", hint="Run train-head.")
    number = {name: index for index, name in enumerate(run.record["classes"])}
    manifest = run.manifest()
    scored = [index for index, split in enumerate(manifest.splits) if split != "train"]
    return {
        (manifest.keys[index], manifest.labels[index]): (row, number[manifest.labels[index]])
        for row, index in enumerate(scored)
        if manifest.splits[index] == "test"
    }


def _common(
    test_rows: Sequence[Mapping[tuple[bytes, str], tuple[int, int]]],
) -> list[tuple[bytes, str]]:
    shared = set(test_rows[0]).intersection(*test_rows[1:])
    return sorted(shared)


def _scored(run: Run, rows: Sequence[tuple[int, int]]) -> list[Scored]:
    places = np.array([place for place, _ in rows])
    y = np.array([label for _, label in rows])
    scored = []
    for head, record in run.record["heads"].items():
        probabilities = run.probabilities(head)[places]
        row = {
            "run": str(run.path),
            "head": head,
            **metrics.score(y, probabilities),
            "val_accuracy": record["val"]["accuracy"],
            "fit_seconds": record["fit_seconds"],
            "predict_seconds": record["predict_seconds"],
            "temperature": record["calibration"]["temperature"],
            "best": head == run.record["best"],
        }
        scored.append(Scored(str(run.path), head, row, probabilities.argmax(axis=1) == y))
    return scored


def _pair(first: Scored, second: Scored) -> dict[str, Any]:
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((~first.correct & second.correct).sum())
    same_run = first.run == second.run
    return {
        "a": first.head if same_run else f"{first.run}:{first.head}",
        "b": second.head if same_run else f"{second.run}:{second.head}",
        "n": len(first.correct),
        "difference": (only_first - only_second) / len(first.correct),
        "difference_ci95": list(
            metrics.paired_difference(only_first, only_second, len(first.correct))
        ),
        "p_value": metrics.mcnemar(only_first, only_second),
    }
