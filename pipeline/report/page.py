"""The ``report`` command: everything that a run found, in one file that opens by double click."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.config.options import ReportOptions
from pipeline.dataset.splits import SPLITS
from pipeline.errors import PipelineError
from pipeline.pages import charts, frame
from pipeline.pages.thumbnails import pictures
from pipeline.report import answer, embedding, facts, figures, scored, tables
from pipeline.report.facts import FoundStore
from pipeline.report.scored import ScoredHead
from pipeline.runs.folder import REPORT
from pipeline.runs.run import Run
from pipeline.system.progress import Reporter

_FOLDER: Final = Path(__file__).parent / "templates"
# Of galleries and of the map: sides in pixels, and bytes of all pictures together.
_LARGE: Final = (176, 2_500_000)
_SMALL: Final = (72, 4_500_000)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """The map and its rows, or why there is none."""

    rows: Sequence[int]
    found: embedding.Map | None
    reason: str = ""


def report(options: ReportOptions, reporter: Reporter) -> dict[str, object]:
    """Write ``report.html`` into a run; see docs/json.md for the keys of the result.

    Raises:
        ConfigError: The run has no such head.
        EngineUnavailableError: What makes pages, or the map, is not installed.
        RunError: There is no run, it has no head, or files of it are damaged.
    """
    began = time.monotonic()
    frame.require_installed()
    if options.map == "umap":
        embedding.require_umap()
    run = Run.open(Path(options.run)).at(store=options.store, data=options.data)
    head = scored.scored_head(run, options.head)
    found = facts.store_of(run)
    mapped = _mapped(head, found, options.map)
    context, missing = _context(head, found, mapped, options.map)
    path = run.path / REPORT
    size = frame.write(path, frame.render(_FOLDER, "report.html", context))
    without = sum(missing.values())
    if without:
        reporter.say(f"Note: no picture of {without:,} images: {next(iter(missing))}")
    return {
        "run": str(run.path),
        "report": str(path),
        "head": head.name,
        "split": head.split,
        "bytes": size,
        "pictures": len(context["data"]["pictures"]),
        "without_picture": missing,
        "points": len(mapped.rows),
        "seconds": round(time.monotonic() - began, 3),
    }


def _mapped(head: ScoredHead, found: FoundStore, method: str) -> _Mapped:
    """Return the map of a sample of the run's images, or the reason why there is none."""
    if found.store is None:
        return _Mapped((), None, found.reason)
    rows = embedding.sample(head)
    if len(rows) < embedding.FEWEST:
        return _Mapped((), None, f"A map needs {embedding.FEWEST} images.")
    try:
        made = embedding.embed(found.store, head.manifest.keys[rows], method)
    except PipelineError as error:
        return _Mapped((), None, str(error))
    return _Mapped(rows.tolist(), made)


def _context(
    head: ScoredHead, found: FoundStore, mapped: _Mapped, method: str
) -> tuple[dict[str, Any], Mapping[str, int]]:
    """Return what the template shows, and how many images have no picture, by reason."""
    confusion = tables.confusion(head)
    leaderboard = tables.leaderboard_of(head.run, head.split)
    wrong, uncertain = scored.mistakes(head), scored.uncertain(head)
    uris, missing = _pictures(head, wrong, uncertain, mapped.rows)
    numbers = {row: place for place, row in enumerate(uris)}
    calibration, coverage = figures.calibration(head), figures.coverage(head)
    drawn = figures.learning(head.run)
    learning = list(drawn)
    if calibration:
        drawn["calibration-chart"] = figures.calibration_chart(calibration)
    if coverage:
        drawn["coverage-chart"] = figures.coverage_chart(coverage)
    if mapped.found is not None:
        drawn["map"] = charts.points(*mapped.found.places.T)
    context = {
        "head": head,
        "classes": head.classes,
        "answer": answer.answer(head, leaderboard, confusion),
        "leaderboard": leaderboard,
        "learning": learning,
        "losses": [name for name, said in head.run.record.heads.items() if said.losses],
        "finetune": head.run.record.finetuned(),
        "confusion": confusion,
        "class_scores": tables.classes_of(head),
        "wrong": [_image(head, place, numbers) for place in wrong],
        "num_wrong": int((head.predicted != head.y).sum()),
        "uncertain": [_image(head, place, numbers) for place in uncertain],
        "missing": missing,
        "calibration": calibration,
        "coverage": coverage,
        "map": mapped,
        "method": method,
        "skipped": facts.skipped(head.run, found),
        "stage_one": facts.stage_one(found),
        "making": facts.making(head.run, head.name, found),
        "charts": charts.embed(drawn),
        "data": {
            "pictures": list(uris.values()),
            "classes": list(head.classes),
            "points": _points(head, mapped.rows, numbers),
        },
    }
    return context, missing


def _pictures(
    head: ScoredHead, wrong: Sequence[int], uncertain: Sequence[int], on_map: Sequence[int]
) -> tuple[dict[int, str], Mapping[str, int]]:
    """Return pictures by row of the manifest: large ones of galleries, small ones of the map."""
    large = list(dict.fromkeys(int(head.rows[place]) for place in (*wrong, *uncertain)))
    small = [row for row in on_map if row not in set(large)]
    uris: dict[int, str] = {}
    missing: dict[str, int] = {}
    for rows, (side, budget) in ((large, _LARGE), (small, _SMALL)):
        made = pictures(head.manifest, rows, side=side, budget=budget)
        uris |= made.uris
        for reason, count in made.missing.items():
            missing[reason] = missing.get(reason, 0) + count
    return uris, missing


def _image(head: ScoredHead, place: int, numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return what a gallery shows of an image."""
    row = int(head.rows[place])
    return {
        "path": head.manifest.paths[row],
        "true": int(head.y[place]),
        "predicted": int(head.predicted[place]),
        "probability": float(head.confidence[place]),
        "picture": numbers.get(row, -1),
    }


def _points(
    head: ScoredHead, rows: Sequence[int], numbers: Mapping[int, int]
) -> dict[str, list[Any]]:
    """Return what the map's script shows of its points, a list for each column."""
    manifest = head.manifest
    number = {name: place for place, name in enumerate(head.classes)}
    place_of = np.full(len(manifest), -1)
    place_of[head.rows] = np.arange(len(head.rows))
    places = [int(place_of[row]) for row in rows]
    predicted, confidence = head.predicted, head.confidence
    declared = head.run.record.source.declared_splits
    return {
        "path": [manifest.paths[row] for row in rows],
        "key": [manifest.keys[row].decode() for row in rows],
        "true": [number[manifest.labels[row]] for row in rows],
        "split": [SPLITS.index(manifest.splits[row]) for row in rows],
        # What --manifest is given: splits that were drawn from keys are drawn again.
        "declared": [manifest.splits[row] if declared else "" for row in rows],
        "group": [manifest.groups[row] for row in rows] if manifest.groups else [],
        "predicted": [int(predicted[place]) if place >= 0 else -1 for place in places],
        "probability": [
            round(float(confidence[place]), 4) if place >= 0 else None for place in places
        ],
        "picture": [numbers.get(row, -1) for row in rows],
    }
