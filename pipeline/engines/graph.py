"""A backbone as one TensorFlow graph with its weights inside, for engines that convert it."""

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pipeline.backbones import weights
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.errors import EngineUnavailableError, PipelineError
from pipeline.files.atomic import write_atomically
from pipeline.files.regular import sha256_file
from pipeline.system.keras_setup import Tensor, import_keras

OUTPUT: Final = "features"
# The end of a converted network's file; another way to make it needs another number.
ONNX_FILE: Final = ".model-1.onnx"
# What the name of an external file follows in an ONNX model: a field, its length and the word.
_ELSEWHERE: Final = b"\n\x08location"


def frozen_graph(loaded: FrozenBackbone) -> tuple[Any, str, str]:
    """Return the GraphDef of a backbone and the names of its input and output tensors.

    The weights are traced as inputs, which become constants afterwards, as does what is captured:
    no variable is left, no pass of TensorFlow's own changes the graph, and it does not copy the
    weights each time that it copies the graph.

    Raises:
        EngineUnavailableError: Keras does not run on TensorFlow.
    """
    backend = import_keras().backend.backend()
    if backend != "tensorflow":
        raise EngineUnavailableError(
            f"Expected Keras on TensorFlow, from which the network is converted. "
            f"Received: KERAS_BACKEND={backend}.",
            hint="Unset KERAS_BACKEND, or use --engine keras.",
        )
    import tensorflow as tf

    model = loaded.model
    values = [variable.numpy() for variable in model.non_trainable_variables]

    def encode(images: Tensor, *weights: Tensor) -> Tensor:
        features = model.stateless_call([], list(weights), images, training=False)[0]
        return tf.identity(features, name=OUTPUT)

    side = loaded.image_size
    signature = [
        tf.TensorSpec((None, side, side, 3), tf.uint8, name="images"),
        *(tf.TensorSpec(value.shape, value.dtype) for value in values),
    ]
    traced = tf.function(encode, input_signature=signature, autograph=False).get_concrete_function()
    graph = traced.graph.as_graph_def()
    places = traced.inputs[1 : len(signature)]
    constants = {place.op.name: value for place, value in zip(places, values, strict=True)}
    constants |= {inner.op.name: outer.numpy() for outer, inner in traced.graph.captures}
    for node in graph.node:
        if node.name in constants:
            value = constants[node.name]
            node.op = "Const"
            del node.input[:]
            node.attr.clear()
            node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    output = traced.outputs[0].name
    return _pruned(graph, output), traced.inputs[0].name, output


def _pruned(graph: Any, output: str) -> Tensor:
    """Return a graph without the nodes that an output does not need.

    Tracing leaves some behind, and a converter takes each for an output of its own.
    """
    nodes = {node.name: node for node in graph.node}
    needed: set[str] = set()
    open_names = [output]
    while open_names:
        name = open_names.pop().lstrip("^").partition(":")[0]
        if name not in needed:
            needed.add(name)
            open_names.extend(nodes[name].input)
    pruned = type(graph)(versions=graph.versions, library=graph.library)
    pruned.node.extend(node for node in graph.node if node.name in needed)
    return pruned


@contextmanager
def converted(
    backbone: FrozenBackbone, suffix: str, convert: Callable[[FrozenBackbone], bytes]
) -> Iterator[Path]:
    """Give a backbone in another form as a file, as long as the context lasts.

    Where the backbone names a folder, the file stays there under a digest of its bytes and of the
    backbone's weights, so that the next process neither converts nor builds the network. Files that
    are damaged or of other weights are replaced. Without a folder, or where it cannot be written
    to, the file is temporary.

    Args:
        backbone: What to convert.
        suffix: End of the file's name; tells the form.
        convert: Makes the file's bytes.
    """
    folder = backbone.converted
    found = sorted(folder.glob(f"*{suffix}")) if folder is not None else []
    kept = [path for path in found if _is_of(backbone, path, suffix)]
    if kept:
        yield kept[0]
        return
    content = convert(backbone)
    name = f"{_digest(backbone, hashlib.sha256(content).hexdigest())}{suffix}"
    with ExitStack() as stack:
        try:
            path = _write(_folder(folder, stack) / name, content)
            _remove([other for other in found if other.name != name])
        except OSError:
            # A store that cannot be written to is only slower.
            path = _write(_folder(None, stack) / name, content)
        yield path


def _folder(folder: Path | None, stack: ExitStack) -> Path:
    return folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))


def require_whole(path: Path) -> None:
    """Refuse an ONNX model that has its weights read from other files, which may be any.

    Raises:
        PipelineError: It names one.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_ELSEWHERE) >= 0:
            raise PipelineError(
                f"Expected a network with its weights in {str(path)!r}. Received: external data.",
                hint="Delete it; it is made again from the weights.",
            )


def onnx_bytes(backbone: FrozenBackbone) -> bytes:
    """Return a network in ONNX as the bytes of an ``.onnx`` file."""
    content: bytes = backbone.built.SerializeToString()
    return content


def graph_bytes(backbone: FrozenBackbone) -> bytes:
    """Return the frozen graph as the bytes of a ``.pb`` file."""
    content: bytes = frozen_graph(backbone)[0].SerializeToString(deterministic=True)
    return content


def _digest(backbone: FrozenBackbone, content_sha256: str) -> str:
    """Return what a file is kept under: a digest of the backbone's weights and of its content."""
    return weights.converted_digest(backbone.weights_sha256, content_sha256)


def _is_of(backbone: FrozenBackbone, path: Path, suffix: str) -> bool:
    try:
        return path.name.removesuffix(suffix) == _digest(backbone, sha256_file(path))
    except OSError:  # such as no regular file
        return False


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(IsADirectoryError):
            path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda temporary: _fill(temporary, content))
    return path


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)
