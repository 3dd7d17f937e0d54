"""The network that fine-tuning trains: its blocks, where it is cut, and what is frozen.

The part above the cut shares its layers with the whole, so training one trains the other.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import numpy as np

from pipeline.backbones.frozen import FrozenBackbone
from pipeline.files.arrays import AnyArray
from pipeline.finetune.cut import Cut, blocks_of
from pipeline.system.keras_setup import KerasModel, KerasVariable, Tensor, import_keras
from pipeline.system.randomness import RandomStream

# The tutorial counts layers from the input: it freezes 15 and trains the others.
TUTORIAL_FROZEN: Final = 15
TUTORIAL_WIDTH: Final = 1024


@dataclass(frozen=True, slots=True)
class Surgery:
    """A backbone with a head, cut.

    Attributes:
        loaded: The backbone.
        cut: Where it is cut.
        whole: Keras model, uint8 images to ``[features (n, dim), logits (n, classes)]``.
        top: The same from the boundary on, float32; None where there is no single boundary.
        bottom: The part below as a backbone of its own, for an engine: images to the flattened
            boundary; None where ``top`` is.
        head: The head's network.
    """

    loaded: FrozenBackbone
    cut: Cut
    whole: KerasModel
    top: KerasModel
    bottom: FrozenBackbone | None
    head: KerasModel

    @property
    def boundary_shape(self) -> tuple[int, ...]:
        """Shape of one image's activations at the boundary."""
        return tuple(self.cut.boundary.shape[1:])

    @property
    def state(self) -> list[Tensor]:
        """Every variable that training may change, in a fixed order."""
        layers = self.loaded.network.layers[self.cut.first :]
        return [variable for layer in (*layers, self.head) for variable in layer.weights]

    def fixed(self, *, trains_statistics: bool) -> list[Tensor]:
        """Every variable that training must not change.

        Args:
            trains_statistics: Whether BatchNorm above the cut moves its statistics.
        """
        if not trains_statistics:
            found: list[Tensor] = self.whole.non_trainable_weights
            return found
        layers = self.loaded.network.layers[: self.cut.first]
        return [variable for layer in layers for variable in layer.weights]


def rate_factors(
    surgery: Surgery, variables: Sequence[KerasVariable], layer_decay: float
) -> list[float]:
    """Return what share of the rate each variable has.

    The head has all of it, the last block ``layer_decay``, the block before that its square, and so
    on: Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification",
    section 3.1, discriminative fine-tuning.

    Args:
        surgery: The network.
        variables: Trained ones of its backbone and its head.
        layer_decay: Rate of a block over that of the block above it, above 0 and at most 1.
    """
    network = surgery.loaded.network
    blocks = blocks_of(network)
    from_below = list(dict.fromkeys(blocks))
    depths = {block: depth for depth, block in enumerate(reversed(from_below), start=1)}
    depth_of = {
        id(variable): depths[block]
        for layer, block in zip(network.layers, blocks, strict=True)
        for variable in layer.weights
    }
    return [layer_decay ** depth_of.get(id(variable), 0) for variable in variables]


def operate(loaded: FrozenBackbone, head: KerasModel, cut: Cut) -> Surgery:
    """Put a head's network on a backbone and unfreeze what is above the cut.

    Args:
        loaded: The backbone; its layers are shared, not copied.
        head: Keras model, features ``(n, dim)`` to logits ``(n, classes)``.
        cut: Where to divide.
    """
    keras = import_keras()
    network = loaded.network
    network.trainable = True
    for layer in network.layers[: cut.first]:
        layer.trainable = False
    features = loaded.model.output
    whole = keras.Model(loaded.model.input, [features, head(features)], name="finetuned")
    if cut.boundary is None:
        return Surgery(loaded, cut, whole, None, None, head)
    top = keras.Model(cut.boundary, [network.output, head(network.output)], name="finetuned_top")
    return Surgery(loaded, cut, whole, top, _bottom(keras, loaded, cut.boundary), head)


def tutorial_head(num_classes: int, dim: int, seed: int) -> Tensor:
    """Return the tutorial's fresh head: Dense 1024 relu, Dense; the softmax is in the loss.

    Kernels are Glorot uniform, as Keras' default, drawn from the seed.
    """
    keras = import_keras()
    widths = (dim, TUTORIAL_WIDTH, num_classes)
    network = keras.Sequential(name="head")
    network.add(keras.Input((dim,), name="features"))
    for number, (width, name) in enumerate(((TUTORIAL_WIDTH, "hidden_1"), (num_classes, "logits"))):
        activation = "relu" if number == 0 else None
        layer = keras.layers.Dense(width, activation=activation, kernel_initializer="zeros",
                                   name=name)  # fmt: skip
        network.add(layer)
        limit = math.sqrt(6 / (widths[number] + width))
        generator = RandomStream.WEIGHTS.generator(seed, number)
        kernel = generator.uniform(-limit, limit, (widths[number], width))
        layer.set_weights([kernel.astype(np.float32), np.zeros(width, np.float32)])
    return network


def set_precision(surgery: Surgery, precision: str) -> None:
    """Give the trained part an arithmetic, for what is compiled from now on.

    The weights stay float32, and so do the last layer, the pooling, and the head.
    """
    policy = "float32" if precision == "float32" else f"mixed_{precision}"
    for layer in surgery.loaded.network.layers[surgery.cut.first : -1]:
        layer.dtype_policy = policy


def values_of(variables: Sequence[KerasVariable]) -> list[AnyArray]:
    """Return copies of the values of variables."""
    convert = import_keras().ops.convert_to_numpy
    return [np.array(convert(variable)) for variable in variables]


def assign(variables: Sequence[KerasVariable], values: Sequence[AnyArray]) -> None:
    """Set variables to values, in order."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def digest_of(variables: Sequence[KerasVariable]) -> str:
    """Return the SHA-256 of the values of variables, bit for bit."""
    sha256 = hashlib.sha256()
    for value in values_of(variables):
        sha256.update(np.ascontiguousarray(value).data)
    return sha256.hexdigest()


def _bottom(keras: ModuleType, loaded: FrozenBackbone, boundary: Tensor) -> FrozenBackbone:
    """Return the frozen part as a backbone whose features are the flattened boundary."""
    dim = math.prod(boundary.shape[1:])
    lower = keras.Model(loaded.network.input, boundary, name="below")
    # The operation before the network makes its pixels.
    pixels = loaded.model.operations[-2].output
    flat = keras.layers.Reshape((dim,), name="flat")(lower(pixels, training=False))
    model = keras.Model(loaded.model.input, flat, name="bottom")
    return FrozenBackbone(
        lambda: model,
        name=loaded.name,
        image_size=loaded.image_size,
        pooling=loaded.pooling,
        dim=dim,
        weights_sha256=loaded.weights_sha256,
    )
