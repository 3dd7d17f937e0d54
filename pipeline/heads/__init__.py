"""Heads: classifiers on features, each a scikit-learn estimator in a file of its own.

``create`` makes one by name, ``save`` and ``load`` keep its parameters as JSON and its fitted
arrays as NumPy files, without pickle. To add a head, write its class and add a row to ``HEADS``.
It may import ``config``, ``files``, ``system`` and ``errors``, but not ``images``.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.config.fields import spelled
from pipeline.errors import (
    ConfigError,
    EngineUnavailableError,
    PipelineError,
    RunError,
    StoreError,
    unknown_name,
)
from pipeline.files import arrays as array_files
from pipeline.files.arrays import AnyArray
from pipeline.files.records import read_record, write_record
from pipeline.files.regular import sha256_file
from pipeline.heads.saved import SavedHead

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


HEADS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "centroid": "pipeline.heads.centroid:CentroidHead",
        "dense": "pipeline.heads.dense.head:DenseHead",
        "knn": "pipeline.heads.knn:KnnHead",
        "linear": "pipeline.heads.linear.head:LinearHead",
        "linear-svc": "pipeline.heads.linear_svc:LinearSvcHead",
        "logreg": "pipeline.heads.logreg.head:LogregHead",
        "majority": "pipeline.heads.majority:MajorityHead",
        "ridge": "pipeline.heads.ridge:RidgeHead",
    }
)

# Those whose training needs Keras.
ON_KERAS: Final = frozenset({"dense"})

# Those that read features in a stream, so that they need not fit into memory.
STREAMING: Final = ("linear", "ridge", "dense", "centroid", "majority")

# The tutorial's head: Dense 1024 relu, Dense softmax, Adam at Keras' default rate, 10 epochs of
# batches of 32, on features as they are.
PRESETS: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = MappingProxyType(
    {
        "tutorial": {
            "dense": {
                "hidden": (1024,),
                "dropout": 0.0,
                "epochs": 10,
                "batch_size": 32,
                "learning_rate": 1e-3,
                "decay": False,
                "scale": False,
            }
        }
    }
)

SCHEMA_VERSION: Final = 3
# Without a digest: heads by dotted name, and those of the table.
_OLDER: Final = (1, 2)

RECORD: Final = "head.json"
_ARRAYS = "arrays.npz"


def is_known(name: str) -> bool:
    """Tell whether a name is in the table, or may be that of an estimator elsewhere."""
    return name in HEADS or "." in name


def create(name: str, params: Mapping[str, object], *, seed: int) -> "Head":
    """Make an unfitted head.

    Example:
        >>> create("logreg", {"grid": [0.1, 1.0]}, seed=0).get_params()["grid"]
        [0.1, 1.0]

    Raises:
        ConfigError: The head or a parameter is unknown; suggests the nearest name.
    """
    if "." in name:
        from pipeline.heads.external import create_external

        return create_external(name, params, seed=seed)
    head = _class(name)()
    known = head.get_params(deep=False)
    for param in params:
        if param not in known:
            raise unknown_name("parameter", param, known, where=f"[heads.{name}]")
        check_type(f"[heads.{name}]", param, known[param], params[param])
    seeded = {"seed": seed} if "seed" in known else {}
    seeded_head: Head = head.set_params(**{**seeded, **params})
    return seeded_head


def check_type(where: str, param: str, default: object, value: object) -> None:
    """Refuse a value of another type than a default's.

    Raises:
        ConfigError: Names the place, and what is expected as a configuration file spells it.
    """
    wants_list, is_list = isinstance(default, list | tuple), isinstance(value, list | tuple)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        # Of an empty default nobody knows what its items are.
        fits = all(_is_like(like, item, is_item=True) for like in default[:1] for item in value)
    else:
        fits = not wants_list and _is_like(default, value)
    if not fits:
        raise ConfigError(
            f"{where} {param}: expected {_like(default)}. Received: {spelled(value)}.",
            hint=f"Write [{spelled(value)}]." if wants_list and not is_list else "",
        )


def save(head: "Head", folder: Path) -> str:
    """Write ``head.json`` and ``arrays.npz``; ``load`` gives equal predictions bit for bit.

    Returns:
        Why the head was not saved; empty if it was. Every head of the table can be; one by dotted
        name needs skops and types that are trusted.
    """
    if "." in head.name:
        return _save_external(head, folder)
    names = [name for name, target in HEADS.items() if target == _target(type(head))]
    if not names:
        raise RunError(f"Expected a head of {', '.join(HEADS)}. Received: {type(head).__name__}.")
    arrays: dict[str, AnyArray] = {}
    lists: dict[str, int] = {}
    for attribute in head.fitted:
        value = getattr(head, attribute)
        if isinstance(value, list):
            lists[attribute] = len(value)
            arrays |= {f"{attribute}.{number}": array for number, array in enumerate(value)}
        else:
            arrays[attribute] = np.asarray(value)
    array_files.write_all(folder / _ARRAYS, arrays)
    params = head.get_params(deep=False)
    record = {
        "head": names[0],
        "params": json.loads(json.dumps(params, default=_plain)),
        "lists": lists,
        "arrays_sha256": sha256_file(folder / _ARRAYS),
        "temperature": head.temperature_,
        "converged": head.converged_,
        "notes": list(head.notes_),
    }
    write_record(folder / RECORD, record, version=SCHEMA_VERSION)
    return ""


def record_path(folder: Path) -> Path:
    """Return the file of a saved head that has its parameters and the digest of its arrays."""
    return folder / RECORD


def load(folder: Path) -> "Head":
    """Read a head that ``save`` wrote; no code is taken from the files.

    Raises:
        RunError: A file is missing or damaged.
        ConfigError: The head is unknown to this release.
    """
    try:
        said = read_record(folder / RECORD, kind="head", version=SCHEMA_VERSION, older=_OLDER)
        if said is None:
            raise ValueError(f"there is no {RECORD}")
        record = SavedHead.of(said)
        if "." in record.head:
            from pipeline.heads.external import load_external

            return load_external(folder)
        if record.arrays_sha256 != sha256_file(folder / _ARRAYS):
            raise ValueError(f"{_ARRAYS} is not the one that {RECORD} was written with")
        arrays = array_files.read_all(folder / _ARRAYS)
        head = create(record.head, record.params, seed=0)
        for attribute in head.fitted:
            setattr(head, attribute, _restored(attribute, arrays, record.lists))
    except StoreError as error:
        raise RunError(error.message, hint="Train it again with --force.") from error
    except PipelineError:
        raise
    except Exception as error:  # zipfile, json and NumPy each have errors of their own
        raise RunError(
            f"The head in {str(folder)!r} cannot be read: {error}.",
            hint="Train it again with --force.",
        ) from error
    record.restore(head)
    return head


def _save_external(head: Any, folder: Path) -> str:
    from pipeline.heads.external import save_external

    try:
        save_external(head, folder)
    except (EngineUnavailableError, RunError) as error:
        return str(error)
    return ""


def _class(name: str) -> Any:
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
    module, _, attribute = HEADS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _target(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _is_like(default: object, value: object, *, is_item: bool = False) -> bool:
    """Tell whether a value is of the default's type; an integer may stand for a float.

    In a list, a whole number may also be spelled with a point, as sweeps record it.
    """
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if is_item and isinstance(default, int) and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, str | None if default is None else type(default))


def _like(default: object) -> str:
    """Return in words, and as a configuration file spells it, what is like a default."""
    if default is None:
        return "a text"
    if isinstance(default, bool):
        return "true or false"
    kind = {list: "a list", tuple: "a list", str: "a text", int: "an integer"}
    return f"{kind.get(type(default), 'a number')} such as {spelled(default)}"


def _restored(attribute: str, arrays: Mapping[str, AnyArray], lists: Mapping[str, int]) -> Any:
    if attribute in lists:
        return [arrays[f"{attribute}.{number}"] for number in range(lists[attribute])]
    value = arrays[attribute]
    return value.item() if value.ndim == 0 else value


def _plain(value: Any) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value.item()
