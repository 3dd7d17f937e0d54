"""The path of logistic regressions: parity with scikit-learn, and what its values share."""

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from pipeline.heads.logreg import LogregHead
from pipeline.heads.logreg import path as logistic_path
from pipeline.heads.logreg.path import LogisticFit, fit_path
from pipeline.heads.scaler import FeatureScaler

VALUES = (1e-4, 1e-2, 1.0, 100.0)
TIGHT = 1e-9


def blobs(n: int, dim: int, classes: int, *, spread: float = 0.5, seed: int = 0) -> Any:
    """Features ``(n, dim)`` of a decaying spectrum, standardized, and class numbers."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = (rng.normal(size=(classes, dim)) * spread)[y] + rng.normal(size=(n, dim))
    X = (X / np.arange(1, dim + 1)) @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return FeatureScaler().fit_transform(X), y


def badly_scaled() -> Any:
    X, y = blobs(150, 12, 3)
    return X * np.logspace(-2, 2, 12) + 0.5, y


def constant() -> Any:
    X, y = blobs(100, 10, 3)
    X[:, :4] = 0.0
    return X, y


def wrong_labels() -> Any:
    X, y = blobs(200, 15, 4)
    return X, np.random.default_rng(3).permutation(y)


PROBLEMS: dict[str, Any] = {
    "badly scaled": badly_scaled,
    "constant features": constant,
    "fifty classes": lambda: blobs(300, 20, 50),
    "few rows": lambda: blobs(30, 100, 3),
    "labels at random": wrong_labels,
    "separable": lambda: blobs(120, 20, 3, spread=20.0),
    "three classes": lambda: blobs(200, 15, 3),
    "two classes": lambda: blobs(200, 15, 2),
    "two rows": lambda: (np.array([[1.0, -1.0, 0.5], [-1.0, 1.0, -0.5]]), np.array([0, 1])),
}


def row_weights(kind: str, y: NDArray[np.intp]) -> NDArray[np.float64] | None:
    if kind == "none":
        return None
    weights = np.random.default_rng(7).uniform(0.1, 3, len(y))
    return weights if kind == "weights" else len(y) / (len(np.unique(y)) * np.bincount(y))[y]


def objective(
    X: Any, y: Any, coef: Any, intercept: Any, C: float, weights: Any
) -> tuple[float, float]:
    """Return the objective as written in scikit-learn's guide, and its largest gradient entry."""
    weights = np.ones(len(y)) if weights is None else weights
    scores = X @ coef.T + intercept
    if len(coef) == 1:
        scores = np.hstack([0 * scores, scores])
    top = scores.max(axis=1, keepdims=True)
    logs = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    strength = 1 / (C * weights.sum())
    loss = -(weights * logs[np.arange(len(y)), y]).sum() / weights.sum()
    residuals = (np.exp(logs) - np.eye(scores.shape[1])[y]) * (weights / weights.sum())[:, None]
    residuals = residuals[:, -len(coef) :]
    gradient = np.abs(residuals.T @ X + strength * coef).max()
    return (
        float(loss + strength / 2 * (coef**2).sum()),
        float(max(gradient, np.abs(residuals.sum(axis=0)).max())),
    )


def path(X: Any, y: Any, values: Any = VALUES, **changes: Any) -> list[LogisticFit]:
    return list(fit_path(X, y, values, **{"tol": 1e-4, "max_iter": 1000, **changes}))


def peer(X: Any, y: Any, C: float, weights: Any, tol: float) -> LogisticRegression:
    """Fit scikit-learn's, on badly scaled features as far as 1,000 iterations bring it."""
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=C, tol=tol, max_iter=1000).fit(X, y, weights)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "weights", "balanced"])
@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_objective_is_no_worse_than_scikit_learns(name: str, kind: str) -> None:
    X, y = PROBLEMS[name]()
    weights = row_weights(kind, y)
    for C, fit in zip(VALUES, path(X, y, weights=weights), strict=True):
        theirs = peer(X, y, C, weights, 1e-4)
        bound, _ = objective(X, y, theirs.coef_, theirs.intercept_, C, weights)
        ours, gradient = objective(X, y, fit.coef, fit.intercept, C, weights)
        assert ours <= bound * (1 + 1e-6)
        assert fit.converged and gradient <= 1e-4 * (1 + 1e-9)
        assert fit.objective == pytest.approx(ours, rel=1e-9)
        assert fit.gradient == pytest.approx(gradient, rel=1e-6, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PROBLEMS) - {"badly scaled", "separable"}))
