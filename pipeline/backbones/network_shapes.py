"""What a network of one's own must take and give, and what to do where it does not.

Shapes are plain tuples, told by Keras or declared in a file's architecture; Keras is not imported.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Final

from pipeline.config.extracting import ExtractOptions
from pipeline.config.options import options_of
from pipeline.errors import ConfigError
from pipeline.system.wording import counted

Shape = tuple[int | None, ...]

_CHANNELS: Final = 3
_SIDE: Final = (int, NoneType)
_LEAST: Final = int(options_of(ExtractOptions)["image_size"].minimum)


def declared_inputs(document: Mapping[str, object]) -> list[Shape]:
    """Return the shapes of a network's inputs as its architecture declares them.

    Args:
        document: The architecture of a ``.keras`` file.

    Returns:
        Nothing where it declares them otherwise than by input layers at the top.
    """
    config = document.get("config")
    layers = config.get("layers") if isinstance(config, dict) else None
    found = []
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict) and layer.get("class_name") == "InputLayer":
            inner = layer.get("config")
            shape = inner.get("batch_shape") if isinstance(inner, dict) else None
            if not isinstance(shape, list) or not all(isinstance(side, _SIDE) for side in shape):
                return []
            found.append(tuple(shape))
    return found


def check_inputs(path: Path, shapes: Sequence[Shape], image_size: int) -> None:
    """Refuse a network that does not take batches of RGB images of a size.

    Args:
        path: Its file.
        shapes: Shapes of its inputs, None for what varies.
        image_size: Side of the images.

    Raises:
        ConfigError: Says what it takes, and what to do.
    """
    hint = _input_hint(shapes, image_size)
    if hint:
        raise ConfigError(
            f"{path}: expected a network that takes images of "
            f"{(image_size, image_size, _CHANNELS)}. Received: {_listed(shapes)}.",
            hint=hint,
        )


def check_outputs(path: Path, shapes: Sequence[Shape]) -> None:
    """Refuse a network that gives no row of features an image, nor a map to pool.

    Raises:
        ConfigError: Says what it gives, and what to do.
    """
    hint = _output_hint(shapes)
    if hint:
        raise ConfigError(
            f"{path}: expected one output of shape (n, dim) or (n, h, w, c). "
            f"Received: {_listed(shapes)}.",
            hint=hint,
        )


def _input_hint(shapes: Sequence[Shape], image_size: int) -> str:
    """Return what to do about inputs; empty where they are right."""
    if len(shapes) != 1:
        return "Save the part of the network that has the image as its only input."
    if len(shapes[0]) != 4:
        return "Save a network whose input is a batch of images: (n, height, width, channels)."
    batch, height, width, channels = shapes[0]
    sides = {side for side in (height, width) if side is not None}
    if height in (1, _CHANNELS) and width == channels and channels not in (1, _CHANNELS):
        return (
            "It expects channels first: build it with channels last "
            "(keras.config.set_image_data_format), and save it again."
        )
    if channels not in (None, _CHANNELS):
        return _channels_hint(channels)
    if batch is not None:
        return f"Its batch size is fixed at {batch}: save it with a batch size that varies (None)."
    if len(sides) > 1:
        return "Images are squares here: put a Resizing layer before it, and save both as one."
    if sides - {image_size}:
        return _size_hint(sides.pop())
    return ""


def _channels_hint(channels: int) -> str:
    return (
        f"It takes {counted(channels, 'channel')}, and images have {_CHANNELS} (RGB): put a layer "
        f"before it that makes {channels} of {_CHANNELS}, such as a Conv2D of 1 x 1, and save both "
        "as one."
    )


def _size_hint(side: int) -> str:
    if side < _LEAST:
        return (
            f"It takes {side} pixels, and --image-size begins at {_LEAST}: put a Resizing layer "
            "before it, and save both as one."
        )
    return f"Use --image-size {side}."


def _output_hint(shapes: Sequence[Shape]) -> str:
    """Return what to do about outputs; empty where they are right."""
    if len(shapes) != 1:
        return "Save the part of the network that ends in one output, such as its last pooling."
    shape = shapes[0]
    if len(shape) == 3:
        return "Put a pooling over the middle axis (GlobalAveragePooling1D) behind it, and save it."
    if len(shape) not in (2, 4):
        return "Save the network up to its last convolution or pooling."
    if shape[-1] is None:
        return "The number of features must be fixed: pool the last map, or save it with one size."
    return ""


def _listed(shapes: Sequence[Shape]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes) or "none"
