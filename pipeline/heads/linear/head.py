"""The linear head: softmax regression by SGD or Adam, without TensorFlow; many at once.

For features that do not fit into memory, and for sweeps over learning rates and weight decays.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from pipeline.errors import PipelineError
from pipeline.heads.head import Head, Rule, check_rules, class_weight_rule, is_count, is_number
from pipeline.heads.linear.bank import LinearBank, Plan
from pipeline.heads.rows import Validation
from pipeline.heads.scaler import FeatureScaler, scale_into

# Entries of all kernels of a bank: 128 MB an array. More heads than that train in several banks.
MAX_ENTRIES: Final = 2**25
# Parameters in which the heads of one bank may differ.
_OWN: Final = ("learning_rate", "weight_decay")
# Weights times images that are passed in a second, at the least.
_RATE: Final = 1e10


class LinearHead(Head):
    """Standardized softmax regression, no hidden layer, trained for a fixed number of epochs.

    The kernel starts at zero; the loss is convex, so the seed decides the order of rows alone.

    Args:
        optimizer: ``adam``, or ``sgd`` with momentum 0.9.
        learning_rate: Rate at the start.
        weight_decay: Share of the kernel, times the rate, taken off at every step; apart from
            the gradient, as in AdamW, and not off the bias.
        epochs: Passes over train.
        batch_size: Rows a step.
        decay: Whether the rate falls to zero along a half cosine.
        label_smoothing: Share of each target that is spread over all classes.
        class_weight: ``balanced`` weighs classes by the inverse of their frequency.
        seed: Seed of the order of rows.

    Attributes:
        coef_: float32 ``(classes, dim)``, on scaled features.
        intercept_: float32 ``(classes,)``.
        losses_: Mean loss of each epoch in training, ``(epochs,)``, or none where one is no number;
            not saved.
    """

    name: ClassVar[str] = "linear"
    streams: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "mean_", "scale_", "coef_", "intercept_", "n_features_in_",
    )  # fmt: skip

    def __init__(
        self,
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        epochs: int = 40,
        batch_size: int = 256,
        decay: bool = True,
        label_smoothing: float = 0.0,
        class_weight: str | None = None,
        seed: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.decay = decay
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.seed = seed

    def seconds(self, images: int, scored: int, dim: int, classes: int, settings: int = 1) -> float:
        """See ``Head.seconds``."""
        return self.epochs * images * dim * classes * settings / _RATE

    def fit(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        validation: Validation | None = None,
    ) -> Self:
        """Train on X ``(n, dim)`` and y; ``validation`` is not looked at.

        Args:
            X: Features in memory, or on disk (``rows.FeatureRows``).
            y: Labels, ``(n,)``.
            sample_weight: Weights of rows, ``(n,)``; only their ratios count.
            validation: Ignored.

        Raises:
            ConfigError: A parameter is out of range.
            PipelineError: The loss is not a number.
        """
        self._train([self], X, y, sample_weight)
        return self._finished()

    def fit_many(
        self,
        X: object,
        y: object,
        settings: Sequence[Mapping[str, object]],
        sample_weight: object = None,
    ) -> Iterator[Head]:
        """Fit one copy a setting; see ``Head.fit_many``.

        Settings that differ in ``learning_rate`` and ``weight_decay`` alone share every batch.
        A head equals one fitted alone up to rounding: about 1e-5 of its largest coefficient. One
        whose loss is not a number has scores that are none, and ``converged_`` False.

        Raises:
            ConfigError: A parameter is out of range.
        """
        heads: list[LinearHead] = [clone(self).set_params(**params) for params in settings]
        trained: set[int] = set()
        for number, head in enumerate(heads):
            if number not in trained:
                alike = [
                    other
                    for other in range(number, len(heads))
                    if _shared(heads[other]) == _shared(head)
                ]
                share = len(alike) / len(heads)
                self._train([heads[other] for other in alike], X, y, sample_weight, share)
                trained.update(alike)
            yield head

    def _train(
        self,
        heads: Sequence["LinearHead"],
        X: object,
        y: object,
        sample_weight: object,
        share: float = 0.0,
    ) -> None:
        """Fit heads that share all parameters but their own; they are a share of what is asked."""
        first = heads[0]
        X, numbers, weights = first._begin(X, y, sample_weight)
        scaler = FeatureScaler().fit(X, sample_weight=weights)
        for head in heads:
            check_rules(head.name, head, head._rules())
            head.classes_, head.n_features_in_ = first.classes_, first.n_features_in_
            head.mean_, head.scale_ = scaler.mean_, scaler.scale_
        dim, num_classes = X.shape[1], len(first.classes_)
        size = max(1, MAX_ENTRIES // ((dim + 1) * num_classes))
        for start in range(0, len(heads), size):
            part = heads[start : start + size]
            bank = LinearBank(
                first._plan(),
                [head.learning_rate for head in part],
                [head.weight_decay for head in part],
                dim=dim,
                num_classes=num_classes,
            )
            progress = self._progress_of(share * len(part) / len(heads))
            bank.train(X, numbers, weights, scaler, progress)
            found = (bank.kernels, bank.diverged, np.array(bank.losses).T)
            for head, kernel, diverged, losses in zip(part, *found, strict=True):
                head.coef_, head.intercept_ = kernel[:-1].T.copy(), kernel[-1].copy()
                head.losses_ = losses if np.isfinite(losses).all() else losses[:0]
                head._diverged = diverged
                head.converged_ = False if diverged else None

    def _plan(self) -> Plan:
        return Plan(
            optimizer=self.optimizer,
            epochs=self.epochs,
            batch_size=self.batch_size,
            decay=self.decay,
            label_smoothing=self.label_smoothing,
            seed=self.seed,
        )

    def _finished(self) -> Self:
        """Return the head, unless it diverged."""
        if self._diverged:
            raise PipelineError(
                f"linear: the loss is not a number after epoch {self._diverged}.",
                hint=f"Lower learning_rate ({self.learning_rate:g}) under [heads.linear].",
            )
        return self

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float32]:
        scaled = np.empty(X.shape, np.float32)
        scale_into(X, self.mean_, self.scale_, scaled)
        scores: NDArray[np.float32] = scaled @ self.coef_.T + self.intercept_
        return scores

    def _rules(self) -> Iterable[Rule]:
        is_decay = is_number(self.weight_decay, low=-1) and self.weight_decay >= 0
        is_share = is_number(self.label_smoothing, low=-1, high=1) and self.label_smoothing >= 0
        return (
            ("optimizer", self.optimizer in ("adam", "sgd"), "'adam' or 'sgd'"),
            ("learning_rate", is_number(self.learning_rate, low=0), "a number above 0"),
            ("weight_decay", is_decay, "a number of 0 or more"),
            ("epochs", is_count(self.epochs), "an integer above 0"),
            ("batch_size", is_count(self.batch_size), "an integer above 0"),
            ("decay", isinstance(self.decay, bool | np.bool_), "true or false"),
            ("label_smoothing", is_share, "a share from 0 to below 1"),
            class_weight_rule(self),
            ("seed", is_count(self.seed + 1), "an integer of 0 or more"),
        )


def _shared(head: LinearHead) -> dict[str, object]:
    """Return the parameters that must be equal for two heads to train in one bank."""
    params = head.get_params(deep=False)
    return {name: value for name, value in params.items() if name not in _OWN}
