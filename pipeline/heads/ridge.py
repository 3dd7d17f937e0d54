"""The ridge head: closed-form least squares on class indicators; one factorization for all alphas.

It needs two passes over the features and no iteration, so it is the quickest linear head with an
L2 path, and features may lie on disk.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.heads.grid_head import GridHead, State
from pipeline.heads.head import Rule, class_weight_rule
from pipeline.heads.rows import Block, Features, blocks
from pipeline.heads.scaler import FeatureScaler
from pipeline.heads.threads import blas_threads

Factors = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


class RidgeHead(GridHead):
    """Ridge regression of class indicators on standardized features; alpha is chosen on val.

    It minimizes ``sum_i w_i |y_i - W x_i - b|^2 + alpha |W|^2``, with ``y_i`` one for the class of
    row i and zero for the others, and b without a penalty: the objective of scikit-learn's
    ``Ridge``. The scores are ``W x + b``: decision values.

    Args:
        grid: Values of alpha, the L2 strength. Without val, or with one value, nothing is chosen:
            alpha is that value, or 1000 where there are several.
        class_weight: ``balanced`` weighs classes by the inverse of their frequency.

    Attributes:
        alpha_: The chosen value.
        mean_: float64 ``(dim,)``, of the scaler, as ``scale_``.
        coef_: float64 ``(classes, dim)``, on scaled features.
        intercept_: float64 ``(classes,)``.
    """

    name: ClassVar[str] = "ridge"
    strength: ClassVar[str] = "alpha"
    fallback: ClassVar[float] = 1000.0
    has_probabilities: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "alpha_", "mean_", "scale_", "coef_", "intercept_", "n_features_in_",
    )  # fmt: skip

    def __init__(
        self,
        grid: Sequence[float] = (1e-1, 1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6),
        class_weight: str | None = None,
    ) -> None:
        self.grid = grid
        self.class_weight = class_weight

    def _fit_path(
        self,
        X: NDArray[np.floating],
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        values: Sequence[float],
    ) -> Iterator[State]:
        """Factorize once; each alpha is then one small product."""
        scaler = FeatureScaler().fit(X, sample_weight=weights)
        factorize = factors_of_rows if X.shape[0] < X.shape[1] else factors_of_features
        with blas_threads(X.shape[0] * X.shape[1]):
            left, eigenvalues, right = factorize(X, numbers, weights, scaler, self.progress)
        totals = np.bincount(numbers, weights=weights)
        for alpha in values:
            yield {
                "mean_": scaler.mean_,
                "scale_": scaler.scale_,
                "coef_": (left @ (right / (eigenvalues + alpha)[:, None])).T,
                # The scaled features have mean zero, so b is the mean of the indicators.
                "intercept_": totals / totals.sum(),
            }

    def _one_done(self, count: int) -> None:
        """Tell nothing more: the factorization told of all, beside which a value is nothing."""

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        scaled = (X.astype(np.float64) - self.mean_) / self.scale_
        scores: NDArray[np.float64] = scaled @ self.coef_.T + self.intercept_
        return scores

    def _rules(self) -> Iterable[Rule]:
        return (*super()._rules(), class_weight_rule(self))


def factors_of_features(
    X: Features,
    numbers: NDArray[np.intp],
    weights: NDArray[np.float64] | None,
    scaler: FeatureScaler,
    progress: Callable[[float], None] = lambda share: None,
) -> Factors:
    """Return what solves ridge for every alpha, from the Gram matrix of the features.

    With A the scaled features times the root of their weights, and Y the indicators times the
    same, ``A^T A = Q diag(v) Q^T`` and ``W(alpha)^T = Q diag(1 / (v + alpha)) Q^T A^T Y``.

    Args:
        X: Features, ``(n, dim)``; in memory or on disk, of which one block is held at a time.
        numbers: Class numbers, ``(n,)``.
        weights: Weights of rows, ``(n,)``; None where all are one.
        scaler: The fitted scaler. The sums are of scaled features, since those of raw ones would
            lose the digits of features whose mean is far above their standard deviation.
        progress: Told the share of the rows that were read since the last call.

    Returns:
        Left factor ``(dim, dim)``, eigenvalues ``(dim,)``, right factor ``(dim, classes)``.
    """
    dim, num_classes = X.shape[1], int(numbers.max()) + 1
    gram, sums = np.zeros((dim, dim)), np.zeros((num_classes, dim))
    for rows, scaled in _weighted_blocks(X, weights, scaler, progress):
        gram += scaled.T @ scaled
        sums += _indicators(numbers[rows], _roots(rows, weights), num_classes) @ scaled
    eigenvalues, vectors = np.linalg.eigh(gram)
    return vectors, _not_negative(eigenvalues), vectors.T @ sums.T


def factors_of_rows(
    X: Features,
    numbers: NDArray[np.intp],
    weights: NDArray[np.float64] | None,
    scaler: FeatureScaler,
    progress: Callable[[float], None] = lambda share: None,
) -> Factors:
    """Return the same from the Gram matrix of the rows, which is smaller where n < dim.

    ``A A^T = U diag(v) U^T`` and ``W(alpha)^T = A^T U diag(1 / (v + alpha)) U^T Y``.

    Returns:
        Left factor ``(dim, n)``, eigenvalues ``(n,)``, right factor ``(n, classes)``.
    """
    scaled = np.empty(X.shape)
    for rows, block in _weighted_blocks(X, weights, scaler, progress):
        scaled[rows] = block
    everything = np.arange(len(scaled))
    totals = np.bincount(numbers, weights=weights)
    roots = _roots(everything, weights)
    targets = _indicators(numbers, roots, len(totals)).T.toarray()
    # The root weights span the null space of A^T. Without this the rounding of that zero would be
    # divided by alpha.
    targets -= np.outer(roots, totals / totals.sum())
    eigenvalues, vectors = np.linalg.eigh(scaled @ scaled.T)
    return scaled.T @ vectors, _not_negative(eigenvalues), vectors.T @ targets


def _weighted_blocks(
    X: Features,
    weights: NDArray[np.float64] | None,
    scaler: FeatureScaler,
    progress: Callable[[float], None],
) -> Iterator[Block]:
    """Yield (row numbers, scaled features times the root of their weights, float64)."""
    for rows, block in blocks(X):
        scaled = (block.astype(np.float64) - scaler.mean_) / scaler.scale_
        if weights is not None:
            scaled *= _roots(rows, weights)[:, None]
        yield rows, scaled
        progress(len(rows) / X.shape[0])


def _roots(rows: NDArray[np.intp], weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
    return np.ones(len(rows)) if weights is None else np.sqrt(weights[rows])


def _indicators(
    numbers: NDArray[np.intp], values: NDArray[np.float64], num_classes: int
) -> csr_array:
    """Return a sparse matrix ``(num_classes, n)`` with one value per column, in its row's class."""
    return csr_array(
        (values, (numbers, np.arange(len(numbers)))), shape=(num_classes, len(numbers))
    )


def _not_negative(eigenvalues: NDArray[np.float64]) -> NDArray[np.float64]:
    # A Gram matrix has none below zero; rounding makes some.
    return np.maximum(eigenvalues, 0.0)
