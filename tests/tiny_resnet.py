"""A network built like ResNet50, with the names of its last stage, in a hundredth of the time.

What is tested of the way (the command, resuming, caches, records) is the same with it. The tests
whose subject is ResNet50 itself, or another network, do not put it in its place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from pipeline import backbones
from pipeline.system.keras_setup import import_keras

DIM = 32
BLOCKS = 3


@contextmanager
def in_place_of_resnet50(dim: int = DIM, builder: str = "tiny_resnet:build") -> Iterator[None]:
    """Build this network wherever ResNet50 is asked for, while the context lasts.

    Args:
        dim: Width of its last stage, and so its number of features.
        builder: What builds it, where it is another.
    """
    row = replace(backbones.BACKBONES["resnet50"], builder=builder, dim=dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "BACKBONES", {**backbones.BACKBONES, "resnet50": row})
        yield


def build(*, input_shape: tuple[int, int, int], pooling: str, **_: Any) -> Any:
    """Return the network, as the builders of Keras do."""
    keras = import_keras()
    layers = keras.layers

    def convolved(tensor: Any, width: int, name: str, stride: int = 1, size: int = 3) -> Any:
        layer = layers.Conv2D(width, size, stride, "same", name=f"{name}_conv")
        return layers.BatchNormalization(name=f"{name}_bn")(layer(tensor))

    pixels = keras.Input(input_shape, name="pixels")
    found = layers.Activation("relu", name="conv1_relu")(convolved(pixels, 16, "conv1", 2))
    found = layers.MaxPooling2D(2, name="pool1_pool")(found)
    width = backbones.BACKBONES["resnet50"].dim
    for number in range(1, BLOCKS + 1):
        block, stride = f"conv5_block{number}", 2 if number == 1 else 1
        shortcut = convolved(found, width, f"{block}_0", stride, 1) if number == 1 else found
        for part, size in ((1, 1), (2, 3), (3, 1)):
            found = convolved(found, width, f"{block}_{part}", stride if part == 1 else 1, size)
            if part < 3:
                found = layers.Activation("relu", name=f"{block}_{part}_relu")(found)
        found = layers.Add(name=f"{block}_add")([shortcut, found])
        found = layers.Activation("relu", name=f"{block}_out")(found)
    pool = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}[pooling]
    return keras.Model(pixels, pool(name="pool")(found), name="resnet50")
