"""The logistic-regression head: the baseline that every other head is compared with."""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from pipeline.errors import ConfigError
from pipeline.heads.scaler import FeatureScaler
from pipeline.metrics import log_loss

DEFAULT_C: Final = 1.0
# Entries of X up to which one thread of linear algebra is used.
SMALL: Final = 2**22


class LogregHead(ClassifierMixin, BaseEstimator):
    """Standardized multinomial logistic regression; C is chosen on val.

    The choice is by val log loss, ties by the smaller C: in eight comparisons (20 splits each) it
    gave a lower test log loss than the choice by accuracy, and no worse an accuracy.

    Args:
        grid: Values of C, the inverse of the L2 strength. Without val, or with one value,
            nothing is chosen: C is that value, or 1 where there are several.
        max_iter: Most iterations of L-BFGS for one value.
        tol: Largest gradient entry at convergence.

    Attributes:
        C_: The chosen value.
        n_iter_: Iterations that its fit took.
        coef_: float64 ``(classes, dim)``, on scaled features.
        intercept_: float64 ``(classes,)``.
    """

    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "C_",
        "n_iter_", "mean_", "scale_", "coef_", "intercept_", "n_features_in_",
    )  # fmt: skip

    def __init__(
        self,
        grid: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        max_iter: int = 1000,
        tol: float = 1e-4,
    ) -> None:
        self.grid = grid
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any, *, validation: Any = None) -> Self:
        """Fit on X ``(n, dim)`` and y; choose C on ``validation``, a pair ``(X, y)``.

        Raises:
            ConfigError: The grid holds something else than positive numbers.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"Expected two classes or more. Received: {len(self.classes_)} class.")
        scaler = FeatureScaler().fit(X)
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        self._choose(self._scaled(X), y, validation)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return probabilities, float64 ``(n, classes)``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return _softmax(self._scaled(X) @ self.coef_.T + self.intercept_)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return class labels."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def selected_params(self) -> dict[str, Any]:
        """Return the chosen C, as the only value of the grid."""
        return {"grid": (self.C_,)}

    def _scaled(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = (X.astype(np.float64) - self.mean_) / self.scale_
        return scaled

    def _choose(self, X: NDArray[np.float64], y: NDArray[Any], validation: Any) -> None:
        """Fit along the path from strong to weak L2, each from the one before; keep the best."""
        grid = self._values(has_validation=validation is not None)
        model: Any = LogisticRegression(max_iter=self.max_iter, tol=self.tol, warm_start=True)
        best = np.inf
        for C in grid:
            converged = _fit_quietly(model.set_params(C=C), X, y)
            coef, intercept = _two_sided(model)
            loss = self._loss(coef, intercept, validation)
            if loss < best:
                best = loss
                self.C_, self.converged_ = C, converged
                self.n_iter_ = int(model.n_iter_.max())
                self.coef_, self.intercept_ = coef, intercept
        self.notes_ = self._notes(grid)

    def _loss(
        self, coef: NDArray[np.float64], intercept: NDArray[np.float64], validation: Any
    ) -> float:
        """Return the log loss on the rows of val whose class train has; zero without any."""
        if validation is None:
            return 0.0
        X, y = np.asarray(validation[0]), np.asarray(validation[1])
        known = np.isin(y, self.classes_)
        if not known.any():
            return 0.0
        probabilities = _softmax(self._scaled(X[known]) @ coef.T + intercept)
        return log_loss(np.searchsorted(self.classes_, y[known]), probabilities)

    def _check_parameters(self) -> None:
        rules = (
            ("grid", _is_grid(self.grid), "a list of positive numbers"),
            ("max_iter", _is_number(self.max_iter, above=0), "an integer above 0"),
            ("tol", _is_number(self.tol, above=0), "a number above 0"),
        )
        for name, holds, expected in rules:
            if not holds:
                raise ConfigError(
                    f"[heads.logreg] {name}: expected {expected}. "
                    f"Received: {getattr(self, name)!r}."
                )

    def _values(self, *, has_validation: bool) -> list[float]:
        """Return the values of C to try, ascending; one where nothing can be chosen."""
        values = sorted({float(value) for value in self.grid})
        return values if has_validation or len(values) == 1 else [DEFAULT_C]

    def _notes(self, grid: Sequence[float]) -> tuple[str, ...]:
        notes = []
        if self.C_ not in self.grid:
            notes.append(f"logreg: no val to choose C on; C = {self.C_:g}")
        if not self.converged_:
            notes.append(
                f"logreg: C = {self.C_:g} did not converge in {self.max_iter} iterations; "
                "raise max_iter under [heads.logreg]"
            )
        if len(grid) > 1 and self.C_ in (grid[0], grid[-1]):
            notes.append(
                f"logreg: the best C, {self.C_:g}, is at the edge of its grid "
                f"({grid[0]:g} to {grid[-1]:g}); widen it with grid = [...] under [heads.logreg]"
            )
        return tuple(notes)


def _fit_quietly(model: Any, X: NDArray[np.float64], y: NDArray[Any]) -> bool:
    """Fit and tell whether it converged, which scikit-learn says by a warning."""
    # At this size threads only wait for each other: 1.2 s instead of 10 to 27 on two busy cores.
    threads = 1 if X.size <= SMALL else None
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(threads, "blas"):
        warnings.simplefilter("always")
        model.fit(X, y)
    return not any(issubclass(item.category, ConvergenceWarning) for item in caught)


def _two_sided(model: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coefficients with a row a class; for two classes scikit-learn keeps one row."""
    coef, intercept = model.coef_.copy(), model.intercept_.copy()
    if len(coef) > 1:
        return coef, intercept
    # softmax((0, z)) is the logistic function of z
    return np.concatenate([0 * coef, coef]), np.concatenate([0 * intercept, intercept])


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities


def _is_grid(values: Any) -> bool:
    return (
        isinstance(values, Sequence | np.ndarray)
        and not isinstance(values, str)
        and len(values) > 0
        and all(_is_number(value, above=0) for value in values)
    )


def _is_number(value: Any, *, above: float) -> bool:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(above < value < np.inf)
