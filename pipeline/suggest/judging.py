"""What a head makes of unlabelled images: one that is fitted on the labelled ones, or a run's.

What a head is unsure of is told by its probabilities, so strength and temperature of one that is
fitted here are chosen on folds that it did not see; then it is fitted on all labelled images.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import heads
from pipeline.errors import ConfigError, RunError, unknown_name
from pipeline.heads.calibration import calibrated_loss, fit_temperature, probabilities
from pipeline.runs import backbone as run_backbone
from pipeline.runs.fitted_head import fitted_head, head_name
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures
from pipeline.suggest.candidates import Candidates
from pipeline.system import machine

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

DEFAULT: Final = "logreg"
FOLDS: Final = 5
# Labelled images from which one fold says enough.
_MANY: Final = 5000
# Labelled images that a head is fitted on at most: with its folds they are in memory several times.
LARGEST: Final = 50_000
# What fitting takes, in copies of the features that it is done on: 3.8 were measured.
_COPIES: Final = 4
# Images that are asked about at once.
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a head says of the candidates.

    Attributes:
        head: Its name.
        names: Class names, one per column.
        probabilities: float64 ``(candidates, classes)``.
        accuracy: Share of the labelled images whose label it tells, on folds that it was not
            fitted on; None of the head of a run, or where there were too few for folds.
    """

    head: str
    names: Sequence[str]
    probabilities: NDArray[np.float64]
    accuracy: float | None


def require_head(name: str) -> None:
    """Refuse a head that cannot be fitted here.

    Raises:
        ConfigError: It is unknown, or needs Keras.
    """
    if not heads.is_known(name):
        raise unknown_name("head", name, heads.HEADS)
    if name in heads.ON_KERAS:
        raise ConfigError(
            f"--head: expected a head that is fitted without Keras. Received: {name!r}.",
            hint="Train it with train-head and give that run, by --run, or choose another.",
        )


def of_labelled(known: Candidates, name: str) -> Judgement:
    """Return what a head says that is fitted on the labelled images, of two classes or more.

    Of more than ``LARGEST`` a part is taken; see ``balanced``.

    Raises:
        ConfigError: There is not enough memory to fit it.
    """
    rows = balanced(known.y, LARGEST)
    _require_memory(len(rows), known.images.units.shape[1])
    head, accuracy = fit(known.units(known.labelled[rows]), known.y[rows], name)
    # Every class has a row, so the columns are those of the names.
    found = np.concatenate(
        [
            head.predict_proba(known.units(known.unlabelled[start : start + _BLOCK]))
            for start in range(0, len(known.unlabelled), _BLOCK)
        ]
    )
    return Judgement(name, known.names, found, accuracy)


def balanced(y: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Return the rows of a part that has as many of every class as there are, drawn at random.

    Args:
        y: Class numbers from 0, ``(m,)``.
        most: How many rows, at most; of fewer, all are returned.

    Returns:
        Row numbers, ascending.
    """
    if len(y) <= most:
        return np.arange(len(y))
    drawn = np.random.default_rng(0).permutation(len(y))
    order = drawn[np.argsort(y[drawn], kind="stable")]
    counts = np.bincount(y)
    # Which of its class each row is: the first of every class, then the second, and so on.
    turn = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[np.argsort(turn, kind="stable")[:most]])


def _require_memory(rows: int, dim: int) -> None:
    needed, free = _COPIES * 4 * dim * rows, machine.free_memory()
    if needed > free:
        raise ConfigError(
            f"Expected memory to fit a head on {rows:,} labelled images: {needed / 1e9:.1f} GB. "
            f"Received: {free / 1e9:.1f} GB free.",
            hint="Train one with train-head and give that run, by --run, or take a part of the "
            "images, with --manifest.",
        )


def of_run(known: Candidates, store: Store, run: Run, asked: str | None) -> Judgement:
    """Return what a head of a run says.

    Raises:
        ConfigError: The run has no such head.
        RunError: It cannot be used on the features of the store.
        StoreError: The store lacks a view that the run averages over.
    """
    name = head_name(run, asked)
    if run_backbone.is_finetuned(run, name):
        raise RunError(
            f"Expected a head on the features of {str(store.place)!r}. Received: {name!r} of "
            f"{str(run.path)!r}, whose network was fine-tuned.",
            hint="Name another head of the run, by --head, or leave --run out.",
        )
    head, keys = fitted_head(run, name, store.dim), known.keys(known.unlabelled)
    sets = [store.plain, *map(store.view_set, run_backbone.averages_of(run, name))]
    scores = [head.scores(StoredFeatures.of(part, keys)) for part in sets]
    names = [run.record.classes[number] for number in head.classes_]
    return Judgement(name, names, probabilities(scores, head.temperature_), None)


def fit(X: NDArray[np.float32], y: NDArray[np.int64], name: str) -> tuple["Head", float | None]:
    """Return a head fitted on all rows, with strength and temperature chosen out of fold.

    Args:
        X: Features, float32 ``(m, dim)``.
        y: Class numbers from 0, each of which occurs, ``(m,)``; two classes or more.
        name: Name of the head.

    Returns:
        The head, and its accuracy out of fold; None where there are too few rows for folds.
    """
    settings = _settings(name)
    folds = _folds(y)
    judged = np.zeros(len(y), bool)
    scores = np.full((len(settings), len(y), int(y.max()) + 1), -np.inf)
    for rows, held_out in folds:
        if len(np.unique(y[rows])) < 2:
            continue
        judged[held_out] = True
        made = heads.create(name, {}, seed=0).fit_many(X[rows], y[rows], settings)
        for part, head in zip(scores, made, strict=True):
            part[np.ix_(held_out, head.classes_)] = head.scores(X[held_out])
    # Without folds, a head takes its own strength.
    params: dict[str, object] = {}
    accuracy, temperature = None, 1.0
    if judged.any():
        losses = [_loss(part[judged], y[judged]) for part in scores]
        best = int(np.argmin(losses))
        params, chosen = settings[best], scores[best][judged]
        accuracy = float((chosen.argmax(axis=1) == y[judged]).mean())
        temperature = fit_temperature([chosen], y[judged])
    head = heads.create(name, params, seed=0).fit(X, y)
    head.temperature_ = temperature if head.calibrates else 1.0
    return head, accuracy


def _settings(name: str) -> list[dict[str, object]]:
    """Return the strengths to choose from, as parameters; of most heads there is one choice."""
    from pipeline.heads.grid_head import GridHead

    head = heads.create(name, {}, seed=0)
    return [{"grid": (value,)} for value in head.grid] if isinstance(head, GridHead) else [{}]


def _loss(scores: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    known = np.isfinite(scores[np.arange(len(y)), y])
    return calibrated_loss(scores[known], y[known]) if known.any() else np.inf


def _folds(y: NDArray[np.int64]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return rows to fit on and rows held out, one pair per fold."""
    from sklearn.model_selection import StratifiedKFold

    count = min(FOLDS, int(np.bincount(y).max()))
    if count < 2:
        return []
    splitter = StratifiedKFold(count, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # A class of fewer images than folds is in some of them.
        warnings.simplefilter("ignore", UserWarning)
        folds = list(splitter.split(y, y))
    return folds[:1] if len(y) > _MANY else folds
