"""What all heads share: checking what they are given, row weights, scores and probabilities.

A head computes ``scores``: log-probabilities up to a constant, or decision values. Probabilities
are their softmax; stage 2 divides them by a temperature chosen on val first.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from pipeline.errors import ConfigError

Rule = tuple[str, bool, str]


class Head(ClassifierMixin, BaseEstimator):
    """A classifier on features.

    Class attributes:
        name: Its name in ``HEADS``, for messages.
        fitted: Fitted attributes to save: arrays, lists of arrays, or numbers.
        has_probabilities: Whether ``scores`` are log-probabilities; otherwise they are decision
            values, whose softmax means something only after a temperature was fitted.
        calibrates: Whether a temperature has a meaning for it.
        streams: Whether ``fit`` takes features that lie on disk (``rows.FeatureRows``).

    Attributes:
        classes_: The class labels, ascending.
        converged_: Whether the fit converged; None where that has no meaning.
        notes_: Plain sentences that the user should read.
    """

    name: ClassVar[str]
    fitted: ClassVar[tuple[str, ...]]
    has_probabilities: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    streams: ClassVar[bool] = False
    classes_: NDArray[Any]
    converged_: bool | None = None
    notes_: tuple[str, ...] = ()

    @abstractmethod
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation: Any = None) -> Self:
        """Fit on X ``(n, dim)`` and y ``(n,)``; ``validation``, a pair ``(X, y)``, is to choose."""

    @abstractmethod
    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return scores of checked features, ``(n, classes)``."""

    def scores(self, X: Any) -> NDArray[np.floating]:
        """Return scores, float ``(n, classes)``: log-probabilities or decision values."""
        check_is_fitted(self)
        return self._scores(validate_data(self, X, dtype=[np.float32, np.float64], reset=False))

    def predict_proba(self, X: Any) -> NDArray[np.floating]:
        """Return the softmax of the scores, ``(n, classes)``."""
        return softmax(self.scores(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return class labels."""
        labels: NDArray[Any] = self.classes_[self.scores(X).argmax(axis=1)]
        return labels

    def fit_many(
        self, X: Any, y: Any, settings: Sequence[Mapping[str, Any]], sample_weight: Any = None
    ) -> Iterator["Head"]:
        """Fit one copy of this head a setting, without val; heads that can share work do.

        Args:
            X: Features, ``(n, dim)``.
            y: Labels, ``(n,)``.
            settings: The parameters of each copy that differ from this head's own.
            sample_weight: Weights of rows, ``(n,)``.

        Returns:
            Fitted heads, in order of the settings, each equal to one fitted alone.
        """
        for params in settings:
            head: Head = clone(self).set_params(**params)
            yield head.fit(X, y, sample_weight)

    def selected_params(self) -> dict[str, Any]:
        """Return the parameters that repeat what was chosen on val, for a refit."""
        return {}

    def _begin(
        self, X: Any, y: Any, sample_weight: Any = None
    ) -> tuple[NDArray[np.floating], NDArray[np.intp], NDArray[np.float64] | None]:
        """Check what ``fit`` was given and set ``classes_``.

        Returns:
            X, float32 or float64 ``(n, dim)``; class numbers ``(n,)``; weights of rows ``(n,)``,
            None where all are one. Rows of weight zero count as absent.

        Raises:
            ConfigError: A parameter is out of range.
            ValueError: X or y cannot be used; there are fewer than two classes.
        """
        check_rules(self.name, self, self._rules())
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, np.float64, ensure_non_negative=True)
            present = weights > 0
            X, y, weights = X[present], y[present], weights[present]
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Expected two classes or more. Received: {len(self.classes_)} class.")
        return X, numbers, self._weighted(numbers, weights)

    def _weighted(
        self, numbers: NDArray[np.intp], weights: NDArray[np.float64] | None
    ) -> NDArray[np.float64] | None:
        """Return row weights with the class weights, if the head has any, multiplied in."""
        if getattr(self, "class_weight", None) is None:
            return weights
        totals = np.bincount(numbers, weights=weights)
        balanced: NDArray[np.float64] = (totals.sum() / (len(totals) * totals))[numbers]
        return balanced if weights is None else balanced * weights

    def _rules(self) -> Iterable[Rule]:
        """Return (parameter, whether it holds, what was expected)."""
        return ()


def check_rules(head: str, params: object, rules: Iterable[Rule]) -> None:
    """Refuse parameters that are out of range.

    Raises:
        ConfigError: Names the first one that is.
    """
    for name, holds, expected in rules:
        if not holds:
            raise ConfigError(
                f"[heads.{head}] {name}: expected {expected}. Received: {getattr(params, name)!r}."
            )


def class_weight_rule(head: Any) -> Rule:
    """Return the rule of ``class_weight``."""
    return "class_weight", head.class_weight in (None, "balanced"), "'balanced'"


def is_count(value: Any) -> bool:
    """Tell whether a value is an integer above zero."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_integer and bool(value > 0)


def is_number(value: Any, *, low: float, high: float = np.inf) -> bool:
    """Tell whether a value is a number with ``low < value < high``."""
    is_real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_real and bool(low < value < high)


def is_grid(values: Any, *, low: float = 0.0) -> bool:
    """Tell whether values are a list of numbers above ``low``, at least one."""
    is_list = isinstance(values, list | tuple | np.ndarray)
    return is_list and len(values) > 0 and all(is_number(value, low=low) for value in values)


def softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the softmax of each row, without overflow."""
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: NDArray[np.floating] = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities


def log_softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the logarithm of the softmax of each row, without overflow."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_probabilities: NDArray[np.floating] = shifted - np.log(
        np.exp(shifted).sum(axis=1, keepdims=True)
    )
    return log_probabilities
