"""The majority head: the class frequencies of train for every image; the floor of any score."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.head import Head
from pipeline.heads.rows import Validation


class MajorityHead(Head):
    """Predict the class frequencies of train.

    Attributes:
        priors_: float64 ``(classes,)``.
    """

    name: ClassVar[str] = "majority"
    calibrates: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = ("classes_", "priors_", "n_features_in_")

    def fit(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        validation: Validation | None = None,
    ) -> Self:
        """Count classes; X and validation are not looked at."""
        _, numbers, weights = self._begin(X, y, sample_weight)
        totals = np.bincount(numbers, weights=weights)
        self.priors_ = totals / totals.sum()
        return self

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.tile(np.log(self.priors_), (len(X), 1))
