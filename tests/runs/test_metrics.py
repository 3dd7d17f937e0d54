"""Scores: against scikit-learn, by hand, and at the edges."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel
from sklearn import metrics as reference

from pipeline.runs import metrics


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
    parts = [slice(0, n // 3), slice(n // 3, None)]
    answers = [metrics.Answers.of(y[part], probabilities[part]) for part in parts if n > 2]
    if answers:
        in_parts = metrics.score_answers(metrics.Answers.joined(answers))
        assert in_parts["log_loss"] == pytest.approx(result["log_loss"])
        assert in_parts["ece"] == pytest.approx(result["ece"])
        equal = ("n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1")
        assert [in_parts[name] for name in equal] == [result[name] for name in equal]


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (5, 5), (3, 7), (250, 267)])
def test_wilson_is_scipys(correct: int, n: int) -> None:
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    assert metrics.wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_the_gain_in_log_loss_is_students_of_pairs() -> None:
    y, before = random_case(0, 40, 3)
    after = random_case(1, 40, 3)[1]
    gain, interval = metrics.log_loss_gain(y, before, after)
    expected = metrics.log_loss(y, before) - metrics.log_loss(y, after)
    assert gain == pytest.approx(expected, abs=1e-12)
    rows = np.arange(40)
    paired = ttest_rel(-np.log(before[rows, y]), -np.log(after[rows, y])).confidence_interval(0.95)
    assert interval == pytest.approx((paired.low, paired.high), abs=1e-9)
    gain, (low, high) = metrics.log_loss_gain(y[:1], before[:1], after[:1])
    assert low < gain < high and low < 0
    assert metrics.log_loss_gain(y, before, before) == (0.0, (0.0, 0.0))


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


def counts_of(n: int, first: float, second: float) -> tuple[int, int]:
    """Images that one of two classifiers alone gets right, as shares of n and of the rest."""
    only_first = round(first * n)
    return only_first, round(second * (n - only_first))


shares = st.one_of(st.floats(0, 1), st.floats(0, 0.1))


@pytest.mark.slow
@given(st.integers(1, 3000), shares, shares, st.integers(1, 200))
@settings(max_examples=300, deadline=None)
@example(6, 0.0, 0.75, 3)
def test_a_difference_is_real_if_and_only_if_its_interval_leaves_out_zero(
    n: int, first: float, second: float, comparisons: int
) -> None:
    only_first, only_second = counts_of(n, first, second)
    found = metrics.compared(only_first, only_second, n, comparisons=comparisons)
    low, high = found["simultaneous_ci95"]
    assert found["is_real"] == (not low <= 0 <= high) == (found["p_adjusted"] <= 0.05)
    assert -1 <= low <= found["difference"] <= high <= 1
    assert found["p_value"] <= found["p_adjusted"] <= 1
    # The interval and the p-value of the comparison alone go together as well.
    alone_low, alone_high = found["difference_ci95"]
    assert (found["p_value"] <= 0.05) == (not alone_low <= 0 <= alone_high)
    assert low <= alone_low and alone_high <= high
    other = metrics.compared(only_second, only_first, n, comparisons=comparisons)
    assert other["simultaneous_ci95"] == [-high, -low]
    json.dumps(found, allow_nan=False)


def test_zero_is_at_an_end_of_the_interval_where_the_test_says_so() -> None:
    """Five images that one alone gets right are no proof: p = 0.0625; twelve of them are."""
    low, high = metrics.paired_difference(5, 0, 1000)
    assert low <= 0 < high and metrics.mcnemar(5, 0) == 0.0625
    assert metrics.mcnemar(12, 0) * 100 < 0.05
    low, high = metrics.paired_difference(12, 0, 1000, comparisons=100)
    assert 0 < low < 0.012 < high


@pytest.mark.slow
def test_intervals_of_many_comparisons_hold_together_about_95_times_of_100() -> None:
    rng = np.random.default_rng(0)
    n, comparisons, hits = 200, 6, 0
    for _ in range(400):
        drawn = rng.multinomial(n, [0.08, 0.03, 0.89], size=comparisons)
        intervals = [
            metrics.paired_difference(int(row[0]), int(row[1]), n, comparisons=comparisons)
            for row in drawn
        ]
        hits += all(low <= 0.05 <= high for low, high in intervals)
    assert 0.92 <= hits / 400 <= 0.99


@pytest.mark.slow
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
