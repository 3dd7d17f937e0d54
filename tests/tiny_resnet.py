"""A network built like ResNet50, with the names of two of its stages, in a hundredth of the time.

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
# Width and number of blocks by stage; of ResNet50's four the first and the last.
STAGES: dict[str, tuple[int, int]] = {
    "conv2": (16, 1),
    "conv5": (DIM, 3),
}


# Python's arguments after it: what ``python -m`` takes, or a script.
PROGRAM = """
import runpy, sys, tiny_resnet
del sys.argv[0]
is_script = sys.argv[0].endswith(".py")
with tiny_resnet.in_place_of_resnet50():
    if is_script:
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@contextmanager
def in_place_of_resnet50(dim: int = DIM, builder: str = "tiny_resnet:build") -> Iterator[None]:
    """Build this network wherever ResNet50 is asked for, while the context lasts.

    Args:
        dim: Width of its last stage, and so its number of features.
        builder: What builds it, where it is another.
    """
    row = replace(backbones.BACKBONES["resnet50"], builder=builder, dim=dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGES, "conv5", (dim, STAGES["conv5"][1]))
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
    found = layers.Activation("relu", name="conv1_relu")(convolved(pixels, 8, "conv1", 2))
    found = layers.MaxPooling2D(2, name="pool1_pool")(found)
    for stage, (width, blocks) in STAGES.items():
        for number in range(1, blocks + 1):
            block = f"{stage}_block{number}"
            stride = 2 if number == 1 and stage != "conv2" else 1
            is_first = number == 1
            shortcut = convolved(found, width, f"{block}_0", stride, 1) if is_first else found
            for part, size in ((1, 1), (2, 3), (3, 1)):
                found = convolved(found, width, f"{block}_{part}", stride if part == 1 else 1, size)
                if part < 3:
                    found = layers.Activation("relu", name=f"{block}_{part}_relu")(found)
            found = layers.Add(name=f"{block}_add")([shortcut, found])
            found = layers.Activation("relu", name=f"{block}_out")(found)
    pool = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}[pooling]
    return keras.Model(pixels, pool(name="pool")(found), name="resnet50")
