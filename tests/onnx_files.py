"""Networks in ONNX as others export them, operator by operator, and their features by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 32
DIM = 5
# Of a kernel of 4 pixels that moves by 4.
SIDE = SIZE // 4
KERNEL = np.random.default_rng(1).normal(size=(DIM, 3, 4, 4)).astype(np.float32) / 10
IMAGES = np.random.default_rng(2).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)

Shape = Sequence[int | str]
Change = Callable[[Any], object]


@dataclass(frozen=True)
class Network:
    """What a file is to be like; by default a network as torch.onnx.export writes it.

    Attributes:
        outputs: Which of ``pooled``, ``map``, ``last`` (channels last) and ``tokens`` it has.
        channels_first: Whether it takes ``(n, 3, S, S)``.
        batch: What its batch axis is declared as.
        sides: What the sides of its images are declared as.
        channels: What the axis of its channels is declared as.
        dim: What the number of its features is declared as.
        kind: Type of its input and outputs.
        opset: Version of its operators.
    """

    outputs: Sequence[str] = ("pooled",)
    channels_first: bool = True
    batch: int | str = "batch"
    sides: Shape = (SIZE, SIZE)
    channels: int | str = 3
    dim: int | str = DIM
    kind: int = TensorProto.FLOAT
    opset: int = 17

    def model(self) -> Any:
        """Make the model."""
        taken = [self.batch, self.channels, *self.sides]
        if not self.channels_first:
            taken = [self.batch, *self.sides, self.channels]
        shapes = {
            "pooled": [self.batch, self.dim],
            "map": [self.batch, self.dim, *self._map_sides],
            "last": [self.batch, *self._map_sides, self.dim],
            "tokens": [self.batch, SIDE * SIDE, self.dim],
        }
        graph = helper.make_graph(
            self._nodes(),
            "main_graph",
            [helper.make_tensor_value_info("images", self.kind, taken)],
            [helper.make_tensor_value_info(name, self.kind, shapes[name]) for name in self.outputs],
            [
                numpy_helper.from_array(KERNEL, "kernel"),
                numpy_helper.from_array(np.array([0, DIM, -1]), "rows"),
            ],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    @property
    def _map_sides(self) -> list[int | str]:
        return [side // 4 if isinstance(side, int) else f"{side}4" for side in self.sides]

    def _nodes(self) -> list[Any]:
        make = helper.make_node
        first = make("Identity", ["images"], ["pixels"])
        if not self.channels_first:
            first = make("Transpose", ["images"], ["pixels"], perm=[0, 3, 1, 2])
        return [
            first,
            make("Conv", ["pixels", "kernel"], ["features"], kernel_shape=[4, 4], strides=[4, 4]),
            make("Relu", ["features"], ["map"]),
            make("GlobalAveragePool", ["map"], ["mean"]),
            make("Flatten", ["mean"], ["pooled"]),
            make("Transpose", ["map"], ["last"], perm=[0, 2, 3, 1]),
            make("Reshape", ["map", "rows"], ["flat"]),
            make("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        ]

    def save(self, path: Path, change: Change = lambda model: None) -> Path:
        """Write the model, after a change to it."""
        model = self.model()
        change(model)
        path.write_bytes(model.SerializeToString())
        return path


def map_of(pixels: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the network's map ``(n, side, side, DIM)`` of pixels as it takes them."""
    n, side = len(pixels), pixels.shape[1] // 4
    patches = pixels.reshape(n, side, 4, side, 4, 3).transpose(0, 1, 3, 5, 2, 4)
    found = patches.reshape(n, side, side, -1) @ KERNEL.reshape(DIM, -1).T.astype(np.float64)
    return np.maximum(found, 0)


def pooled(images: NDArray[np.uint8], pooling: str = "avg") -> NDArray[np.floating]:
    """Return the features of images of which the network expects pixels from 0 to 1."""
    found = map_of(images / 255.0)
    return found.mean(axis=(1, 2)) if pooling == "avg" else found.max(axis=(1, 2))


def with_external_data(model: Any) -> None:
    """Have the kernel lie in another file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def with_custom_operator(model: Any) -> None:
    """Have an operator of one runtime in place of one of ONNX."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[2].domain = "com.microsoft"
    model.graph.node[2].op_type = "QuickGelu"


def with_own_function(model: Any) -> None:
    """Have an operator that the file defines itself."""
    node = helper.make_node("Relu", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "Own", ["x"], ["y"], [node], opsets)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[2].domain, model.graph.node[2].op_type = "mine", "Own"


def with_text_branch(model: Any) -> None:
    """Have a second input and an output of it alone, as a network of images and texts has."""
    texts = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    model.graph.input.append(texts)
    model.graph.node.append(helper.make_node("Cast", ["input_ids"], ["text"], to=1))
    text = helper.make_tensor_value_info("text", TensorProto.FLOAT, ["batch", "length"])
    model.graph.output.append(text)


def with_mean_over_the_batch(model: Any) -> None:
    """Have every row depend on the others, as normalization in training mode does."""
    mean = helper.make_node("ReduceMean", ["mean"], ["company"], axes=[0], keepdims=1)
    less = helper.make_node("Sub", ["mean", "company"], ["alone"])
    model.graph.node.insert(4, mean)
    model.graph.node.insert(5, less)
    model.graph.node[6].input[0] = "alone"


def with_branches(model: Any) -> None:
    """Have an If whose branches read tensors of the graph around them."""

    def branch(name: str, read: str) -> Any:
        given = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Identity", [read], [name])], name, [], [given])

    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    both = {"then_branch": branch("then", "mean"), "else_branch": branch("else", "kernel")}
    model.graph.node.insert(4, helper.make_node("If", ["yes"], ["either"], **both))
    model.graph.node[5].input[0] = "either"


def checked(path: Path) -> Any:
    """Load a model and have ONNX check it."""
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    return model
