"""The run directory: what was trained on what, with which result.

``run.json`` holds inputs, versions, timings and metrics; ``heads/NAME`` a fitted head with its
probabilities; ``manifest.csv`` and ``predictions.csv`` the rows; ``finetune`` what fine-tuning
keeps. Written by stages 2 and 3, read by ``compare`` and ``info``. A head that is listed is
complete.
"""

import csv
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import heads
from pipeline import manifest as manifests
from pipeline.dataset import Examples
from pipeline.errors import RunError
from pipeline.files import (
    Kind,
    foreign,
    misfit,
    read_record,
    remove_leftovers,
    write_atomically,
    write_json,
)
from pipeline.manifest import Manifest
from pipeline.provenance import provenance
from pipeline.reporting import Reporter

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

SCHEMA_VERSION: Final = 2
MANIFEST_COLUMNS: Final = ("path", "label", "split", "key")
PREDICTION_COLUMNS: Final = ("path", "key", "label", "split", "head", "predicted", "probability")

# In a run of finetune: its record, the head on the changed network, and the folder of its weights.
FINETUNED: Final = "finetune"

_RECORD = "run.json"
_PROBABILITIES = "probabilities.npy"
# What readers of a record rely on; ``inputs`` are looked at by those who use them.
_FIELDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "inputs": dict,
        "classes": list[str],
        "split": dict,
        "root": str,
        "source": dict,
        "heads": dict,
        "best": (str, NoneType),
    }
)
_FINETUNED_FIELDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {"weights_sha256": str, "backbone_sha256": str}
)
_FOLDERS: Final = ("heads", FINETUNED)
# In the order of removing: while there is a record, there is a run, which --force can replace.
_FILES: Final = ("predictions.csv", "manifest.csv", _RECORD)


@dataclass(frozen=True, slots=True)
class FittedHead:
    """What stage 2 keeps of one head.

    Attributes:
        head: The fitted estimator.
        probabilities: float32 ``(n, classes)`` over the val and test rows, in manifest order.
        record: Parameters, metrics by split, fit seconds, converged, notes.
    """

    head: "Head"
    probabilities: NDArray[np.float32]
    record: Mapping[str, Any]


