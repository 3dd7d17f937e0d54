"""Scores: against scikit-learn, by hand, and at the edges."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as reference

from pipeline import metrics


def random_case(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, n), rng.dirichlet(np.ones(classes), n)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_scores_are_scikit_learns(seed: int, n: int, classes: int) -> None:
    y, probabilities = random_case(seed, n, classes)
    result = metrics.score(y, probabilities)
    predicted = probabilities.argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert result["accuracy"] == pytest.approx(reference.accuracy_score(y, predicted))
        assert result["balanced_accuracy"] == pytest.approx(
            reference.balanced_accuracy_score(y, predicted)
        )
        assert result["log_loss"] == pytest.approx(
            reference.log_loss(y, probabilities, labels=range(classes))
        )
    low, high = result["accuracy_ci95"]
    assert 0 <= low <= result["accuracy"] <= high <= 1
    assert 0 <= result["ece"] <= 1
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (5, 5), (3, 7), (250, 267)])
def test_wilson_is_scipys(correct: int, n: int) -> None:
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    assert metrics.wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_ece_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    y = np.array([0, 1, 0, 1])
    # bins by top label: 0.9 twice (accuracy 0.5), 0.6 (1.0), 0.7 (1.0)
    assert metrics.score(y, probabilities)["ece"] == pytest.approx((2 * 0.4 + 0.4 + 0.3) / 4)


def test_perfect_and_certain_has_no_calibration_error() -> None:
    result = metrics.score(np.array([0, 1, 2]), np.eye(3))
    assert (result["accuracy"], result["ece"]) == (1.0, 0.0)
    assert result["log_loss"] == pytest.approx(0, abs=1e-12)


def test_no_rows_are_undefined_and_not_nan() -> None:
    result = metrics.score(np.zeros(0, dtype=int), np.zeros((0, 3)))
    assert result["n"] == 0
    assert all(value is None for name, value in result.items() if name != "n")


def test_class_that_train_lacks_gives_a_finite_loss() -> None:
    result = metrics.score(np.array([2, 0]), np.array([[1, 0, 0], [1, 0, 0]], dtype=np.float32))
    assert np.isfinite(result["log_loss"]) and result["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 2**10), (0, 3, 0.25)]
)
def test_mcnemar_by_hand(first: int, second: int, expected: float) -> None:
    assert metrics.mcnemar(first, second) == pytest.approx(expected)
    assert metrics.mcnemar(second, first) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([]) == []
    assert metrics.holm([0.5, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lowers_no_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = metrics.holm(p_values)
    assert all(p <= new <= 1 for p, new in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_a_paired_interval_holds_the_truth_about_95_times_of_100() -> None:
    rng = np.random.default_rng(0)
    n, hits = 120, 0
    for _ in range(2000):
        drawn = rng.multinomial(n, [0.08, 0.03, 0.89])
        low, high = metrics.paired_difference(int(drawn[0]), int(drawn[1]), n)
        hits += low <= 0.05 <= high
    assert 0.93 <= hits / 2000 <= 0.98


def test_a_paired_interval_without_images_is_everything() -> None:
    assert metrics.paired_difference(0, 0, 0) == (-1.0, 1.0)
    low, high = metrics.paired_difference(0, 0, 50)
    assert low < 0 < high
