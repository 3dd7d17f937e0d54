"""A user's own network in ONNX: an ``.onnx`` file as a backbone, with a declared preprocessing.

The file is read, never run, before it is known to hold all of its weights and operators of ONNX
alone. What runs it are the engines that take ONNX.
"""

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np

from pipeline.backbones import onnx_graph, onnx_shapes
from pipeline.backbones.forms import ONNX
from pipeline.backbones.onnx_graph import OnnxModel, OnnxTensor
from pipeline.backbones.onnx_shapes import Declared, Features
from pipeline.errors import ConfigError, EngineUnavailableError, WeightsUnavailableError, mention
from pipeline.files.regular import open_regular

# A message of protobuf holds no more; larger networks have their weights elsewhere.
_MAX_BYTES: Final = 2 << 30
_WHOLE: Final = (
    "Save it as one file: onnx.save(onnx.load('OLD.onnx'), 'NEW.onnx', "
    "save_as_external_data=False)."
)
_EXPORT: Final = "Export it again, such as with torch.onnx.export, and copy it whole."
_STANDARD: Final = (
    "Export it without the optimizations of one runtime; operators that the file defines itself "
    "are put in place by onnx.inliner.inline_local_functions."
)


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A network as its file declares it.

    Attributes:
        path: The file.
        sha256: Digest of its bytes.
        model: Its graph, pruned to what the output depends on.
        taken: Its input.
        output: Name of the output that holds the features.
        channels_first: Whether it takes ``(n, 3, S, S)`` rather than ``(n, S, S, 3)``.
        features: What the output holds.
    """

    path: Path
    sha256: str
    model: OnnxModel
    taken: Declared
    output: str
    channels_first: bool
    features: Features

    @property
    def name(self) -> str:
        """What the network is called in an identity."""
        return ONNX.prefix + self.sha256


def read(path: Path, output: str | None) -> OnnxFile:
    """Read a network and what it declares.

    Args:
        path: The file.
        output: Name of the output that holds the features; needed where there are several.

    Raises:
        ConfigError: It takes no images, gives no features, or needs operators that are not ONNX's.
        EngineUnavailableError: The package that reads ONNX is not installed.
        WeightsUnavailableError: The file is missing or damaged, or its weights lie elsewhere.
    """
    onnx = _import_onnx()
    content = _content(path)
    model = _parsed(onnx, path, content)
    _require_whole(path, model)
    _require_standard(path, model)
    outputs = [_declared(onnx, item) for item in model.graph.output]
    chosen = onnx_shapes.chosen(path, outputs, output)
    onnx_graph.prune(model.graph, chosen.name)
    constants = {item.name for item in model.graph.initializer}
    inputs = [_declared(onnx, item) for item in model.graph.input if item.name not in constants]
    first = onnx_shapes.channels_first(path, inputs)
    features = onnx_shapes.features(path, chosen, outputs, first=first)
    sha256 = hashlib.sha256(content).hexdigest()
    return OnnxFile(path, sha256, model, inputs[0], chosen.name, first, features)


def encoder_of(file: OnnxFile, *, image_size: int, preprocessing: str, pooling: str) -> OnnxModel:
    """Make the encoder of a file, whose graph it changes.

    Args:
        file: What ``read`` returned.
        image_size: Side S of the images.
        preprocessing: What the network expects of pixels.
        pooling: ``avg`` or ``max``, for a network that ends in a feature map.

    Returns:
        ONNX model, uint8 ``(n, S, S, 3)`` to float32 ``(n, dim)``.

    Raises:
        ConfigError: The network takes images of another size.
        WeightsUnavailableError: The graph is not valid, or holds NaN or infinity.
    """
    onnx_shapes.require_size(file.path, file.taken, image_size)
    _require_finite(file)
    model = onnx_graph.enclose(
        file.model,
        file.taken.name,
        file.output,
        image_size=image_size,
        preprocessing=preprocessing,
        pooling=pooling,
        channels_first=file.channels_first,
        features=file.features,
    )
    try:
        _import_onnx().checker.check_model(model)
    except Exception as error:  # of the checker, and of protobuf
        raise _unusable(file.path, error) from error
    return model


def _import_onnx() -> ModuleType:
    """Import the package that reads ONNX, which comes with the extra of that name.

    Raises:
        EngineUnavailableError: It is not installed.
    """
    if find_spec("onnx") is None:
        raise EngineUnavailableError(
            "Expected the package onnx, which reads networks in ONNX. Received: no module 'onnx'.",
            hint="Run: pip install 'embedding-pipeline[onnx]'",
        )
    for part in ("checker", "helper", "numpy_helper"):
        importlib.import_module(f"onnx.{part}")
    return importlib.import_module("onnx")


def _content(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        WeightsUnavailableError: It is missing, cannot be read, or is larger than ONNX allows.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise WeightsUnavailableError(
            f"{path}: expected a network in an {ONNX.suffix} file. Received: {error.strerror}.",
            hint="Correct the path.",
        ) from error
    if len(content) == _MAX_BYTES:
        raise _unusable(path, "2 GB or more")
    return content


def _parsed(onnx: ModuleType, path: Path, content: bytes) -> OnnxModel:
    """Return the message in a file.

    Raises:
        WeightsUnavailableError: It is none, or says nothing.
    """
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # of protobuf, which is not imported here
        raise _unusable(path, error) from error
    versions = [item.version for item in model.opset_import if onnx_graph.is_standard(item.domain)]
    if not model.graph.node or not versions:
        raise _unusable(path, "a file without a graph, or cut short")
    if min(versions) < onnx_graph.OLDEST_OPSET:
        raise ConfigError(
            f"{path}: expected operators of opset {onnx_graph.OLDEST_OPSET} or later. "
            f"Received: opset {min(versions)}.",
            hint="Convert it: onnx.version_converter.convert_version(model, 17).",
        )
    return model


def _require_whole(path: Path, model: OnnxModel) -> None:
    """Refuse weights in other files, which may be any.

    Raises:
        WeightsUnavailableError: Names them.
    """
    elsewhere = [tensor.name for tensor in _tensors(model) if tensor.data_location != 0]
    if elsewhere:
        raise WeightsUnavailableError(
            f"{path}: expected an ONNX file with its weights inside. Received: external data of "
            f"{mention(elsewhere)}.",
            hint=_WHOLE,
        )


def _require_standard(path: Path, model: OnnxModel) -> None:
    """Refuse operators that are not ONNX's own: an engine may have none or another of that name.

    Raises:
        ConfigError: Names them.
    """
    custom = {
        f"{node.domain}.{node.op_type}"
        for graph in onnx_graph.graphs(model.graph)
        for node in graph.node
        if not onnx_graph.is_standard(node.domain)
    }
    # One that the file defines may have the name of an operator of ONNX.
    custom |= {f"{function.domain}.{function.name}" for function in model.functions}
    if custom:
        raise ConfigError(
            f"{path}: expected operators of ONNX itself. Received: custom operators, "
            f"{mention(sorted(custom))}.",
            hint=_STANDARD,
        )


def _tensors(model: OnnxModel) -> Iterator[OnnxTensor]:
    """Yield every tensor of values in a model: constants, and those among attributes."""
    for graph in onnx_graph.graphs(model.graph):
        attributes = [item for node in graph.node for item in node.attribute]
        yield from graph.initializer
        for item in attributes:
            yield from (item.t, *item.tensors)
        for sparse in (
            *graph.sparse_initializer,
            *(
                tensor
                for item in attributes
                for tensor in (item.sparse_tensor, *item.sparse_tensors)
            ),
        ):
            yield from (sparse.values, sparse.indices)


def _require_finite(file: OnnxFile) -> None:
    """Refuse weights that are not finite, as in every other file of weights."""
    from onnx import numpy_helper

    for tensor in file.model.graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except Exception as error:  # whatever NumPy makes of sizes that do not fit
            raise _unusable(file.path, f"{tensor.name}: {error}") from error
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise _unusable(file.path, f"NaN or infinity in {tensor.name}")


def _declared(onnx: ModuleType, item: OnnxTensor) -> Declared:
    """Return what an input or output is declared to be."""
    said = item.type.tensor_type
    try:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(said.elem_type)).name
    except (KeyError, TypeError, ValueError):
        kind = "another type"
    return Declared(item.name, kind, _shape(said) if said.HasField("shape") else None)


def _shape(said: OnnxTensor) -> tuple[int | str, ...]:
    sides: Sequence[OnnxTensor] = said.shape.dim
    # Some exporters write 0 or -1 where a side varies.
    return tuple(
        side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else side.dim_param
        for side in sides
    )


def _unusable(path: Path, error: Exception | str) -> WeightsUnavailableError:
    cause = " ".join(str(error).split())[:300]
    return WeightsUnavailableError(
        f"{path}: expected a network in ONNX, whole and valid. Received: {cause}.", hint=_EXPORT
    )
