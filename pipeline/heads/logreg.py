"""The logistic-regression head: the baseline that every other head is compared with."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from pipeline.heads.grid import GridHead, State
from pipeline.heads.head import Rule, class_weight_rule, is_number
from pipeline.heads.scaler import FeatureScaler

# Entries of X up to which one thread of linear algebra is used.
SMALL: Final = 2**22


class LogregHead(GridHead):
    """Standardized multinomial logistic regression; C is chosen on val.

    Args:
        grid: Values of C, the inverse of the L2 strength. Without val, or with one value,
            nothing is chosen: C is that value, or 1 where there are several.
        max_iter: Most iterations of L-BFGS for one value.
        tol: Largest gradient entry at convergence.
        class_weight: ``balanced`` weighs classes by the inverse of their frequency.

    Attributes:
        C_: The chosen value.
        n_iter_: Iterations that its fit took.
        coef_: float64 ``(classes, dim)``, on scaled features.
        intercept_: float64 ``(classes,)``.
    """

    name: ClassVar[str] = "logreg"
    strength: ClassVar[str] = "C"
    fallback: ClassVar[float] = 1.0
    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "C_",
        "n_iter_", "mean_", "scale_", "coef_", "intercept_", "n_features_in_",
    )  # fmt: skip

    def __init__(
        self,
        grid: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        max_iter: int = 1000,
        tol: float = 1e-4,
        class_weight: str | None = None,
    ) -> None:
        self.grid = grid
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight

    def _fit_path(
        self,
        X: NDArray[np.floating],
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        values: Sequence[float],
    ) -> Iterator[State]:
        """Fit along the path from strong to weak L2, each from the one before."""
        scaler = FeatureScaler().fit(X, sample_weight=weights)
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        scaled = self._scaled(X)
        model: Any = LogisticRegression(max_iter=self.max_iter, tol=self.tol, warm_start=True)
        for C in values:
            converged = _fit_quietly(model.set_params(C=C), scaled, numbers, weights)
            coef, intercept = _two_sided(model)
            yield {
                "mean_": scaler.mean_,
                "scale_": scaler.scale_,
                "coef_": coef,
                "intercept_": intercept,
                "n_iter_": int(model.n_iter_.max()),
                "converged_": converged,
            }

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        scores: NDArray[np.float64] = self._scaled(X) @ self.coef_.T + self.intercept_
        return scores

    def _scaled(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = (X.astype(np.float64) - self.mean_) / self.scale_
        return scaled

    def _rules(self) -> Iterable[Rule]:
        return (
            *super()._rules(),
            ("max_iter", is_number(self.max_iter, low=0), "an integer above 0"),
            ("tol", is_number(self.tol, low=0), "a number above 0"),
            class_weight_rule(self),
        )

    def _fit_notes(self) -> Iterable[str]:
        if not self.converged_:
            yield (
                f"logreg: C = {self.C_:g} did not converge in {self.max_iter} iterations; "
                "raise max_iter under [heads.logreg]"
            )


def _fit_quietly(
    model: Any, X: NDArray[np.float64], y: NDArray[Any], weights: NDArray[np.float64] | None
) -> bool:
    """Fit and tell whether it converged, which scikit-learn says by a warning."""
    # At this size threads only wait for each other: 1.2 s instead of 10 to 27 on two busy cores.
    threads = 1 if X.size <= SMALL else None
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(threads, "blas"):
        warnings.simplefilter("always")
        model.fit(X, y, weights)
    return not any(issubclass(item.category, ConvergenceWarning) for item in caught)


def _two_sided(model: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coefficients with a row a class; for two classes scikit-learn keeps one row."""
    coef, intercept = model.coef_.copy(), model.intercept_.copy()
    if len(coef) > 1:
        return coef, intercept
    # softmax((0, z)) is the logistic function of z
    return np.concatenate([0 * coef, coef]), np.concatenate([0 * intercept, intercept])
