"""Backbone weights as plain arrays: drawn, read from Keras' files, digested, kept in a store.

Called by ``backbone``; knows HDF5 and NumPy, and neither Keras nor TensorFlow. Files are read by
our own code because Keras' loaders accept wrong ones without a word: legacy ``by_name`` loading
leaves unmatched layers random, and surplus layers pass. Nothing in a file is ever executed.
"""

import difflib
import hashlib
import json
import math
import re
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, WeightsUnavailableError
from pipeline.files import atomic
from pipeline.files.hdf5 import HDF5_ERRORS, UnfitDatasetError, datasets, opened, plain_member
from pipeline.files.hdf5_writer import writing

RANDOM_SCHEME: Final = "glorot-uniform-pcg64-1"
KEYWORDS: Final = ("imagenet", "random")

WAYS_OUT: Final = "Give a Keras weights file with --weights PATH, or use --weights random."
_FILE_HINT: Final = "Give a file that Keras saved from this network, with or without its top."
_SAVED_HINT: Final = "Delete the file and run extract again."

_ZEROS: Final = frozenset({"beta", "bias", "moving_mean"})
_ONES: Final = frozenset({"gamma", "moving_variance"})
# A layer of ConvNeXt that multiplies by one number a channel, which has no name of its own.
_SCALES: Final = frozenset({"LayerScale"})
_TOP: Final = "predictions"
_COUNTED: Final = re.compile(r"(?P<stem>.*?)(?:_\d+)?")
# Keras 2 calls the kernel of a depthwise convolution by another name than Keras 3.
_RENAMED: Final = MappingProxyType({"depthwise_kernel": "kernel"})
# A file's groups for the layers of a Keras 3 model; the second name is Keras 2's.
_LAYER_GROUPS: Final = ("layers", "_layer_checkpoint_dependencies")
_ARCHIVED: Final = "model.weights.h5"
# A compiled model's archive holds the optimizer's moments beside the weights: three times the
# backbone and its top. Beyond this it is no archive of this backbone.
_ARCHIVE_GROWTH: Final = 6
_ARCHIVE_SLACK: Final = 64 << 20
_ZIP_ERRORS: Final = (EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a backbone, as the network declares it.

    Attributes:
        layer: Name of its layer, such as ``conv1_conv``.
        layer_class: Class of its layer, such as ``Conv2D``.
        name: Its name within the layer, such as ``kernel``.
        shape: Its shape.
    """

    layer: str
    layer_class: str
    name: str
    shape: tuple[int, ...]

    @property
    def path(self) -> str:
        """Name within the network, such as ``conv1_conv/kernel``."""
        return f"{self.layer}/{self.name}"


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
        return f"file:{atomic.sha256_file(path)}:{backbone}"
    except OSError as error:
        raise _unreadable(weights, error) from error


def stable_names(names: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Return layer names that do not depend on how many networks were built before.

    Keras names a layer that nobody named by its class and a count over the whole process:
    ``layer_normalization_7``. Such names are counted anew; all others stay.

    Example:
        >>> stable_names(["stem", "dense_4", "dense_5"], ["Conv2D", "Dense", "Dense"])
        ['stem', 'dense', 'dense_1']

    Args:
        names: Layer names in the network's order.
        kinds: Their classes.
    """
    counts: Counter[str] = Counter()
    stable = []
    for name, kind in zip(names, kinds, strict=True):
        stem, _ = _class_and_index(name)
        counted = stem == kind.replace("_", "").lower() and _COUNTED.fullmatch(name)
        if counted:
            stem = counted["stem"]
            name = f"{stem}_{counts[stem]}" if counts[stem] else stem
            counts[stem] += 1
        stable.append(name)
    return stable


def regular_file(weights: str) -> Path:
    """Return the path of a weights file that exists.

    Raises:
        WeightsUnavailableError: There is no such file; names the keyword it may be a typo of.
    """
    path = Path(weights)
    if path.is_file():
        return path
    near = difflib.get_close_matches(weights.lower(), KEYWORDS, n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    received = "not a regular file" if path.exists() else "no such file"
    raise WeightsUnavailableError(
        f"--weights: expected 'imagenet', 'random' or a weights file. "
        f"Received: {weights!r}, {received}.{suggestion}",
        hint=WAYS_OUT,
    )


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


def read(path: Path, variables: Sequence[Variable]) -> dict[str, NDArray[np.float32]]:
    """Read a weights file of any of Keras' forms, or of our own, for a backbone.

    Args:
        path: ``.weights.h5``, legacy ``.h5`` (weights or whole model), ``.keras``, or a file
            that ``save`` wrote. The form is told from the content.
        variables: All variables of the backbone, in the order of its layers.

    Returns:
        float32 arrays by variable path; each variable assigned exactly once.

    Raises:
        WeightsUnavailableError: The file is damaged, or is of another network; names the first
            variable that differs.
    """
    with _readable(regular_file(str(path)), _FILE_HINT), _open(path, variables) as file:
        found = _by_path(file, variables)
        _check_fit(found, variables)
        return {
            variable.path: _values(variable.path, found[variable.path]) for variable in variables
        }


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
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
    with _readable(path, _SAVED_HINT), opened(path) as file:
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


@contextmanager
def _readable(path: Path, hint: str) -> Iterator[None]:
    """Name the file in every refusal, and make one of what h5py and zipfile raise on damage."""
    try:
        yield
    except PipelineError as error:
        raise WeightsUnavailableError(f"{path}: {error.message}", hint=hint) from error
    except UnfitDatasetError as error:
        raise WeightsUnavailableError(f"{path}: {error}.", hint=hint) from error
    except (*HDF5_ERRORS, *_ZIP_ERRORS) as error:
        cause = " ".join(str(error).split())
        refusal = _refused("a weights file", f"a damaged one: {cause}")
        raise WeightsUnavailableError(f"{path}: {refusal.message}", hint=hint) from error


def _refused(expected: str, received: str) -> WeightsUnavailableError:
    return WeightsUnavailableError(f"expected {expected}. Received {received}.")


def _formless() -> WeightsUnavailableError:
    return _refused(
        "a Keras weights file (.weights.h5, .h5 or .keras)",
        "a file that is neither HDF5 nor a zip archive, or is cut short",
    )


def _unreadable(weights: str, error: OSError) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"The weights file {weights!r} cannot be read: {error.strerror}.", hint=WAYS_OUT
    )


@contextmanager
def _open(path: Path, variables: Sequence[Variable]) -> Iterator[h5py.File]:
    """Open an HDF5 file, or the one inside a ``.keras`` archive."""
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            yield file
    elif zipfile.is_zipfile(path):
        with tempfile.TemporaryFile() as copy:
            _unpack(path, copy, variables)
            with h5py.File(copy, "r") as file:
                yield file
    else:
        raise _formless()


def _unpack(path: Path, copy: IO[bytes], variables: Sequence[Variable]) -> None:
    """Copy the weights out of an archive, no further than a model of this size can reach."""
    num_values = sum(math.prod(variable.shape) for variable in variables)
    limit = _ARCHIVE_GROWTH * 4 * num_values + _ARCHIVE_SLACK
    with zipfile.ZipFile(path) as archive:
        if _ARCHIVED not in archive.namelist():
            raise _refused(f"a .keras archive with {_ARCHIVED}", "a zip archive without it")
        with archive.open(_ARCHIVED) as member:
            while chunk := member.read(1 << 20):
                if copy.tell() + len(chunk) > limit:
                    raise _refused(f"at most {limit} bytes of {_ARCHIVED}", "more")
                copy.write(chunk)


def _by_path(file: h5py.File, variables: Sequence[Variable]) -> dict[str, h5py.Dataset]:
    """Return the file's datasets by the paths of the variables they hold, in the file's order."""
    for group in _LAYER_GROUPS:
        if group in file:
            return _by_position(_subgroup(file, group), variables)
    group = _subgroup(file, "model_weights") if "model_weights" in file else file
    declared = {variable.layer for variable in variables}
    found: dict[str, h5py.Dataset] = {}
    for name, dataset in datasets(group):
        *layers, variable = name.split("/")
        # A nested layer stands below the one that holds it.
        known = [layer for layer in layers if layer in declared]
        variable = variable.partition(":")[0]
        layer = known[-1] if known else layers[0]
        _put(found, f"{layer}/{_RENAMED.get(variable, variable)}", dataset)
    return found


def _by_position(group: h5py.Group, variables: Sequence[Variable]) -> dict[str, h5py.Dataset]:
    """Name the datasets of a ``.weights.h5`` file: ``conv2d_1/vars/0`` -> ``conv2_.../kernel``.

    Newer files hold each layer's name; without names, class and position are all there is.
    """
    stored = dict(datasets(group))
    names = _names(group, {path.rpartition("/vars/")[0] for path in stored}, variables)
    declared: dict[str, list[str]] = {}
    for variable in variables:
        declared.setdefault(variable.layer, []).append(variable.name)
    found: dict[str, h5py.Dataset] = {}
    for path, dataset in stored.items():
        layer, _, index = path.rpartition("/vars/")
        own = declared.get(names[layer], [])
        known = index.isdecimal() and int(index) < len(own)
        _put(found, f"{names[layer]}/{own[int(index)] if known else index}", dataset)
    return found


def _names(group: h5py.Group, stored: Set[str], variables: Sequence[Variable]) -> dict[str, str]:
    """Return the layer name of each stored layer: as the file says, else by class and position."""
    given = {layer: group[layer]["vars"].attrs.get("name") for layer in stored}
    if all(isinstance(name, str) for name in given.values()):
        order = sorted(given, key=lambda layer: _class_and_index(layer))
        stable = stable_names(
            [given[layer] for layer in order],
            [_class_and_index(layer.rpartition("/")[2])[0] for layer in order],
        )
        return dict(zip(order, stable, strict=True))
    classes = {variable.layer: _class_and_index(variable.layer_class)[0] for variable in variables}
    peers: dict[str, list[str]] = {}
    for name, kind in (classes | {_TOP: "dense"}).items():
        peers.setdefault(kind, []).append(name)
    places = {layer: _class_and_index(layer) for layer in stored}
    return {
        layer: peers[kind][index] if index < len(peers.get(kind, ())) else layer
        for layer, (kind, index) in places.items()
    }


def _class_and_index(layer: str) -> tuple[str, int]:
    """Split ``batch_normalization_10`` into ``("batchnormalization", 10)``."""
    kind, _, index = layer.rpartition("_")
    if not index.isdecimal():
        kind, index = layer, "0"
    return kind.replace("_", "").lower(), int(index)


def _put(found: dict[str, h5py.Dataset], path: str, dataset: h5py.Dataset) -> None:
    if path in found:
        raise _refused("every variable once", f"{path} twice")
    found[path] = dataset


def _check_fit(found: Mapping[str, h5py.Dataset], variables: Sequence[Variable]) -> None:
    """Require every variable once, in its shape, and nothing left but the classifier."""
    expected = {variable.path for variable in variables}
    surplus = [path for path in found if path not in expected]
    for variable in variables:
        dataset = found.get(variable.path)
        wanted = f"{variable.path} of shape {variable.shape}"
        if dataset is None:
            nearest = f"; it has {_described(surplus[0], found)}" if surplus else ""
            raise _refused(wanted, f"a file without it{nearest}")
        if dataset.shape != variable.shape or dataset.dtype.kind != "f":
            raise _refused(wanted, f"{dataset.dtype} of shape {dataset.shape}")
    if surplus and not _is_top({path: found[path] for path in surplus}):
        raise _refused(
            f"the backbone's {len(variables)} variables and beside them only {_TOP!r}",
            f"also {_described(surplus[0], found)}",
        )


def _is_top(surplus: Mapping[str, h5py.Dataset]) -> bool:
    """Whether datasets are the one dense layer that classifies: its bias and its kernel."""
    if len(surplus) != 2 or any(path.partition("/")[0] != _TOP for path in surplus):
        return False
    bias, kernel = sorted((dataset.shape for dataset in surplus.values()), key=len)
    return len(bias) == 1 and len(kernel) == 2 and bool(kernel[1] == bias[0])


def _described(path: str, found: Mapping[str, h5py.Dataset]) -> str:
    return f"{path} of shape {found[path].shape}"


def _values(path: str, dataset: h5py.Dataset) -> NDArray[np.float32]:
    """Read one dataset as finite float32 values."""
    # A chunk larger than its dataset only serves to fill memory while it is unpacked.
    if dataset.chunks and math.prod(dataset.chunks) > dataset.size:
        raise _refused(f"chunks no larger than {path}", f"chunks of {dataset.chunks}")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(dataset[()], dtype=np.float32)
    if not np.isfinite(values).all():
        raise _refused(f"finite values of {path}", "NaN or infinity")
    return values


def _saved_values(name: str, dataset: h5py.Dataset, size: int) -> NDArray[np.float32]:
    if dataset.dtype != np.dtype("<f4") or dataset.nbytes > size:
        raise _refused(f"float32 values of {name}", f"{dataset.dtype}, {dataset.shape}")
    return _values(name, dataset)


def _subgroup(group: h5py.Group, name: str) -> h5py.Group:
    item = plain_member(group, name)
    if not isinstance(item, h5py.Group):
        raise _refused(f"a group {name!r}", "a dataset")
    return item
