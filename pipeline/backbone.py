"""The frozen network: a table of backbones, their weights, preprocessing and identity.

The only module that builds a backbone. Called by ``extract``'s command, by the engines and,
later, by fine-tuning. Keras is imported inside functions: importing it takes seconds.
"""

import importlib
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import weights as weight_files
from pipeline.config import unknown_name
from pipeline.errors import WeightsUnavailableError
from pipeline.images import DECODER
from pipeline.runtime import import_keras
from pipeline.weights import Variable

# Seconds that a download may stand still. Without a limit, a firewall that drops packets would
# hold the program for minutes and a stalled server for ever.
DOWNLOAD_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True)
class Backbone:
    """How to build one backbone.

    Attributes:
        builder: ``module:function`` of Keras that builds it.
        preprocess: ``module:function`` of Keras' own ``preprocess_input`` for it.
        preprocessing: The short name of that preprocessing in the features' identity.
        dim: Number of features.
    """

    builder: str
    preprocess: str
    preprocessing: str
    dim: int


BACKBONES: Final[Mapping[str, Backbone]] = MappingProxyType(
    {
        "resnet50": Backbone(
            builder="keras.applications.resnet50:ResNet50",
            preprocess="keras.applications.resnet50:preprocess_input",
            preprocessing="caffe",
            dim=2048,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """A frozen backbone with its weights.

    Attributes:
        name: Its name in ``BACKBONES``.
        image_size: Side of its square input in pixels.
        pooling: ``avg`` or ``max``.
        model: Keras model, uint8 (n, S, S, 3) to float32 (n, dim); preprocessing inside.
        network: The backbone within ``model``, as Keras built it.
        weights_sha256: Digest of the weights' values.
    """

    name: str
    image_size: int
    pooling: str
    model: Any
    network: Any
    weights_sha256: str

    @property
    def dim(self) -> int:
        """Number of features."""
        return int(self.model.output_shape[-1])

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return copies of the weights by variable path."""
        return _arrays(self.network)


def load(
    name: str,
    *,
    weights: str,
    seed: int,
    image_size: int,
    pooling: str,
    saved: Path | None = None,
) -> LoadedBackbone:
    """Build a backbone without its top, give it its weights and freeze it.

    Args:
        name: Name in ``BACKBONES``.
        weights: ``imagenet``, ``random`` or the path of a weights file.
        seed: Seed of random weights.
        image_size: Side of the square input in pixels.
        pooling: ``avg`` or ``max``.
        saved: A file of ``weights.save`` to take the values from instead.

    Raises:
        ConfigError: The name is unknown.
        WeightsUnavailableError: The weights cannot be had, or do not fit.
    """
    spec = find(name)
    if saved is None and weights not in weight_files.KEYWORDS:
        weight_files.regular_file(weights)  # a typo need not wait for Keras' import
    keras = import_keras()
    with _plain_settings(keras):
        if saved is None and weights == "imagenet":
            network = _download(name, spec, image_size, pooling)
        else:
            network = _build(spec, None, image_size, pooling)
            _assign(network, _values(network, weights, seed, saved))
        network.trainable = False
        model = _with_preprocessing(keras, network, spec, image_size)
    return LoadedBackbone(
        name=name,
        image_size=image_size,
        pooling=pooling,
        model=model,
        network=network,
        weights_sha256=weight_files.digest(_arrays(network)),
    )


def find(name: str) -> Backbone:
    """Return a row of ``BACKBONES``.

    Raises:
        ConfigError: The name is unknown; lists the valid ones.
    """
    if name not in BACKBONES:
        raise unknown_name("backbone", name, BACKBONES)
    return BACKBONES[name]


def identity(
    name: str,
    *,
    weights_sha256: str,
    image_size: int,
    pooling: str,
    precision: str,
    engine: str,
) -> dict[str, object]:
    """Return what makes features comparable; equal, or the features must not be mixed.

    Every float32 engine agrees with Keras, so the engine counts only at other precisions.

    Raises:
        ConfigError: The backbone's name is unknown.
    """
    fields: dict[str, object] = {
        "backbone": name,
        "weights_sha256": weights_sha256,
        "image_size": image_size,
        "pooling": pooling,
        "preprocessing": find(name).preprocessing,
        "decoder": DECODER,
        "precision": precision,
    }
    return fields if precision == "float32" else {**fields, "engine": engine}


def variables_of(network: Any) -> list[Variable]:
    """Return a network's variables in the order of its layers."""
    return [
        Variable(layer.name, type(layer).__name__, variable.name, tuple(variable.shape))
        for layer in network.layers
        for variable in layer.weights
    ]


@contextmanager
def _plain_settings(keras: ModuleType) -> Iterator[None]:
    """Build in float32 and channels-last, whatever ``keras.json`` or the caller's program say."""
    policy, order = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(order)


def _build(spec: Backbone, weights: str | None, image_size: int, pooling: str) -> Any:
    return _imported(spec.builder)(
        include_top=False,
        weights=weights,
        input_shape=(image_size, image_size, 3),
        pooling=pooling,
    )


def _download(name: str, spec: Backbone, image_size: int, pooling: str) -> Any:
    """Build with Keras' own download, which checks the file's hash and caches it."""
    try:
        # Keras reports the download on stdout, which belongs to machines.
        with redirect_stdout(sys.stderr), _socket_timeout(DOWNLOAD_TIMEOUT):
            return _build(spec, "imagenet", image_size, pooling)
    except Exception as error:  # Keras raises bare Exception when a download fails
        cause = " ".join(str(error).split()).rstrip(".")
        raise WeightsUnavailableError(
            f"Expected to download the ImageNet weights of {name} or find them in Keras' cache. "
            f"Received: {cause}.",
            hint=weight_files.WAYS_OUT,
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _with_preprocessing(keras: ModuleType, network: Any, spec: Backbone, image_size: int) -> Any:
    """Put the cast and Keras' own preprocessing before a network in inference mode.

    What holds it there is that it is frozen: a model called with ``training=True`` hands that
    down, over the ``training=False`` given here (Keras 3.15). Whoever unfreezes it must call it
    with ``training=False`` themselves.
    """
    images = keras.Input((image_size, image_size, 3), dtype="uint8", name="images")
    pixels = _imported(spec.preprocess)(keras.ops.cast(images, "float32"))
    return keras.Model(images, network(pixels, training=False), name="encoder")


def _values(
    network: Any, weights: str, seed: int, saved: Path | None
) -> dict[str, NDArray[np.float32]]:
    if saved is not None:
        return weight_files.load(saved)
    variables = variables_of(network)
    if weights == "random":
        return weight_files.draw(variables, seed=seed)
    return weight_files.read(Path(weights), variables)


def _assign(network: Any, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Set every variable, once each and with nothing left over."""
    pairs = list(zip(variables_of(network), _variables(network), strict=True))
    expected = {variable.path: variable.shape for variable, _ in pairs}
    received = {path: array.shape for path, array in arrays.items()}
    for path in (*expected, *received):
        if expected.get(path) != received.get(path):
            raise WeightsUnavailableError(
                f"Expected {path} of shape {expected.get(path)}. "
                f"Received: shape {received.get(path)}.",
                hint="The saved weights are of another backbone: use another store.",
            )
    for variable, target in pairs:
        target.assign(arrays[variable.path])


def _arrays(network: Any) -> dict[str, NDArray[np.float32]]:
    convert: Callable[[Any], Any] = importlib.import_module("keras").ops.convert_to_numpy
    return {
        variable.path: np.array(convert(value), dtype=np.float32)
        for variable, value in zip(variables_of(network), _variables(network), strict=True)
    }


def _variables(network: Any) -> Sequence[Any]:
    return [variable for layer in network.layers for variable in layer.weights]


def _imported(reference: str) -> Any:
    """Return the object that ``module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
