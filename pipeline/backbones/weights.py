"""Backbone weights as plain arrays: drawn, read from Keras' files, digested, kept in a store.

Knows HDF5 and NumPy, and neither Keras nor TensorFlow. Files are read by our own code because
Keras' loaders accept wrong ones without a word: legacy ``by_name`` loading leaves unmatched layers
random, and surplus layers pass. Nothing in a file is ever executed.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import forms
from pipeline.backbones.forms import ONNX
from pipeline.backbones.variables import Variable
from pipeline.backbones.weights_file import (
    _FILE_HINT,
    KEYWORDS,
    _formless,
    _refused,
    _unreadable,
    _values,
    readable,
    regular_file,
)
from pipeline.errors import WeightsUnavailableError
from pipeline.files import atomic
from pipeline.files.arrays import AnyArray
from pipeline.files.hdf5 import datasets, opened
from pipeline.files.hdf5_writer import writing
from pipeline.files.regular import sha256_file

RANDOM_SCHEME: Final = "glorot-uniform-pcg64-1"

_SAVED_HINT: Final = "Delete the file and run extract again."

_ZEROS: Final = frozenset({"beta", "bias", "moving_mean"})
_ONES: Final = frozenset({"gamma", "moving_variance"})
# A layer of ConvNeXt that multiplies by one number per channel, which has no name of its own.
_SCALES: Final = frozenset({"LayerScale"})


def source_token(weights: str, *, seed: int, backbone: str) -> str:
    """Return a text that is equal when the weights are; it takes no network and no TensorFlow.

    Example:
        >>> source_token("random", seed=0, backbone="resnet50")
        'random:glorot-uniform-pcg64-1:seed=0:resnet50'

    Raises:
        WeightsUnavailableError: ``weights`` is neither a keyword nor a readable file.
    """
    if weights == "imagenet":
        return f"imagenet:{backbone}"
    if weights == "random":
        return f"random:{RANDOM_SCHEME}:seed={seed}:{backbone}"
    path = regular_file(weights)
    try:
        return f"file:{sha256_file(path)}:{backbone}"
    except OSError as error:
        raise _unreadable(weights, error) from error


def require_source(weights: str) -> None:
    """Refuse what is neither a keyword nor a weights file, before anything is loaded.

    Raises:
        WeightsUnavailableError: Says what it is.
    """
    if weights in KEYWORDS:
        return
    path = regular_file(weights)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise _unreadable(weights, error) from error
    if forms.of_file(weights) is ONNX:  # which nothing at its beginning tells
        return
    # What is in the file shows when it is read.
    if not (h5py.is_hdf5(path) or zipfile.is_zipfile(path)):
        raise WeightsUnavailableError(f"{path}: {_formless().message}", hint=_FILE_HINT)


def draw(variables: Sequence[Variable], *, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw random weights, equal on every machine and backend.

    Each variable has its own stream, seeded by the seed and the variable's name, so its values
    depend neither on order nor on the other variables. Kernels are Glorot uniform, the rest
    makes biases zero, normalizations and scales the identity.

    Returns:
        float32 arrays by variable path.

    Raises:
        WeightsUnavailableError: A variable is of a kind that the scheme has no rule for.
    """
    return {variable.path: _drawn(variable, seed) for variable in variables}


def digest(arrays: Mapping[str, AnyArray]) -> str:
    """Return the SHA-256 over (name, shape, little-endian float32 values), sorted by name."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], dtype="<f4")
        sha256.update(json.dumps([name, list(arrays[name].shape)]).encode())
        sha256.update(array.data)
    return sha256.hexdigest()


def converted_digest(weights_sha256: str, content_sha256: str) -> str:
    """Return what a converted copy of a network is kept under: a digest of weights and content."""
    return hashlib.sha256(f"{weights_sha256} {content_sha256}".encode()).hexdigest()


def save(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write arrays as a flat HDF5 file; ``load`` expects their digest as the file's stem."""

    def write(temporary: Path) -> None:
        # From this version on, HDF5 keeps checksums of all but the values, whose digest is ours.
        with writing(temporary) as file:
            for name in sorted(arrays):
                file.create_dataset(name, data=np.asarray(arrays[name], dtype="<f4"))

    atomic.write_atomically(path, write)


def load(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read what ``save`` wrote and check it against the digest in its name.

    Raises:
        WeightsUnavailableError: The file is missing or damaged.
    """
    with readable(path, _SAVED_HINT), opened(path) as file:
        size = path.stat().st_size
        arrays = {name: _saved_values(name, dataset, size) for name, dataset in datasets(file)}
        if (received := digest(arrays)) != path.stem:
            raise _refused("weights of the digest in the file's name", received)
    return arrays


def _drawn(variable: Variable, seed: int) -> NDArray[np.float32]:
    if variable.name in _ZEROS:
        return np.zeros(variable.shape, np.float32)
    if variable.name in _ONES or variable.layer_class in _SCALES:
        return np.ones(variable.shape, np.float32)
    if not variable.name.endswith("kernel") or len(variable.shape) < 2:
        raise WeightsUnavailableError(
            "Random weights know kernels, biases, normalizations and scales. "
            f"Received: {variable.path} of shape {variable.shape}.",
            hint="Give a weights file.",
        )
    *window, fan_in, fan_out = variable.shape
    limit = math.sqrt(6.0 / (math.prod(window) * (fan_in + fan_out)))
    # Raw words, because NumPy promises that a bit generator's stream never changes, while the
    # methods of Generator may.
    words = np.frombuffer(hashlib.sha256(variable.path.encode()).digest(), "<u4")
    generator = np.random.PCG64(np.random.SeedSequence([seed, *words.tolist()]))
    unit = (generator.random_raw(math.prod(variable.shape)) >> 11) * 2.0**-53
    return ((2.0 * unit - 1.0) * limit).astype(np.float32).reshape(variable.shape)


def _saved_values(name: str, dataset: h5py.Dataset, size: int) -> NDArray[np.float32]:
    if dataset.dtype != np.dtype("<f4") or dataset.nbytes > size:
        raise _refused(f"float32 values of {name}", f"{dataset.dtype}, {dataset.shape}")
    return _values(name, dataset)
