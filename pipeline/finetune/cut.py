"""Where a network is cut for fine-tuning: its blocks, and the first layer that is trained."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.backbones.variables import stable_names
from pipeline.errors import ConfigError
from pipeline.system.keras_setup import KerasLayer, KerasModel, Tensor

ALL: Final = "all"


# How Keras' applications name the layers of a block: the block and, where it has one, its stage.
_BLOCK_NAMES: Final = tuple(
    re.compile(rf"{pattern}(?:_|$)")
    for pattern in (
        r"((.*?\d)_block_?\d+)",  # conv5_block3 of ResNet, convnext_tiny_stage_2_block_1
        r"((block\d+)[a-z])",  # block4a of EfficientNet
        r"(block_?\d+)",  # block_3 of MobileNetV2, block3 of VGG and Xception
        r"(expanded_conv(?:_\d+)?)",  # of MobileNetV2, which has one, and of MobileNetV3
    )
)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a backbone is divided into a frozen and a trained part.

    Attributes:
        first: Number of the first trained layer in ``network.layers``.
        layer: Its name.
        boundary: The one tensor that the trained part takes from the frozen one; None where it
            takes several, or where nothing is frozen.
        below: Name of the operation that makes the boundary, the same however many networks were
            built before; empty without one.
    """

    first: int
    layer: str
    boundary: Tensor = None
    below: str = ""


def find_cut(network: KerasModel, unfreeze_from: str) -> Cut:
    """Find the first layer to train and the boundary before it.

    Args:
        network: The backbone, as Keras built it.
        unfreeze_from: A stage (``conv5``), a block (``conv5_block3``), a layer's name, or ``all``.

    Raises:
        ConfigError: There is no such part; lists the stages and blocks.
    """
    names = [layer.name for layer in network.layers]
    if unfreeze_from == ALL:
        return Cut(0, names[0])
    if unfreeze_from in names:
        return cut_at(network, names.index(unfreeze_from))
    for number, name in enumerate(names):
        if name.startswith(f"{unfreeze_from}_") or unfreeze_from in _parts(name):
            return cut_at(network, number)
    raise _unknown_part(unfreeze_from, network)


def last_stage(network: KerasModel) -> str:
    """Return the name of what is trained by default, as ``find_cut`` takes it.

    It is the first of the last stages that work at the network's last resolution, all blocks of
    which end in feature maps of one size (``conv5`` of a ResNet, ``block6`` of an EfficientNet). A
    block whose name tells no stage is one by itself. Of a network whose blocks end in no map, such
    as a transformer, or whose maps have no fixed size, it is the last stage or block.

    Raises:
        ConfigError: The network has no blocks; lists its layers.
    """
    stages = _sizes_by_stage(network)
    if not stages:
        listed = ", ".join(layer.name for layer in network.layers)
        raise ConfigError(
            "--unfreeze-from: expected a part to train, as the names of its layers show no "
            "stage. Received: nothing.",
            hint=f"Name a layer, or all. Layers: {listed}.",
        )
    first, sizes = stages.popitem()
    last = {sizes[-1]}
    while stages and last != {None} and set(stages[next(reversed(stages))]) == last:
        first, _ = stages.popitem()
    return first


def _sizes_by_stage(network: KerasModel) -> dict[str, list[tuple[int, ...] | None]]:
    """Return the size of the map in which each block of a stage ends, by stage, in order."""
    stage_of = {parts[0]: parts[-1] for layer in network.layers if (parts := _parts(layer.name))}
    ends: dict[str, tuple[int, ...] | None] = {}
    for layer, block in zip(network.layers, blocks_of(network), strict=True):
        ends[block] = _map_size(layer) or ends.get(block)
    stages: dict[str, list[tuple[int, ...] | None]] = {}
    for block, size in ends.items():
        if block:
            stages.setdefault(stage_of.get(block, block), []).append(size)
    return stages


def blocks_of(network: KerasModel) -> list[str]:
    """Return the name of the block of each layer of a backbone; see ``docs/finetune.md``.

    Blocks are those that the layers' names tell (``conv5_block3``, ``block4a``). Where no name
    tells one, a block begins at every layer with a kernel before which one tensor is all that the
    layers from it on take, and is called as that layer: a residual block is one, and so is each
    layer of a plain chain. A layer of no block belongs to the block below it; the name is empty
    below the first block.
    """
    layers = network.layers
    named = [_parts(layer.name)[:1] for layer in layers]
    if not any(named):
        named = [
            (layer.name,) if _begins_block(network, number) else ()
            for number, layer in enumerate(layers)
        ]
    blocks, block = [], ""
    for found in named:
        block = found[0] if found else block
        blocks.append(block)
    return blocks


