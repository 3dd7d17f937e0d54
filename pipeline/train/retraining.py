"""Heads trained again: with other random seeds, and on growing parts of train."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline import heads
from pipeline.config.options import TrainHeadOptions
from pipeline.dataset.examples import prepare
from pipeline.dataset.features import SplitFeatures, features_of, rule_of
from pipeline.dataset.room import Room
from pipeline.errors import ConfigError, RunError
from pipeline.images.manifest import OK, Manifest
from pipeline.runs import metrics
from pipeline.runs.learning_curve import fit_on, is_right, nested
from pipeline.runs.record import HeadRecord
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.train.fit import fit_head

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


# Shares of train that the curve is drawn at.
CURVE_SHARES: Final = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


class Retraining:
    """The rows, store and heads of a run, to train on them again.

    Attributes:
        run: The run.
        heads: Parameters by head name.
        is_declared: Whether the source declares what is held out; then all splits stay.
    """

    def __init__(self, run: Run) -> None:
        """Open a run's store.

        Raises:
            RunError: The store holds other features than the run was made from, or a head was
                not trained on stored features.
        """
        foreign = [name for name in run.record.heads if not heads.is_known(name)]
        if foreign:
            raise RunError(
                "--seeds and --curve: expected heads trained on stored features. "
                f"Received: {', '.join(foreign)} in {str(run.path)!r}.",
                hint="Compare without these flags, or give runs of train-head and sweep.",
            )
        self.run = run
        inputs = run.inputs
        path = run.store_path
        if not Store.exists(path):
            raise RunError(
                f"Expected the store of the run {str(run.path)!r} at {str(path)!r}. "
                "Received: there is none.",
                hint="Put it back, or say where it is with --store DIR.",
            )
        found = Store.unchecked(path).identity
        if found != inputs.identity:
            raise RunError(
                f"The run {str(run.path)!r} was made from features of "
                f"{inputs.identity.as_json()}. Received: {found.as_json()} in {str(path)!r}.",
                hint="Say where its store is with --store DIR, or train again with train-head.",
            )
        self._store = Store.open(path)
        self._rows = replace(run.manifest(), statuses=[OK] * len(run.manifest()))
        self.is_declared = run.record.source.declared_splits
        self.heads = {name: _parameters(record) for name, record in run.record.heads.items()}
        self._options = TrainHeadOptions(
            split=inputs.split,
            split_seed=inputs.split_seed,
            min_per_class=1,
            augment=tuple(inputs.augment or ()),
            average=tuple(inputs.average or ()),
        )

    def split(self, seed: int) -> SplitFeatures:
        """Return features by split, of another seed; seed 0 is the run's own split.

        What is declared in train stays there, such as images that ``suggest`` chose.
        """
        rows: Manifest = self._rows
        options = self._options
        if seed and not self.is_declared:
            rows = replace(rows, splits=rows.declared or [""] * len(rows))
            options = replace(options, split_seed=options.split_seed + seed)
        # What belongs together stands in the rows of the run, near duplicates too.
        rule = replace(rule_of(options), by_group=bool(rows.groups))
        examples = prepare(rows, rule)
        created = {name: self.create(name, seed) for name in self.heads}
        room = Room(created, examples, self._store.dim, options, in_parts=True)
        try:
            fits = room.for_features()
        except ConfigError as error:
            raise ConfigError(
                f"{str(self.run.path)!r}, trained again: {error.message}",
                hint="Compare without --seeds and --curve, or where more memory is free.",
            ) from error
        return features_of(self._store, examples, options, in_memory=fits)

    def create(self, name: str, seed: int) -> "Head":
        """Return an unfitted head of the run with another seed."""
        head = heads.create(name, self.heads[name], seed=0)
        params = head.get_params(deep=False)
        return head.set_params(seed=params["seed"] + seed) if "seed" in params else head


def by_seed(
    training: Retraining, count: int, advance: Callable[[], None]
) -> Iterator[dict[str, object]]:
    """Yield a row per head: mean and spread of test accuracy over seeds."""
    if count < 2:
        return
    found: dict[str, list[float]] = {name: [] for name in training.heads}
    for seed in range(count):
        data = training.split(seed)
        for name in training.heads:
            record = fit_head(training.create(name, seed), data).record
            found[name].append(record.test.accuracy or 0.0)
            advance()
        del data  # before those of the next split are read beside it
    for name, values in found.items():
        yield {
            "run": str(training.run.path),
            "head": name,
            "seeds": count,
            "varies": "head" if training.is_declared else "split and head",
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "low": min(values),
            "high": max(values),
            "accuracies": values,
        }


def by_number(training: Retraining, advance: Callable[[], None]) -> Iterator[dict[str, object]]:
    """Yield a row per head and share of train: test accuracy with its interval."""
    data = training.split(0)
    for share, rows in nested(data, CURVE_SHARES):
        for name in training.heads:
            head = fit_on(training.create(name, 0), data, rows)
            right = is_right(head, data, "test")
            advance()
            yield {
                "run": str(training.run.path),
                "head": name,
                "share": share,
                "n_train": len(rows),
                "accuracy": float(right.mean()),
                "accuracy_ci95": list(metrics.wilson(int(right.sum()), len(right))),
            }


def _parameters(record: HeadRecord) -> dict[str, object]:
    """Return a head's parameters; of a swept head with the setting that was chosen.

    A head that chooses on val itself, such as logreg its C, does so again.
    """
    params = {name: value for name, value in record.params.items() if name != "sweep"}
    chosen = {**params, **record.selected} if "sweep" in record.params else params
    if "target" not in chosen:
        return chosen
    # A head by dotted name is made from what its own constructor is given.
    own = chosen.get("params")
    return dict(own) if isinstance(own, Mapping) else {}
