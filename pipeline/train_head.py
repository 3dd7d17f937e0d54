"""Stage 2: fit heads on train, choose on val, score test once.

Called by ``commands``, which brings the run, the rows and their features. A head that the run
already holds is left as it is.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import metrics
from pipeline.dataset import Examples
from pipeline.heads import Head
from pipeline.reporting import Reporter
from pipeline.run import FittedHead, Run
from pipeline.shards import Features
from pipeline.splits import SPLITS


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

    def probabilities(self, head: Head, name: str) -> NDArray[np.float32]:
        """Return a head's probabilities for one split, float32 ``(n, num_classes)``.

        The mean over the images as they are and the views to average over; a class that train
        lacks has probability zero.
        """
        rows = self.rows[name]
        views = [self.X, *self.average]
        mean = np.zeros((rows.stop - rows.start, self.num_classes), dtype=np.float32)
        for view in views:
            mean[:, head.classes_] += head.predict_proba(view[rows]) / np.float32(len(views))
        return mean

    def _range(self, *names: str) -> slice:
        return slice(self.rows[names[0]].start, self.rows[names[-1]].stop)


def train_heads(
    run: Run,
    data: SplitFeatures,
    heads: Mapping[str, Head],
    *,
    refit: bool,
    reporter: Reporter,
) -> None:
    """Fit, score and save every head that the run does not hold yet.

    Args:
        run: Where they go.
        data: Features and labels by split.
        heads: Unfitted heads by name.
        refit: Whether to fit once more on train and val before scoring test; the val scores
            stay those of the model before.
        reporter: Where notes and progress go.

    Raises:
        RunError: The run holds a head with other parameters.
    """
    todo = {name: head for name, head in heads.items() if not run.has_head(name, parameters(head))}
    for name in heads.keys() - todo.keys():
        reporter.say(f"{name}: already in {run.path}, kept")
    with reporter.bar(len(todo), "head") as bar:
        for name, head in todo.items():
            fitted = fit_head(head, data, refit=refit)
            for note in fitted.record["notes"]:
                reporter.say(note)
            run.add_head(name, fitted)
            bar.advance()
    run.write_predictions()


def fit_head(head: Head, data: SplitFeatures, *, refit: bool) -> FittedHead:
    """Fit one head and score it; test is touched by the last line of scores alone."""
    began = time.perf_counter()
    head.fit(*data.to_fit("train"), validation=data.part("val"))
    seconds = time.perf_counter() - began
    val = data.probabilities(head, "val")
    final = _refitted(head, data) if refit else head
    test = data.probabilities(final, "test")
    train = data.probabilities(head, "train")
    record = {
        "train": metrics.score(data.part("train")[1], train),
        "val": metrics.score(data.part("val")[1], val),
        "test": metrics.score(data.part("test")[1], test),
        "fit_seconds": seconds,
        "converged": head.converged_,
        "refit": refit,
        "params": parameters(head),
        "selected": _plain(head.selected_params()),
        "notes": list(head.notes_),
    }
    return FittedHead(final, np.concatenate([val, test]), record)


def parameters(head: Head) -> dict[str, Any]:
    """Return a head's parameters as JSON values."""
    plain: dict[str, Any] = _plain(head.get_params(deep=False))
    return plain


def _refitted(head: Head, data: SplitFeatures) -> Head:
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
