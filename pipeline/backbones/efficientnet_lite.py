"""EfficientNet-Lite 0 to 2 in Keras' layers, and what their published weights call them.

The architecture is that of EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946, table
1) as its authors changed it for processors without fast floats ("Higher accuracy on vision models
with EfficientNet-Lite", TensorFlow blog, March 2020): no squeeze-and-excitation, ReLU6 instead of
swish; stem and head are as wide in every size, and the first and the last stage as deep.
Layers are called as in Keras' own EfficientNets.

Trained with 224, 240 and 260 pixels, of (x - 127) / 128; Keras' ``tf`` differs from that by at
most 1 / 128.
"""

import functools
import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from pipeline.backbones.variables import Variable
from pipeline.system.keras_setup import Tensor, import_keras

_STEM: Final = 32
_HEAD: Final = 1280
_CLASSES: Final = 1000
# As the weights were trained; PyTorch's own is 1e-5.
_EPSILON: Final = 1e-3


class _Stage(NamedTuple):
    """A stage of the smallest network; the first block of it has the stride."""

    size: int
    stride: int
    expansion: int
    width: int
    depth: int


_STAGES: Final = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)

# What the published weights call layers, those of a block within ``_blocks.NUMBER``, and variables.
_MODULES: Final = MappingProxyType(
    {
        "predictions": "_fc",
        "stem_bn": "_bn0",
        "stem_conv": "_conv_stem",
        "top_bn": "_bn1",
        "top_conv": "_conv_head",
    }
)
_MODULES_OF_BLOCK: Final = MappingProxyType(
    {
        "bn": "_bn1",
        "dwconv": "_depthwise_conv",
        "expand_bn": "_bn0",
        "expand_conv": "_expand_conv",
        "project_bn": "_bn2",
        "project_conv": "_project_conv",
    }
)
_TENSORS: Final = MappingProxyType(
    {
        "beta": "bias",
        "bias": "bias",
        "gamma": "weight",
        "kernel": "weight",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
)
# Tensors of the weights that a network without its classifier has no variables for.
CLASSIFIER: Final = frozenset({"_fc.bias", "_fc.weight"})


def torch_names(variables: Sequence[Variable]) -> dict[str, str]:
    """Return the tensor of the published weights that each variable is, by variable path.

    Args:
        variables: Those of a network of this module, in the order of its layers.
    """
    in_blocks = (variable.layer for variable in variables if variable.layer.startswith("block"))
    blocks = list(dict.fromkeys(layer.partition("_")[0] for layer in in_blocks))
    return {variable.path: _torch_name(variable, blocks) for variable in variables}


def _torch_name(variable: Variable, blocks: Sequence[str]) -> str:
    block, _, part = variable.layer.partition("_")
    if block in blocks:
        module = f"_blocks.{blocks.index(block)}.{_MODULES_OF_BLOCK[part]}"
    else:
        module = _MODULES[variable.layer]
    return f"{module}.{_TENSORS[variable.name]}"


def _build(
    *,
    name: str,
    width: float,
    depth: float,
    input_shape: tuple[int, int, int],
    include_top: bool = True,
    weights: None = None,
    pooling: str | None = None,
    classifier_activation: str | None = "softmax",
) -> Tensor:
    """Return a network as the builders of ``keras.applications`` do, untrained.

    Args:
        name: Name of the network.
        width: Channels of its blocks over those of the smallest network.
        depth: Blocks per stage over those of the smallest network.
        input_shape: Shape of an image, (S, S, 3), whose pixels are float32 from -1 to 1.
        include_top: Whether it ends in the classifier of ImageNet's 1,000 classes.
        weights: None: its weights are in a file of their own.
        pooling: ``avg`` or ``max``, without the classifier; None gives maps.
        classifier_activation: Of the classifier; None gives logits.
    """
    keras = import_keras()
    layers = keras.layers
    pixels = keras.Input(input_shape, name="pixels")
    found = _convolved(pixels, layers.Conv2D, "stem_conv", "stem_bn", _STEM, 3, strides=2)
    found = layers.Activation("relu6", name="stem_activation")(found)
    for number, stage in enumerate(_STAGES, start=1):
        is_fixed = number in (1, len(_STAGES))
        for position in range(stage.depth if is_fixed else math.ceil(depth * stage.depth)):
            block = f"block{number}{chr(ord('a') + position)}_"
            stride = stage.stride if position == 0 else 1
            found = _block(found, block, stage, stride=stride, width=_width(width * stage.width))
    found = _convolved(found, layers.Conv2D, "top_conv", "top_bn", _HEAD, 1)
    found = layers.Activation("relu6", name="top_activation")(found)
    if include_top or pooling == "avg":
        found = layers.GlobalAveragePooling2D(name="avg_pool")(found)
    elif pooling == "max":
        found = layers.GlobalMaxPooling2D(name="max_pool")(found)
    if include_top:
        found = layers.Dense(_CLASSES, classifier_activation, name="predictions")(found)
    return keras.Model(pixels, found, name=name)


lite0: Final = functools.partial(_build, name="efficientnetlite0", width=1.0, depth=1.0)
lite1: Final = functools.partial(_build, name="efficientnetlite1", width=1.0, depth=1.1)
lite2: Final = functools.partial(_build, name="efficientnetlite2", width=1.1, depth=1.2)


def _block(tensor: Tensor, name: str, stage: _Stage, *, stride: int, width: int) -> Tensor:
    """Return an inverted residual block of a tensor (Sandler et al. 2018, MobileNetV2).

    Without the stochastic depth that the weights were trained with: a frozen network has none.
    """
    layers = import_keras().layers
    found, expanded = tensor, tensor.shape[-1] * stage.expansion
    if stage.expansion > 1:
        found = _convolved(
            found, layers.Conv2D, f"{name}expand_conv", f"{name}expand_bn", expanded, 1
        )
        found = layers.Activation("relu6", name=f"{name}expand_activation")(found)
    found = _convolved(
        found, layers.DepthwiseConv2D, f"{name}dwconv", f"{name}bn", stage.size, strides=stride
    )
    found = layers.Activation("relu6", name=f"{name}activation")(found)
    found = _convolved(found, layers.Conv2D, f"{name}project_conv", f"{name}project_bn", width, 1)
    if stride == 1 and tensor.shape[-1] == width:
        found = layers.Add(name=f"{name}add")([found, tensor])
    return found


def _convolved(
    tensor: Tensor, kind: Tensor, name: str, norm: str, *sizes: int, strides: int = 1
) -> Tensor:
    """Return a convolution of a tensor, normalized.

    Padded as TensorFlow's ``same``: with a stride, a map of even sides gets one row and column more
    at its end than at its beginning, where PyTorch's own padding is symmetric.

    Args:
        tensor: What is convolved.
        kind: Class of the layer.
        name: Name of the layer.
        norm: Name of the normalization.
        sizes: Channels and side of the kernel, of a depthwise convolution its side alone.
        strides: Step between the places of the kernel.
    """
    convolution = kind(*sizes, strides=strides, padding="same", use_bias=False, name=name)
    normalization = import_keras().layers.BatchNormalization(epsilon=_EPSILON, name=norm)
    return normalization(convolution(tensor))


def _width(channels: float) -> int:
    """Return a number of channels as the next multiple of 8, at most 10 % below it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
