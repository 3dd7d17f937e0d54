"""Preconditioned L-BFGS on a stack of logistic regressions.

Pooled features are badly conditioned: a few directions hold most of their spread, and plain
L-BFGS spends its iterations on that. The Hessian for class k is about
``a_k X^T X / n + strength``, with ``a_k`` the mean of ``p_k (1 - p_k)`` (Boehning 1992 bounds it
with a_k = 1/2). In the principal axes of X that is diagonal, and its inverse, with ``a_k`` of the
present point, starts each L-BFGS direction (Nocedal and Wright 2006, algorithm 7.4).

Scores are linear in the coefficients, so a line search costs no product with the features: each
value of the stack finds its own step, and leaves the stack when it is done.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.logreg.loss import Problem

Stack = NDArray[np.float64]

# Steps and gradient changes that are remembered.
MEMORY: Final = 10
# A step is taken where the slope is at most this share of the slope at the start.
FLATTER: Final = 0.3
MAX_TRIALS: Final = 30
# An objective this close to its minimum, in nats and as a share of the tolerance, is close enough.
# The gradient alone is not: with weak L2, entries below 1e-4 leave several times the minimum.
GAP: Final = 1e-3


@dataclass(frozen=True)
class Axes:
    """The principal axes of the features.

    Attributes:
        vectors: One axis a column, ``(dim, dim)``; None where the features are along them already.
        spread: Mean square of the features along each, float64 ``(dim,)``.
        basis: What turns coefficients back to those of the features as given, ``(given, dim)``;
            None where they are the same.
    """

    vectors: NDArray[np.floating] | None
    spread: NDArray[np.float64]
    basis: NDArray[np.float64] | None

    def solve(self, gradient: Stack, variances: Stack, strengths: Stack) -> Stack:
        """Multiply by the inverse of the approximate Hessian; see above.

        Args:
            gradient: ``(values, rows, dim + 1)``.
            variances: Mean of p (1 - p), ``(values, rows)``.
            strengths: L2 strengths, ``(values,)``.
        """
        scale = np.maximum(variances, np.finfo(np.float32).tiny)
        hessian = scale[..., None] * self.spread + strengths[:, None, None]
        solved = np.empty_like(gradient)
        solved[..., -1] = gradient[..., -1] / scale
        if self.vectors is None:
            solved[..., :-1] = gradient[..., :-1] / hessian
        else:
            turned = gradient[..., :-1].astype(self.vectors.dtype, copy=False) @ self.vectors
            solved[..., :-1] = (turned / hessian).astype(turned.dtype) @ self.vectors.T
        return solved

    def largest(self, gradient: Stack) -> NDArray[np.float64]:
        """Return the largest absolute entry, ``(values,)``, for the features as given."""
        if self.basis is None:
            return _largest(gradient)
        return np.maximum(_largest(gradient[..., :-1] @ self.basis.T), _largest(gradient[..., -1:]))


@dataclass(frozen=True)
class Point:
    """Where a stack of values is.

    Attributes:
        coef: float64 ``(values, rows, dim + 1)``, the last column being intercepts.
        n_iter: Iterations so far, ``(values,)``.
        objective: ``(values,)``.
        gradient: Largest absolute entry, ``(values,)``.
    """

    coef: Stack
    n_iter: NDArray[np.intp]
    objective: NDArray[np.float64]
    gradient: NDArray[np.float64]

    @classmethod
    def zeros(cls, values: int, problem: Problem) -> Self:
        """Return the start."""
        coef = np.zeros((values, problem.rows, problem.X.shape[1] + 1))
        return cls(
            coef, np.zeros(values, np.intp), np.full(values, np.inf), np.full(values, np.inf)
        )


@dataclass
class _Active:
    """The values that are not done yet; all arrays have one entry a value."""

    number: NDArray[np.intp]
    strengths: NDArray[np.float64]
    coef: Stack
    scores: NDArray[np.floating]
    probabilities: NDArray[np.floating]
    gradient: Stack
    steps: list[Stack]
    changes: list[Stack]

    @classmethod
    def at(cls, problem: Problem, coef: Stack, strengths: NDArray[np.float64]) -> Self:
        scores = problem.scores(coef)
        probabilities = problem.probabilities(scores)
        gradient = _gradient(problem, probabilities, coef, strengths)
        number = np.arange(len(coef))
        return cls(number, strengths, coef, scores, probabilities, gradient, [], [])

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drop the values that are done."""
        for field in fields(self):
            value = getattr(self, field.name)
            is_list = isinstance(value, list)
            setattr(self, field.name, [each[mask] for each in value] if is_list else value[mask])

    def remember(self, step: Stack, change: Stack) -> None:
        """Add a pair to the memory, of which the oldest is forgotten."""
        self.steps = [*self.steps[-MEMORY + 1 :], step]
        self.changes = [*self.changes[-MEMORY + 1 :], change]


