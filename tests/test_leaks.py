"""Nothing of test reaches scaler, fit, choice, temperature or threshold; a planted leak is seen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import planted_store
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import heads
from pipeline.config.options import TrainHeadOptions
from pipeline.dataset.features import SplitFeatures
from pipeline.heads.head import Head
from pipeline.heads.logreg import LogregHead
from pipeline.heads.scaler import FeatureScaler
from pipeline.train.fit import fit_head
from pipeline.train.prepare import prepare_data

NAMES = sorted(set(heads.HEADS) - {"dense"})
Make = Callable[[], Head]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SplitFeatures:
    path = tmp_path_factory.mktemp("leaks") / "store"
    planted_store(path, {"ant": 40, "bee": 30, "cow": 30}, separation=0.6)
    return prepare_data(TrainHeadOptions(store=str(path)), {}).data


def with_other_test(data: SplitFeatures, seed: int) -> SplitFeatures:
    """The same train and val, and a test of other features and labels."""
    rng = np.random.default_rng(seed)
    X, y, rows = data.X.copy(), data.y.copy(), data.rows["test"]
    X[rows] = rng.normal(size=X[rows].shape) * 10.0 ** rng.integers(-3, 4)
    y[rows] = rng.integers(0, data.num_classes, rows.stop - rows.start)
    return replace(data, X=X, y=y)


def all_but_test(make: Make, data: SplitFeatures) -> dict[str, Any]:
    """Everything that is settled before test is looked at."""
    fitted = fit_head(make(), data, reject_below=0.7)
    record = fitted.record
    return {
        **{name: getattr(fitted.head, name) for name in fitted.head.fitted},
        "train": record.train,
        "val": record.val,
        "selected": record.selected,
        "temperature": record.calibration.temperature,
        "threshold": record.reject["threshold"],
        "reject on val": record.reject["val"],
        "notes": record.notes,
    }


def differing(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    names = set()
    for name in first:
        try:
            np.testing.assert_equal(first[name], second[name])
        except AssertionError:
            names.add(name)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**20))
@settings(max_examples=4, deadline=None)
def test_another_test_set_changes_nothing_but_its_scores(
    name: str, seed: int, data: SplitFeatures
) -> None:
    def make() -> Head:
        return heads.create(name, {}, seed=0)

    assert (
        differing(all_but_test(make, data), all_but_test(make, with_other_test(data, seed)))
        == set()
    )


class LeakyScaler(LogregHead):
    """A head that scales by all rows, as so many notebooks do."""

    everything: Any = None

    def _fit_path(self, X: Any, numbers: Any, weights: Any, values: Any) -> Any:
        scaler = FeatureScaler().fit(self.everything)
        for state in super()._fit_path(X, numbers, weights, values):
            yield {**state, "mean_": scaler.mean_, "scale_": scaler.scale_}


class LeakyChoice(LogregHead):
    """A head that chooses C on test."""

    test: Any = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation: Any = None) -> Any:
        return super().fit(X, y, sample_weight, validation=self.test)


@pytest.mark.slow
@pytest.mark.parametrize("leak", ["scaler", "choice"])
def test_a_planted_leak_is_seen(leak: str, data: SplitFeatures) -> None:
    def settled(data: SplitFeatures) -> dict[str, Any]:
        def make() -> Head:
            head = LeakyScaler() if leak == "scaler" else LeakyChoice()
            # The estimator's clone would drop these; one fit needs none.
            head.everything, head.test = data.X, data.part("test")
            return head

        return all_but_test(make, data)

    others = [with_other_test(data, seed) for seed in range(5)]
    found = [differing(settled(data), settled(other)) for other in others]
    expected = {"scaler": "mean_", "choice": "selected"}[leak]
    assert any(expected in names for names in found)
