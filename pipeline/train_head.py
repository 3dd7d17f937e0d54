"""Stage 2: fit heads on train, choose on val, score test once.

Called by ``commands``, which brings the run, the rows and their features. A head that the run
already holds is left as it is.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.calibration import coverage_curve, fit_temperature, probabilities
from pipeline.dataset import Examples
from pipeline.reporting import Reporter
from pipeline.run import FittedHead, Run
from pipeline.shards import Features
from pipeline.splits import SPLITS

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


# Where the curve of coverage and accuracy is drawn: probabilities near one matter most.
CURVE_THRESHOLDS: Final = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class SplitFeatures:
    """Features and class numbers, grouped train, val, test.

    Attributes:
        X: float32 ``(n, dim)``.
        y: int64 ``(n,)``.
        rows: Where each split is; neighbours, so that slices copy nothing.
        num_classes: Number of classes.
        augment: Features of views to fit on too, each of the shape of X.
        average: Features of views to average probabilities over, each of the shape of X.
    """

    X: Features
    y: NDArray[np.int64]
    rows: Mapping[str, slice]
    num_classes: int
    augment: Sequence[Features] = ()
    average: Sequence[Features] = ()

    @classmethod
    def of(
        cls,
        examples: Examples,
        features: Features,
        *,
        augment: Sequence[Features] = (),
        average: Sequence[Features] = (),
    ) -> "SplitFeatures":
        """Join rows with their features, which are in the same order."""
        rows = {name: examples.rows(name) for name in SPLITS}
        return cls(features, examples.y, rows, len(examples.names), augment, average)

    def part(self, *names: str) -> tuple[Features, NDArray[np.int64]]:
        """Return the features and class numbers of one split, or of neighbouring ones."""
        rows = self._range(*names)
        return self.X[rows], self.y[rows]

    def to_fit(self, *names: str) -> tuple[Features, NDArray[np.int64]]:
        """Return the same with the views to fit on after the images as they are."""
        if not self.augment:
            return self.part(*names)
        rows = self._range(*names)
        X = np.concatenate([self.X[rows], *(view[rows] for view in self.augment)])
        return X, np.tile(self.y[rows], 1 + len(self.augment))

    def scores(self, head: "Head", name: str) -> list[NDArray[np.floating]]:
        """Return a head's scores for one split, ``(n, num_classes)`` a view.

        The images as they are come first, then the views to average over; a class that train
        lacks has a score of minus infinity.
        """
        rows = self.rows[name]
        found = []
        for view in (self.X, *self.average):
            made = head.scores(view[rows])
            scores = np.full((len(made), self.num_classes), -np.inf, dtype=made.dtype)
            scores[:, head.classes_] = made
            found.append(scores)
        return found

    def _range(self, *names: str) -> slice:
        return slice(self.rows[names[0]].start, self.rows[names[-1]].stop)


def train_heads(
    run: Run,
    data: SplitFeatures,
    heads: Mapping[str, "Head"],
    *,
    refit: bool,
    reject_below: float = 0.0,
    reporter: Reporter,
) -> None:
    """Fit, score and save every head that the run does not hold yet.

    Args:
        run: Where they go.
        data: Features and labels by split.
        heads: Unfitted heads by name.
        refit: Whether to fit once more on train and val before scoring test; the val scores
            and the temperature stay those of the model before.
        reject_below: Probability below which no answer is given.
        reporter: Where notes and progress go.

    Raises:
        RunError: The run holds a head with other parameters.
    """
    todo = {name: head for name, head in heads.items() if not run.has_head(name, parameters(head))}
    for name in heads.keys() - todo.keys():
        reporter.say(f"{name}: already in {run.path}, kept")
    with reporter.bar(len(todo), "head") as bar:
        for name, head in todo.items():
            fitted = fit_head(head, data, refit=refit, reject_below=reject_below)
            for note in fitted.record["notes"]:
                reporter.say(note)
            run.add_head(name, fitted)
            bar.advance()
    run.write_predictions()


def fit_head(
    head: "Head", data: SplitFeatures, *, refit: bool = False, reject_below: float = 0.0
) -> FittedHead:
    """Fit one head, choose its temperature on val, and score it; test is looked at last."""
    began = time.perf_counter()
    head.fit(*data.to_fit("train"), validation=data.part("val"))
    seconds = time.perf_counter() - began
    val = data.scores(head, "val")
    temperature = fit_temperature(val, data.part("val")[1]) if head.calibrates else 1.0
    final = _refitted(head, data) if refit else head
    final.temperature_ = temperature
    began = time.perf_counter()
    test = data.scores(final, "test")
    predict_seconds = time.perf_counter() - began
    scores = {"train": data.scores(head, "train"), "val": val, "test": test}
    found = {name: probabilities(views, temperature) for name, views in scores.items()}
    record = {
        **{name: metrics.score(data.part(name)[1], found[name]) for name in SPLITS},
        "fit_seconds": seconds,
        "predict_seconds": predict_seconds,
        "converged": head.converged_,
        "calibration": _calibration(head, data, scores, found, temperature),
        "reject": _reject(data, found, reject_below),
        "prior": getattr(head, "class_weight", None) or "train",
        "refit": refit,
        "params": parameters(head),
        "selected": _plain(head.selected_params()),
        "notes": list(head.notes_),
    }
    kept = np.concatenate([found["val"], found["test"]]).astype(np.float32)
    return FittedHead(final, kept, record)


def _calibration(
    head: "Head",
    data: SplitFeatures,
    scores: Mapping[str, Sequence[NDArray[np.floating]]],
    found: Mapping[str, NDArray[np.float64]],
    temperature: float,
) -> dict[str, Any]:
    """Return the temperature and what it changes; ECE before it is that of temperature 1."""
    before, after = {}, {}
    for name in ("val", "test"):
        y = data.part(name)[1]
        before[name] = metrics.expected_calibration_error(y, probabilities(scores[name], 1.0))
        after[name] = metrics.expected_calibration_error(y, found[name])
    return {
        "temperature": temperature,
        "calibrated": not head.has_probabilities,
        "ece_before": before,
        "ece_after": after,
    }


def _reject(
    data: SplitFeatures, found: Mapping[str, NDArray[np.float64]], threshold: float
) -> dict[str, Any]:
    """Return what withholding answers below a threshold does, and the whole curve."""
    curves = {
        name: coverage_curve(data.part(name)[1], found[name], (threshold, *CURVE_THRESHOLDS))
        for name in ("val", "test")
    }
    return {
        "threshold": threshold,
        **{name: rows[0] for name, rows in curves.items()},
        "curve": {name: rows[1:] for name, rows in curves.items()},
    }


def parameters(head: "Head") -> dict[str, Any]:
    """Return a head's parameters as JSON values."""
    plain: dict[str, Any] = _plain(head.get_params(deep=False))
    return plain


def _refitted(head: "Head", data: SplitFeatures) -> "Head":
    """Fit a copy with what was chosen on val, on train and val."""
    from sklearn.base import clone

    final: Head = clone(head)
    final.set_params(**head.selected_params())
    return final.fit(*data.to_fit("train", "val"))


def _plain(value: Any) -> Any:
    """Return a value as JSON keeps it: tuples become lists, NumPy numbers plain ones."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
