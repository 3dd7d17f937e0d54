"""The dense head: a small Keras network on pooled features, as a scikit-learn classifier.

Keras trains it; the weights are kept as NumPy arrays, so that predicting and loading need no
TensorFlow.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.errors import ConfigError, PipelineError
from pipeline.heads.scaler import FeatureScaler
from pipeline.runtime import import_keras


class DenseHead(ClassifierMixin, BaseEstimator):
    """Dense layers with relu and dropout, then softmax; Adam on categorical cross-entropy.

    Everything random (initial kernels, order of rows, dropout) follows from ``seed``; no global
    generator is touched. The defaults' evidence is in ``docs/heads.md``.

    Args:
        hidden: Widths of the hidden layers; empty for a linear head.
        dropout: Share of hidden units dropped in training.
        epochs: Passes over train.
        batch_size: Rows a step.
        learning_rate: Adam's rate at the start.
        decay: Whether the rate falls to zero along a half cosine.
        scale: Whether features are standardized first.
        seed: Seed of everything random.

    Attributes:
        weights_: Kernel and bias of each layer, float32, in order.
    """

    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "mean_", "scale_", "weights_", "n_features_in_",
    )  # fmt: skip
    # A fixed number of epochs has no convergence test.
    converged_: bool | None = None
    notes_: tuple[str, ...] = ()

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
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.decay = decay
        self.scale = scale
        self.seed = seed

    def fit(self, X: Any, y: Any, *, validation: Any = None) -> Self:
        """Train on X ``(n, dim)`` and y; ``validation`` is not looked at.

        Raises:
            ConfigError: A parameter is out of range.
            PipelineError: The loss is not a number.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Expected two classes or more. Received: {len(self.classes_)} class.")
        dim = X.shape[1]
        scaler = FeatureScaler().fit(X) if self.scale else None
        self.mean_ = scaler.mean_ if scaler else np.zeros(dim)
        self.scale_ = scaler.scale_ if scaler else np.ones(dim)
        network = self.network(dim, len(self.classes_), num_rows=len(X))
        self._train(network, self._scaled(X), np.eye(len(self.classes_), dtype="f4")[numbers])
        self.weights_ = [np.array(array, dtype=np.float32) for array in network.get_weights()]
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return probabilities, float32 ``(n, classes)``, computed with NumPy."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        layers = list(zip(self.weights_[::2], self.weights_[1::2], strict=True))
        activations = self._scaled(X)
        for kernel, bias in layers[:-1]:
            activations = np.maximum(activations @ kernel + bias, 0)
        scores = activations @ layers[-1][0] + layers[-1][1]
        exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Return class labels."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def selected_params(self) -> dict[str, Any]:
        """Nothing is chosen on val."""
        return {}

    def network(self, dim: int, num_classes: int, *, num_rows: int) -> Any:
        """Build and compile the Keras network for ``dim`` features, with its initial weights."""
        keras = import_keras()
        layers = [keras.Input((dim,), name="features")]
        for number, width in enumerate(self.hidden):
            layers.append(_layer(keras, int(width), "relu"))
            if self.dropout:
                layers.append(keras.layers.Dropout(self.dropout, seed=self.seed + number))
        layers.append(_layer(keras, num_classes, "softmax"))
        network = keras.Sequential(layers)
        network.set_weights(self._initial_weights(dim, num_classes))
        steps = self.epochs * -(-num_rows // self.batch_size)
        rate: Any = self.learning_rate
        if self.decay:
            rate = keras.optimizers.schedules.CosineDecay(self.learning_rate, steps)
        network.compile(optimizer=keras.optimizers.Adam(rate), loss="categorical_crossentropy")
        return network

    def _initial_weights(self, dim: int, num_classes: int) -> list[NDArray[np.float32]]:
        """Draw Glorot uniform kernels with NumPy: the same on every Keras backend."""
        generator = np.random.default_rng([self.seed, 0])
        weights = []
        for fan_in, fan_out in pairwise((dim, *map(int, self.hidden), num_classes)):
            limit = np.sqrt(6 / (fan_in + fan_out))
            kernel = generator.uniform(-limit, limit, (fan_in, fan_out))
            weights += [kernel.astype(np.float32), np.zeros(fan_out, np.float32)]
        return weights

    def _train(self, network: Any, X: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        """Run all epochs; the order of rows follows from (seed, epoch)."""
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(X))
            loss = 0.0
            for start in range(0, len(X), self.batch_size):
                rows = order[start : start + self.batch_size]
                loss = float(network.train_on_batch(X[rows], targets[rows]))
            if not np.isfinite(loss):
                raise PipelineError(
                    f"dense: the loss is {loss} in epoch {epoch + 1}.",
                    hint=f"Lower learning_rate ({self.learning_rate:g}) under [heads.dense].",
                )

    def _scaled(self, X: NDArray[np.floating]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = ((X - self.mean_) / self.scale_).astype(np.float32)
        return scaled

    def _check_parameters(self) -> None:
        widths = self.hidden if isinstance(self.hidden, Sequence | np.ndarray) else [None]
        rules = (
            ("hidden", all(_is_count(width) for width in widths), "a list of widths above 0"),
            ("dropout", 0 <= self.dropout < 1, "a share from 0 to below 1"),
            ("epochs", _is_count(self.epochs), "an integer above 0"),
            ("batch_size", _is_count(self.batch_size), "an integer above 0"),
            ("learning_rate", 0 < self.learning_rate < np.inf, "a number above 0"),
            ("seed", _is_count(self.seed + 1), "an integer of 0 or more"),
        )
        for name, holds, expected in rules:
            if not holds:
                raise ConfigError(
                    f"[heads.dense] {name}: expected {expected}. Received: {getattr(self, name)!r}."
                )


def _layer(keras: Any, width: int, activation: str) -> Any:
    # Its kernel is set afterwards; Keras' own initializer would draw from a global generator.
    return keras.layers.Dense(width, activation=activation, kernel_initializer="zeros")


def _is_count(value: Any) -> bool:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_integer and bool(value > 0)
