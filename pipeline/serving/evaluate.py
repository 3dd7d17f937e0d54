"""The ``evaluate`` command: scores a head of a run on labelled data that it was not trained on.

Images are read and encoded by the classifier, as for ``predict``.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import weights
from pipeline.config.options import CommonOptions
from pipeline.config.serving import EvaluateOptions
from pipeline.errors import ManifestError, mention
from pipeline.files import outputs
from pipeline.files.atomic import write_atomically
from pipeline.files.location import locate
from pipeline.files.table import write_csv
from pipeline.heads.calibration import coverage_curve
from pipeline.images import reading
from pipeline.images.manifest import CONFLICT, KEY_DTYPE, OK, Manifest, as_read
from pipeline.images.sources import scan
from pipeline.runs import metrics
from pipeline.runs.per_class import per_class
from pipeline.runs.run import Run
from pipeline.serving.classifier import Classifier
from pipeline.serving.inputs import ImageInput
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

COLUMNS: Final = ("path", "label", "predicted", "probability", "status")
UNLABELLED: Final = "no label"
UNKNOWN: Final = "class that the run does not know"

# Splits whose images a head was fitted or chosen on.
_SEEN: Final = ("train", "val")


@dataclass(slots=True)
class _Found:
    """What became of the rows of a listing.

    Attributes:
        listing: All rows; with the keys and statuses of those that were read.
        rows: Rows of classes that the run knows.
        probabilities: float64 ``(len(rows), classes)``; not-a-number of images that are bad.
        errors: The bad images, each with its ``path`` and the ``reason``.
    """

    listing: Manifest
    rows: Sequence[int]
    probabilities: NDArray[np.float64]
    errors: list[dict[str, str]] = field(default_factory=list)

    @property
    def scored(self) -> NDArray[np.intp]:
        """Places in ``rows`` of the images that count."""
        good = [self.listing.statuses[row] == OK for row in self.rows]
        return np.flatnonzero(good)


def evaluate(
    options: EvaluateOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, object]:
    """Score a head on labelled images.

    Args:
        options: What to score on what.
        common: ``force`` replaces an existing ``--csv`` file.
        reporter: Where notes and progress go.
        started: ``time.monotonic()`` at the start of the process.

    Returns:
        ``scores`` (those of ``train-head`` for a split, of every class too), ``reject`` (what
        withholding answers does), ``images``, ``scored``, ``skipped`` and ``errors`` (bad images),
        ``unlabelled``, ``unknown`` (images by class that the run does not know), ``conflicting``
        (images under two labels), ``seen`` (scored images by the split of the run that they are
        in too; None of an exported folder), and as ``predict`` the other keys.

    Raises:
        ConfigError: An option cannot be used.
        ManifestError: DATA cannot be listed, holds no class of the run, or every image is bad.
        PipelineError: See ``Classifier.load``.
    """
    listing = _checked(options, reporter, force=common.force)
    classifier = Classifier.of(options, reporter)
    splits = _splits_by_key(Path(options.run))
    rows = _known_rows(listing, classifier, options)
    reporter.say(
        f"{counted(len(rows), 'image')}; head {classifier.name} of {options.run}, "
        f"{classifier.encoder.engine} on {classifier.encoder.device}"
    )
    began = time.monotonic()
    found = _classified(classifier, listing, rows, reporter)
    ended = time.monotonic()
    _require_one(found)
    if options.csv:
        table = list(_table(found, classifier.classes))
        write_atomically(Path(options.csv), lambda temporary: write_csv(temporary, table))
    return {
        **_result(found, classifier, splits),
        "run": options.run,
        "data": options.data,
        "head": classifier.name,
        "classes": list(classifier.classes),
        "engine": classifier.encoder.engine,
        "device": classifier.encoder.device,
        "csv": options.csv,
        "seconds": round(time.monotonic() - started, 3),
        "startup_seconds": round(began - started, 3),
        "images_per_second": round(len(rows) / (ended - began), 2),
    }


def _checked(options: EvaluateOptions, reporter: Reporter, *, force: bool) -> Manifest:
    """Return the listing of DATA, after everything that can be refused at once."""
    listing = scan(
        locate(options.data),
        layout=options.layout,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    if options.weights is not None:
        weights.require_source(options.weights)
    if options.csv is not None:
        outputs.require_new_file("--csv", Path(options.csv), reporter, force=force)
    for note in listing.notes:
        reporter.say(note)
    declared = sorted(set(listing.splits) - {""})
    if declared:
        reporter.say(
            f"{options.data} declares splits ({', '.join(declared)}): the images of all are scored"
        )
    return listing


def _splits_by_key(run: Path) -> dict[bytes, str] | None:
    """Return which split of a run each image is in; None of a folder, which does not tell."""
    if not Run.exists(run):
        return None
    rows = Run.open(run).manifest()
    return dict(zip(rows.keys.tolist(), rows.splits, strict=True))


def _known_rows(
    listing: Manifest, classifier: Classifier, options: EvaluateOptions
) -> Sequence[int]:
    """Return the rows whose class the run knows, and those with two labels, for their copies.

    Raises:
        ManifestError: There is none.
    """
    classes = set(classifier.classes)
    rows = [row for row, label in enumerate(listing.labels) if label in classes]
    if not rows:
        others = sorted(set(listing.labels) - {""})
        raise ManifestError(
            f"Expected images of the classes of {options.run}: {mention(sorted(classes))}. "
            f"Received: {mention(others) if others else 'no labels'}.",
            hint="Name the class folders, or the labels of the CSV, as the run does.",
        )
    return sorted({*rows, *(row for row, status in enumerate(listing.statuses) if status)})


def _classified(
    classifier: Classifier, listing: Manifest, rows: Sequence[int], reporter: Reporter
) -> _Found:
    is_remote = reading.is_waited_for(listing)
    inputs = [
        ImageInput(listing.paths[row], reading.reference(listing, row), is_remote) for row in rows
    ]
    probabilities = np.full((len(rows), len(classifier.classes)), np.nan)
    keys = np.zeros(len(listing), dtype=KEY_DTYPE)

    def keep(place: int, key: str, found: NDArray[np.float64]) -> None:
        probabilities[place] = found
        keys[rows[place]] = key.encode()

    with reporter.bar(len(rows), "img") as bar:
        errors = classifier.classify(inputs, keep, bar=bar)
    statuses = [UNKNOWN if label else UNLABELLED for label in listing.labels]
    reasons = {item["path"]: item["reason"] for item in errors}
    for row in rows:
        statuses[row] = reasons.get(listing.paths[row], OK)
    marked = as_read(listing, keys, statuses)
    return _Found(marked, rows, probabilities, errors)


def _require_one(found: _Found) -> None:
    """Refuse a result without any image.

    Raises:
        ManifestError: Every image is bad, or stands under two labels.
    """
    if len(found.scored):
        return
    row = found.rows[0]
    of = counted(len(found.rows), "image")
    raise ManifestError(
        f"None of {of} could be scored; the first, {found.listing.paths[row]!r}: "
        f"{found.listing.statuses[row]}.",
        hint="Give images that can be read, each under one label.",
    )


def _result(
    found: _Found, classifier: Classifier, splits: dict[bytes, str] | None
) -> dict[str, object]:
    listing, scored = found.listing, found.scored
    rows = [found.rows[place] for place in scored]
    number = {name: place for place, name in enumerate(classifier.classes)}
    y = np.array([number[listing.labels[row]] for row in rows])
    probabilities = found.probabilities[scored]
    counts = Counter(listing.statuses)
    unknown = Counter(
        label
        for label, status in zip(listing.labels, listing.statuses, strict=True)
        if status == UNKNOWN
    )
    return {
        "scores": {
            **metrics.score(y, probabilities),
            **per_class(y, probabilities.argmax(axis=1), len(number)),
        },
        "reject": coverage_curve(y, probabilities, (classifier.reject_below,))[0],
        "images": len(listing),
        "scored": len(rows),
        "skipped": len(found.errors),
        "errors": found.errors,
        "unlabelled": counts[UNLABELLED],
        "unknown": dict(sorted(unknown.items())),
        "conflicting": counts[CONFLICT],
        "seen": None if splits is None else _seen(listing.keys[rows], splits),
    }


def _seen(keys: NDArray[np.bytes_], splits: dict[bytes, str]) -> dict[str, int]:
    counts = Counter(splits.get(key, "") for key in keys.tolist())
    return {split: counts[split] for split in _SEEN}


def _table(found: _Found, classes: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the rows of a CSV: its header, then one for each image, in the order of DATA."""
    yield COLUMNS
    places = {row: place for place, row in enumerate(found.rows)}
    listing = found.listing
    for row, (path, label) in enumerate(zip(listing.paths, listing.labels, strict=True)):
        status = listing.statuses[row]
        predicted = probability = ""
        if status in (OK, CONFLICT):
            values = found.probabilities[places[row]]
            top = int(values.argmax())
            predicted, probability = classes[top], f"{values[top]:.6f}"
        yield (path, label, predicted, probability, status)
