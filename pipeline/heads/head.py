"""What all heads share: checking what they are given, row weights, scores and probabilities.

A head computes ``scores``: log-probabilities up to a constant, or decision values. Probabilities
are their softmax; stage 2 divides them by a temperature chosen on val first.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from pipeline.errors import ConfigError
from pipeline.files.arrays import AnyArray
from pipeline.heads.calibration import probabilities
from pipeline.heads.rows import Features, Validation, blocks, is_stream

Rule = tuple[str, bool, str]


def _unheard(share: float) -> None:
    """Take no notice of how far a fit is."""


class Head(ClassifierMixin, BaseEstimator):
    """A classifier on features.

    Class attributes:
        name: Its name in ``HEADS``, for messages.
        fitted: Fitted attributes to save: arrays, lists of arrays, or numbers.
        has_probabilities: Whether ``scores`` are log-probabilities; otherwise they are decision
            values, whose softmax means something only after a temperature was fitted.
        calibrates: Whether a temperature has a meaning for it.
        streams: Whether ``fit`` takes features that lie on disk (``rows.FeatureRows``).
        copies: Memory that fitting and scoring take beside features in memory, in copies of those
            that it is fitted on.

    Attributes:
        classes_: The class labels, ascending.
        temperature_: What scores are divided by before their softmax; 1 until stage 2, which
            chooses it on val, sets it.
        converged_: Whether the fit converged; None where that has no meaning.
        notes_: Plain sentences that the user should read.
        progress: Told by ``fit_many`` what was done since the last call, as a share of the
            whole; whoever wants to hear of it sets it.
    """

    name: ClassVar[str]
    fitted: ClassVar[tuple[str, ...]]
    has_probabilities: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    streams: ClassVar[bool] = False
    copies: ClassVar[float] = 1.0
    classes_: AnyArray
    temperature_: float = 1.0
    converged_: bool | None = None
    notes_: tuple[str, ...] = ()
    progress: Callable[[float], None] = staticmethod(_unheard)

    @property
    def prior(self) -> str:
        """What class frequencies its probabilities are for: those of train, or balanced ones."""
        return "balanced" if getattr(self, "class_weight", None) == "balanced" else "train"

    def memory(self, images: int, dim: int, classes: int, settings: int = 1) -> float:
        """Return the bytes that fitting and scoring take beside features in memory.

        Args:
            images: Rows that it is fitted on.
            dim: Length of a feature row.
            classes: Number of classes.
            settings: How many settings ``fit_many`` fits.
        """
        return self.copies * 4 * images * dim

    def seconds(self, images: int, scored: int, dim: int, classes: int, settings: int = 1) -> float:
        """Return about how long fitting and scoring ``scored`` rows takes two processors.

        Of heads that pass over the features once or twice it is zero, as where nobody knows. The
        other arguments are those of ``memory``.
        """
        return 0.0

    @abstractmethod
    def fit(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        validation: Validation | None = None,
    ) -> Self:
        """Fit on X ``(n, dim)`` and y ``(n,)``; ``validation``, a pair ``(X, y)``, is to choose."""

    @abstractmethod
    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return scores of checked features, ``(n, classes)``."""

    def scores(self, X: object) -> NDArray[np.floating]:
        """Return scores, float ``(n, classes)``: log-probabilities or decision values.

        Block by block, also of features in memory: heads scale what they score, into another array.
        """
        check_is_fitted(self)
        checked = self._to_score(X)
        scores: NDArray[np.floating] | None = None
        for rows, features in blocks(checked):
            part = self._scores(features)
            if scores is None:
                scores = np.empty((checked.shape[0], part.shape[1]), part.dtype)
            scores[rows] = part
        if scores is None:
            raise ValueError("Expected features of one image or more. Received: none.")
        return scores

    def predict_proba(self, X: object) -> NDArray[np.float64]:
        """Return probabilities, float64 ``(n, classes)``."""
        return probabilities([self.scores(X)], self.temperature_)

    def predict(self, X: object) -> AnyArray:
        """Return class labels."""
        best = self.scores(X).argmax(axis=1)
        labels: AnyArray = self.classes_[best]
        return labels

    def fit_many(
        self,
        X: object,
        y: object,
        settings: Sequence[Mapping[str, object]],
        sample_weight: object = None,
    ) -> Iterator["Head"]:
        """Fit one copy of this head a setting, without val; heads that can share work do.

        Args:
            X: Features, ``(n, dim)``.
            y: Labels, ``(n,)``.
            settings: The parameters of each copy that differ from this head's own.
            sample_weight: Weights of rows, ``(n,)``.

        Returns:
            Fitted heads, in order of the settings, each equal to one fitted alone. Where that
            one would raise because its loss is not a number, scores may be none instead.
        """
        for params in settings:
            head: Head = clone(self).set_params(**params)
            head.fit(X, y, sample_weight)
            self.progress(1 / len(settings))
            yield head

    def selected_params(self) -> dict[str, object]:
        """Return the parameters that repeat what was chosen on val, for a refit."""
        return {}

    def _progress_of(self, part: float) -> Callable[[float], None]:
        """Return what hears of the progress of a part of what ``fit_many`` does."""
        return lambda share: self.progress(part * share)

    def _begin(
        self, X: Any, y: Any, sample_weight: object = None
    ) -> tuple[NDArray[np.floating], NDArray[np.intp], NDArray[np.float64] | None]:
        """Check what ``fit`` was given and set ``classes_``.

        Returns:
            X, float32 or float64 ``(n, dim)``; class numbers ``(n,)``; weights of rows ``(n,)``,
            None where all are one. Rows of weight zero count as absent; features on disk are
            returned as they are, with these rows, whose class number has no meaning then.

        Raises:
            ConfigError: A parameter is out of range, or X is on disk and the head needs it whole.
            ValueError: X or y cannot be used; there are fewer than two classes.
        """
        self.temperature_ = 1.0
        check_rules(self.name, self, self._rules())
        X, y = self._checked(X, y)
        # Whole numbers are classes however many there are, of which scikit-learn warns.
        if not np.issubdtype(y.dtype, np.integer):
            check_classification_targets(y)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight,
                y,
                dtype=np.float64,
                ensure_non_negative=True,
                allow_all_zero_weights=False,
            )
            present = weights > 0
            if is_stream(X):
                # They go through training with weight zero, as another class.
                y = np.where(present, y, y[present.argmax()])
            else:
                X, y, weights = X[present], y[present], weights[present]
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Expected two classes or more. Received: {len(self.classes_)} class.")
        return X, numbers, self._weighted(numbers, weights)

    def _checked(self, X: Any, y: Any) -> tuple[Any, AnyArray]:
        """Check features and labels; those on disk are checked as they are read."""
        if not is_stream(X):
            checked: tuple[Any, AnyArray] = validate_data(
                self, X, y, dtype=[np.float32, np.float64]
            )
            return checked
        if not self.streams:
            raise ConfigError(
                f"The features of {X.shape[0]:,} images do not fit into memory, and the head "
                f"{self.name!r} needs them all at once.",
                hint="Use a head that reads them in a stream: linear, ridge, dense.",
            )
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        if len(y) != X.shape[0]:
            raise ValueError(f"Expected {X.shape[0]} labels. Received: {len(y)}.")
        self.n_features_in_ = X.shape[1]
        return X, y

    def _to_score(self, X: object) -> Features:
        """Check features to score; those on disk are checked as they are read."""
        if not is_stream(X):
            checked: NDArray[np.floating] = validate_data(
                self, X, dtype=[np.float32, np.float64], reset=False
            )
            return checked
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"Expected {self.n_features_in_} features. Received: {X.shape[1]}.")
        return X

    def _weighted(
        self, numbers: NDArray[np.intp], weights: NDArray[np.float64] | None
    ) -> NDArray[np.float64] | None:
        """Return row weights with the class weights, if the head has any, multiplied in."""
        class_weight = getattr(self, "class_weight", None)
        if class_weight is None:
            return weights
        if class_weight == "balanced":
            totals = np.bincount(numbers, weights=weights)
            of_class = totals.sum() / (len(totals) * totals)
        else:
            of_class = np.array([class_weight.get(label, 1.0) for label in self.classes_])
        found: NDArray[np.float64] = of_class[numbers]
        return found if weights is None else found * weights

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


def class_weight_rule(head: "Head") -> Rule:
    """Return the rule of ``class_weight``."""
    given = getattr(head, "class_weight", None)
    holds = given in (None, "balanced") or isinstance(given, Mapping)
    return "class_weight", holds, "'balanced', or weights by class"


def is_count(value: object) -> bool:
    """Tell whether a value is an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return bool(value > 0)


def is_number(value: object, *, low: float, high: float = np.inf) -> bool:
    """Tell whether a value is a number with ``low < value < high``."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(low < value < high)


def is_grid(values: object, *, low: float = 0.0) -> bool:
    """Tell whether values are a list of numbers above ``low``, at least one."""
    if not isinstance(values, list | tuple | np.ndarray) or len(values) == 0:
        return False
    return all(is_number(value, low=low) for value in values)


def log_softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the logarithm of the softmax of each row, without overflow."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_probabilities: NDArray[np.floating] = shifted - np.log(
        np.exp(shifted).sum(axis=1, keepdims=True)
    )
    return log_probabilities
