"""The dense head: a small network on pooled features, as a scikit-learn classifier.

It is trained with Keras' operations, compiled by Keras' backend; the weights are kept as NumPy
arrays, so that predicting and loading need no TensorFlow.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from pipeline.heads.dense.batches import Recipe, Rows
from pipeline.heads.dense.training import initial_weights, train
from pipeline.heads.head import Head, Rule, check_rules, class_weight_rule, is_count, is_number
from pipeline.heads.rows import Validation, is_stream
from pipeline.heads.scaler import FeatureScaler, scale_into
from pipeline.system.keras_setup import Tensor, import_keras

# Weights, of all heads, up to which heads share a pass: with Adam's two moments 15 MB. Beyond the
# processor's cache each step waits for memory, and heads are faster one at a time.
SHARED_WEIGHTS: Final = 1_250_000
# Weights times images that are passed in a second, at the least.
_RATE: Final = 8e9


class DenseHead(Head):
    """Dense layers with relu and dropout, then softmax; Adam on categorical cross-entropy.

    The updates are those of Keras' ``fit`` on the network that ``network`` returns. Everything
    random (initial kernels, order of rows, dropout) follows from ``seed``, or, for the order, from
    ``order_seed``; no global generator is touched. The defaults' evidence is in ``docs/heads.md``.

    Args:
        hidden: Widths of the hidden layers; empty for a linear head.
        dropout: Share of hidden units dropped in training.
        epochs: Passes over train.
        batch_size: Rows a step.
        learning_rate: Adam's rate at the start.
        decay: Whether the rate falls to zero along a half cosine.
        scale: Whether features are standardized first.
        seed: Seed of everything random.
        weight_decay: Decoupled weight decay, as in Keras' AdamW.
        label_smoothing: Share of each target that is spread over all classes.
        class_weight: ``balanced`` weighs classes by the inverse of their frequency.
        order_seed: Seed of the order of rows; -1 is ``seed``. Heads of several seeds that are to
            share a pass need one of their own.

    Attributes:
        weights_: Kernel and bias of each layer, float32, in order.
        losses_: Mean loss of each epoch in training, ``(epochs,)``; not saved.
    """

    name: ClassVar[str] = "dense"
    streams: ClassVar[bool] = True
    copies: ClassVar[float] = 2.1
    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "mean_", "scale_", "weights_", "n_features_in_",
    )  # fmt: skip

    def __init__(
        self,
        hidden: Sequence[int] = (256,),
        dropout: float = 0.5,
        epochs: int = 40,
        batch_size: int = 32,
        learning_rate: float = 3e-4,
        decay: bool = True,
        scale: bool = True,
        seed: int = 0,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        class_weight: str | Mapping[object, float] | None = None,
        order_seed: int = -1,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.decay = decay
        self.scale = scale
        self.seed = seed
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.order_seed = order_seed

    def seconds(self, images: int, scored: int, dim: int, classes: int, settings: int = 1) -> float:
        """See ``Head.seconds``."""
        weights = sum(a * b for a, b in pairwise((dim, *self.hidden, classes)))
        return self.epochs * images * weights * settings / _RATE

    def fit(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        validation: Validation | None = None,
    ) -> Self:
        """Train on X ``(n, dim)`` and y; ``validation`` is not looked at.

        Raises:
            ConfigError: A parameter is out of range.
            PipelineError: The loss is not a number.
        """
        self._fit_together([self], X, y, sample_weight)
        return self

    def fit_many(
        self,
        X: object,
        y: object,
        settings: Sequence[Mapping[str, object]],
        sample_weight: object = None,
    ) -> Iterator[Head]:
        """Fit one copy a setting; see ``Head.fit_many``. Small heads share passes over X.

        Those that share a pass may differ in dropout, learning_rate, weight_decay and
        label_smoothing, and in seed where ``order_seed`` is set: a pass has one order of rows.
        Each equals the one fitted alone up to rounding, whose effect grows with training; losses
        differed by less than one part in 10,000.

        Raises:
            ConfigError: A parameter is out of range.
            PipelineError: A loss is not a number.
        """
        heads = [clone(self).set_params(**params) for params in settings]
        for head in heads:
            check_rules(head.name, head, head._rules())
        dim = X.shape[1] if is_stream(X) else np.asarray(X).shape[-1]
        passes = _passes(heads, dim, len(np.unique(np.asarray(y))))
        for head, members in zip(heads, passes, strict=True):
            if not hasattr(head, "weights_"):
                head._fit_together(
                    members,
                    X,
                    y,
                    sample_weight,
                    self._progress_of(len(members) / len(heads)),
                )
            yield head

    def _fit_together(
        self,
        heads: Sequence["DenseHead"],
        X: object,
        y: object,
        sample_weight: object,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Fit this head and others that may share its pass; it is the first of them."""
        X, numbers, weights = self._begin(X, y, sample_weight)
        scaler = FeatureScaler().fit(X, sample_weight=weights) if self.scale else None
        self.mean_ = scaler.mean_ if scaler else np.zeros(X.shape[1])
        self.scale_ = scaler.scale_ if scaler else np.ones(X.shape[1])
        learned = {name: value for name, value in vars(self).items() if name.endswith("_")}
        rows = Rows(X, numbers, weights, self.mean_, self.scale_, len(self.classes_))
        found = train([head._recipe() for head in heads], rows, progress)
        for head, trained in zip(heads, found, strict=True):
            learned |= {"weights_": trained.weights, "losses_": trained.losses}
            for name, value in learned.items():
                setattr(head, name, value)

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the logits, float32 ``(n, classes)``, computed with NumPy."""
        layers = list(zip(self.weights_[::2], self.weights_[1::2], strict=True))
        activations = np.empty(X.shape, np.float32)
        scale_into(X, self.mean_, self.scale_, activations)
        for kernel, bias in layers[:-1]:
            activations = np.maximum(activations @ kernel + bias, 0)
        logits: NDArray[np.float32] = activations @ layers[-1][0] + layers[-1][1]
        return logits

    def network(self, dim: int, num_classes: int, *, num_rows: int) -> Tensor:
        """Build and compile the Keras network that is trained, with its initial weights.

        Its ``fit`` makes the same updates on the same batches; ``weights_`` fit it.

        Args:
            dim: Number of features.
            num_classes: Number of classes.
            num_rows: Rows of train, by which the rate falls.
        """
        keras = import_keras()
        layers = [keras.Input((dim,), name="features")]
        for number, width in enumerate(self.hidden):
            layers.append(_layer(keras, int(width), "relu"))
            if self.dropout:
                layers.append(keras.layers.Dropout(self.dropout, seed=self.seed + number))
        layers.append(_layer(keras, num_classes, "softmax"))
        network = keras.Sequential(layers)
        network.set_weights(initial_weights(self._recipe(), dim, num_classes))
        steps = self.epochs * -(-num_rows // self.batch_size)
        rate: Tensor = self.learning_rate
        if self.decay:
            rate = keras.optimizers.schedules.CosineDecay(self.learning_rate, steps)
        optimizer = keras.optimizers.Adam(rate)
        if self.weight_decay:
            optimizer = keras.optimizers.AdamW(rate, weight_decay=self.weight_decay)
        loss: object = "categorical_crossentropy"
        if self.label_smoothing:
            loss = keras.losses.CategoricalCrossentropy(label_smoothing=self.label_smoothing)
        network.compile(optimizer=optimizer, loss=loss)
        return network

    def _recipe(self) -> Recipe:
        """Return the parameters that training takes."""
        return Recipe(
            hidden=tuple(map(int, self.hidden)),
            epochs=self.epochs,
            batch_size=self.batch_size,
            decay=self.decay,
            order_seed=self.seed if self.order_seed == -1 else self.order_seed,
            dropout=self.dropout,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            seed=self.seed,
        )

    def _rules(self) -> Iterable[Rule]:
        widths = self.hidden if isinstance(self.hidden, Sequence | np.ndarray) else [None]
        return (
            ("hidden", all(is_count(width) for width in widths), "a list of widths above 0"),
            ("dropout", 0 <= self.dropout < 1, "a share from 0 to below 1"),
            ("epochs", is_count(self.epochs), "an integer above 0"),
            ("batch_size", is_count(self.batch_size), "an integer above 0"),
            ("learning_rate", is_number(self.learning_rate, low=0), "a number above 0"),
            ("seed", is_count(self.seed + 1), "an integer of 0 or more"),
            ("weight_decay", 0 <= self.weight_decay < np.inf, "a number of 0 or more"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "a share from 0 to below 1"),
            class_weight_rule(self),
            ("order_seed", is_count(self.order_seed + 2), "an integer of 0 or more, or -1"),
        )


def _layer(keras: ModuleType, width: int, activation: str) -> Tensor:
    # Its kernel is set afterwards; Keras' own initializer would draw from a global generator.
    return keras.layers.Dense(width, activation=activation, kernel_initializer="zeros")


def _passes(heads: Sequence[DenseHead], dim: int, num_classes: int) -> list[list[DenseHead]]:
    """Return, for each head, the heads that share its pass, itself among them."""
    found: list[list[DenseHead]] = []
    filling: dict[object, list[DenseHead]] = {}
    for head in heads:
        recipe = head._recipe()
        sizes = (dim, *recipe.hidden, num_classes)
        weights = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))
        key = (*recipe.shared(), head.scale, str(head.class_weight))
        members = filling.setdefault(key, [])
        if members and (len(members) + 1) * weights > SHARED_WEIGHTS:
            members = filling[key] = []
        members.append(head)
        found.append(members)
    return found
