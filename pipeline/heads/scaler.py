"""The scaler of every head: standardization that near-constant features cannot blow up."""

from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

# A feature with a standard deviation of 7e-5 beside a median of 0.3 would get weights 28,000
# times the median one, and an engine's last digit would flip predictions.
FLOOR: Final = 1e-2


class FeatureScaler(TransformerMixin, BaseEstimator):
    """Subtract the mean, divide by ``sqrt(var + (0.01 * median standard deviation)^2)``.

    Attributes:
        mean_: float64 ``(dim,)``.
        scale_: float64 ``(dim,)``, all positive.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn mean and scale of features, shape ``(n, dim)``, with weights of rows ``(n,)``."""
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        if sample_weight is None:
            self.mean_ = X.mean(axis=0, dtype=np.float64)
            variance = X.var(axis=0, dtype=np.float64)
        else:
            weights = _check_sample_weight(sample_weight, X, np.float64, ensure_non_negative=True)
            self.mean_ = np.average(X, axis=0, weights=weights)
            variance = np.average((X - self.mean_) ** 2, axis=0, weights=weights)
        floor = (FLOOR * np.median(np.sqrt(variance))) ** 2
        scale = np.sqrt(variance + floor)
        # Rounding leaves constant features a variance of about 1e-16 of their square.
        tiny = 1e-10 * np.maximum(np.abs(self.mean_), 1e-30)
        self.scale_ = np.where(scale > tiny, scale, 1.0)
        return self

    def transform(self, X: Any) -> NDArray[np.floating]:
        """Return scaled features, dtype and shape of X."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scaled: NDArray[np.floating] = (X - self.mean_.astype(X.dtype)) / self.scale_.astype(
            X.dtype
        )
        return scaled
