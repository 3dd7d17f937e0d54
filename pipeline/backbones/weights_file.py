"""Files of weights that Keras saved: read with or without their top, checked, matched by name."""

import difflib
import math
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.backbones.variables import Variable, class_and_index, stable_names
from pipeline.errors import PipelineError, WeightsUnavailableError
from pipeline.files.hdf5 import HDF5_ERRORS, UnfitDatasetError, datasets, plain_member

KEYWORDS: Final = ("imagenet", "random")
WAYS_OUT: Final = "Give a Keras weights file with --weights PATH, or use --weights random."
_FILE_HINT: Final = "Give a file that Keras saved from this network, with or without its top."
_TOP: Final = "predictions"
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
    with readable(regular_file(str(path)), _FILE_HINT), _open(path, variables) as file:
        found = _by_path(file, variables)
        _check_fit(found, variables)
        return {
            variable.path: _values(variable.path, found[variable.path]) for variable in variables
        }


@contextmanager
def readable(path: Path, hint: str) -> Iterator[None]:
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
        order = sorted(given, key=lambda layer: class_and_index(layer))
        stable = stable_names(
            [given[layer] for layer in order],
            [class_and_index(layer.rpartition("/")[2])[0] for layer in order],
        )
        return dict(zip(order, stable, strict=True))
    classes = {variable.layer: class_and_index(variable.layer_class)[0] for variable in variables}
    peers: dict[str, list[str]] = {}
    for name, kind in (classes | {_TOP: "dense"}).items():
        peers.setdefault(kind, []).append(name)
    places = {layer: class_and_index(layer) for layer in stored}
    return {
        layer: peers[kind][index] if index < len(peers.get(kind, ())) else layer
        for layer, (kind, index) in places.items()
    }


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


def _subgroup(group: h5py.Group, name: str) -> h5py.Group:
    item = plain_member(group, name)
    if not isinstance(item, h5py.Group):
        raise _refused(f"a group {name!r}", "a dataset")
    return item
