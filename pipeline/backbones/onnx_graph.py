"""Putting together graphs of ONNX: operators in front of and behind a network.

Only operators that mean the same in every version since 7, so that the network keeps its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones.forms import CLIP_MEAN, CLIP_SCALE
from pipeline.backbones.onnx_shapes import Features

# Messages of the package onnx, which has types only where it is installed.
OnnxModel: TypeAlias = Any
OnnxGraph: TypeAlias = Any
OnnxNode: TypeAlias = Any
OnnxTensor: TypeAlias = Any

INPUT: Final = "images"
OUTPUT: Final = "features"
# The first version whose operators broadcast as NumPy does.
OLDEST_OPSET: Final = 7
# From this version of the format on, a constant need not be an input as well.
_IR_VERSION: Final = 4
# Before every name of the network, so that no other is among them.
_WITHIN: Final = "network/"
_STEP = tuple[str, list[float]]
# As keras.applications.imagenet_utils does, operator by operator; channels come last.
_STEPS: Final[Mapping[str, Sequence[_STEP]]] = MappingProxyType(
    {
        "caffe": (("Sub", [103.939, 116.779, 123.68]),),
        "clip": (("Div", [255.0]), ("Sub", [*CLIP_MEAN]), ("Div", [*CLIP_SCALE])),
        "none": (),
        "tf": (("Div", [127.5]), ("Sub", [1.0])),
        "torch": (
            ("Div", [255.0]),
            ("Sub", [0.485, 0.456, 0.406]),
            ("Div", [0.229, 0.224, 0.225]),
        ),
        "unit": (("Div", [255.0]),),
    }
)
_REVERSED: Final = frozenset({"caffe"})


class Chain:
    """Operators one after another, each on what the one before gives.

    Attributes:
        nodes: The operators.
        constants: What they take beside it.
        tensor: Name of what the last one gives.

    Example:
        Chain("scaled", "pixels").then("Div", np.float32(255)).then("Sub", np.float32(1))
    """

    def __init__(self, name: str, tensor: str) -> None:
        self.nodes: list[OnnxNode] = []
        self.constants: list[OnnxTensor] = []
        self.tensor = tensor
        self._name = name

    def then(self, operator: str, *constants: NDArray[Any], **attributes: object) -> Self:
        """Add an operator, which takes constants and has attributes beside."""
        from onnx import helper, numpy_helper

        place = f"{self._name}/{len(self.nodes)}"
        names = [f"{place}/{number}" for number in range(len(constants))]
        self.constants += [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in zip(names, constants, strict=True)
        ]
        self.nodes.append(
            helper.make_node(operator, [self.tensor, *names], [place], place, **attributes)
        )
        self.tensor = place
        return self

    def ending_in(self, name: str) -> Self:
        """Give the last result a name of its own."""
        if self.nodes:
            self.nodes[-1].output[0] = name
        else:
            self.then("Identity").nodes[-1].output[0] = name
        self.tensor = name
        return self


def enclose(
    model: OnnxModel,
    taken: str,
    given: str,
    *,
    image_size: int,
    preprocessing: str,
    pooling: str,
    channels_first: bool,
    features: Features,
) -> OnnxModel:
    """Make an encoder of a network, in place: uint8 ``(n, S, S, 3)`` to float32 ``(n, dim)``.

    Args:
        model: The network, pruned to what ``given`` depends on.
        taken: Name of its input.
        given: Name of its output.
        image_size: Side S of the images.
        preprocessing: What it expects of pixels.
        pooling: ``avg`` or ``max``, of a feature map.
        channels_first: Whether it takes ``(n, 3, S, S)``.
        features: What the output holds.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    _rename(graph)
    before = _preprocess(Chain("preprocessing", INPUT), preprocessing)
    if channels_first:
        before.then("Transpose", perm=[0, 3, 1, 2])
    after = _pool(Chain("pooling", _WITHIN + given), features, pooling).ending_in(OUTPUT)
    nodes = [*before.ending_in(_WITHIN + taken).nodes, *graph.node, *after.nodes]
    _replace(graph.node, nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    shape = ["n", image_size, image_size, 3]
    images = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)
    rows = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", features.dim])
    _replace(graph.input, [images])
    _replace(graph.output, [rows])
    # They may say sizes that are other ones now; whoever runs the graph finds them out.
    for told in (graph.value_info, graph.quantization_annotation, model.metadata_props):
        del told[:]
    graph.name = "encoder"
    model.ir_version = max(model.ir_version, _IR_VERSION)
    _replace(model.opset_import, [item for item in model.opset_import if is_standard(item.domain)])
    return model


