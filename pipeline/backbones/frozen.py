"""The frozen network: a table of backbones, their weights, preprocessing and identity.

The only module that builds a backbone. Called by ``extract``'s command, by the engines and,
later, by fine-tuning. Keras is imported inside functions: importing it takes seconds.
"""

import importlib
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import keras_file
from pipeline.backbones import weights as weight_files
from pipeline.backbones.weights import Variable
from pipeline.config.options import unknown_name
from pipeline.errors import ConfigError, WeightsUnavailableError
from pipeline.images.decoder import DECODER
from pipeline.system.keras_setup import import_keras

# Seconds that a download may stand still. Without a limit, a firewall that drops packets would
# hold the program for minutes and a stalled server for ever.
DOWNLOAD_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True)
class Backbone:
    """How to build one backbone.

    Attributes:
        preprocessing: The short name of its preprocessing in the features' identity.
        builder: ``module:function`` of Keras that builds it.
        preprocess: ``module:function`` of Keras' own ``preprocess_input`` for it.
        dim: Number of features; None where only the loaded network tells.
        file: The ``.keras`` file that holds it, network and weights, instead of a builder.
        name: What it is called in the features' identity.
    """

    preprocessing: str
    builder: str = ""
    preprocess: str = ""
    dim: int | None = None
    file: Path | None = None
    name: str = ""


# "included" is a network that takes pixels of 0 to 255 and scales them itself.
BACKBONES: Final[Mapping[str, Backbone]] = MappingProxyType(
    {
        "convnexttiny": Backbone(
            builder="keras.applications.convnext:ConvNeXtTiny",
            preprocess="keras.applications.convnext:preprocess_input",
            preprocessing="included",
            dim=768,
        ),
        "efficientnetv2b0": Backbone(
            builder="keras.applications.efficientnet_v2:EfficientNetV2B0",
            preprocess="keras.applications.efficientnet_v2:preprocess_input",
            preprocessing="included",
            dim=1280,
        ),
        "mobilenetv3large": Backbone(
            builder="keras.applications:MobileNetV3Large",
            preprocess="keras.applications.mobilenet_v3:preprocess_input",
            preprocessing="included",
            dim=960,
        ),
        "resnet101": Backbone(
            builder="keras.applications.resnet:ResNet101",
            preprocess="keras.applications.resnet:preprocess_input",
            preprocessing="caffe",
            dim=2048,
        ),
        "resnet152": Backbone(
            builder="keras.applications.resnet:ResNet152",
            preprocess="keras.applications.resnet:preprocess_input",
            preprocessing="caffe",
            dim=2048,
        ),
        "resnet50": Backbone(
            builder="keras.applications.resnet50:ResNet50",
            preprocess="keras.applications.resnet50:preprocess_input",
            preprocessing="caffe",
            dim=2048,
        ),
        "resnet50v2": Backbone(
            builder="keras.applications.resnet_v2:ResNet50V2",
            preprocess="keras.applications.resnet_v2:preprocess_input",
            preprocessing="tf",
            dim=2048,
        ),
    }
)


