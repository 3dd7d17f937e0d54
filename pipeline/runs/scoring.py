"""What stage 2 records of a fitted head: temperature, scores by split, what withholding brings.

The temperature comes from val; test is looked at last.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.features import Scores, SplitFeatures
from pipeline.heads.calibration import coverage_curve, fit_temperature, probabilities
from pipeline.runs import metrics
from pipeline.runs.per_class import per_class
from pipeline.runs.record import Calibration, HeadRecord, Score
from pipeline.runs.run import FittedHead

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

# Where the curve of coverage and accuracy is drawn: probabilities near one matter most.
CURVE_THRESHOLDS: Final = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class ChosenHead:
    """A fitted head and the scores that it was chosen by.

    Attributes:
        head: The head, fitted on train.
        scores: Its scores for the rows it was chosen on, ``(n, classes)`` a view.
        y: Class numbers of these rows, ``(n,)``.
        seconds: How long fitting took.
    """

    head: "Head"
    scores: Scores
    y: NDArray[np.int64]
    seconds: float

    @property
    def temperature(self) -> float:
        """The temperature of the lowest log loss on these rows; 1 for a head without."""
        return fit_temperature(self.scores, self.y) if self.head.calibrates else 1.0


def score_head(
    chosen: ChosenHead, data: SplitFeatures, *, refit: bool = False, reject_below: float = 0.0
) -> FittedHead:
    """Score a head on every split.

    Args:
        chosen: The head; what it was chosen on counts as val.
        data: Features and labels by split.
        refit: Whether to fit once more on train and val before test is scored; the scores of
            val and the temperature stay those of the head before.
        reject_below: Probability below which no answer is given.
    """
    head, temperature = chosen.head, chosen.temperature
    final = refitted(head, data) if refit else head
    final.temperature_ = temperature
    began = time.perf_counter()
    test = data.scores(final, "test")
    predict_seconds = time.perf_counter() - began
    scores = {"val": chosen.scores, "test": test}
    labels = {"val": chosen.y, "test": data.part("test")[1]}
    found = {name: probabilities(views, temperature) for name, views in scores.items()}
    record = HeadRecord(
        train=_on_train(head, data, temperature),
        val=_held_out(labels["val"], found["val"]),
        test=_held_out(labels["test"], found["test"]),
        fit_seconds=chosen.seconds,
        predict_seconds=predict_seconds,
        converged=head.converged_,
        calibration=_calibration(head, scores, labels, temperature),
        reject=_reject(found, labels, reject_below),
        prior=head.prior,
        refit=refit,
        params=parameters(head),
        selected=plain(head.selected_params()),
        notes=list(head.notes_),
        losses=[float(loss) for loss in getattr(head, "losses_", ())] or None,
    )
    kept = [found["val"]] if len(data.part("val")[1]) else []
    return FittedHead(final, np.concatenate([*kept, found["test"]]).astype(np.float32), record)


def refitted(head: "Head", data: SplitFeatures) -> "Head":
    """Fit a copy with what was chosen on val, on train and val."""
    from sklearn.base import clone

    final: Head = clone(head)
    final.set_params(**head.selected_params())
    return final.fit(*data.to_fit("train", "val"))


def parameters(head: "Head") -> dict[str, object]:
    """Return a head's parameters as JSON values."""
    values: dict[str, object] = plain(head.get_params(deep=False))
    return values


def plain(value: Any) -> Any:
    """Return a value as JSON keeps it: tuples become lists, NumPy numbers plain ones."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _on_train(head: "Head", data: SplitFeatures, temperature: float) -> Score:
    """Return the scores on train, of which only what they are made of is held."""
    y = data.part("train")[1]
    parts = [
        metrics.Answers.of(y[rows], probabilities(scores, temperature))
        for rows, scores in data.score_blocks(head, "train")
    ]
    return Score.of(metrics.score_answers(metrics.Answers.joined(parts)))


def _held_out(y: NDArray[np.int64], found: NDArray[np.float64]) -> Score:
    """Return the scores on images that were not trained on, of each class too."""
    scores = metrics.score(y, found)
    return Score.of({**scores, **per_class(y, found.argmax(axis=1), found.shape[1])})


def _calibration(
    head: "Head",
    scores: Mapping[str, Scores],
    labels: Mapping[str, NDArray[np.int64]],
    temperature: float,
) -> Calibration:
    """Return the temperature and what it changes."""

    def errors(value: float) -> dict[str, float]:
        return {
            name: metrics.expected_calibration_error(
                labels[name], probabilities(scores[name], value)
            )
            for name in ("val", "test")
        }

    return Calibration(
        temperature=temperature,
        calibrated=not head.has_probabilities,
        ece_before=errors(1.0),
        ece_after=errors(temperature),
    )


def _reject(
    found: Mapping[str, NDArray[np.float64]],
    labels: Mapping[str, NDArray[np.int64]],
    threshold: float,
) -> dict[str, object]:
    """Return what withholding answers below a threshold does, and the whole curve."""
    rows = {
        name: coverage_curve(labels[name], found[name], (threshold, *CURVE_THRESHOLDS))
        for name in ("val", "test")
    }
    return {
        "threshold": threshold,
        **{name: curve[0] for name, curve in rows.items()},
        "curve": {name: curve[1:] for name, curve in rows.items()},
    }
