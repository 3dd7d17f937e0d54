"""The run directory: what was trained on what, with which result.

``run.json`` holds inputs, versions, timings and metrics; ``heads/NAME`` a fitted head with its
probabilities; ``manifest.csv`` and ``predictions.csv`` the rows; ``finetune`` what fine-tuning
keeps. Written by stages 2 and 3, read by ``compare`` and ``info``. A head that is listed is
complete.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import heads
from pipeline.backbones import identity
from pipeline.backbones.identity import Identity
from pipeline.dataset.examples import Examples
from pipeline.errors import RunError
from pipeline.files import arrays
from pipeline.files.atomic import rename_durably, temporary_sibling
from pipeline.files.location import Location, locate
from pipeline.files.regular import sha256_file
from pipeline.files.table import write_csv
from pipeline.files.typed_record import MisfitError, first_difference
from pipeline.images import manifest as manifests
from pipeline.images.manifest import Manifest
from pipeline.runs import folder
from pipeline.runs import places as run_places
from pipeline.runs import record as run_record
from pipeline.runs.folder import (
    FILES,
    FOLDERS,
    MANIFEST,
    MANIFEST_COLUMNS,
    PREDICTIONS,
    TENSORBOARD,
)
from pipeline.runs.record import FINETUNED as FINETUNED
from pipeline.runs.record import (
    RECORD,
    ROWS,
    HeadRecord,
    RunInputs,
    RunRecord,
    RunSource,
    SplitCounts,
    damaged,
    require_as_written,
)
from pipeline.system.progress import Reporter
from pipeline.system.provenance import provenance

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


_PROBABILITIES = "probabilities.npy"
# Of rows that were made by hand.
_NOWHERE: Final = RunSource.of({})


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
    record: HeadRecord


class Run:
    """One run on disk.

    Example:
        run = Run.open(Path("runs/sample"))
        run.record.heads["logreg"].test.accuracy
    """

    def __init__(self, path: Path, record: RunRecord, *, rows: Manifest | None = None) -> None:
        self.path = path
        self.record = record
        # Those of a run that is not on disk yet.
        self._rows = rows
        # Places that the user names.
        self._store: Location | None = None
        self._data: Location | None = None

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Tell whether a directory is a run."""
        return cls.record_path(path).is_file()

    @staticmethod
    def record_path(path: Path) -> Path:
        """Return the file of a run's record."""
        return path / RECORD

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a run.

        Raises:
            RunError: There is none, or its record lacks something.
            StoreError: The record cannot be read, or is of another version.
        """
        return cls(path, run_record.read(path))

    @classmethod
    def planned(
        cls,
        path: Path,
        *,
        inputs: Mapping[str, object],
        examples: Examples,
        root: Location,
        source: RunSource = _NOWHERE,
    ) -> "Run":
        """Describe a run without heads; nothing is on disk before the first head, or ``begin``.

        Args:
            path: Where.
            inputs: What results depend on besides the heads; another run's must be equal, but for
                the places among them.
            examples: The rows.
            root: What their paths are relative to.
            source: Where the rows came from; recorded and never compared.
        """
        rows = _rows_of(examples, root)
        record = RunRecord(
            inputs=inputs,
            classes=examples.names,
            split=SplitCounts.of(examples.counts()),
            moved=[
                {"label": item.label, "key": item.key, "from": item.source, "to": item.target}
                for item in examples.moved
            ],
            dropped=examples.dropped,
            root=str(root),
            source=source,
            provenance=provenance(),
            heads={},
            best=None,
        )
        return cls(path, record, rows=rows)

    def begin(self) -> None:
        """Put a planned run on disk, in the place of one that is there.

        Raises:
            RunError: The directory holds something else.
        """
        if self._rows is None:
            return
        if Run.exists(self.path):
            Run.remove(self.path)
        folder.require_free(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.note_places(locate(str(self.record.inputs["store"])), self._rows.root)
        self._write_rows(self._rows)
        self._rows = None

    @classmethod
    def remove(cls, path: Path) -> None:
        """Delete a run that ``--force`` replaces; killed, it leaves one without heads.

        Raises:
            RunError: There is no run, or it holds what is not its own. Nothing is deleted.
        """
        run = cls.open(path)
        folder.require_nothing_else(path)
        run.record = run.record.with_heads({}).without(FINETUNED)
        run.save_record()
        for name in FOLDERS:
            if (path / name).exists():
                shutil.rmtree(path / name)
        for name in FILES:
            (path / name).unlink(missing_ok=True)

    @property
    def inputs(self) -> RunInputs:
        """What the results depend on besides the heads.

        Raises:
            RunError: The record lacks some of it, or has it in another form.
        """
        said = self.record.inputs
        try:
            found = said.get("identity")
            if isinstance(found, Mapping):
                Identity.of(found)
        except MisfitError as error:
            raise identity.unusable(str(error)) from error
        try:
            return RunInputs.of(said)
        except MisfitError as error:
            raise RunError(
                f"Expected {str(self.path)!r} to name its store and the identity of its features. "
                f"Received: {error}.",
                hint="Train again with train-head.",
            ) from error

    def require_inputs(self, inputs: Mapping[str, object]) -> None:
        """Refuse to add to a run that was made from something else.

        Raises:
            RunError: Names the first input that differs, with both values.
        """
        known = run_places.apart_from_places(self.record.inputs)
        self._require_equal(run_places.apart_from_places(inputs), known, "was made")

    def has_head(self, name: str, params: Mapping[str, object]) -> bool:
        """Tell whether a head is finished.

        Raises:
            RunError: It is, with other parameters.
        """
        if name not in self.record.heads:
            return False
        self._require_equal(params, self.record.heads[name].params, f"holds {name}")
        return True

    def _require_equal(
        self, asked: Mapping[str, object], known: Mapping[str, object], what: str
    ) -> None:
        found = first_difference(asked, known)
        if found is None:
            return
        was, received = f"with {found.name} = {found.second!r}", f"{found.name} = {found.first!r}"
        if found.name == ROWS:
            was, received = "from its rows (labels, splits or files)", "others"
        raise RunError(
            f"The run {str(self.path)!r} {what} {was}. Received: {received}.",
            hint="Choose another --run, or replace this one with --force.",
        )

    def restore_manifest(self, examples: Examples) -> None:
        """Write the rows again where there are none, after a repair; they are those of the run."""
        if not (self.path / MANIFEST).exists():
            self._write_rows(_rows_of(examples, Path()))

    def _write_rows(self, rows: Manifest) -> None:
        """Write the rows, and the record with their digest."""
        path = self.path / MANIFEST
        with temporary_sibling(path) as temporary:
            more = {manifests.GROUP: rows.groups, manifests.DECLARED: rows.declared}
            columns = (*MANIFEST_COLUMNS, *(name for name, values in more.items() if values))
            manifests.fill(temporary, rows, columns=columns)
            digest = sha256_file(temporary)
            self.record = self.record.with_file(MANIFEST, [digest])
            # The record comes first: killed between the two, there is a run that lacks its rows.
            self.save_record()
            rename_durably(temporary, path)

    def drop_head(self, name: str) -> None:
        """Take a head out of the run, with what was derived from it."""
        heads = {other: head for other, head in self.record.heads.items() if other != name}
        self.record = self.record.with_heads(heads).without("lead")
        if name == FINETUNED:
            self.record = self.record.without(FINETUNED)
        self.save_record()
        for part in ("heads", TENSORBOARD):
            shutil.rmtree(self.path / part / name, ignore_errors=True)
        if (self.path / PREDICTIONS).exists():
            self.write_predictions()

    def add_head(self, name: str, fitted: FittedHead) -> None:
        """Save a fitted head, then list it.

        One that cannot be saved is listed with its scores and the reason (``not_saved``).
        """
        self.begin()
        folder = self.path / "heads" / name
        not_saved = heads.save(fitted.head, folder)
        arrays.write(folder / _PROBABILITIES, fitted.probabilities)
        names = (_PROBABILITIES,) if not_saved else (heads.RECORD, _PROBABILITIES)
        digests = {file: [sha256_file(folder / file)] for file in names}
        listed = replace(fitted.record, not_saved=not_saved, files=digests)
        self.record = self.record.with_heads({**self.record.heads, name: listed})
        self.save_record()

    def say_notes(self, name: str, reporter: Reporter) -> None:
        """Say what the user should read about a head, and why it could not be saved."""
        record = self.record.heads[name]
        for note in (*record.notes, record.not_saved):
            if note:
                reporter.say(note)

    def save_record(self) -> None:
        """Write ``run.json``."""
        run_record.write(self.path, self.record)

    def at(self, *, store: str | None = None, data: str | None = None) -> "Run":
        """Return this run with places that the user names in the place of recorded ones.

        Raises:
            RunError: They do not exist.
        """
        self._store = run_places.given_store(store)
        self._data = run_places.given_root(data)
        return self

    def note_places(self, store: Location, root: Location) -> None:
        """Take down where the store and the images are; see ``run_places``."""
        self.record = run_places.noted(self.record, self.path, store=store, root=root)

    @property
    def store_path(self) -> Location:
        """Where the store of its features is, or was last."""
        return self._store or run_places.store_of(self.record, self.path)

    def manifest(self) -> Manifest:
        """Return the rows of this run, with their splits.

        Raises:
            RunError: The file is not as it was written.
            ManifestError: It cannot be used.
        """
        self.require_file(MANIFEST)
        rows = manifests.read(self.path / MANIFEST, root=self._data or Path())
        if self._data is not None:
            return rows
        first = rows.paths[0] if rows.paths else ""
        return replace(rows, root=run_places.root_of(self.record, self.path, first))

    def load_head(self, name: str) -> "Head":
        """Read a head that was saved.

        Raises:
            RunError: It is damaged, or is not the one that the run lists.
        """
        self.require_file(heads.RECORD, head=name)
        return heads.load(self.path / "heads" / name)

    def require_file(self, file: str, *, head: str | None = None) -> None:
        """Refuse a file that is not as it was written, where the record tells.

        Args:
            file: Its name.
            head: The head that it is of; None for a file of the run itself.

        Raises:
            RunError: It is gone, or changed.
        """
        path = self.path / file if head is None else self.path / "heads" / head / file
        record = self.record if head is None else self.record.heads[head]
        require_as_written(path, (record.files or {}).get(file))

    def probabilities(self, name: str) -> NDArray[np.float32]:
        """Return a head's probabilities over the val and test rows, float32 ``(n, classes)``.

        Raises:
            RunError: The file is gone or damaged.
        """
        self.require_file(_PROBABILITIES, head=name)
        path = self.path / "heads" / name / _PROBABILITIES
        counts = self.record.split
        shape = (counts.val + counts.test, len(self.record.classes))
        try:
            array = arrays.read(path)
        except (OSError, ValueError) as error:
            raise damaged(path, str(error)) from error
        if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
            received = f"{array.dtype} of shape {array.shape}"
            raise damaged(path, f"{received} instead of finite float32 of shape {shape}")
        return array

    def write_predictions(self) -> None:
        """Write ``predictions.csv``: every head's prediction for every val and test row."""
        path = self.path / PREDICTIONS
        with temporary_sibling(path) as temporary:
            rows = folder.predictions(
                self.manifest(),
                self.record.classes,
                {name: self.probabilities(name) for name in self.record.heads},
            )
            write_csv(temporary, rows)
            # The record comes first: killed between the two, the old file is still known as ours.
            known = (self.record.files or {}).get(PREDICTIONS, [])
            self.record = self.record.with_file(PREDICTIONS, [sha256_file(temporary), *known[:1]])
            self.save_record()
            rename_durably(temporary, path)


def _rows_of(examples: Examples, root: Location) -> Manifest:
    return Manifest(
        root, examples.paths, examples.labels, examples.splits, examples.keys, (),
        groups=examples.groups, declared=examples.declared,
    )  # fmt: skip
