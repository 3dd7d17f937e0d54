"""The ``predict`` command: classifies files and folders with a head of a run.

Called by ``commands``.
"""

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.classifier import Classifier, Prediction, Predictions
from pipeline.config import CommonOptions, PredictOptions
from pipeline.errors import ConfigError, ManifestError
from pipeline.files import recover, temporary_sibling, write_atomically
from pipeline.reporting import Reporter
from pipeline.sources import walk


def predict(
    options: PredictOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, Any]:
    """Classify images; see ``contract`` in the documentation for the keys of the result.

    Args:
        options: What to classify with what.
        common: ``force`` replaces an existing ``--csv`` file.
        reporter: Where notes and progress go.
        started: ``time.monotonic()`` at the start of the process.

    Returns:
        ``predictions``, ``errors``, ``run``, ``head``, ``classes``, ``reject_below``, ``engine``,
        ``device``, ``images``, ``skipped``, ``csv``, ``seconds`` (of the whole process),
        ``startup_seconds`` and ``images_per_second`` (from the first read to the last prediction).

    Raises:
        ConfigError: An option cannot be used.
        ManifestError: A file is missing, a folder is empty, or every image is bad.
        PipelineError: See ``Classifier.load``.
    """
    files = _checked(options, force=common.force)
    classifier = Classifier.load(
        options.run,
        options.head,
        weights=options.weights,
        engine=options.engine,
        batch_size=options.batch_size,
        workers=options.workers,
        store=options.store,
    )
    _note(classifier, options, len(files), reporter)
    began = time.monotonic()
    with reporter.bar(len(files), "img") as bar:
        found = classifier.predict(files, options.top, bar=bar)
    ended = time.monotonic()
    _require_one(found)
    if options.csv:
        _write_csv(Path(options.csv), found.predictions)
    return {
        "predictions": [_record(prediction) for prediction in found.predictions],
        "errors": found.errors,
        "run": options.run,
        "head": classifier.name,
        "classes": list(classifier.classes),
        "reject_below": classifier.reject_below,
        "engine": classifier.encoder.engine,
        "device": classifier.encoder.device,
        "images": len(files),
        "skipped": len(found.errors),
        "csv": options.csv,
        "seconds": round(time.monotonic() - started, 3),
        "startup_seconds": round(began - started, 3),
        "images_per_second": round(len(found.predictions) / (ended - began), 2),
    }


def list_files(paths: Sequence[str]) -> list[str]:
    """Return the files that arguments name, each once; folders are searched as in ``extract``.

    Raises:
        ManifestError: A path does not exist, or a folder has no files.
    """
    files: dict[str, None] = {}
    for text in paths:
        path = Path(text)
        if not _exists(path):
            raise ManifestError(
                f"Expected image files and folders. Received: {text!r}, which does not exist.",
                hint="Correct the path.",
            )
        inside = walk(path) if path.is_dir() else ()
        files.update(dict.fromkeys([str(path / name) for name in inside] or [text]))
    return list(files)


def _checked(options: PredictOptions, *, force: bool) -> list[str]:
    """Return the files to classify, after everything that can be refused at once."""
    for argument, is_given in (("RUN", options.run), ("PATH", options.paths)):
        if not is_given:
            raise ConfigError(
                f"predict: expected {argument}.",
                hint="For example: pipeline predict runs/photos new-photos",
            )
    out = Path(options.csv) if options.csv else None
    if out is not None and out.exists() and not (force and out.is_file()):
        raise ConfigError(
            f"--csv: expected nothing at {options.csv!r}, or with --force a file. "
            f"Received: {'a file' if out.is_file() else 'a folder'} that is there.",
            hint="Replace a file with --force, or choose another name.",
        )
    if out is not None:
        _require_writable(out)
    return list_files(options.paths)


def _require_writable(out: Path) -> None:
    """Refuse a place for a file, or for its folders, before the work that it is to hold.

    Raises:
        ConfigError: Nothing can be written there.
    """
    try:
        folder = next(parent for parent in out.absolute().parents if parent.exists())
        recover(folder / out.name)
        # Also as root, who is told that everything is writable, and on a full disk.
        with temporary_sibling(folder / out.name):
            pass
    except OSError as error:
        raise ConfigError(
            f"--csv: expected a place that can be written to. Received: {str(out)!r}: "
            f"{error.strerror}.",
            hint="Choose another place.",
        ) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name too long for the file system
        return False


def _note(
    classifier: Classifier, options: PredictOptions, num_files: int, reporter: Reporter
) -> None:
    """Say what is about to be done with what."""
    encoder = classifier.encoder
    reporter.say(
        f"{num_files:,} files; head {classifier.name} of {options.run}, {encoder.engine} on "
        f"{encoder.device}"
    )
    if classifier.average:
        views = ", ".join(classifier.average)
        reporter.say(f"Averaging over the image as it is and {views}, as the run does")
    if classifier.reject_below:
        reporter.say(f"No answer is given below {classifier.reject_below:g}, as in the run")


def _require_one(found: Predictions) -> None:
    """Refuse a result without any image.

    Raises:
        ManifestError: Every image is bad.
    """
    if not found.predictions:
        first = found.errors[0]
        raise ManifestError(
            f"None of the {len(found.errors):,} files could be used; the first, "
            f"{first['path']!r}: {first['reason']}.",
            hint="Give image files, or folders of images.",
        )


def _record(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON values."""
    return {
        "path": prediction.path,
        "label": prediction.label,
        "probability": prediction.probability,
        "top": [{"label": name, "probability": value} for name, value in prediction.top],
    }


def _write_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write ``path,label,probability``, then ``label_2,probability_2`` and so on, atomically."""
    more = range(2, len(predictions[0].top) + 1)
    header = ["path", "label", "probability"]
    header += [f"{name}_{place}" for place in more for name in ("label", "probability")]

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            # Python leaves a lone carriage return unquoted, and then reads a row's end there.
            quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writerow(header)
            for item in predictions:
                row = [item.path, item.label, f"{item.probability:.6f}"]
                for name, value in item.top[1:]:
                    row += [name, f"{value:.6f}"]
                (quoting if any("\r" in cell for cell in row) else writer).writerow(row)

    write_atomically(path, fill)
