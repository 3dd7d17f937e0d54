"""The record of a run: what ``run.json`` must hold, and the digests in it of the run's files.

What is read is checked as a whole before anything of it is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pipeline.backbones.identity import Identity
from pipeline.copies.threshold import Threshold
from pipeline.errors import RunError
from pipeline.files.records import read_record, write_record
from pipeline.files.regular import sha256_file
from pipeline.files.typed_record import MisfitError, Record, lenient

SCHEMA_VERSION: Final = 3
RECORD: Final = "run.json"

# In a run of finetune: its record, the head on the changed network, and the folder of its weights.
FINETUNED: Final = "finetune"

# The field of a run's inputs that its rows stand behind.
ROWS: Final = "manifest_sha256"

# Without a digest.
_OLDER: Final = (2,)

# The digests that a file may have, by its name: two where the newer file may not have got its name
# yet.
Digests = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class RunInputs(Record):
    """What the results of a run depend on besides the heads, and where its store is.

    Attributes:
        store: Where the store was.
        identity: How its features were made.
        split: The shares that were asked for.
        split_seed: The seed of the split.
        min_per_class: Fewest different images of a class.
        rare: What became of classes below that.
        refit: Whether heads were fitted once more on train and val.
        augment: Views that heads were fitted on too.
        average: Views that probabilities are averaged over.
        reject_below: Probability below which no answer is given; None gives all.
        group: Column whose groups stay in one split; None without.
        manifest_sha256: Digest of the rows.
    """

    store: str
    identity: Identity
    split: str | None = field(metadata=lenient(None))
    split_seed: int = field(metadata=lenient(0))
    min_per_class: int = field(metadata=lenient(1))
    rare: str | None = field(metadata=lenient(None))
    refit: bool = field(metadata=lenient(False))
    augment: Sequence[str] | None = field(metadata=lenient(None))
    average: Sequence[str] | None = field(metadata=lenient(None))
    reject_below: float | None = field(metadata=lenient(None))
    group: str | None = field(metadata=lenient(None))
    # Last, so that an option that changes the rows is named before their digest.
    manifest_sha256: str | None = field(metadata=lenient(None))


@dataclass(frozen=True, kw_only=True)
class MergedCopies(Record):
    """The near duplicates that stay in one split.

    Attributes:
        threshold: From which similarity two images are.
        images: How many images were compared.
        groups: How many groups they form.
        merged: How many images are in these.
    """

    threshold: Threshold
    images: int
    groups: int
    merged: int


@dataclass(frozen=True, kw_only=True)
class RunSource(Record):
    """Where the rows and the weights of a run came from; recorded and never compared.

    Attributes:
        manifest: The manifest that was asked for; None for the store's own.
        declared_splits: Whether the rows say their splits.
        notes: What was assumed of them.
        weights: The option that the weights were asked for with, where it is known.
        weights_seed: The seed of weights that are drawn.
        near_duplicates: Those that a leak-free split keeps together; None of other splits.
    """

    manifest: str | None = field(metadata=lenient(None))
    declared_splits: bool = field(metadata=lenient(True))
    notes: Sequence[str] = field(metadata=lenient(()))
    weights: str | None = field(metadata=lenient(None))
    weights_seed: int | None = field(metadata=lenient(None))
    near_duplicates: MergedCopies | None = None


@dataclass(frozen=True, kw_only=True)
class SplitCounts(Record):
    """How many rows each split has."""

    train: int
    val: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """The scores of a head on one split; None where undefined.

    ``metrics.score`` makes those of all images; ``per_class`` those of each class, which train and
    older releases lack.
    """

    n: int = field(metadata=lenient(0))
    accuracy: float | None = field(metadata=lenient(None))
    accuracy_ci95: Sequence[float] | None = field(metadata=lenient(None))
    balanced_accuracy: float | None = field(metadata=lenient(None))
    macro_f1: float | None = field(metadata=lenient(None))
    log_loss: float | None = field(metadata=lenient(None))
    ece: float | None = field(metadata=lenient(None))
    per_class: Mapping[str, Sequence[float | None]] | None = None
    confusion_matrix: object = None


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """The temperature of a head, and what it changes; before it means a temperature of 1."""

    temperature: float = field(metadata=lenient(1.0))
    calibrated: bool = field(metadata=lenient(False))
    ece_before: Mapping[str, float] = field(metadata=lenient({}))
    ece_after: Mapping[str, float] = field(metadata=lenient({}))


@dataclass(frozen=True, kw_only=True)
class Choice(Record):
    """What compares the chosen setting of a swept head with those of others.

    Attributes:
        log_loss: On the rows to choose on.
        n: How many these are.
        correct: Which of them it classifies rightly, as bits in hex.
    """

    log_loss: float
    n: int
    correct: str


_NO_SCORE: Final = Score.of({})


@dataclass(frozen=True, kw_only=True)
class HeadRecord(Record):
    """What a run says of one head.

    Attributes:
        train: Its scores on train.
        val: On what it was chosen on.
        test: On test.
        fit_seconds: How long fitting took.
        predict_seconds: How long scoring test took.
        converged: Whether its fit converged; None where that has no meaning.
        calibration: Its temperature.
        reject: What withholding answers below a threshold does, and the whole curve.
        prior: The class frequencies that its probabilities are for.
        refit: Whether it was fitted once more on train and val.
        params: Its parameters.
        selected: Those that it chose on val.
        notes: Plain sentences that the user should read.
        losses: Mean loss of each epoch in training; None of a head without epochs.
        selected_on: What a sweep chose on.
        choice: What compares it with the other heads of a sweep.
        trials: The settings that a sweep tried.
        not_saved: Why it was not saved; empty if it was.
        files: Digests of its files; None in records of older releases.
    """

    train: Score = field(metadata=lenient(_NO_SCORE))
    val: Score = field(metadata=lenient(_NO_SCORE))
    test: Score = field(metadata=lenient(_NO_SCORE))
    fit_seconds: float = field(metadata=lenient(0.0))
    predict_seconds: float = field(metadata=lenient(0.0))
    converged: bool | None = field(metadata=lenient(None))
    calibration: Calibration = field(metadata=lenient(Calibration.of({})))
    reject: Mapping[str, object] = field(metadata=lenient({}))
    prior: str = field(metadata=lenient("train"))
    refit: bool = field(metadata=lenient(False))
    params: Mapping[str, object] = field(metadata=lenient({}))
    selected: Mapping[str, object] = field(metadata=lenient({}))
    notes: Sequence[str] = field(metadata=lenient(()))
    losses: Sequence[float] | None = None
    selected_on: str | None = None
    choice: Choice | None = None
    trials: Sequence[Mapping[str, object]] | None = None
    not_saved: str | None = None
    files: Digests | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneRecord(Record):
    """What a run says of its fine-tuning; until that ends, no more than what is to gain.

    Attributes:
        head_room: What is to gain, as ``learning_curve`` tells.
        weights_sha256: Digest of the changed weights, which names their file.
        backbone_sha256: Digest of the backbone with them.
        layer: The first layer that was trained.
        boundary: The layer whose activations were kept; None without.
        start_difference: Largest difference of a probability at the start; None without a check.
        estimated_seconds_per_epoch: Before training; None where no epoch was left.
        kept_epoch: The epoch whose weights are kept; 0 is the start.
        stopped: Why training ended before its last epoch; None if it did not.
        epochs: A row per epoch.
        verdict: Whether it was worth it; by this a run is known to be finished.
    """

    head_room: Mapping[str, object] | None = None
    weights_sha256: str | None = None
    backbone_sha256: str | None = None
    layer: str | None = None
    boundary: str | None = None
    start_difference: float | None = None
    estimated_seconds_per_epoch: float | None = None
    kept_epoch: int | None = None
    stopped: str | None = None
    epochs: Sequence[Mapping[str, object]] | None = None
    verdict: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class Nearby(Record):
    """Where the store and the images are, from the folder of the run."""

    store: str | None = None
    root: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """What ``run.json`` says of a run.

    Attributes:
        inputs: What results depend on, as JSON; ``Run.inputs`` looks at it for those who use it.
        classes: Class names, in the order of class numbers.
        split: How many rows each split has.
        moved: Rows that were moved into splits which had none of their class.
        dropped: How many rows were left out, by reason.
        root: Where the images were last.
        source: Where rows and weights came from.
        provenance: Versions and host.
        heads: What is said of each head; one that is listed is complete.
        best: The best head on val; None where there is none.
        nearby: Where store and images are, from the run; None in records of older releases.
        files: Digests of the run's own files; None in records of older releases.
        finetune: What is said of fine-tuning; None in other runs.
        lead: How far the best head of a sweep leads the next.
    """

    inputs: Mapping[str, object]
    classes: Sequence[str]
    split: SplitCounts
    moved: Sequence[Mapping[str, str]] = field(metadata=lenient(()))
    dropped: Mapping[str, int] = field(metadata=lenient({}))
    root: str
    source: RunSource
    provenance: Mapping[str, object] = field(metadata=lenient({}))
    heads: Mapping[str, HeadRecord]
    best: str | None
    nearby: Nearby | None = None
    files: Digests | None = None
    finetune: FinetuneRecord | None = None
    lead: Mapping[str, object] | None = None

    def with_heads(self, heads: Mapping[str, HeadRecord]) -> "RunRecord":
        """Return this record with other heads, and the best of them."""
        return replace(self, heads=heads, best=best(heads) if heads else None)

    def with_file(self, name: str, digests: Sequence[str]) -> "RunRecord":
        """Return this record with the digests that one of the run's files may have."""
        return replace(self, files={**(self.files or {}), name: digests})

    def finetuned(self) -> FinetuneRecord:
        """Return what is said of fine-tuning, or nothing where it has not begun."""
        return self.finetune or FinetuneRecord()


