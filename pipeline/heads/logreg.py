"""The logistic-regression head: the baseline that every other head is compared with."""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.errors import ConfigError
from pipeline.heads.scaler import FeatureScaler
from pipeline.metrics import log_loss

DEFAULT_C = 1.0


class LogregHead(ClassifierMixin, BaseEstimator):
    """Standardized multinomial logistic regression; C is chosen on val.

    The choice is by val accuracy, ties by val log loss: the rule by which heads are chosen, too.

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
        grid = self._checked_grid(has_validation=validation is not None)
        model = LogisticRegression(max_iter=self.max_iter, tol=self.tol, warm_start=True)
        best: tuple[float, float] | None = None
        for C in grid:
            converged = _fit_quietly(model.set_params(C=C), X, y)
            coef, intercept = _two_sided(model)
            rank = self._rank(coef, intercept, validation)
            if best is None or rank < best:
                best = rank
                self.C_, self.converged_ = C, converged
                self.n_iter_ = int(model.n_iter_.max())
                self.coef_, self.intercept_ = coef, intercept
        self.notes_ = self._notes(grid)

    def _rank(
        self, coef: NDArray[np.float64], intercept: NDArray[np.float64], validation: Any
    ) -> tuple[float, float]:
        """Return (1 - accuracy, log loss) on val; less is better."""
        if validation is None:
            return 0.0, 0.0
        X, y = validation
        probabilities = _softmax(self._scaled(np.asarray(X)) @ coef.T + intercept)
        accuracy = (self.classes_[probabilities.argmax(axis=1)] == y).mean()
        known = np.isin(y, self.classes_)
        numbers = np.searchsorted(self.classes_, np.asarray(y)[known])
        return 1 - float(accuracy), log_loss(numbers, probabilities[known])

    def _checked_grid(self, *, has_validation: bool) -> list[float]:
        values = list(self.grid) if isinstance(self.grid, Sequence | np.ndarray) else [self.grid]
        numbers = [value for value in values if isinstance(value, int | float)]
        if not numbers or len(numbers) < len(values) or min(numbers) <= 0:
            raise ConfigError(
                f"[heads.logreg] grid: expected positive numbers. Received: {self.grid!r}."
            )
        if has_validation or len(numbers) == 1:
            return sorted(float(number) for number in numbers)
        return [DEFAULT_C]

    def _notes(self, grid: Sequence[float]) -> tuple[str, ...]:
        notes = []
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
    with warnings.catch_warnings(record=True) as caught:
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
