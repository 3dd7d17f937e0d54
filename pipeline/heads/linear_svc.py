"""The linear support vector head: scikit-learn's LinearSVC, one class against the rest."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from pipeline.files.arrays import AnyArray
from pipeline.heads.grid_head import GridHead, State
from pipeline.heads.head import Rule, class_weight_rule, is_count, is_number
from pipeline.heads.scaler import FeatureScaler

# Features times classes and values of C that LIBLINEAR, on one processor, does in a second.
_RATE: Final = 1.5e7


class LinearSvcHead(GridHead):
    """Linear support vector machines on standardized features; C is chosen on val.

    Squared hinge loss and L2, one class against the rest; the scores are the decision values. As
    in LIBLINEAR (Fan et al. 2008), which does the work, the intercept is penalized too. The dual
    problem is solved where n < dim, the primal one elsewhere, as scikit-learn recommends.

    Args:
        grid: Values of C, the inverse of the L2 strength. Without val, or with one value,
            nothing is chosen: C is that value, or 0.001 where there are several.
        max_iter: Most iterations for one value.
        tol: LIBLINEAR's tolerance.
        class_weight: ``balanced`` weighs classes by the inverse of their frequency.
        seed: Seed of the order of coordinates, which only the dual problem has.

    Attributes:
        C_: The chosen value.
        n_iter_: Iterations that its fit took.
        mean_: float64 ``(dim,)``, of the scaler, as ``scale_``.
        coef_: float64 ``(classes, dim)``, on scaled features.
        intercept_: float64 ``(classes,)``.
    """

    name: ClassVar[str] = "linear-svc"
    strength: ClassVar[str] = "C"
    fallback: ClassVar[float] = 1e-3
    copies: ClassVar[float] = 6.0
    has_probabilities: ClassVar[bool] = False
    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "C_",
        "n_iter_", "mean_", "scale_", "coef_", "intercept_", "n_features_in_",
    )  # fmt: skip

    def __init__(
        self,
        grid: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        max_iter: int = 1000,
        tol: float = 1e-4,
        class_weight: str | None = None,
        seed: int = 0,
    ) -> None:
        self.grid = grid
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.seed = seed

    def seconds(self, images: int, scored: int, dim: int, classes: int, settings: int = 1) -> float:
        """See ``Head.seconds``."""
        return images * dim * classes * max(len(self.grid), settings) / _RATE

    def _fit_path(
        self,
        X: NDArray[np.floating],
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        values: Sequence[float],
    ) -> Iterator[State]:
        """Fit each C alone: LIBLINEAR takes no starting point."""
        scaler = FeatureScaler().fit(X, sample_weight=weights)
        scaled = (X.astype(np.float64) - scaler.mean_) / scaler.scale_
        for C in values:
            model = LinearSVC(
                C=C, dual="auto", tol=self.tol, max_iter=self.max_iter, random_state=self.seed
            )
            converged = _fit_quietly(model, scaled, numbers, weights)
            coef, intercept = _two_sided(model)
            yield {
                "mean_": scaler.mean_,
                "scale_": scaler.scale_,
                "coef_": coef,
                "intercept_": intercept,
                "n_iter_": int(model.n_iter_),
                "converged_": converged,
            }

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        scaled = (X.astype(np.float64) - self.mean_) / self.scale_
        scores: NDArray[np.float64] = scaled @ self.coef_.T + self.intercept_
        return scores

    def _rules(self) -> Iterable[Rule]:
        return (
            *super()._rules(),
            ("max_iter", is_count(self.max_iter), "an integer above 0"),
            ("tol", is_number(self.tol, low=0), "a number above 0"),
            class_weight_rule(self),
            ("seed", is_count(self.seed + 1), "an integer of 0 or more"),
        )

    def _fit_notes(self) -> Iterable[str]:
        if not self.converged_:
            yield (
                f"linear-svc: C = {self.C_:g} did not converge in {self.max_iter} iterations; "
                "raise max_iter under [heads.linear-svc]"
            )


def _fit_quietly(
    model: Any, X: NDArray[np.float64], y: AnyArray, weights: NDArray[np.float64] | None
) -> bool:
    """Fit and tell whether it converged, which scikit-learn says by a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y, weights)
    return not any(issubclass(item.category, ConvergenceWarning) for item in caught)


def _two_sided(model: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coefficients with one row per class; for two classes scikit-learn keeps one row."""
    if len(model.coef_) > 1:
        return model.coef_, model.intercept_
    return np.concatenate([-model.coef_, model.coef_]), np.concatenate(
        [-model.intercept_, model.intercept_]
    )