def best(heads: Mapping[str, HeadRecord]) -> str:
    """Return the head of highest val accuracy, ties by lower val log loss."""
    return min(heads, key=lambda name: _rank(heads[name].val))


def _rank(val: Score) -> tuple[float, float]:
    return -(val.accuracy or 0.0), val.log_loss or 0.0


def read(folder: Path) -> RunRecord:
    """Read the record of a run.

    Raises:
        RunError: There is none, or it lacks something.
        StoreError: It cannot be read, is of another version, or is not as it was written.
    """
    said = read_record(folder / RECORD, kind="run", version=SCHEMA_VERSION, older=_OLDER)
    if said is None:
        raise RunError(
            f"There is no run at {str(folder)!r}.",
            hint="Make one with pipeline train-head --store STORE --run RUN.",
        )
    try:
        record = RunRecord.of(said)
        _require_finetuned(record)
    except MisfitError as error:
        raise RunError(
            f"Expected {str(folder / RECORD)!r} to describe a run. Received: {error}.",
            hint="Put it back as it was, or delete the run and make it again.",
        ) from error
    return record


def write(folder: Path, record: RunRecord) -> None:
    """Write the record of a run."""
    write_record(folder / RECORD, record.as_json(), version=SCHEMA_VERSION)


def require_as_written(path: Path, known: Sequence[str] | None) -> None:
    """Refuse a file that is not as it was written.

    Args:
        path: The file.
        known: The digests that it may have; None where an older release took down none.

    Raises:
        RunError: It is gone, or changed.
    """
    if known is None:
        return
    try:
        received = sha256_file(path)
    except OSError as error:
        raise damaged(path, str(error.strerror)) from error
    if received not in known:
        raise damaged(path, "other content than its record says")


def damaged(path: Path, received: str) -> RunError:
    """Return the error for a file of a run that is not as it was written."""
    return RunError(
        f"Expected {str(path)!r} as it was written. Received: {received}.",
        hint="Put it back from a copy, or use pipeline verify RUN --repair and train again.",
    )


def _require_finetuned(record: RunRecord) -> None:
    """Refuse a head on a changed network that is nowhere.

    Raises:
        MisfitError: Says what its record lacks.
    """
    if FINETUNED not in record.heads:
        return
    if record.finetune is None:
        raise MisfitError(f"no {FINETUNED!r}")
    # Until it ends, fine-tuning keeps notes there, and has no head.
    for name in ("weights_sha256", "backbone_sha256"):
        if getattr(record.finetune, name) is None:
            raise MisfitError(f"no {name!r}")
