"""The logistic-regression head: the baseline that every other head is compared with."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.grid_head import GridHead, State
from pipeline.heads.head import Rule, class_weight_rule, is_number
from pipeline.heads.logreg.path import STACK_ROWS, fit_path
from pipeline.heads.scaler import FeatureScaler

# Bytes of each score while the loss is minimized: scores, probabilities, residuals and targets, in
# float32 and then in float64.
_SCORE_BYTES: Final = 80
# Features times classes and values of C that are done in a second, at the least.
_RATE: Final = 1e8


class LogregHead(GridHead):
    """Standardized multinomial logistic regression; C is chosen on val.

    Args:
        grid: Values of C, the inverse of the L2 strength. Without val, or with one value,
            nothing is chosen: C is that value, or 1 where there are several.
        max_iter: Most iterations of L-BFGS for one value.
        tol: Largest gradient entry at convergence, as in scikit-learn.
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
    copies: ClassVar[float] = 4.0
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

    def memory(self, images: int, dim: int, classes: int, settings: int = 1) -> float:
        """See ``Head.memory``; the loss holds scores of each class for all values it is made of."""
        rows, values = classes if classes > 2 else 1, max(len(self.grid), settings)
        scores = rows * min(values, max(1, STACK_ROWS // rows))
        return super().memory(images, dim, classes) + _SCORE_BYTES * images * scores

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
        """Fit all values together; see ``path``."""
        scaler = FeatureScaler().fit(X, sample_weight=weights)
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        fits = fit_path(
            self._scaled(X),
            numbers,
            values,
            weights=weights,
            tol=self.tol,
            max_iter=self.max_iter,
            progress=self.progress,
        )
        for fit in fits:
            yield {
                "mean_": scaler.mean_,
                "scale_": scaler.scale_,
                "coef_": _two_sided(fit.coef),
                "intercept_": _two_sided(fit.intercept),
                "n_iter_": fit.n_iter,
                "converged_": fit.converged,
            }

    def _one_done(self, count: int) -> None:
        """Tell nothing more: the path tells when a value is done, long before all are yielded."""

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


def _two_sided(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one row per class; two classes were fitted with one row."""
    # softmax((0, z)) is the logistic function of z
    return rows if len(rows) > 1 else np.concatenate([0 * rows, rows])