def test_coefficients_are_scikit_learns(name: str) -> None:
    X, y = PROBLEMS[name]()
    weights = row_weights("weights", y)
    values = (1e-2, 1.0)
    for C, fit in zip(values, path(X, y, values, weights=weights, tol=TIGHT), strict=True):
        theirs = peer(X, y, C, weights, TIGHT)
        np.testing.assert_allclose(fit.coef, theirs.coef_, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(fit.intercept, theirs.intercept_, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_each_value_is_that_of_its_own_path_in_any_order(name: str) -> None:
    X, y = PROBLEMS[name]()
    together = path(X, y, tol=1e-7)
    backwards = path(X, y, VALUES[::-1], tol=1e-7)[::-1]
    for C, fit, other in zip(VALUES, together, backwards, strict=True):
        alone = path(X, y, [C], tol=1e-7)[0]
        scale = np.abs(alone.coef).max()
        np.testing.assert_allclose(fit.coef, alone.coef, atol=1e-4 * scale)
        np.testing.assert_allclose(fit.coef, other.coef, atol=1e-4 * scale)
        assert fit.objective == pytest.approx(alone.objective, rel=1e-6)


def test_equal_calls_give_equal_numbers() -> None:
    X, y = blobs(100, 10, 3)
    for first, second in zip(path(X, y), path(X, y), strict=True):
        np.testing.assert_array_equal(first.coef, second.coef)


@pytest.mark.parametrize("max_iter", [1, 3, 6, 12, 1000])
def test_converged_is_what_the_gradient_says(max_iter: int) -> None:
    X, y = blobs(200, 15, 4)
    for C, fit in zip(VALUES, path(X, y, max_iter=max_iter, tol=1e-6), strict=True):
        _, gradient = objective(X, y, fit.coef, fit.intercept, C, None)
        assert fit.converged == (gradient <= 1e-6)
        assert fit.n_iter <= max_iter


def test_some_values_converge_before_others() -> None:
    X, y = blobs(200, 15, 4)
    fits = path(X, y, max_iter=8)
    assert {fit.converged for fit in fits} == {False, True}


def test_integer_weights_are_repeated_rows() -> None:
    X, y = blobs(60, 8, 3)
    times = np.random.default_rng(1).integers(1, 4, len(y))
    weighted = path(X, y, weights=times.astype(float), tol=TIGHT)
    repeated = path(np.repeat(X, times, axis=0), np.repeat(y, times), tol=TIGHT)
    for a, b in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(a.coef, b.coef, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("n", [40, 300])
def test_single_precision_ends_where_double_does(
    monkeypatch: pytest.MonkeyPatch, classes: int, n: int
) -> None:
    X, y = blobs(n, 60, classes)
    double = path(X, y, tol=1e-7)
    monkeypatch.setattr(logistic_path, "SMALL", 0)
    for fit, other in zip(path(X, y, tol=1e-7), double, strict=True):
        assert fit.converged and fit.gradient <= 1e-7
        assert fit.objective == pytest.approx(other.objective, rel=1e-6)
        np.testing.assert_allclose(fit.coef, other.coef, atol=2e-3 * np.abs(other.coef).max())


def test_stacks_do_not_change_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(100, 10, 3)
    whole = path(X, y, tol=TIGHT)
    monkeypatch.setattr(logistic_path, "STACK_ROWS", 6)
    for fit, other in zip(path(X, y, tol=TIGHT), whole, strict=True):
        np.testing.assert_allclose(fit.coef, other.coef, rtol=1e-4, atol=1e-5)


def test_head_keeps_iterations_and_convergence_of_each_value() -> None:
    X, y = blobs(120, 10, 3)
    settings = [{"grid": (C,)} for C in VALUES]
    heads: list[Any] = list(LogregHead(max_iter=8).fit_many(X, y, settings))
    scaled = FeatureScaler().fit_transform(X)
    for head, fit in zip(heads, path(scaled, y, max_iter=8), strict=True):
        assert (head.n_iter_, head.converged_) == (fit.n_iter, fit.converged)
        assert bool(head.notes_) is not head.converged_
    assert len({head.converged_ for head in heads}) == 2


def test_two_classes_have_two_rows_in_the_head() -> None:
    X, y = blobs(80, 6, 2)
    head = LogregHead(grid=(1.0,), tol=TIGHT).fit(X, y)
    theirs = peer(FeatureScaler().fit_transform(X), y, 1.0, None, TIGHT)
    np.testing.assert_array_equal(head.coef_[0], 0)
    np.testing.assert_allclose(head.coef_[1:], theirs.coef_, atol=1e-5)


@pytest.mark.slow
def test_objectives_of_pooled_like_features_are_no_worse() -> None:
    X, y = blobs(6000, 720, 10)
    y = np.where(np.random.default_rng(5).random(len(y)) < 0.1, 0, y)
    for C, fit in zip((1e-3, 1.0), path(X, y, (1e-3, 1.0)), strict=True):
        theirs = peer(X, y, C, None, 1e-4)
        bound, _ = objective(X, y, theirs.coef_, theirs.intercept_, C, None)
        assert fit.converged and fit.objective <= bound * (1 + 1e-6)