class Run:
    """One run on disk.

    Example:
        run = Run.open(Path("runs/sample"))
        run.record["heads"]["logreg"]["test"]["accuracy"]
    """

    # Held by whoever trains into a run for long.
    LOCK: Final = ".lock"

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Tell whether a directory is a run."""
        return (path / _RECORD).is_file()

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a run.

        Raises:
            RunError: There is none, or its record lacks something.
            StoreError: The record cannot be read, or is of another version.
        """
        record = read_record(path / _RECORD, kind="run", version=SCHEMA_VERSION)
        if record is None:
            raise RunError(
                f"There is no run at {str(path)!r}.",
                hint="Make one with pipeline train-head --store STORE --run RUN.",
            )
        wrong = _misfit(record)
        if wrong is not None:
            raise RunError(
                f"Expected {str(path / _RECORD)!r} to describe a run. Received: {wrong}.",
                hint="Put it back as it was, or delete the run and make it again.",
            )
        return cls(path, record)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        inputs: Mapping[str, Any],
        examples: Examples,
        root: Path,
        source: Mapping[str, Any] = MappingProxyType({}),
    ) -> "Run":
        """Make a run without heads.

        Args:
            path: Where.
            inputs: What results depend on besides the heads; another run's must be equal.
            examples: The rows.
            root: What their paths are relative to.
            source: Where the rows came from; recorded and never compared.

        Raises:
            RunError: The directory holds something else.
        """
        cls.require_free(path)
        path.mkdir(parents=True, exist_ok=True)
        record = {
            "schema_version": SCHEMA_VERSION,
            "inputs": dict(inputs),
            "classes": list(examples.names),
            "split": examples.counts(),
            "moved": [
                {"label": item.label, "key": item.key, "from": item.source, "to": item.target}
                for item in examples.moved
            ],
            "dropped": examples.dropped,
            "root": str(root),
            "source": dict(source),
            "provenance": provenance(),
            "heads": {},
            "best": None,
        }
        run = cls(path, record)
        run.save_record()
        run.go_on(examples)
        return run

    def go_on(self, examples: Examples) -> None:
        """Clear up what a killed process left, and make again what it did not come to.

        Args:
            examples: The rows, which the inputs of this run stand for.
        """
        for folder in (self.path, *(self.path / name for name in _FOLDERS)):
            for place in (folder, *folder.glob("*/")):
                remove_leftovers(place)
        path = self.path / "manifest.csv"
        if not path.exists():
            root = Path(self.record["root"])
            rows = Manifest(
                root, examples.paths, examples.labels, examples.splits, examples.keys, ()
            )
            manifests.write(path, rows, columns=MANIFEST_COLUMNS)

    @classmethod
    def require_free(cls, path: Path) -> None:
        """Refuse a place that holds something.

        Raises:
            RunError: It is a file, or a folder that is not empty.
        """
        is_used = path.is_dir() and foreign(path, {cls.LOCK})
        if is_used or path.is_file():
            raise RunError(
                f"Expected a run or an empty folder at {str(path)!r}. Received: something else.",
                hint="Choose another --run.",
            )

    @classmethod
    def remove(cls, path: Path) -> None:
        """Delete a run that ``--force`` replaces; killed, it leaves one without heads.

        Raises:
            RunError: There is no run, or it holds what is not its own. Nothing is deleted.
        """
        run = cls.open(path)
        others = foreign(path, {*_FOLDERS, *_FILES, cls.LOCK})
        if others:
            raise RunError(
                f"Expected nothing but a run at {str(path)!r}, which is to be replaced. "
                f"Received: also {others[0]!r}.",
                hint="Move it elsewhere, or choose another --run.",
            )
        run.record = {**run.record, "heads": {}, "best": None}
        run.record.pop(FINETUNED, None)
        run.save_record()
        for name in _FOLDERS:
            if (path / name).exists():
                shutil.rmtree(path / name)
        for name in _FILES:
            (path / name).unlink(missing_ok=True)

    def require_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Refuse to add to a run that was made from something else.

        Raises:
            RunError: Names the first input that differs, with both values.
        """
        known = self.record["inputs"]
        for name in (*inputs, *known):
            if known.get(name) != inputs.get(name):
                raise RunError(
                    f"The run {str(self.path)!r} was made with {name} = {known.get(name)!r}. "
                    f"Received: {name} = {inputs.get(name)!r}.",
                    hint="Choose another --run, or replace this one with --force.",
                )

    def has_head(self, name: str, params: Mapping[str, Any]) -> bool:
        """Tell whether a head is finished.

        Raises:
            RunError: It is, with other parameters.
        """
        if name not in self.record["heads"]:
            return False
        known = self.record["heads"][name]["params"]
        for key in (*params, *known):
            if known.get(key) != params.get(key):
                raise RunError(
                    f"The run {str(self.path)!r} holds {name} with {key} = {known.get(key)!r}. "
                    f"Received: {key} = {params.get(key)!r}.",
                    hint="Choose another --run, or replace this one with --force.",
                )
        return True

    def add_head(self, name: str, fitted: FittedHead) -> None:
        """Save a fitted head, then list it.

        One that cannot be saved is listed with its scores and the reason (``not_saved``).
        """
        folder = self.path / "heads" / name
        not_saved = heads.save(fitted.head, folder)
        write_atomically(
            folder / _PROBABILITIES,
            lambda temporary: _save_array(temporary, fitted.probabilities),
        )
        self.record["heads"][name] = {**fitted.record, "not_saved": not_saved}
        self.record["best"] = best(self.record["heads"])
        self.save_record()

    def say_notes(self, name: str, reporter: Reporter) -> None:
        """Say what the user should read about a head, and why it could not be saved."""
        record = self.record["heads"][name]
        for note in (*record["notes"], record["not_saved"]):
            if note:
                reporter.say(note)

    def save_record(self) -> None:
        """Write ``run.json``."""
        write_json(self.path / _RECORD, self.record)

    def manifest(self) -> Manifest:
        """Return the rows of this run, with their splits."""
        return manifests.read(self.path / "manifest.csv", root=Path(self.record["root"]))

    def probabilities(self, name: str) -> NDArray[np.float32]:
        """Return a head's probabilities over the val and test rows, float32 ``(n, classes)``.

        Raises:
            RunError: The file is gone or damaged.
        """
        path = self.path / "heads" / name / _PROBABILITIES
        try:
            array: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} cannot be read: {error}.", hint="Train that head again with --force."
            ) from error
        return array

    def write_predictions(self) -> None:
        """Write ``predictions.csv``: every head's prediction for every val and test row."""
        rows = self.manifest()
        scored = [index for index, split in enumerate(rows.splits) if split != "train"]
        classes = self.record["classes"]

        def fill(temporary: Path) -> None:
            with temporary.open(
                "w", encoding="utf-8", errors="surrogateescape", newline=""
            ) as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(PREDICTION_COLUMNS)
                for name in self.record["heads"]:
                    probabilities = self.probabilities(name)
                    for index, row in zip(scored, probabilities, strict=True):
                        top = int(row.argmax())
                        key = rows.keys[index].decode()
                        about = (rows.paths[index], key, rows.labels[index], rows.splits[index])
                        writer.writerow((*about, name, classes[top], f"{row[top]:.6f}"))

        write_atomically(self.path / "predictions.csv", fill)


def best(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the head of highest val accuracy, ties by lower val log loss."""
    return min(
        records,
        key=lambda name: (-records[name]["val"]["accuracy"], records[name]["val"]["log_loss"]),
    )


def _misfit(record: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a run's record; None where it can be used."""
    wrong = misfit(record, _FIELDS)
    if wrong is None:
        wrong = misfit(record["heads"], dict.fromkeys(record["heads"], dict))
    # Until it ends, fine-tuning keeps notes there, and has no head.
    if wrong is None and FINETUNED in {*record, *record["heads"]}:
        wrong = misfit(record, {FINETUNED: dict})
    if wrong is None and FINETUNED in record["heads"]:
        wrong = misfit(record[FINETUNED], _FINETUNED_FIELDS)
    return wrong


def _save_array(path: Path, array: NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
