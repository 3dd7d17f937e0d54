"""The logistic loss of a stack of coefficients, its gradient, and both along a line.

Arrays are stacks ``(values, rows, n)`` of scores and ``(values, rows, dim + 1)`` of coefficients,
the last column being intercepts. ``n`` comes last, so that sums over the few rows run along
contiguous memory.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Problem:
    """Features and labels, in the precision of the features.

    Attributes:
        X: Features, float32 or float64 ``(n, dim)``.
        targets: One where the row's class is that of the example, ``(rows, n)``.
        shares: Row weights over their sum, float64 ``(n,)``.
    """

    X: NDArray[np.floating]
    targets: NDArray[np.floating]
    shares: NDArray[np.float64]

    @classmethod
    def of(
        cls, X: NDArray[np.floating], numbers: NDArray[np.intp], shares: NDArray[np.float64]
    ) -> Self:
        """Make one of class numbers ``(n,)``; for two classes only the second has a row."""
        classes = np.arange(numbers.max() + 1)
        if len(classes) == 2:
            classes = classes[1:]
        return cls(X, (classes[:, None] == numbers).astype(X.dtype), shares)

    @property
    def rows(self) -> int:
        """How many rows of coefficients there are: one per class, but one for two classes."""
        return len(self.targets)

    def scores(self, coef: NDArray[np.float64]) -> NDArray[np.floating]:
        """Return scores ``(values, rows, n)`` of coefficients ``(values, rows, dim + 1)``."""
        flat = coef.reshape(-1, coef.shape[-1]).astype(self.X.dtype, copy=False)
        scores: NDArray[np.floating] = flat[:, :-1] @ self.X.T
        scores += flat[:, -1:]
        return scores.reshape(len(coef), self.rows, len(self.X))

    def probabilities(self, scores: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the softmax over rows; one row is that of two classes whose first scores 0."""
        exponents, total, _ = self._exponents(scores)
        exponents /= total
        return exponents

    def losses(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the weighted mean log loss of each value, float64 ``(values,)``."""
        _, total, peak = self._exponents(scores)
        true = np.einsum("vkn,kn->vn", scores, self.targets)
        each = np.log(total[:, 0]) + peak[:, 0] - true
        return self._mean(each)

    def gradients(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the gradient of the mean log loss, float64 ``(values, rows, dim + 1)``."""
        residuals = probabilities - self.targets
        residuals *= self.shares.astype(self.X.dtype) * len(self.X)
        flat = residuals.reshape(-1, len(self.X))
        gradient = np.empty((len(flat), self.X.shape[1] + 1))
        gradient[:, :-1] = flat @ self.X
        gradient[:, -1] = flat.sum(axis=1, dtype=np.float64)
        gradient /= len(self.X)
        return gradient.reshape(len(probabilities), self.rows, self.X.shape[1] + 1)

    def slopes(
        self, probabilities: NDArray[np.floating], along: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return first and second derivative of the mean log loss along a direction of scores.

        Args:
            probabilities: Where to take them, ``(values, rows, n)``.
            along: The change of scores for a step of one, ``(values, rows, n)``.
        """
        moved = probabilities * along
        mean = moved.sum(axis=1)
        moved *= along
        curvature = moved.sum(axis=1) - mean**2
        mean -= np.einsum("vkn,kn->vn", along, self.targets)
        return self._mean(mean), self._mean(curvature)

    def variances(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the weighted mean of ``p (1 - p)``, float64 ``(values, rows)``."""
        return self._mean(probabilities * (1 - probabilities))

    def _mean(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = values @ self.shares
        return mean

    def _exponents(
        self, scores: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
        """Return exponentials without overflow, their sum over classes, and what was taken off."""
        peak = scores.max(axis=1, keepdims=True)
        if self.rows == 1:
            peak = np.maximum(peak, 0)
        exponents = np.exp(scores - peak)
        total = exponents.sum(axis=1, keepdims=True)
        if self.rows == 1:
            total += np.exp(-peak)
        return exponents, total, peak