def minimize(
    problem: Problem,
    axes: Axes,
    strengths: NDArray[np.float64],
    start: Point,
    *,
    tol: float,
    max_iter: int,
    done: Callable[[int], None] = lambda count: None,
) -> Point:
    """Minimize from a start, until each value is done or a step no longer helps.

    Args:
        problem: Features and labels, whose precision is that of the products.
        axes: The principal axes of the features.
        strengths: The L2 strength of each value, ``(values,)``.
        start: Where to begin; its iterations count.
        tol: Largest gradient entry of a value that is done.
        max_iter: Most iterations of a value.
        done: Called after a step with how many values were done by it.
    """
    end = Point(start.coef.copy(), start.n_iter.copy(), *np.full((2, len(strengths)), np.inf))
    active = _Active.at(problem, start.coef, strengths)
    while len(active.number):
        before = len(active.number)
        objective = _objective(problem, active)
        direction = _direction(problem, axes, active)
        slope = _dot(active.gradient, direction)
        end.coef[active.number] = active.coef
        end.objective[active.number] = objective
        # Turning a gradient back to the features as given costs as much as a product with them.
        is_near = -slope / 2 <= GAP * tol
        largest = np.full(len(slope), np.inf)
        largest[is_near] = axes.largest(active.gradient[is_near])
        end.gradient[active.number] = largest
        is_done = largest <= tol
        goes_on = ~is_done & (slope < 0) & (end.n_iter[active.number] < max_iter)
        active.keep(goes_on)
        helped = _advance(problem, active, direction[goes_on], slope[goes_on])
        end.n_iter[active.number] += 1
        active.keep(helped)
        done(before - len(active.number))
    unknown = np.isinf(end.gradient)
    if unknown.any():
        stopped = _Active.at(problem, end.coef[unknown], strengths[unknown])
        end.gradient[unknown] = axes.largest(stopped.gradient)
    return end


def _advance(
    problem: Problem, active: _Active, direction: Stack, slope: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Step along the direction; return which values found a step."""
    along = problem.scores(direction)
    length, helped = _search(problem, active, direction, along, slope)
    step = length[:, None, None] * direction
    active.coef = active.coef + step
    active.scores = active.scores + length[:, None, None].astype(along.dtype) * along
    active.probabilities = problem.probabilities(active.scores)
    gradient = _gradient(problem, active.probabilities, active.coef, active.strengths)
    active.remember(step, gradient - active.gradient)
    active.gradient = gradient
    return helped


def _search(
    problem: Problem,
    active: _Active,
    direction: Stack,
    along: NDArray[np.floating],
    slope: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Find for each value a step after which the slope is small, by Newton within a bracket.

    The objective is convex, so its slope along the direction ascends and has one zero.

    Returns:
        The steps ``(values,)``, and whether they were found; else they are zero.
    """
    bends = active.strengths * _dot(direction[..., :-1], direction[..., :-1])
    pulls = active.strengths * _dot(active.coef[..., :-1], direction[..., :-1])
    length, low, high = np.ones(len(slope)), np.zeros(len(slope)), np.full(len(slope), np.inf)
    left = np.arange(len(slope))
    for _ in range(MAX_TRIALS):
        t = length[left]
        scores = active.scores[left] + t[:, None, None].astype(along.dtype) * along[left]
        first, second = problem.slopes(problem.probabilities(scores), along[left])
        first += pulls[left] + t * bends[left]
        second += bends[left]
        open_ = np.abs(first) > FLATTER * np.abs(slope[left])
        left, t, first, second = left[open_], t[open_], first[open_], second[open_]
        if not len(left):
            break
        low[left] = np.where(first < 0, t, low[left])
        high[left] = np.where(first < 0, high[left], t)
        length[left] = _within(t - first / second, low[left], high[left])
    length[left] = 0.0
    return length, length > 0


def _within(
    guess: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return guesses inside their bracket; others become its middle, or at most ten times low."""
    highest = np.where(np.isinf(high), 10 * low, high)
    inside = (guess > low) & (guess < highest)
    return np.where(inside, guess, np.where(np.isinf(high), highest, (low + highest) / 2))


def _direction(problem: Problem, axes: Axes, active: _Active) -> Stack:
    """Return minus the L-BFGS inverse Hessian times the gradient, by the two-loop recursion."""
    q = active.gradient.copy()
    pairs = []
    for step, change in zip(reversed(active.steps), reversed(active.changes), strict=True):
        inverse = _inverse(_dot(step, change))
        share = inverse * _dot(step, q)
        q -= share[:, None, None] * change
        pairs.append((step, change, inverse, share))
    q = axes.solve(q, problem.variances(active.probabilities), active.strengths)
    for step, change, inverse, share in reversed(pairs):
        q += (share - inverse * _dot(change, q))[:, None, None] * step
    if problem.rows > 1:
        # Equal changes of all rows leave probabilities as they are; scikit-learn has none.
        q -= q.mean(axis=1, keepdims=True)
    return -q


def _gradient(
    problem: Problem,
    probabilities: NDArray[np.floating],
    coef: Stack,
    strengths: NDArray[np.float64],
) -> Stack:
    gradient = problem.gradients(probabilities)
    gradient[..., :-1] += strengths[:, None, None] * coef[..., :-1]
    return gradient


def _objective(problem: Problem, active: _Active) -> NDArray[np.float64]:
    coef = active.coef[..., :-1]
    return problem.losses(active.scores) + active.strengths / 2 * _dot(coef, coef)


def _dot(a: Stack, b: Stack) -> NDArray[np.float64]:
    """Return the inner product of each value, ``(values,)``."""
    product: NDArray[np.float64] = np.einsum("vkd,vkd->v", a, b)
    return product


def _largest(entries: Stack) -> NDArray[np.float64]:
    largest: NDArray[np.float64] = np.abs(entries).max(axis=(1, 2), initial=0.0)
    return largest


def _inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one over values; zero, which leaves the pair out, where rounding made them none."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