def cut_at(network: KerasModel, first: int) -> Cut:
    """Return the cut before a layer; the layers of a network come in the order of computing.

    Raises:
        ConfigError: The network has no layer of that number.
    """
    if first >= len(network.layers):
        raise ConfigError(
            f"Expected a backbone of more than {first} layers, the first {first} of which are "
            f"frozen. Received: one of {len(network.layers)}.",
            hint="Choose with --unfreeze-from what to train, instead of --preset.",
        )
    layer = network.layers[first]
    operations = network.operations
    place = next(number for number, item in enumerate(operations) if item is layer)
    crossing, makers = _crossing(network, operations[place:])
    # Input layers make the pixels: a boundary there freezes nothing.
    if len(crossing) != 1 or makers[0] is operations[0]:
        return Cut(first, layer.name)
    below = stable_names(
        [item.name for item in operations], [type(item).__name__ for item in operations]
    )
    return Cut(first, layer.name, crossing[0], below[operations.index(makers[0])])


def all_layers(layers: Iterable[KerasLayer]) -> Iterator[KerasLayer]:
    """Yield layers, and before a model the layers that it is made of."""
    for layer in layers:
        yield from all_layers(getattr(layer, "layers", ()))
        yield layer


def _crossing(network: KerasModel, trained: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors that pass from below some operations to them, and what makes each.

    Nodes are looked at, the uses of operations: a shared layer has several in a network, and any
    layer has some in other networks. Where a frozen layer is used again behind a trained one there
    is no above and below, and nothing is returned.

    Args:
        network: The backbone.
        trained: The operations that are trained.
    """
    are_trained = {id(operation) for operation in trained}
    made: dict[int, Tensor] = {}
    crossing: dict[int, Tensor] = {}
    for node in _nodes(network):
        inputs = {id(tensor): tensor for tensor in node.input_tensors}
        if id(node.operation) in are_trained:
            crossing |= {key: tensor for key, tensor in inputs.items() if key in made}
        elif not made.keys() >= inputs.keys():
            return [], []
        else:
            made |= {id(tensor): node.operation for tensor in node.outputs}
    return list(crossing.values()), [made[key] for key in crossing]


def _nodes(network: KerasModel) -> list[Tensor]:
    """Return a network's nodes in the order of computing; Keras tells them in no other way."""
    by_depth = network._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _parts(name: str) -> tuple[str, ...]:
    """Return the block that a layer's name tells and, where it has one, the stage; or nothing."""
    for pattern in _BLOCK_NAMES:
        found = pattern.match(name)
        if found is not None:
            return found.groups()
    return ()


def _map_size(layer: KerasLayer) -> tuple[int, ...] | None:
    """Return height and width of the feature map that a layer gives; None without, or of any."""
    outputs = layer.output if isinstance(layer.output, list) else [layer.output]
    shape = tuple(outputs[0].shape)
    return shape[1:3] if len(shape) == 4 and None not in shape[1:3] else None


def _begins_block(network: KerasModel, number: int) -> bool:
    has_kernel = any(len(weight.shape) > 1 for weight in network.layers[number].weights)
    return has_kernel and cut_at(network, number).boundary is not None


def _unknown_part(name: str, network: KerasModel) -> ConfigError:
    layers = [layer.name for layer in network.layers]
    stages = list(dict.fromkeys(stage for layer in layers for stage in _parts(layer)[1:]))
    blocks = list(dict.fromkeys(block for block in blocks_of(network) if block))
    near = difflib.get_close_matches(name, [ALL, *stages, *blocks, *layers], n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(stages) or "none, as the names of the layers show none"
    return ConfigError(
        f"--unfreeze-from: expected a stage, a block or a layer of the backbone. "
        f"Received: {name!r}.{suggestion}",
        hint=f"Stages: {listed}; or all; or a layer's name. Blocks: {', '.join(blocks) or 'none'}.",
    )
