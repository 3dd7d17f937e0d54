"""The checkpoint of fine-tuning: how far it is, and the arrays that it goes on from.

What is read is checked as a whole before anything of it is used.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import h5py
import numpy as np

from pipeline.errors import RunError
from pipeline.files.arrays import AnyArray
from pipeline.files.atomic import write_atomically
from pipeline.files.hdf5 import HDF5_ERRORS, opened, plain_dataset, plain_member
from pipeline.files.hdf5_writer import writing
from pipeline.runs.places import apart_from_places

# Its name, in a run's folder of fine-tuning.
FILE: Final = "checkpoint.h5"
# Since then, a checkpoint holds the digest of all that is in it.
_VERSION: Final = 2
_DIGEST: Final = "sha256"

# What the text in a checkpoint says of progress; a best loss that is infinite is written as null.
_FIELDS: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType(
    {
        "best_epoch": (int,),
        "best_loss": (float, int, type(None)),
        "epoch": (int,),
        "epochs": (list,),
        "stopped": (str,),
    }
)

Shape = tuple[int, ...]


@dataclass(slots=True)
class Progress:
    """How far training is.

    Attributes:
        epoch: Epochs that are done.
        best_epoch: The one whose weights are kept; 0 is the start.
        best_loss: Its val loss, at the temperature fitted on val.
        stopped: Why training ended before its last epoch; empty if it did not.
        epochs: A row per epoch: loss, val_loss, val_accuracy, learning_rate at its end, seconds.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    stopped: str = ""
    epochs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Arrays:
    """The values of all variables, in their order.

    Attributes:
        state: Of what training changes.
        optimizer: Of the optimizer.
        best: Of the state after the best epoch; none where that is the state itself.
    """

    state: Sequence[AnyArray]
    optimizer: Sequence[AnyArray]
    best: Sequence[AnyArray]


def write(path: Path, identity: Mapping[str, object], progress: Progress, arrays: Arrays) -> None:
    """Write a checkpoint: a JSON text and arrays, in one HDF5 file.

    Args:
        path: The file; it is replaced as a whole.
        identity: What results depend on.
        progress: How far training is.
        arrays: What it goes on from.
    """
    said = asdict(progress)
    if not math.isfinite(progress.best_loss):
        said["best_loss"] = None
    record = json.dumps(
        {"identity": identity, "progress": said, "version": _VERSION}, allow_nan=False
    )
    groups = {name: list(map(np.asarray, getattr(arrays, name))) for name in Arrays.__slots__}

    def fill(temporary: Path) -> None:
        with writing(temporary) as file:
            file["record"] = np.bytes_(record.encode())
            for name, values in groups.items():
                group = file.create_group(name)
                for number, array in enumerate(values):
                    group[f"{number:05}"] = array
            file[_DIGEST] = np.bytes_(_digest(record, groups).encode())

    write_atomically(path, fill)


def read(
    path: Path,
    identity: Mapping[str, object],
    *,
    state: Sequence[Shape],
    optimizer: Sequence[Shape],
) -> tuple[Progress, Arrays]:
    """Read a checkpoint of the training at hand.

    Args:
        path: The file.
        identity: What results of this training depend on.
        state: Shapes of what it changes.
        optimizer: Shapes of its optimizer's variables.

    Raises:
        RunError: It is damaged, or of another training.
    """
    with _readable(path):
        record, groups = _content(path)
        # Older releases took down where things were, too.
        found, progress = apart_from_places(record["identity"]), _progress(record["progress"])
    if found != identity:
        raise RunError(
            f"The checkpoint {str(path)!r} is of another training.",
            hint="Choose another --run, or replace this one with --force.",
        )
    with _readable(path):
        _require("state", groups["state"], state)
        _require("optimizer", groups["optimizer"], optimizer)
        _require("best", groups["best"], state if groups["best"] else ())
    return progress, Arrays(**groups)


def check(path: Path) -> None:
    """Refuse a checkpoint that is not as it was written.

    Raises:
        RunError: It is damaged.
    """
    with _readable(path):
        _content(path)


def _content(path: Path) -> tuple[dict[str, Any], dict[str, list[AnyArray]]]:
    """Return the text and the arrays of a checkpoint.

    Raises:
        ValueError: They are not those that were written.
    """
    with opened(path) as file:
        text = _text(file, "record")
        groups = {
            name: [plain_dataset(file[name], key)[()] for key in file[name]]
            for name in Arrays.__slots__
        }
        digest = _text(file, _DIGEST) if _DIGEST in file else None
    record = json.loads(text)
    is_new = isinstance(record, dict) and "version" in record
    if digest is None and is_new:
        raise ValueError("it has no digest")
    if digest is not None and digest != _digest(text, groups):
        raise ValueError("its content is not that which was written")
    return dict(record), groups


def _text(file: h5py.File, name: str) -> str:
    """Return a text; older releases let HDF5 choose where it is."""
    item = plain_member(file, name)
    if not isinstance(item, h5py.Dataset) or item.shape != ():
        raise ValueError(f"expected a text {name!r}")
    value = item[()]
    return value.decode() if isinstance(value, bytes) else str(value)


def _digest(record: str, groups: Mapping[str, Sequence[AnyArray]]) -> str:
    """Return the SHA-256 over the text, and shape, type and bytes of every array."""
    sha256 = hashlib.sha256(record.encode())
    for name, arrays in groups.items():
        for number, array in enumerate(arrays):
            about = [name, number, list(array.shape), array.dtype.str]
            sha256.update(json.dumps(about).encode())
            sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say which file cannot be read, and what to do."""
    try:
        yield
    except (*HDF5_ERRORS, RecursionError) as error:
        raise RunError(
            f"The checkpoint {str(path)!r} cannot be read: {error}.",
            hint="Delete it to begin anew, or replace the run with --force.",
        ) from error


def _progress(said: Mapping[str, Any]) -> Progress:
    """Return progress as it was written.

    Raises:
        ValueError: A field is missing, unknown or of another type.
    """
    if sorted(said) != sorted(_FIELDS):
        raise ValueError(f"expected progress of {sorted(_FIELDS)}, received {sorted(said)}")
    for name, types in _FIELDS.items():
        if not isinstance(said[name], types):
            raise ValueError(f"expected another type of {name}, received {said[name]!r}")
    best_loss = math.inf if said["best_loss"] is None else said["best_loss"]
    return Progress(**{**said, "best_loss": best_loss})


def _require(name: str, arrays: Sequence[Any], shapes: Sequence[Shape]) -> None:
    """Refuse other than numbers of some shapes.

    Raises:
        ValueError: Names the first array that does not fit.
    """
    if len(arrays) != len(shapes):
        raise ValueError(f"expected {len(shapes)} arrays of {name}, received {len(arrays)}")
    for number, (value, shape) in enumerate(zip(arrays, shapes, strict=True)):
        array = np.asarray(value)
        if array.shape != shape or not np.issubdtype(array.dtype, np.number):
            raise ValueError(
                f"expected numbers of shape {shape} in {name}/{number:05}, received {array.dtype} "
                f"of shape {array.shape}"
            )
