"""What an audit found: one frozen record, from which JSON, CSV and pages are written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipeline.copies.threshold import Threshold

Scores = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Files that are nearly the same; of a leak, the held-out one and its copy.

    Attributes:
        paths: Paths of the files.
        labels: Their labels.
        splits: Their splits.
        similarity: Cosine of the most similar two of them.
        lowest_similarity: Of the least similar two; None of a group too large to tell.
        is_chain: Whether some of them are connected by others alone.
    """

    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    similarity: float
    lowest_similarity: float | None
    is_chain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadScores:
    """Test scores of one head, as ``runs.metrics.score`` makes them."""

    without: Scores
    everything: Scores
    leaked: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelError:
    """A label that may be wrong.

    Attributes:
        path: The file.
        split: Its split.
        given: Its label.
        proposed: The label that the other images speak for.
        score: From 0 to 1; the lower, the likelier an error.
        is_likely: Whether confident learning counts it among the errors.
    """

    path: str
    split: str
    given: str
    proposed: str
    score: float
    is_likely: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelErrors:
    """Labels that may be wrong, the likeliest first, and what said so."""

    errors: Sequence[LabelError] = ()
    head: str | None = None
    folds: int | None = None
    accuracy: float | None = None
    estimated: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """An image unlike all others: its score is 2.5 or more robust standard deviations above."""

    path: str
    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """A file with a fault: which, and its measure."""

    path: str
    label: str
    issue: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Confounder:
    """How well a property of files that is no picture tells the class.

    Attributes:
        name: ``file size``, ``dimensions``, ``mean colour``, ``camera``.
        n: Images that it was tried on.
        accuracy: Share of them whose class it tells, cross-validated.
        accuracy_ci95: Its 95 % interval (Wilson).
        majority: Share of the most frequent class.
        tells: Whether it does better than that by more than chance.
    """

    name: str
    n: int
    accuracy: float
    accuracy_ci95: Sequence[float]
    majority: float
    tells: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that an audit found.

    Attributes:
        store: The store.
        run: The run whose labels and splits were taken; None without.
        images: Files audited.
        distinct: Different images among them.
        unlabelled: Files without a label.
        classes: Files of each class.
        imbalance: Files of the largest class over those of the smallest; None without a class.
        threshold: From which similarity images are nearly the same.
        copies: Files of equal bytes.
        near_duplicates: Files that are nearly the same, equal ones too.
        leaks: Held-out files with a copy in an earlier split.
        scores: Of each head of the run.
        label_errors: Labels that may be wrong.
        outliers: Images unlike all others.
        issues: Files with a fault.
        confounders: What else tells the class.
        notes: Why a section has nothing to say, or what it left out, by its name.
    """

    store: str
    run: str | None
    images: int
    distinct: int
    unlabelled: int
    classes: Mapping[str, int]
    imbalance: float | None
    threshold: Threshold
    copies: Sequence[Group]
    near_duplicates: Sequence[Group]
    leaks: Sequence[Group]
    scores: Mapping[str, HeadScores]
    label_errors: LabelErrors
    outliers: Sequence[Outlier]
    issues: Sequence[Issue]
    confounders: Sequence[Confounder]
    notes: Mapping[str, str]

    def as_json(self) -> dict[str, object]:
        """Return what ``--json`` prints of it; see docs/json.md."""
        errors = self.label_errors
        return {
            "store": self.store,
            "run": self.run,
            "images": self.images,
            "distinct": self.distinct,
            "unlabelled": self.unlabelled,
            "classes": dict(self.classes),
            "imbalance": self.imbalance,
            "threshold": self.threshold.as_json(),
            "copies": [asdict(item) for item in self.copies],
            "near_duplicates": [asdict(item) for item in self.near_duplicates],
            "leaks": [asdict(item) for item in self.leaks],
            "scores_without_leaks": {
                name: {**item.without, "all": item.everything, "leaked": item.leaked}
                for name, item in self.scores.items()
            },
            "label_errors": [asdict(item) for item in errors.errors],
            "label_error_head": {
                "head": errors.head,
                "folds": errors.folds,
                "accuracy": errors.accuracy,
                "estimated": errors.estimated,
            },
            "outliers": [asdict(item) for item in self.outliers],
            "issues": [asdict(item) for item in self.issues],
            "confounders": [asdict(item) for item in self.confounders],
            "notes": dict(self.notes),
        }