def append(model: OnnxModel, chain: Chain, name: str, dim: int) -> OnnxModel:
    """Put operators behind an encoder, in place; they give the only output.

    Args:
        model: What ``enclose`` made.
        chain: The operators, on ``OUTPUT``.
        name: What the output is called.
        dim: Length of its rows.
    """
    from onnx import TensorProto, helper

    chain.ending_in(name)
    model.graph.node.extend(chain.nodes)
    model.graph.initializer.extend(chain.constants)
    rows = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", dim])
    _replace(model.graph.output, [rows])
    return model


def is_standard(domain: str) -> bool:
    """Tell whether operators of a domain are ONNX's own, which every runtime has."""
    return domain in ("", "ai.onnx")


def graphs(graph: OnnxGraph) -> Iterator[OnnxGraph]:
    """Yield a graph and those within it, such as the branches of an If."""
    open_graphs = [graph]
    while open_graphs:
        found = open_graphs.pop()
        yield found
        for node in found.node:
            open_graphs += _inner(node)


def prune(graph: OnnxGraph, output: str) -> None:
    """Remove what an output does not depend on: operators, constants, inputs and other outputs."""
    makers = {name: node for node in graph.node for name in node.output if name}
    needed: set[str] = set()
    open_names = [output]
    while open_names:
        name = open_names.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in makers:
            open_names += _read_by(makers[name])
    _replace(graph.node, [node for node in graph.node if needed.intersection(node.output)])
    for items in (graph.input, graph.output, graph.initializer):
        _keep(items, [item.name in needed for item in items])
    _keep(graph.sparse_initializer, [item.values.name in needed
                                     for item in graph.sparse_initializer])  # fmt: skip


def _preprocess(chain: Chain, preprocessing: str) -> Chain:
    """Make float32 of pixels and bring them into the range that a network expects."""
    from onnx import TensorProto

    chain.then("Cast", to=TensorProto.FLOAT)
    if preprocessing in _REVERSED:
        chain.then("Gather", np.array([2, 1, 0], np.int64), axis=3)
    for operator, values in _STEPS[preprocessing]:
        chain.then(operator, np.array(values, np.float32))
    return chain


def _pool(chain: Chain, features: Features, pooling: str) -> Chain:
    """Make a row of a feature map; a row stays as it is."""
    if features.channel_axis is None:
        return chain
    if features.channel_axis == 3:
        chain.then("Transpose", perm=[0, 3, 1, 2])
    chain.then({"avg": "GlobalAveragePool", "max": "GlobalMaxPool"}[pooling])
    return chain.then("Flatten", axis=1)


def _read_by(node: OnnxNode) -> Iterator[str]:
    """Yield what an operator reads, also within its own graphs."""
    yield from node.input
    for inner in _inner(node):
        for graph in graphs(inner):
            yield from (output.name for output in graph.output)
            for other in graph.node:
                yield from other.input


def _inner(node: OnnxNode) -> Iterator[OnnxGraph]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _rename(graph: OnnxGraph) -> None:
    """Give every name a beginning of its own; an optional input that is left out has none."""
    for part in graphs(graph):
        for node in part.node:
            for names in (node.input, node.output):
                _replace(names, [name and _WITHIN + name for name in names])
        for items in (part.input, part.output, part.initializer, part.value_info):
            for item in items:
                item.name = _WITHIN + item.name
        for item in part.sparse_initializer:
            item.values.name = _WITHIN + item.values.name


def _keep(items: Any, kept: Sequence[bool]) -> None:
    """Delete from a repeated field in place, so that large tensors are not copied."""
    for place in reversed([place for place, is_kept in enumerate(kept) if not is_kept]):
        del items[place]


def _replace(items: Any, others: Sequence[Any]) -> None:
    del items[:]
    items.extend(others)
