"""What a network in ONNX must take and give, and what to do where it does not.

Shapes are those that the file declares; nothing is computed, and ONNX is not imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.config.extracting import ExtractOptions
from pipeline.config.options import options_of
from pipeline.errors import ConfigError, unknown_name
from pipeline.system.wording import counted

# A size, or the name of one that varies; empty where it has none.
Side = int | str
FLOAT32: Final = "float32"
_CHANNELS: Final = 3
_LEAST: Final = int(options_of(ExtractOptions)["image_size"].minimum)
_POOLED, _TOKENS, _MAP = 2, 3, 4
_LONG_NAME: Final = 24


@dataclass(frozen=True, slots=True)
class Declared:
    """An input or output as a file declares it.

    Attributes:
        name: Its name.
        kind: Type of its numbers, as NumPy calls it.
        shape: Its sides; None where the file does not tell.
    """

    name: str
    kind: str
    shape: tuple[Side, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} of unknown shape"
        sides = ", ".join(_shown(side) for side in self.shape)
        return f"{self.name} ({sides})"


@dataclass(frozen=True, slots=True)
class Features:
    """What an output holds of each image.

    Attributes:
        dim: Number of features.
        channel_axis: Where they are in a feature map; None of a row that needs no pooling.
    """

    dim: int
    channel_axis: int | None


def chosen(path: Path, outputs: Sequence[Declared], asked: str | None) -> Declared:
    """Return the output that features are taken from.

    Args:
        path: The network's file.
        outputs: What the network gives.
        asked: The name that was asked for.

    Raises:
        ConfigError: There is none of that name; or there are several, and none was asked for.
    """
    if asked is not None:
        found = [output for output in outputs if output.name == asked]
        if not found:
            names = [output.name for output in outputs]
            raise unknown_name("output", asked, names, where=str(path))
        return found[0]
    if len(outputs) == 1:
        return outputs[0]
    raise ConfigError(
        f"{path}: expected one output, or --output NAME. Received: "
        f"{counted(len(outputs), 'output')}, {_listed(outputs)}.",
        hint=_advice(outputs) or "Export the network with its pooled features as an output.",
    )


def channels_first(path: Path, inputs: Sequence[Declared]) -> bool:
    """Return whether a network takes ``(n, 3, S, S)`` rather than ``(n, S, S, 3)``.

    Args:
        path: The network's file.
        inputs: What the features depend on.

    Raises:
        ConfigError: It takes something else than batches of RGB images in float32.
    """
    hint = _input_hint(inputs)
    if hint:
        raise ConfigError(
            f"{path}: expected features of one input, float32 images of {_CHANNELS} channels in "
            f"batches of any size. Received: {_listed(inputs, kinds=True)}.",
            hint=hint,
        )
    return _channel_axis(inputs[0].shape or ()) == 1


def require_size(path: Path, taken: Declared, image_size: int) -> None:
    """Refuse a network that takes images of another size.

    Raises:
        ConfigError: Says which it takes.
    """
    shape = taken.shape or ()
    axis = _channel_axis(shape)
    sides = {side for place, side in enumerate(shape) if place not in (0, axis)}
    others = {side for side in sides if isinstance(side, int)} - {image_size}
    if not others:
        return
    side = min(others)
    is_square = len(sides) == 1
    raise ConfigError(
        f"{path}: expected a network that takes images of {image_size} x {image_size} pixels. "
        f"Received: {taken}.",
        hint=f"Use --image-size {side}."
        if is_square and side >= _LEAST
        else f"Export it for squares of {_LEAST} pixels or more.",
    )


def features(path: Path, output: Declared, outputs: Sequence[Declared], *, first: bool) -> Features:
    """Return what an output holds of each image.

    Args:
        path: The network's file.
        output: The output that was chosen.
        outputs: All of them, of which the error names those that could be chosen.
        first: Whether the network takes channels first, where the output's shape does not tell.

    Raises:
        ConfigError: It holds no row of features per image, nor a map to pool.
    """
    hint = _output_hint(output)
    found = _features(output, first=first) if not hint else None
    if found is not None:
        return found
    others = [other for other in outputs if other != output]
    raise ConfigError(
        f"{path}: expected an output of shape (n, dim) or (n, dim, h, w), float32, of a fixed dim. "
        f"Received: {_listed([output], kinds=True)}.",
        hint=" ".join(
            part for part in (hint or "The side of the features must be fixed.", _advice(others))
            if part
        ),
    )  # fmt: skip


def _input_hint(inputs: Sequence[Declared]) -> str:
    """Return what to do about inputs; empty where they are right."""
    if len(inputs) != 1:
        return (
            "Choose an output that depends on the image alone with --output, or export the image "
            "encoder alone."
        )
    kind, shape, name = inputs[0].kind, inputs[0].shape, inputs[0].name
    if kind != FLOAT32:
        return "Export it with an input in float32; preprocessing is done here."
    if shape is None or len(shape) != 4:
        return "Export a network whose input is a batch of images: (n, 3, height, width)."
    if isinstance(shape[0], int):
        return (
            f"Its batch size is fixed at {shape[0]}: export it with a batch axis that varies "
            f"(torch.onnx.export: dynamic_axes={{{name!r}: {{0: 'batch'}}}})."
        )
    if _channel_axis(shape) is None:
        return f"Export it with an input of {_CHANNELS} channels, and with that axis fixed."
    return ""


def _channel_axis(shape: Sequence[Side]) -> int | None:
    """Return the axis of an input's channels: the one of size 3, else one that is named so."""
    ends = (1, 3)
    found = [axis for axis in ends if shape[axis] == _CHANNELS]
    found = found or [axis for axis in ends if "channel" in str(shape[axis]).lower()]
    return found[0] if len(found) == 1 else None