class FrozenBackbone:
    """A frozen backbone with its weights; Keras builds it when it is first asked for the network.

    Attributes:
        name: Its name in ``BACKBONES``, or its ``.keras`` file.
        image_size: Side of its square input in pixels.
        pooling: ``avg`` or ``max``.
        dim: Number of features.
        weights_sha256: Digest of the weights' values.
        converted: Folder where engines keep converted copies of the network; None keeps none.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        *,
        name: str,
        image_size: int,
        pooling: str,
        dim: int,
        weights_sha256: str,
        converted: Path | None = None,
    ) -> None:
        # ``build`` makes ``model``, whose last layer is the network.
        self.name = name
        self.image_size = image_size
        self.pooling = pooling
        self.dim = dim
        self.weights_sha256 = weights_sha256
        self.converted = converted
        self._build = build

    @cached_property
    def model(self) -> Any:
        """Keras model, uint8 (n, S, S, 3) to float32 (n, dim); preprocessing inside."""
        return self._build()

    @property
    def network(self) -> Any:
        """The backbone within ``model``, as Keras built it."""
        return self.model.layers[-1]

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
    preprocessing: str | None = None,
) -> FrozenBackbone:
    """Build a backbone without its top, give it its weights and freeze it.

    Args:
        name: Name in ``BACKBONES``, or a ``.keras`` file, whose own weights are taken.
        weights: ``imagenet``, ``random`` or the path of a weights file.
        seed: Seed of random weights.
        image_size: Side of the square input in pixels.
        pooling: ``avg`` or ``max``.
        saved: A file of ``weights.save`` to take the values from instead.
        preprocessing: What a ``.keras`` file expects; see ``keras_file.PREPROCESSINGS``.

    Raises:
        ConfigError: The name is unknown, or a file's network does not take such images.
        WeightsUnavailableError: The weights cannot be had, or do not fit.
    """
    spec = find(name, preprocessing)
    if spec.file is None and saved is None:
        weight_files.require_source(weights)  # a typo need not wait for Keras' import
    if spec.file is not None:
        keras_file.require_input(spec.file, image_size)  # as far as it is known without Keras
    keras = import_keras()
    with _plain_settings(keras):
        if spec.file is not None:
            network = keras_file.load(spec.file, image_size=image_size, pooling=pooling)
        elif saved is None and weights == "imagenet":
            network = _download(name, spec, image_size, pooling)
        else:
            network = _build(spec, None, image_size, pooling)
            assign(network, _values(network, weights, seed, saved))
        network.trainable = False
        model = _with_preprocessing(keras, network, spec, image_size)
    return FrozenBackbone(
        lambda: model,
        name=name,
        image_size=image_size,
        pooling=pooling,
        dim=int(model.output_shape[-1]),
        weights_sha256=weight_files.digest(_arrays(network)),
    )


def find(name: str, preprocessing: str | None = None) -> Backbone:
    """Return a row of ``BACKBONES``, or one for a ``.keras`` file.

    Raises:
        ConfigError: The name is unknown; lists the valid ones. Or the preprocessing is missing
            for a file, or given for a name, which has its own.
        WeightsUnavailableError: The file is none.
    """
    if name.endswith(keras_file.SUFFIX):
        return Backbone(
            preprocessing=keras_file.checked_preprocessing(preprocessing),
            file=Path(name),
            name=keras_file.architecture(Path(name)),
        )
    if name not in BACKBONES:
        keras_file.require_no_other_file(name)
        raise unknown_name("backbone", name, BACKBONES)
    if preprocessing is not None:
        raise ConfigError(
            f"--preprocessing is for a {keras_file.SUFFIX} file. Received: it with {name}, which "
            "has its own.",
            hint="Leave it out.",
        )
    return replace(BACKBONES[name], name=name)


def source_token(spec: Backbone, *, weights: str, seed: int) -> str:
    """Return a text that is equal when the weights are; see ``weights.source_token``.

    Raises:
        ConfigError: Weights are asked for beside those of a ``.keras`` file.
        WeightsUnavailableError: ``weights`` is neither a keyword nor a readable file.
    """
    if spec.file is None:
        weight_files.require_source(weights)
        return weight_files.source_token(weights, seed=seed, backbone=spec.name)
    if weights != weight_files.KEYWORDS[0]:
        raise ConfigError(
            f"--weights: {str(spec.file)!r} brings its own weights. Received: {weights!r}.",
            hint="Leave it out.",
        )
    return weight_files.source_token(str(spec.file), seed=seed, backbone=spec.name)


def identity(
    spec: Backbone,
    *,
    weights_sha256: str,
    image_size: int,
    pooling: str,
    precision: str,
    engine: str,
) -> dict[str, object]:
    """Return what makes features comparable; equal, or the features must not be mixed.

    Every float32 engine agrees with Keras, so the engine counts only at other precisions.
    """
    fields: dict[str, object] = {
        "backbone": spec.name,
        "weights_sha256": weights_sha256,
        "image_size": image_size,
        "pooling": pooling,
        "preprocessing": spec.preprocessing,
        "decoder": DECODER,
        "precision": precision,
    }
    return fields if precision == "float32" else {**fields, "engine": engine}


def variables_of(network: Any) -> list[Variable]:
    """Return a network's variables in the order of its layers, those of nested ones included.

    Layers and variables that Keras named by counting (``layer_normalization_7``) are counted anew
    from the start of the network, so that names do not tell what else was built before.

    Raises:
        WeightsUnavailableError: Two variables have one name, so that weights have no clear place.
    """
    layers = [layer for layer in _leaves(network) if layer.weights]
    kinds = [type(layer).__name__ for layer in layers]
    names = weight_files.stable_names([layer.name for layer in layers], kinds)
    variables = []
    for layer, name, kind in zip(layers, names, kinds, strict=True):
        owned = [variable.name for variable in layer.weights]
        inner = weight_files.stable_names(owned, ["Variable"] * len(owned))
        variables += [
            Variable(name, kind, own, tuple(variable.shape))
            for own, variable in zip(inner, layer.weights, strict=True)
        ]
    twice = [path for path, count in Counter(item.path for item in variables).items() if count > 1]
    if twice:
        raise WeightsUnavailableError(
            f"Expected every variable to have a name of its own. Received: {twice[0]!r} twice.",
            hint="Give the network's layers different names.",
        )
    return variables


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
    pixels = keras.ops.cast(images, "float32")
    if spec.file is None:
        pixels = _imported(spec.preprocess)(pixels)
    else:
        pixels = keras_file.preprocess(pixels, spec.preprocessing)
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


def assign(network: Any, arrays: Mapping[str, NDArray[np.float32]]) -> None:
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
    return [variable for layer in _leaves(network) for variable in layer.weights]


def _leaves(network: Any) -> Iterator[Any]:
    """Yield the layers that hold no other layers, in order."""
    for layer in network.layers:
        if hasattr(layer, "layers"):
            yield from _leaves(layer)
        else:
            yield layer


def _imported(reference: str) -> Any:
    """Return the object that ``module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
