"""A head as layers of a Keras model, for fine-tuning to train and for exports to ship.

A head becomes float64 arrays first, with NumPy; Keras' layers are made of these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import HeadNotTrainableError
from pipeline.system.keras_setup import KerasModel, Tensor, import_keras

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

Array = NDArray[np.float64]
Layer = tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class HeadLayers:
    """A head as arrays: the scores are ``layers((features - mean) / scale)``.

    Attributes:
        mean: float64 ``(dim,)``.
        scale: float64 ``(dim,)``.
        layers: Kernel ``(inputs, outputs)`` and bias ``(outputs,)`` of each dense layer, float64,
            with relu between two of them.
        dropout: Share of the units between two layers that training drops.
    """

    mean: Array
    scale: Array
    layers: Sequence[Layer]
    dropout: float = 0.0

    def rounded(self) -> list[Layer]:
        """Return the layers that follow a scaler in float32.

        It subtracts the mean rounded to float32. What rounding took off, divided by a small scale,
        is no longer small, so the first bias gives it back.
        """
        (kernel, bias), *others = self.layers
        lost = self.mean - self.mean.astype(np.float32)
        return [(kernel, bias - (lost / self.scale) @ kernel), *others]

    def folded(self, temperature: float) -> list[Layer]:
        """Return layers that take features as they are and give scores over a temperature."""
        (kernel, bias), *others = self.layers
        first = (kernel / self.scale[:, None], bias - (self.mean / self.scale) @ kernel)
        *others, (kernel, bias) = [first, *others]
        return [*others, (kernel / temperature, bias / temperature)]


def is_network(name: str) -> bool:
    """Tell whether the head of a name can become layers of a network."""
    return name in _LAYERS


def require_network(name: str) -> None:
    """Refuse a head that cannot become layers of a network.

    Raises:
        HeadNotTrainableError: Names those that can.
    """
    if not is_network(name):
        raise HeadNotTrainableError(
            f"Expected a head that is a network: {', '.join(_LAYERS)}. Received: {name!r}.",
            hint="Choose one of these with --head; export --format folder takes any head.",
        )


def layers_of(head: "Head") -> HeadLayers:
    """Return a fitted head as arrays; its scores may differ by a constant per row.

    Raises:
        HeadNotTrainableError: It is no network; names the heads that are.
    """
    require_network(head.name)
    return _LAYERS[head.name](head)


def head_network(head: "Head") -> Tensor:
    """Return a fitted head as a Keras model, to train on.

    The first layer, ``scaler``, has no weights; the dense layers after it, of which the last is
    ``logits``, are trainable and hold the head's weights. Hidden ones have the head's dropout
    behind them, which drops where the model is called with ``training=True``.

    Returns:
        Keras model, float32 ``(n, dim)`` to logits, float32 ``(n, classes of the head)``: the
        head's scores up to a constant per row, before the temperature.

    Raises:
        HeadNotTrainableError: The head is no network; names those that are.
    """
    return network_of(layers_of(head))


def network_of(found: HeadLayers) -> Tensor:
    """Return a head's arrays as a Keras model."""
    keras = import_keras()
    features = keras.Input((len(found.mean),), dtype="float32", name="features")
    scaled = _scaler(keras, found)(features)
    logits = dense_layers(keras, scaled, found.rounded(), dropout=found.dropout)
    return keras.Model(features, logits, name="head")


def _scaler(keras: ModuleType, found: HeadLayers) -> Tensor:
    """Return ``(features - mean) / scale`` as a model without weights.

    Keras' Normalization divides by 1e-7 or more, and its Rescaling takes numbers per column for
    numbers per channel where ``keras.json`` says so.
    """
    features = keras.Input((len(found.mean),), dtype="float32")
    centred = keras.ops.subtract(features, found.mean.astype(np.float32))
    scaled = keras.ops.multiply(centred, (1 / found.scale).astype(np.float32))
    scaler = keras.Model(features, scaled, name="scaler")
    scaler.trainable = False
    return scaler


def dense_layers(
    keras: ModuleType, inputs: Tensor, layers: Sequence[Layer], *, dropout: float = 0.0
) -> Tensor:
    """Put dense layers with their weights, and dropout between them, behind a tensor."""
    for number, (kernel, bias) in enumerate(layers, start=1):
        is_last = number == len(layers)
        layer = keras.layers.Dense(
            kernel.shape[1],
            activation=None if is_last else "relu",
            # Keras' own initializer would draw from a global generator.
            kernel_initializer="zeros",
            dtype="float32",
            name="logits" if is_last else f"hidden_{number}",
        )
        inputs = layer(inputs)
        layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
        if dropout and not is_last:
            # The seed keeps Keras off Python's global generator; each step sets another.
            drop = keras.layers.Dropout(dropout, seed=0, dtype="float32", name=f"dropout_{number}")
            inputs = drop(inputs)
    return inputs


def _of_float32(head: KerasModel, layers: Sequence[Layer], *, dropout: float = 0.0) -> HeadLayers:
    """Return layers with the scaler as heads that predict in float32 apply it."""
    factor = (1 / head.scale_).astype(np.float32)
    mean = _double(head.mean_.astype(np.float32))
    return HeadLayers(mean, 1 / _double(factor), layers, dropout)


def _of_dense(head: KerasModel) -> HeadLayers:
    arrays = [_double(array) for array in head.weights_]
    layers = list(zip(arrays[::2], arrays[1::2], strict=True))
    return _of_float32(head, layers, dropout=head.dropout)


def _of_linear(head: KerasModel) -> HeadLayers:
    return _of_float32(head, [(_double(head.coef_.T), _double(head.intercept_))])


def _of_coefficients(head: KerasModel) -> HeadLayers:
    return HeadLayers(head.mean_, head.scale_, [(head.coef_.T, head.intercept_)])


def _of_centroid(head: KerasModel) -> HeadLayers:
    """Leave out the constant of each row: ``-|x - c|^2 = 2 x.c - |c|^2 - |x|^2``."""
    dim = len(head.mean_)
    kernel = 2 * head.centroids_.T / dim
    bias = -(head.centroids_**2).sum(axis=1) / dim
    return HeadLayers(head.mean_, head.scale_, [(kernel, bias)])


def _of_majority(head: KerasModel) -> HeadLayers:
    dim = head.n_features_in_
    kernel = np.zeros((dim, len(head.priors_)))
    return HeadLayers(np.zeros(dim), np.ones(dim), [(kernel, np.log(head.priors_))])


def _double(array: NDArray[np.floating]) -> Array:
    return array.astype(np.float64)


_LAYERS: Final[Mapping[str, Callable[[Any], HeadLayers]]] = MappingProxyType(
    {
        "centroid": _of_centroid,
        "dense": _of_dense,
        "linear": _of_linear,
        "linear-svc": _of_coefficients,
        "logreg": _of_coefficients,
        "majority": _of_majority,
        "ridge": _of_coefficients,
    }
)
