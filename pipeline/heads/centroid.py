"""The centroid head: the nearest class mean; nothing to tune, and a check on the features."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.metrics import euclidean_distances

from pipeline.heads.head import Head
from pipeline.heads.rows import Validation, blocks
from pipeline.heads.scaler import FeatureScaler


class CentroidHead(Head):
    """Nearest class mean by L2 distance on standardized features.

    The scores are ``-|x - mean of the class|^2 / dim``: decision values.

    Attributes:
        mean_: float64 ``(dim,)``, of the scaler, as ``scale_``.
        centroids_: float64 ``(classes, dim)``, weighted class means of scaled features.
    """

    name: ClassVar[str] = "centroid"
    has_probabilities: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "mean_", "scale_", "centroids_", "n_features_in_",
    )  # fmt: skip

    def fit(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        validation: Validation | None = None,
    ) -> Self:
        """Average the rows of each class of X ``(n, dim)``; ``validation`` is not looked at."""
        X, numbers, weights = self._begin(X, y, sample_weight)
        scaler = FeatureScaler().fit(X, sample_weight=weights)
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        totals = np.bincount(numbers, weights=weights)
        shares = (1.0 if weights is None else weights) / totals[numbers]
        self.centroids_ = np.zeros((len(totals), X.shape[1]))
        for rows, features in blocks(X):
            places = (numbers[rows], np.arange(len(rows)))
            averages = csr_array((shares[rows], places), shape=(len(totals), len(rows)))
            self.centroids_ += averages @ self._scaled(features)
        return self

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        distances = euclidean_distances(self._scaled(X), self.centroids_, squared=True)
        scores: NDArray[np.float64] = -distances / X.shape[1]
        return scores

    def _scaled(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = (X.astype(np.float64) - self.mean_) / self.scale_
        return scaled
