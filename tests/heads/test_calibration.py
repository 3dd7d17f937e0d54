"""Calibration: the temperature of the lowest log loss, and what withholding answers brings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.heads.calibration import (
    calibrated_loss,
    coverage_curve,
    fit_temperature,
    probabilities,
)


def scored(n: int = 2000, temperature: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose softmax at ``temperature`` is the truth, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 4)) * 2
    drawn = probabilities([true], 1.0).cumsum(axis=1)
    y = (rng.random((n, 1)) > drawn).sum(axis=1)
    return true * temperature, np.minimum(y, 3)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_a_planted_temperature_is_found(temperature: float) -> None:
    scores, y = scored(20_000, temperature)
    assert fit_temperature([scores], y) == pytest.approx(temperature, rel=0.05)


@given(st.integers(0, 1000), st.floats(0.1, 10.0))
@settings(max_examples=25, deadline=None)
def test_it_is_the_lowest_log_loss(seed: int, scale: float) -> None:
    scores, y = scored(300, scale, seed)
    found = fit_temperature([scores], y)

    def loss(value: float) -> float:
        return float(-np.log(probabilities([scores], value)[np.arange(len(y)), y]).mean())

    assert calibrated_loss(scores, y) == pytest.approx(loss(found))
    for other in (0.8, 0.95, 1.05, 1.25):
        assert loss(found) <= loss(found * other) + 3e-3


def test_rows_without_an_error_are_no_reason_to_be_sure() -> None:
    """By Platt's rule of succession: of n right rows, one more of K classes may be any of them."""
    for n in (10, 30, 300):
        y = np.arange(n) % 3
        found = fit_temperature([np.eye(3)[y] * 5], y)
        wrong = 1 - probabilities([np.eye(3)[:1] * 5], found)[0, 0]
        assert wrong == pytest.approx(2 / 3 / (n + 1), rel=0.1)


def test_several_views_of_the_same_scores_are_one() -> None:
    scores, y = scored(50, 3.0)
    one = fit_temperature([scores], y)
    assert fit_temperature([scores, scores, scores], y) == pytest.approx(one, rel=1e-3)


def test_views_are_fitted_on_their_mean() -> None:
    (first, y), (noise, _) = scored(3000), scored(3000, seed=1)
    views = [first + noise, first - noise]
    found = fit_temperature(views, y)

    def loss(value: float) -> float:
        return float(-np.log(probabilities(views, value)[np.arange(len(y)), y]).mean())

    assert all(loss(found) <= loss(found * other) + 1e-4 for other in (0.9, 1.1))


def test_scores_that_say_nothing_and_no_rows_give_one() -> None:
    assert fit_temperature([np.zeros((5, 3))], np.arange(5) % 3) == pytest.approx(1, abs=1e-3)
    assert fit_temperature([np.zeros((0, 3))], np.zeros(0, int)) == 1.0


def test_a_class_that_train_lacks_counts_nowhere() -> None:
    scores, y = scored(1000, 2.0)
    extended = np.concatenate([scores, np.full((1000, 1), -np.inf)], axis=1)
    with_unknown = np.concatenate([y[:-5], np.full(5, 4)])
    assert fit_temperature([extended], y) == pytest.approx(fit_temperature([scores], y))
    assert fit_temperature([extended], with_unknown) == pytest.approx(
        fit_temperature([scores[:-5]], y[:-5])
    )


def test_probabilities_are_the_mean_over_views() -> None:
    first, second = scored(10)[0], scored(10, seed=1)[0]
    both = probabilities([first, second], 2.0)
    each = [probabilities([view], 2.0) for view in (first, second)]
    np.testing.assert_allclose(both, np.mean(each, axis=0))
    np.testing.assert_allclose(both.sum(axis=1), 1)


def test_coverage_and_accuracy_by_threshold() -> None:
    found = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
    rows = coverage_curve(np.array([0, 1, 1, 1]), found, (0.0, 0.58, 0.85, 0.95))
    assert [row["coverage"] for row in rows] == [1.0, 0.75, 0.25, 0.0]
    assert [row["accuracy"] for row in rows] == [0.75, pytest.approx(2 / 3), 1.0, None]
    assert [row["n"] for row in rows] == [4, 3, 1, 0]
    assert coverage_curve(np.zeros(0, int), np.zeros((0, 2)), (0.5,))[0]["coverage"] is None
