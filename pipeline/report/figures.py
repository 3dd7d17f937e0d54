"""The charts of a report: learning curves, calibration, and what withholding answers brings."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.pages import charts
from pipeline.pages.charts import Line
from pipeline.pages.frame import percent
from pipeline.report.scored import ScoredHead
from pipeline.runs import metrics
from pipeline.runs.run import Run
from pipeline.system.wording import counted


def learning(run: Run) -> dict[str, Any]:
    """Return charts of what was recorded while heads were trained, by name; often none."""
    finetune = run.record.finetuned()
    found = {}
    if finetune.epochs:
        rows: list[Mapping[str, Any]] = list(finetune.epochs)
        epochs = [row["epoch"] for row in rows]
        found["epochs"] = charts.lines(
            [
                _by_epoch("train", epochs, [row["loss"] for row in rows]),
                _by_epoch("val", epochs, [row["val_loss"] for row in rows]),
            ]
        )
    curve: Any = (finetune.head_room or {}).get("curve")
    if curve:
        found["head-room"] = charts.lines([_growing(curve)])
    losses = {name: head.losses for name, head in run.record.heads.items() if head.losses}
    for place, values in enumerate(losses.values()):
        line = _by_epoch("", range(1, len(values) + 1), values)
        found[f"losses-{place}"] = charts.lines([line])
    return found


def _by_epoch(name: str, epochs: Sequence[int], values: Sequence[float]) -> Line:
    tips = [f"epoch {epoch}: {value:.3f} nats" for epoch, value in zip(epochs, values, strict=True)]
    return Line(name, epochs, values, tips=tips)


def _growing(curve: list[Mapping[str, Any]]) -> Line:
    return Line(
        "",
        [point["n_train"] for point in curve],
        [1 - point["error"] for point in curve],
        low=[1 - point["error_ci95"][1] for point in curve],
        high=[1 - point["error_ci95"][0] for point in curve],
        tips=[
            f"{percent(1 - point['error'])} from {counted(point['n_train'], 'image')}"
            for point in curve
        ],
    )


def calibration(head: ScoredHead) -> list[dict[str, Any]]:
    """Return the reliability of a head's probabilities, a row for each bin that has images.

    Returns:
        ``n``, ``confidence`` (mean probability), ``accuracy`` and ``accuracy_ci95`` (Wilson).
    """
    counts, confidence, correct = metrics.calibration_bins(head.y, head.probabilities)
    return [
        {
            "n": int(n),
            "confidence": float(total / n),
            "accuracy": float(right / n),
            "accuracy_ci95": metrics.wilson(int(right), int(n)),
        }
        for n, total, right in zip(counts, confidence, correct, strict=True)
        if n
    ]


def calibration_chart(rows: list[dict[str, Any]]) -> Any:
    """Return the chart of ``calibration``."""
    tips = [
        f"{counted(row['n'], 'image')} at {percent(row['confidence'])}: "
        f"{percent(row['accuracy'])} right"
        for row in rows
    ]
    return charts.lines(
        [_accuracies(rows, "confidence", tips)],
        x_range=(0, 1.02),
        y_range=(0, 1.02),
        diagonal=True,
    )


def coverage(head: ScoredHead) -> list[dict[str, Any]]:
    """Return the recorded curve of coverage and accuracy, without thresholds that answer nothing.

    Returns:
        ``threshold``, ``n`` (images answered), ``coverage``, ``accuracy`` and ``accuracy_ci95``.
    """
    curve: Any = head.record.reject.get("curve", {})
    return [
        {**row, "accuracy_ci95": metrics.wilson(round(row["accuracy"] * row["n"]), row["n"])}
        for row in curve.get(head.split, ())
        if row["n"]
    ]


def coverage_chart(rows: list[dict[str, Any]]) -> Any:
    """Return the chart of ``coverage``."""
    tips = [
        f"at {row['threshold']:g} or above: {percent(row['coverage'])} answered, "
        f"{percent(row['accuracy'])} of these right"
        for row in rows
    ]
    return charts.lines([_accuracies(rows, "coverage", tips)], x_range=(0, 1.02))


def _accuracies(rows: list[dict[str, Any]], across: str, tips: list[str]) -> Line:
    """Return the line of accuracies with their intervals over another of the rows' values."""
    return Line(
        "",
        [row[across] for row in rows],
        [row["accuracy"] for row in rows],
        low=[row["accuracy_ci95"][0] for row in rows],
        high=[row["accuracy_ci95"][1] for row in rows],
        tips=tips,
    )
