"""The dense head: a small Keras network on pooled features, as a scikit-learn classifier.

Keras trains it; the weights are kept as NumPy arrays, so that predicting and loading need no
TensorFlow.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.heads.head import Head, Rule, is_count, is_number
from pipeline.heads.scaler import FeatureScaler
from pipeline.runtime import import_keras


class DenseHead(Head):
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

    name: ClassVar[str] = "dense"
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
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.decay = decay
        self.scale = scale
        self.seed = seed

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation: Any = None) -> Self:
        """Train on X ``(n, dim)`` and y; ``validation`` is not looked at.

        Raises:
            ConfigError: A parameter is out of range.
            PipelineError: The loss is not a number.
        """
        X, numbers, weights = self._begin(X, y, sample_weight)
        dim = X.shape[1]
        scaler = FeatureScaler().fit(X, sample_weight=weights) if self.scale else None
        self.mean_ = scaler.mean_ if scaler else np.zeros(dim)
        self.scale_ = scaler.scale_ if scaler else np.ones(dim)
        network = self.network(dim, len(self.classes_), num_rows=len(X))
        targets = np.eye(len(self.classes_), dtype="f4")[numbers]
        self._train(network, self._scaled(X), targets, weights)
        self.weights_ = [np.array(array, dtype=np.float32) for array in network.get_weights()]
        return self

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the logits, float32 ``(n, classes)``, computed with NumPy."""
        layers = list(zip(self.weights_[::2], self.weights_[1::2], strict=True))
        activations = self._scaled(X)
        for kernel, bias in layers[:-1]:
            activations = np.maximum(activations @ kernel + bias, 0)
        logits: NDArray[np.float32] = activations @ layers[-1][0] + layers[-1][1]
        return logits

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

    def _train(
        self,
        network: Any,
        X: NDArray[np.float32],
        targets: NDArray[np.float32],
        weights: NDArray[np.float64] | None,
    ) -> None:
        """Run all epochs; the order of rows follows from (seed, epoch)."""
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(X))
            loss = 0.0
            for start in range(0, len(X), self.batch_size):
                rows = order[start : start + self.batch_size]
                of_rows = None if weights is None else weights[rows]
                loss = float(network.train_on_batch(X[rows], targets[rows], of_rows))
            if not np.isfinite(loss):
                raise PipelineError(
                    f"dense: the loss is {loss} in epoch {epoch + 1}.",
                    hint=f"Lower learning_rate ({self.learning_rate:g}) under [heads.dense].",
                )

    def _scaled(self, X: NDArray[np.floating]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = ((X - self.mean_) / self.scale_).astype(np.float32)
        return scaled

    def _rules(self) -> Iterable[Rule]:
        widths = self.hidden if isinstance(self.hidden, Sequence | np.ndarray) else [None]
        return (
            ("hidden", all(is_count(width) for width in widths), "a list of widths above 0"),
            ("dropout", 0 <= self.dropout < 1, "a share from 0 to below 1"),
            ("epochs", is_count(self.epochs), "an integer above 0"),
            ("batch_size", is_count(self.batch_size), "an integer above 0"),
            ("learning_rate", is_number(self.learning_rate, low=0), "a number above 0"),
            ("seed", is_count(self.seed + 1), "an integer of 0 or more"),
        )


def _layer(keras: Any, width: int, activation: str) -> Any:
    # Its kernel is set afterwards; Keras' own initializer would draw from a global generator.
    return keras.layers.Dense(width, activation=activation, kernel_initializer="zeros")
