"""The folder of a run: what it holds, and that it holds nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.files.atomic import foreign, remove_leftovers
from pipeline.images.manifest import Manifest
from pipeline.runs.record import FINETUNED, RECORD

MANIFEST_COLUMNS: Final = ("path", "label", "split", "key")
PREDICTION_COLUMNS: Final = ("path", "key", "label", "split", "head", "predicted", "probability")
MANIFEST: Final = "manifest.csv"
PREDICTIONS: Final = "predictions.csv"
REPORT: Final = "report.html"
# Event files of heads, for TensorBoard.
TENSORBOARD: Final = "tensorboard"
FOLDERS: Final = ("heads", FINETUNED, TENSORBOARD)
# In the order of removing: while there is a record, there is a run, which --force can replace.
FILES: Final = (REPORT, PREDICTIONS, MANIFEST, RECORD)
# Held by whoever trains into a run for long.
LOCK: Final = ".lock"


def require_free(path: Path) -> None:
    """Refuse a place that holds something.

    Raises:
        RunError: It is a file, or a folder that is not empty.
    """
    is_used = path.is_dir() and foreign(path, {LOCK})
    if is_used or path.is_file():
        raise RunError(
            f"Expected a run or an empty folder at {str(path)!r}. Received: something else.",
            hint="Choose another --run.",
        )


def unused(path: Path) -> Path:
    """Return a place where nothing is: the one that is given, or one with a number behind it."""
    number, place = 1, path
    while place.exists():
        number += 1
        place = path.with_name(f"{path.name}-{number}")
    return place


def require_nothing_else(path: Path) -> None:
    """Refuse to replace a run that holds what is not its own.

    Raises:
        RunError: Names the first of it.
    """
    others = foreign(path, {*FOLDERS, *FILES, LOCK})
    if others:
        raise RunError(
            f"Expected nothing but a run at {str(path)!r}, which is to be replaced. "
            f"Received: also {others[0]!r}.",
            hint="Move it elsewhere, or choose another --run.",
        )


def clear_leftovers(path: Path) -> None:
    """Delete the temporary files that killed processes left in a run, begun or not."""
    for folder in (path, *(path / name for name in FOLDERS)):
        for place in (folder, *folder.glob("*/")):
            remove_leftovers(place)


def predictions(
    rows: Manifest, classes: Sequence[str], probabilities: Mapping[str, NDArray[np.float32]]
) -> Iterator[tuple[str, ...]]:
    """Yield the header of ``predictions.csv``, then its rows, head by head.

    Args:
        rows: The rows of the run.
        classes: Class names.
        probabilities: By head, ``(n, classes)`` over the val and test rows.
    """
    scored = [index for index, split in enumerate(rows.splits) if split != "train"]
    yield PREDICTION_COLUMNS
    for name, found in probabilities.items():
        for index, row in zip(scored, found, strict=True):
            top, key = int(row.argmax()), rows.keys[index].decode()
            about = (rows.paths[index], key, rows.labels[index], rows.splits[index])
            yield (*about, name, classes[top], f"{row[top]:.6f}")
