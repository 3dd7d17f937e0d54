"""Many heads and settings in one pass over the features: val chooses, test is scored once.

Settings of one head are fitted together wherever the head can share work (``Head.fit_many``).
Without val, cross-validation on train chooses, and the chosen setting is fitted once more on all of
train.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.features import Scores, SplitFeatures
from pipeline.dataset.folds import grouped_folds
from pipeline.errors import ConfigError, PipelineError
from pipeline.heads.calibration import fit_temperature, probabilities
from pipeline.runs import metrics
from pipeline.runs.record import Choice, HeadRecord
from pipeline.runs.scoring import ChosenHead, plain

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

Setting = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of one head, and how it did where settings are chosen.

    Attributes:
        head: Name of the head.
        setting: The parameters tried.
        accuracy: On the rows to choose on.
        log_loss: On the same rows, at the temperature fitted on them; infinite where the fit
            gave no numbers.
        converged: Whether its fit converged; None where that has no meaning.
        correct: Whether each of these rows is classified rightly, ``(n,)``.
    """

    head: str
    setting: Setting
    accuracy: float
    log_loss: float
    converged: bool | None
    correct: NDArray[np.bool_]

    def record(self) -> dict[str, object]:
        """Return it as JSON values, without its rows."""
        return {
            "setting": plain(self.setting),
            "accuracy": self.accuracy,
            "log_loss": self.log_loss if np.isfinite(self.log_loss) else None,
            "converged": self.converged,
        }

    def choice(self) -> Choice:
        """Return what ``lead`` needs of the chosen trial: its loss, and its rows as hex bits."""
        return Choice(
            log_loss=self.log_loss,
            n=len(self.correct),
            correct=np.packbits(self.correct).tobytes().hex(),
        )


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All trials of one head and the chosen one.

    Attributes:
        trials: In order of the settings.
        best: The trial of the lowest log loss.
        chosen: The head of that trial and what it was chosen by.
        notes: Plain sentences that the user should read.
    """

    trials: Sequence[Trial]
    best: Trial
    chosen: ChosenHead
    notes: tuple[str, ...]


def sweep_head(
    name: str,
    base: "Head",
    settings: Sequence[Setting],
    data: SplitFeatures,
    *,
    folds: int,
    progress: Callable[[Trial | None], None] = lambda best: None,
) -> SweepResult:
    """Fit every setting of one head and choose.

    The choice is by the log loss at the temperature of the lowest log loss, ties by the setting
    that comes first: it tells settings apart long after accuracies are equal.

    Args:
        name: Name of the head.
        base: The head whose parameters the settings replace.
        settings: What to try.
        data: Features and labels; val chooses if it has rows.
        folds: Folds of cross-validation where it has none.
        progress: Called once a setting, as fitting goes on, with the best trial so far.
    """
    began = time.perf_counter()
    has_val = bool(len(data.part("val")[1]))
    steps = _Steps(len(settings), 1 if has_val else folds, progress)
    base.progress = steps.fitted
    fitted = _on_val(base, settings, data) if has_val else _by_folds(base, settings, data, folds)
    trials: list[Trial] = []
    best: Trial | None = None
    for setting, (head, scores, y) in zip(settings, fitted, strict=True):
        trial = _trial(name, setting, head, scores, y)
        trials.append(trial)
        if best is None or trial.log_loss < best.log_loss:
            best = steps.best = trial
            kept = (head, scores, y)
    steps.finish()
    if best is None or not np.isfinite(best.log_loss):
        raise PipelineError(
            f"{name}: expected a setting whose loss is a number. Received: {len(trials)} settings "
            "of which none is.",
            hint=f"Try lower rates under [grids.{name}].",
        )
    head, scores, y = kept
    if not has_val:
        head = next(iter(base.fit_many(*data.to_fit("train"), [best.setting])))
    chosen = ChosenHead(head, scores, y, time.perf_counter() - began)
    return SweepResult(trials, best, chosen, tuple(_notes(name, trials, best)))


class _Steps:
    """Counts fits while they go on: settings that share work are all done at once, at the end.

    Attributes:
        best: The best trial so far.
    """

    def __init__(self, count: int, parts: int, progress: Callable[[Trial | None], None]) -> None:
        self.best: Trial | None = None
        self._count, self._parts, self._progress = count, parts, progress
        self._done, self._told = 0.0, 0

    def fitted(self, share: float) -> None:
        """Count a share of all settings, of one of the parts."""
        self._done += share * self._count / self._parts
        self._tell(min(self._count, int(self._done)))

    def finish(self) -> None:
        """Count what rounding left out, and hear no more."""
        self._tell(self._count)

    def _tell(self, count: int) -> None:
        while self._told < count:
            self._told += 1
            self._progress(self.best)


def lead(heads: Mapping[str, HeadRecord]) -> dict[str, object] | None:
    """Return how far the best head leads the next one on the rows to choose on; None of one.

    It follows from what is recorded of the heads alone, so that a sweep that was interrupted comes
    to the same.

    Args:
        heads: What a run records of its heads, by name.

    Returns:
        ``best``, ``next``, their ``log_loss``, and what ``metrics.compared`` says of two heads
        that any pair of them might have been.
    """
    chosen = {name: head.choice for name, head in heads.items() if head.choice is not None}
    ordered = sorted(chosen, key=lambda name: chosen[name].log_loss)
    if len(ordered) < 2:
        return None
    first, second = (_unpacked(chosen[name]) for name in ordered[:2])
    return {
        "best": ordered[0],
        "next": ordered[1],
        **metrics.compared(
            int((first & ~second).sum()),
            int((~first & second).sum()),
            len(first),
            comparisons=math.comb(len(ordered), 2),
        ),
        "log_loss": [chosen[name].log_loss for name in ordered[:2]],
    }


def _unpacked(choice: Choice) -> NDArray[np.bool_]:
    """Return which of the rows to choose on were classified rightly, as ``Trial.choice`` says."""
    packed = np.frombuffer(bytes.fromhex(choice.correct), np.uint8)
    return np.unpackbits(packed, count=choice.n).astype(np.bool_)


Fitted = tuple["Head", Scores, NDArray[np.int64]]


def _on_val(base: "Head", settings: Sequence[Setting], data: SplitFeatures) -> Iterator[Fitted]:
    y = data.part("val")[1]
    for head in base.fit_many(*data.to_fit("train"), settings):
        yield head, data.scores(head, "val"), y


def _by_folds(
    base: "Head", settings: Sequence[Setting], data: SplitFeatures, folds: int
) -> Iterator[Fitted]:
    """Yield, for each setting, its scores for every row of train by a head that did not see it.

    Copies of one image, and images of one group, are never on both sides. The head is that of the
    last fold.
    """
    y = data.part("train")[1]
    together = data.keys if data.together is None else data.together
    groups = together[data.rows["train"]]
    first = data.rows["train"].start
    _require_folds(y, groups, folds, "images" if data.together is None else "groups")
    out: list[Scores] = []
    heads: list[Head] = []
    for fit_rows, held_out in grouped_folds(y, groups, folds):
        if len(np.unique(y[fit_rows])) < 2:
            raise ConfigError(
                f"--folds: expected images of two or more classes to fit on in every fold. "
                f"Received: one class in one of {folds} folds.",
                hint="Use other folds, or give val a share with --split.",
            )
        heads = list(base.fit_many(*data.of_rows(first + fit_rows), settings))
        for place, head in enumerate(heads):
            scores = data.scores_of(head, first + held_out)
            if place == len(out):
                out.append([np.full((len(y), data.num_classes), -np.inf) for _ in scores])
            for view, made in zip(out[place], scores, strict=True):
                view[held_out] = made
    for head, scores in zip(heads, out, strict=True):
        yield head, scores, y


def _require_folds(
    y: NDArray[np.int64], groups: NDArray[np.bytes_] | NDArray[np.str_], folds: int, what: str
) -> None:
    """Refuse more folds than the largest class has different images, or groups of them.

    Raises:
        ConfigError: Names that number.
    """
    largest = max(len(np.unique(groups[y == label])) for label in np.unique(y))
    if folds > largest:
        raise ConfigError(
            f"--folds: expected at most {largest}, the different {what} of the largest class. "
            f"Received: {folds}.",
            hint="Use fewer folds, or give val a share with --split.",
        )


def _trial(
    name: str, setting: Setting, head: "Head", scores: Scores, y: NDArray[np.int64]
) -> Trial:
    # Minus infinity alone is no fault: a fold may lack a class.
    if not all(np.isfinite(view.max(axis=1)).all() for view in scores):
        # A rate too high: the setting lost, the others may still win.
        return Trial(name, setting, 0.0, np.inf, False, np.zeros(len(y), dtype=bool))
    temperature = fit_temperature(scores, y) if head.calibrates else 1.0
    found = probabilities(scores, temperature)
    correct = found.argmax(axis=1) == y
    return Trial(
        name,
        setting,
        float(correct.mean()),
        metrics.log_loss(y, found.astype(np.float32)),
        head.converged_,
        correct,
    )


def _notes(name: str, trials: Sequence[Trial], best: Trial) -> Iterator[str]:
    """Say what is at the edge of the grid, and how many fits did not converge."""
    for param in best.setting:
        values = sorted({_number(trial.setting[param]) for trial in trials})
        chosen = _number(best.setting[param])
        if len(values) > 2 and chosen in (values[0], values[-1]):
            yield (
                f"{name}: the best {param}, {chosen:g}, is at the edge of what was tried "
                f"({values[0]:g} to {values[-1]:g}); widen it under [grids.{name}]"
            )
    unfinished = sum(trial.converged is False for trial in trials)
    if unfinished:
        chosen_too = ", the chosen one among them" if best.converged is False else ""
        yield f"{name}: {unfinished} of {len(trials)} fits did not converge{chosen_too}"


def _number(value: object) -> float:
    """Return a setting's value as a number to order by; of a list, its first."""
    while isinstance(value, list | tuple):
        value = value[0] if value else 0.0
    return float(value) if isinstance(value, int | float) else 0.0
