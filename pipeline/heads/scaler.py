"""The scaler of every head: half-way between standardizing and one scale for all features."""

from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from pipeline.heads.rows import Features, blocks, is_stream

# Of the typical deviation, what is added to every other: an engine's last digit in a feature that
# is constant but for it would flip predictions.
FLOOR: Final = 1e-2
# Rows that are converted to float64 together, in the cache: 4 MB of 2,048 features.
PIECE_ROWS: Final = 256


class FeatureScaler(TransformerMixin, BaseEstimator):
    """Subtract the mean, divide by the geometric mean of a feature's and the typical deviation.

    That is by ``sqrt(s * m)``, with ``m`` the median standard deviation of the features that vary,
    and ``s = sqrt(var + (0.01 * m)^2)``. Dividing by ``s`` alone lifts features that hardly vary,
    mostly noise, to the level of the others; one scale for all leaves the features of an untrained
    network too far apart to learn from. See ``docs/accuracy.md`` for what each is worth.

    Attributes:
        mean_: float64 ``(dim,)``.
        scale_: float64 ``(dim,)``, all positive.
    """

    def fit(
        self, X: Features, y: object = None, sample_weight: NDArray[np.float64] | None = None
    ) -> Self:
        """Learn mean and scale of features, in memory or on disk, read once.

        Args:
            X: Features, ``(n, dim)``.
            y: Ignored.
            sample_weight: Weights of rows, ``(n,)``.
        """
        if is_stream(X):
            self.n_features_in_ = X.shape[1]
        else:
            X = validate_data(self, X, dtype=[np.float64, np.float32])
        weights = _check_sample_weight(
            sample_weight,
            X,
            dtype=np.float64,
            ensure_non_negative=True,
            allow_all_zero_weights=False,
        )
        self.mean_, variance = _mean_and_variance(X, weights)
        deviation = np.sqrt(variance)
        # Rounding leaves constant features a variance of about 1e-16 of their square.
        varies = deviation > 1e-10 * np.maximum(np.abs(self.mean_), 1e-30)
        typical = np.median(deviation[varies]) if varies.any() else 1.0
        self.scale_ = np.sqrt(np.sqrt(variance + (FLOOR * typical) ** 2) * typical)
        return self

    def transform(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return scaled features, dtype and shape of X."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scaled: NDArray[np.floating] = (X - self.mean_.astype(X.dtype)) / self.scale_.astype(
            X.dtype
        )
        return scaled


def scale_into(
    X: NDArray[np.floating],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Write ``(X - mean) / scale`` into ``out``, float32 of X's shape, without an array between.

    The difference is taken in the dtype of X.
    """
    np.subtract(X, mean.astype(X.dtype), out=out, casting="same_kind")
    out *= (1 / scale).astype(np.float32)


def _mean_and_variance(
    X: Features, weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weighted mean and variance of each column, float64 ``(dim,)``.

    Sums of squared deviations of two parts are combined as in Chan, Golub and LeVeque 1979,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", which loses no
    digits where the mean is far from zero.
    """
    total, mean, squares = 0.0, np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for rows, features in blocks(X):
        for start in range(0, len(rows), PIECE_ROWS):
            of_rows = weights[rows[start : start + PIECE_ROWS]]
            part = of_rows.sum()
            if part == 0:
                continue
            piece = features[start : start + PIECE_ROWS].astype(np.float64)
            piece_mean = of_rows @ piece / part
            piece -= piece_mean
            difference = piece_mean - mean
            squares += of_rows @ (piece * piece) + difference**2 * (total * part / (total + part))
            total += part
            mean += difference * (part / total)
    return mean, squares / total
