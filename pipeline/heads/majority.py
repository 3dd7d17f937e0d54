"""The majority head: the class frequencies of train for every image; the floor of any score."""

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data


class MajorityHead(ClassifierMixin, BaseEstimator):
    """Predict the class frequencies of train.

    Attributes:
        classes_: The class labels.
        priors_: float64 ``(classes,)``.
    """

    fitted: ClassVar[tuple[str, ...]] = ("classes_", "priors_", "n_features_in_")
    converged_: bool | None = None
    notes_: tuple[str, ...] = ()

    def fit(self, X: Any, y: Any, *, validation: Any = None) -> Self:
        """Count classes; X and validation are not looked at."""
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        self.classes_, counts = np.unique(y, return_counts=True)
        self.priors_ = counts / counts.sum()
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the frequencies of train for every row, float64 ``(n, classes)``."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        return np.tile(self.priors_, (len(X), 1))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most frequent class for every row."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def selected_params(self) -> dict[str, Any]:
        """Nothing is chosen on val."""
        return {}
