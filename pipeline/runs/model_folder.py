"""The self-contained folder: a backbone's weights, a head of any kind, and ``model.json``.

Written by ``export``, read by ``trained_head``. Like a run and its store it holds arrays and JSON;
nothing in it is executed.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pipeline import backbones, heads
from pipeline.backbones import frozen, weights
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.errors import PipelineError, RunError, WeightsUnavailableError
from pipeline.files import atomic
from pipeline.files.records import Kind, misfit, read_record, write_record

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

SCHEMA_VERSION: Final = 2
# Without digests.
_OLDER: Final = (1,)
RECORD: Final = "model.json"

_HEAD: Final = "head"
_ENCODER: Final = "encoder"
# The architecture of a network that is in no table; its weights are taken from the other file.
_NETWORK: Final = "network.keras"

# Where the record keeps the digests of files. The weights are named by theirs, and the head's
# record holds that of its arrays.
_DIGESTS: Final = "files"
_LISTED: Final = (f"{_HEAD}/{heads.RECORD}", f"{_ENCODER}/{_NETWORK}")

# No network has a thousandth of it.
_MAX_DIM: Final = 1 << 30

_FIELDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "head": str,
        "classes": list[str],
        "identity": dict,
        "dim": int,
        "average": list[str],
        "reject_below": (int, float),
    }
)
_IDENTITY_FIELDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "backbone": str,
        "weights_sha256": str,
        "image_size": int,
        "pooling": str,
        "preprocessing": str,
        "precision": str,
    }
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder holds.

    Attributes:
        backbone: Built when it is first needed.
        head: The fitted head.
        metadata: Class names, identity and more, as JSON values.
    """

    backbone: FrozenBackbone
    head: "Head"
    metadata: Mapping[str, Any]


def exists(path: Path) -> bool:
    """Tell whether a directory is such a folder."""
    return (path / RECORD).is_file()


def write(
    path: Path,
    loaded: FrozenBackbone,
    head: "Head",
    metadata: Mapping[str, Any],
    network_file: Path | None,
) -> None:
    """Write a folder.

    Args:
        path: Where; made here.
        loaded: The backbone.
        head: The fitted head.
        metadata: What ``model.json`` is to say, with ``schema_version``.
        network_file: The ``.keras`` file of a backbone that is in no table.

    Raises:
        RunError: The head cannot be saved.
    """
    path.mkdir()
    weights.save(path / _ENCODER / f"{loaded.weights_sha256}.h5", loaded.arrays())
    if network_file is not None:
        shutil.copyfile(network_file, path / _ENCODER / _NETWORK)
    not_saved = heads.save(head, path / _HEAD)
    if not_saved:
        raise RunError(
            f"Expected a head that can be saved. Received: {not_saved}",
            hint="Choose another --head.",
        )
    digests = {name: atomic.sha256_file(path / name) for name in _LISTED if (path / name).exists()}
    write_record(path / RECORD, {**metadata, _DIGESTS: digests}, version=SCHEMA_VERSION)


def read(path: Path) -> ModelFolder:
    """Read a folder; the backbone's weights are read, and checked, when it is first needed.

    Raises:
        RunError: It lacks something, or the head is damaged.
        StoreError: The record cannot be read, or is of another version.
    """
    metadata = (
        read_record(path / RECORD, kind="exported model", version=SCHEMA_VERSION, older=_OLDER)
        or {}
    )
    wrong = misfit(metadata, _FIELDS) or misfit(metadata["identity"], _IDENTITY_FIELDS)
    if wrong is None and _DIGESTS in metadata:
        wrong = misfit(metadata, {_DIGESTS: dict})
    if wrong is None and not 0 < metadata["dim"] <= _MAX_DIM:
        wrong = f"dim = {metadata['dim']}"
    if wrong is not None:
        raise RunError(
            f"Expected {str(path / RECORD)!r} to describe a model. Received: {wrong}.",
            hint="Export it again.",
        )
    for name in _LISTED:
        _require_as_written(path, name, metadata)
    head = heads.load(path / _HEAD)
    identity = metadata["identity"]
    network = path / _ENCODER / _NETWORK
    name = str(network) if network.is_file() else identity["backbone"]
    found = FrozenBackbone(
        # Keeps no converted copies: a shipped folder is only read, and its weights alone are used.
        lambda: _loaded(path, name, identity).model,
        name=name,
        image_size=identity["image_size"],
        pooling=identity["pooling"],
        dim=metadata["dim"],
        weights_sha256=identity["weights_sha256"],
    )
    return ModelFolder(found, head, metadata)


def check(path: Path) -> list[tuple[str, str]]:
    """Return the files of a folder that are bad, each with what is wrong."""
    try:
        found = read(path)
    except PipelineError as error:
        return [(RECORD, error.message)]
    saved = path / _ENCODER / f"{found.backbone.weights_sha256}.h5"
    try:
        weights.load(saved)
    except PipelineError as error:
        return [(f"{_ENCODER}/{saved.name}", error.message)]
    return []


def _require_as_written(path: Path, name: str, metadata: Mapping[str, Any]) -> None:
    """Refuse a file that is not the one that the record was written with.

    Raises:
        RunError: It is another, is gone, or was not there.
    """
    if _DIGESTS not in metadata:  # written by an older release
        return
    known = metadata[_DIGESTS].get(name)
    try:
        received = atomic.sha256_file(path / name)
    except FileNotFoundError:
        received = None
    except OSError as error:
        received = str(error.strerror)
    if received != known:
        raise RunError(
            f"Expected {str(path / name)!r} as it was exported. Received: another content, or "
            "none.",
            hint="Export it again.",
        )


def _loaded(path: Path, name: str, identity: Mapping[str, Any]) -> FrozenBackbone:
    """Build the network of a name or file, with the weights of the folder.

    Raises:
        WeightsUnavailableError: They are gone, damaged, or of another network.
    """
    saved = path / _ENCODER / f"{identity['weights_sha256']}.h5"
    is_file = name.endswith(_NETWORK)
    if is_file and backbones.find(name, identity["preprocessing"]).name != identity["backbone"]:
        raise WeightsUnavailableError(
            f"Expected the network {identity['backbone']} in {name!r}. Received: another.",
            hint="Export it again.",
        )
    loaded = frozen.load(
        name,
        weights="random",  # looked at in neither case: the values are those of the file
        seed=0,
        image_size=identity["image_size"],
        pooling=identity["pooling"],
        saved=None if is_file else saved,
        preprocessing=identity["preprocessing"] if is_file else None,
    )
    if is_file:
        frozen.assign(loaded.network, weights.load(saved))
    return loaded