def _output_hint(output: Declared) -> str:
    """Return what to do about an output; empty where it is right as far as its axes tell."""
    shape = output.shape
    if output.kind != FLOAT32:
        return "Export it with outputs in float32."
    if shape is None:
        return "Have its shape declared: onnx.save(onnx.shape_inference.infer_shapes(...), ...)."
    if len(shape) == _TOKENS:
        return "These are rows of tokens: export the network with its pooling or class token alone."
    if len(shape) not in (_POOLED, _MAP):
        return "Export the network up to its pooling or its last feature map."
    if isinstance(shape[0], int):
        return f"Its batch size is fixed at {shape[0]}: export it with a batch axis that varies."
    if len(shape) == _POOLED and not isinstance(shape[1], int):
        return "Export it with a fixed number of features: let the batch and image sides vary only."
    return ""


def _features(output: Declared, *, first: bool) -> Features | None:
    """Return what an output of the right rank holds; None where its channels cannot be told.

    The sides of a map are equal, or vary both; where that fits either order, it is the input's.
    """
    shape = output.shape or ()
    if len(shape) == _POOLED:
        return Features(int(shape[1]), None)
    by_axis = {1: shape[2:4], 3: shape[1:3]}
    fits = [
        axis
        for axis, (height, width) in by_axis.items()
        if isinstance(shape[axis], int)
        and (height == width or {type(height), type(width)} == {str})
    ]
    axis = fits[0] if len(fits) == 1 else 1 if first else 3
    return Features(int(shape[axis]), axis) if axis in fits else None


def _advice(outputs: Sequence[Declared]) -> str:
    """Return which outputs could be chosen; empty if none."""
    able = [
        output.name
        for output in outputs
        if not _output_hint(output) and _features(output, first=True) is not None
    ]
    return f"Choose one: --output {' or '.join(able[:3])}." if able else ""


def _shown(side: Side) -> str:
    """Return a side for a message; exporters call some by formulas of lines' length."""
    return str(side) if 0 < len(str(side)) <= _LONG_NAME else "?"


def _listed(items: Sequence[Declared], *, kinds: bool = False) -> str:
    texts = [f"{item} of {item.kind}" if kinds else str(item) for item in items]
    return ", ".join(texts) or "none"
