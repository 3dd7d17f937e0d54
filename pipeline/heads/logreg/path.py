"""Logistic regression for many values of C at once.

For each C the objective is scikit-learn's, with ``w`` the row weights over their sum:

    f(W, b) = sum_i w_i log_loss_i(W, b) + strength / 2 * ||W||^2
    strength = 1 / (C * sum(weights))

Two classes have one row of coefficients, more have one each; intercepts are not penalized. All
values move together, so that the two products with the features, which take most of the time, are
matrix products of many rows instead of few. What makes the steps few is in ``steps``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, qr

from pipeline.heads.logreg.loss import Problem
from pipeline.heads.logreg.steps import Axes, Point, minimize
from pipeline.heads.threads import SMALL, blas_threads

# Rows of coefficients in one stack: products with 450 rows are hardly faster than with 100.
STACK_ROWS: Final = 128
# Single precision stops at a share of the tolerances, so that double precision mostly confirms;
# below a gradient of FLOOR its rounding would show.
MARGIN: Final = 0.5
FLOOR: Final = 1e-6


@dataclass(frozen=True)
class LogisticFit:
    """The solution for one C.

    Attributes:
        coef: float64 ``(classes, dim)``; ``(1, dim)`` for two classes.
        intercept: float64 ``(classes,)`` or ``(1,)``.
        n_iter: Iterations taken.
        objective: The objective, computed in double precision.
        gradient: The largest absolute entry of its gradient, computed in double precision.
        converged: Whether ``gradient`` is at most ``tol``.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    n_iter: int
    objective: float
    gradient: float
    converged: bool


def fit_path(
    X: NDArray[np.float64],
    numbers: NDArray[np.intp],
    values: Sequence[float],
    *,
    weights: NDArray[np.float64] | None = None,
    tol: float,
    max_iter: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Iterator[LogisticFit]:
    """Fit every C; yield the fits in order of ``values``.

    No fit depends on which other values are asked for, up to rounding.

    Args:
        X: Features, float64 ``(n, dim)``. Standardized ones take the fewest iterations.
        numbers: Class numbers ``(n,)``; every class from 0 on has a row.
        values: Values of C, all positive.
        weights: Weights of rows ``(n,)``, all positive; None where all are one.
        tol: Largest gradient entry at convergence. Iterations go on until the objective, too, is
            estimated to be within ``tol / 1000`` of its minimum.
        max_iter: Most iterations for one value.
        progress: Called with the share of the whole that was done since the last call.
    """
    is_small = X.size <= SMALL
    total = float(len(X)) if weights is None else float(weights.sum())
    shares = np.full(len(X), 1 / total) if weights is None else weights / total
    with blas_threads(X.size):
        reduced, basis = _reduce(X)
        if is_small:
            vectors, spread = _principal(reduced, shares)
            basis = (vectors if basis is None else basis @ vectors).astype(np.float64, copy=False)
            exact, rough = Problem.of(reduced @ vectors, numbers, shares), None
            axes = Axes(None, spread, basis)
        else:
            single = reduced.astype(np.float32)
            vectors, spread = _principal(single, shares)
            exact = Problem.of(reduced, numbers, shares)
            rough = Problem.of(single @ vectors, numbers, shares)
            axes = Axes(vectors, spread, basis)
            del single
    strengths = 1 / (np.asarray(values, np.float64) * total)
    size = max(1, STACK_ROWS // exact.rows)
    for start in range(0, len(strengths), size):
        with blas_threads(X.size):
            found = _fit_stack(
                exact,
                rough,
                axes,
                strengths[start : start + size],
                tol=tol,
                max_iter=max_iter,
                done=lambda count: progress(count / len(strengths)),
            )
        for number in range(len(found.coef)):
            yield _fit(found, number, basis, tol)


def _fit_stack(
    exact: Problem,
    rough: Problem | None,
    axes: Axes,
    strengths: NDArray[np.float64],
    *,
    tol: float,
    max_iter: int,
    done: Callable[[float], None],
) -> Point:
    """Minimize in single precision along the axes, if asked to, then in double precision."""
    point = Point.zeros(len(strengths), exact)
    parts = 1 if rough is None else 2

    def part_done(count: int) -> None:
        done(count / parts)

    if rough is not None and axes.vectors is not None:
        along, margin = Axes(None, axes.spread, None), max(MARGIN * tol, FLOOR)
        point = minimize(
            rough, along, strengths, point, tol=margin, max_iter=max_iter, done=part_done
        )
        point.coef[..., :-1] = point.coef[..., :-1] @ axes.vectors.T
    return minimize(exact, axes, strengths, point, tol=tol, max_iter=max_iter, done=part_done)


def _fit(found: Point, number: int, basis: NDArray[np.float64] | None, tol: float) -> LogisticFit:
    coef, intercept = found.coef[number, :, :-1], found.coef[number, :, -1]
    gradient = float(found.gradient[number])
    return LogisticFit(
        coef=coef.copy() if basis is None else coef @ basis.T,
        intercept=intercept.copy(),
        n_iter=int(found.n_iter[number]),
        objective=float(found.objective[number]),
        gradient=gradient,
        converged=gradient <= tol,
    )


def _reduce(X: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return features in a basis of their rows, where that has fewer dimensions, and the basis.

    The penalty keeps coefficients in the span of the rows, so nothing is lost.
    """
    if len(X) >= X.shape[1]:
        return X, None
    basis, triangle = qr(X.T, mode="economic", check_finite=False)
    return np.ascontiguousarray(triangle.T), basis


def _principal(
    X: NDArray[np.floating], shares: NDArray[np.float64]
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Return the principal axes of weighted features, a column each, and the spread along each."""
    weighted = X * np.sqrt(shares * len(X)).astype(X.dtype)[:, None]
    gram = weighted.T @ weighted
    values, vectors = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
    return vectors, np.maximum(values.astype(np.float64), 0) / len(X)
