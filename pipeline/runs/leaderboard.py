"""The leaderboard: heads of one or more runs on the test images that all of them share.

Pairs are tested on the same images (McNemar), which shows differences that two intervals side by
side would hide. Runs that share no test image are in groups of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.runs import metrics
from pipeline.runs.record import Score
from pipeline.runs.run import Run
from pipeline.runs.scored_rows import scored_rows

BASELINE: Final = "logreg"

# A test image by key and label: its row among val and test rows, and its class number.
TestRows = Mapping[tuple[bytes, str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ScoredHead:
    """One head of one run on the common test images.

    Attributes:
        run: Path of the run.
        head: Name of the head.
        score: Its scores on them.
        row: What the leaderboard shows.
        correct: Whether each common image is classified rightly, bool ``(n,)``.
    """

    run: str
    head: str
    score: Score
    row: Mapping[str, object]
    correct: NDArray[np.bool_]


@dataclass(slots=True)
class Group:
    """Runs that share test images.

    Attributes:
        runs: The runs, each with its test rows.
        common: The images that all of them share.
    """

    runs: list[tuple[Run, TestRows]]
    common: set[tuple[bytes, str]]


class GroupResult(TypedDict):
    """The leaderboard of a group: see ``compare``."""

    runs: list[str]
    rows: list[dict[str, object]]
    pairs: list[dict[str, object]]
    n: int
    n_by_run: dict[str, int]


def compare(runs: Sequence[Run]) -> dict[str, object]:
    """Return leaderboard rows, best test accuracy first, and pairs against the baseline.

    Pairs hold every head beside the best logistic regression, or beside the first row where
    there is none; ``difference`` is the accuracy of ``a`` less that of ``b``, and what else
    ``metrics.compared`` says of it among the pairs of its group.

    Returns:
        ``groups``, each with ``runs``, ``rows``, ``pairs``, ``n`` (shared test images) and
        ``n_by_run``; ``rows``, ``pairs`` and ``n_by_run`` of all groups; ``n`` of the only group,
        None where there are several.

    Raises:
        RunError: A run has no head, or no test image.
    """
    groups = [_leaderboard(group) for group in _grouped(runs)]
    return {
        "rows": [row for group in groups for row in group["rows"]],
        "pairs": [pair for group in groups for pair in group["pairs"]],
        "n": groups[0]["n"] if len(groups) == 1 else None,
        "n_by_run": {run: n for group in groups for run, n in group["n_by_run"].items()},
        "groups": groups,
    }


def _grouped(runs: Sequence[Run]) -> list[Group]:
    """Put every run to the first ones that it shares a test image with, else on its own."""
    groups: list[Group] = []
    for run in runs:
        rows = _test_rows(run)
        if not rows:
            raise RunError(
                f"Expected test images in the run {str(run.path)!r}. Received: none.",
                hint="Train again with a --split that gives test a share.",
            )
        group = next((item for item in groups if item.common & rows.keys()), None)
        if group is None:
            groups.append(Group([(run, rows)], set(rows)))
        else:
            group.runs.append((run, rows))
            group.common &= rows.keys()
    return groups


def _leaderboard(group: Group) -> GroupResult:
    common = sorted(group.common)
    scored = [
        item for run, rows in group.runs for item in _scored(run, [rows[key] for key in common])
    ]
    scored.sort(key=lambda item: (-(item.score.accuracy or 0.0), item.score.log_loss or 0.0))
    reference = next((item for item in scored if item.head == BASELINE), scored[0])
    others = [item for item in scored if item is not reference]
    return {
        "runs": [str(run.path) for run, _ in group.runs],
        "rows": [dict(item.row) for item in scored],
        "pairs": [_pair(item, reference, len(others)) for item in others],
        "n": len(common),
        "n_by_run": {str(run.path): len(rows) for run, rows in group.runs},
    }


def _test_rows(run: Run) -> TestRows:
    if not run.record.heads:
        raise RunError(f"The run {str(run.path)!r} has no finished head.", hint="Run train-head.")
    manifest = run.manifest()
    test = scored_rows(manifest, run.record.classes, "test")
    return {
        (manifest.keys[row], manifest.labels[row]): (place, number)
        for row, place, number in zip(
            test.rows.tolist(), test.places.tolist(), test.y.tolist(), strict=True
        )
    }


def _scored(run: Run, rows: Sequence[tuple[int, int]]) -> list[ScoredHead]:
    places = np.array([place for place, _ in rows])
    y = np.array([label for _, label in rows])
    scored = []
    for head, record in run.record.heads.items():
        probabilities = run.probabilities(head)[places]
        score = metrics.score(y, probabilities)
        row = {
            "run": str(run.path),
            "head": head,
            **score,
            "val_accuracy": record.val.accuracy,
            "fit_seconds": record.fit_seconds,
            "predict_seconds": record.predict_seconds,
            "temperature": record.calibration.temperature,
            "best": head == run.record.best,
        }
        correct = probabilities.argmax(axis=1) == y
        scored.append(ScoredHead(str(run.path), head, Score.of(score), row, correct))
    return scored


def _pair(first: ScoredHead, second: ScoredHead, comparisons: int) -> dict[str, object]:
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((~first.correct & second.correct).sum())
    same_run = first.run == second.run
    return {
        "a": first.head if same_run else f"{first.run}:{first.head}",
        "b": second.head if same_run else f"{second.run}:{second.head}",
        **metrics.compared(only_first, only_second, len(first.correct), comparisons=comparisons),
    }


_RECORDED = ("train", "val", "test", "fit_seconds", "predict_seconds", "converged", "prior",
             "calibration", "reject", "selected", "notes", "not_saved")  # fmt: skip


def result_of(run: Run) -> dict[str, object]:
    """Return what programs rely on of a run."""
    leaderboard = compare([run])
    return {
        "run": str(run.path),
        "heads": {
            head: {name: said[name] for name in _RECORDED if name in (said := record.as_json())}
            for head, record in run.record.heads.items()
        },
        "best": run.record.best,
        "classes": list(run.record.classes),
        "split": run.record.split.as_json(),
        "dropped": dict(run.record.dropped),
        "moved": list(run.record.moved),
        "pairs": leaderboard["pairs"],
    }
