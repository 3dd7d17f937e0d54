"""The ``predict`` command: classifies files and folders with a head of a run.

Every file that was named is in the result: with a prediction, or with the reason why it has none.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.backbones import weights
from pipeline.config.options import CommonOptions
from pipeline.config.serving import PredictOptions
from pipeline.errors import ManifestError
from pipeline.files import outputs, remote
from pipeline.files.atomic import write_atomically
from pipeline.files.location import Location, Remote, is_address, locate
from pipeline.files.table import write_csv
from pipeline.images import packed, place
from pipeline.images.manifest import none_usable
from pipeline.images.sources.below import walk
from pipeline.serving import predictions_csv
from pipeline.serving.classifier import Classifier, Prediction
from pipeline.serving.inputs import refused
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted


def predict(
    options: PredictOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, object]:
    """Classify images; see docs/json.md for the keys of the result.

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
    files = _checked(options, reporter, force=common.force)
    classifier = Classifier.of(options, reporter)
    _note(classifier, options, len(files), reporter)
    began = time.monotonic()
    with reporter.bar(len(files), "img") as bar:
        images = [refused(name, reason) if reason else name for name, reason in files.items()]
        found = classifier.predict(images, options.top, bar=bar)
    ended = time.monotonic()
    if not found.predictions:
        raise none_usable(found.errors, hint="Give image files, or folders of images.")
    if options.csv:
        rows = list(predictions_csv.rows(list(files), found))
        write_atomically(Path(options.csv), lambda temporary: write_csv(temporary, rows))
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


def list_files(paths: Sequence[str], reporter: Reporter, *, without: str | None) -> dict[str, str]:
    """Return the files that arguments name, each once, in that order; folders are searched.

    So are packed files: each image in them is one.

    Returns:
        The files, with the reason of each that is a packed file of which nothing can be read.

    Args:
        paths: Files, folders and packed files, on this machine or at addresses.
        reporter: Where it is said that a file was named twice, and what is left out.
        without: A file that a folder may hold and that is no input, such as an earlier result.

    Raises:
        ManifestError: A path does not exist, or a folder has no files.
        StorageError: A storage refuses, or cannot be reached.
    """
    remote.forget()  # whatever is known of objects
    files: dict[str, tuple[str, str]] = {}
    num_named = 0
    for text in paths:
        for name, reason in _files_of(text, reporter, without):
            num_named += 1
            files.setdefault(_normalized(name), (name, reason))
    if num_named > len(files):
        again = counted(num_named - len(files), "file")
        reporter.say(f"{again} named more than once; each is classified once")
    return dict(files.values())


def _normalized(name: str) -> str:
    """Return what is equal for two spellings of one file."""
    return name if is_address(name) else os.path.normpath(Path(name).absolute())


def _files_of(text: str, reporter: Reporter, without: str | None) -> list[tuple[str, str]]:
    """Return the files that an argument names, each with the reason why it is no image if known."""
    path = locate(text)
    if not _is_walked(path):
        return [(_existing(text), "")]
    below = walk(path)
    for note in below.notes:
        reporter.say(note)
    left_out = _normalized(without) if without else None
    names = dict(zip(below.paths, place.names_of(path, below.paths), strict=True))
    found = [
        (name, below.refused.get(inner, ""))
        for inner, name in names.items()
        if left_out is None or _normalized(name) != left_out
    ]
    if not found:
        raise ManifestError(
            f"There are no files in {text!r}.", hint="Give image files, or folders of images."
        )
    return found


def _is_walked(path: Location) -> bool:
    """Tell whether a path is a folder, or a packed file, which counts as one."""
    if not isinstance(path, Remote):
        # Not the path's own: names that are too long are no folders.
        is_packed = packed.kind_of(path.name) is not None
        return os.path.isdir(path) or (is_packed and path.is_file())  # noqa: PTH112
    if packed.kind_of(path.name) and place.exists(path, ""):
        return True
    # A name without a suffix is more often a folder: one question less.
    return not (path.suffix and place.exists(path, "")) and remote.is_folder(path)


def _existing(text: str) -> str:
    if not place.exists(Path(), text):
        raise ManifestError(
            f"Expected image files and folders. Received: {text!r}, which does not exist.",
            hint="Correct the path.",
        )
    return text


def _checked(options: PredictOptions, reporter: Reporter, *, force: bool) -> dict[str, str]:
    """Return what ``list_files`` does, after everything that can be refused at once."""
    files = list_files(options.paths, reporter, without=options.csv)
    if options.weights is not None:
        weights.require_source(options.weights)
    if options.csv is not None:
        outputs.require_new_file("--csv", Path(options.csv), reporter, force=force)
    return files


def _note(
    classifier: Classifier, options: PredictOptions, num_files: int, reporter: Reporter
) -> None:
    """Say what is about to be done with what."""
    encoder = classifier.encoder
    reporter.say(
        f"{counted(num_files, 'file')}; head {classifier.name} of {options.run}, "
        f"{encoder.engine} on {encoder.device}"
    )
    if classifier.average:
        views = ", ".join(classifier.average)
        reporter.say(f"Averaging over the image as it is and {views}, as the run does")
    if classifier.reject_below:
        reporter.say(f"No answer is given below {classifier.reject_below:g}, as in the run")


def _record(prediction: Prediction) -> dict[str, object]:
    """Return a prediction as JSON values."""
    return {
        "path": prediction.path,
        "label": prediction.label,
        "probability": prediction.probability,
        "top": [{"label": name, "probability": value} for name, value in prediction.top],
    }
