"""The self-contained folder: a backbone's weights, a head of any kind, and ``model.json``.

Like a run and its store it holds arrays and JSON; nothing in it is executed.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline import backbones, heads
from pipeline.backbones import forms, frozen, probe, weights
from pipeline.backbones.forms import KERAS
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.identity import Identity
from pipeline.errors import PipelineError, RunError, WeightsUnavailableError
from pipeline.files.records import read_record, write_record
from pipeline.files.regular import sha256_file
from pipeline.files.typed_record import MisfitError, Record, lenient

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

SCHEMA_VERSION: Final = 2
# Without digests.
_OLDER: Final = (1,)
RECORD: Final = "model.json"

_HEAD: Final = "head"
_ENCODER: Final = "encoder"
# The file of a network that is in no table. Of one in Keras' form the architecture alone counts;
# the weights are taken from the other file.
_NETWORKS: Final = tuple(f"network{form.suffix}" for form in forms.FORMS)

# The files whose digests the record holds. The weights are named by theirs, and the head's record
# holds that of its arrays.
_LISTED: Final = (
    f"{_HEAD}/{heads.RECORD}",
    *(f"{_ENCODER}/{name}" for name in (*_NETWORKS, probe.FILE)),
)

# No network has a thousandth of it.
_MAX_DIM: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ModelRecord(Record):
    """What an exported model says of itself, in every form.

    Attributes:
        schema_version: Version of these fields.
        pipeline: The release that wrote it.
        classes: Class names, in the order of class numbers.
        identity: How the features of its head are made, with the weights that are exported.
        resize: How an image of another shape becomes a square; part of the identity's decoder.
        input: What the model is given of an image, in a sentence.
        dim: Length of its features.
        head: Name of the head.
        head_sha256: Digest of the head's record in the run.
        temperature: What scores are divided by.
        average: Views that probabilities are averaged over.
        reject_below: Probability below which no answer is given.
        files: Digests of files in the folder; None in other forms and of older releases.
    """

    schema_version: int = field(metadata=lenient(SCHEMA_VERSION))
    pipeline: str | None = None
    classes: Sequence[str]
    identity: Identity
    resize: str | None = None
    input: str | None = None
    dim: int
    head: str
    head_sha256: str | None = None
    temperature: float | None = None
    average: Sequence[str]
    reject_below: float
    files: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder holds.

    Attributes:
        backbone: Built when it is first needed.
        head: The fitted head.
        record: What it says of itself.
    """

    backbone: FrozenBackbone
    head: "Head"
    record: ModelRecord


def exists(path: Path) -> bool:
    """Tell whether a directory is such a folder."""
    return (path / RECORD).is_file()


def write(
    path: Path,
    loaded: FrozenBackbone,
    head: "Head",
    record: ModelRecord,
    network_file: Path | None,
) -> None:
    """Write a folder.

    Args:
        path: Where; made here.
        loaded: The backbone.
        head: The fitted head.
        record: What ``model.json`` is to say, but for the digests of files.
        network_file: The file of a backbone that is in no table.

    Raises:
        RunError: The head cannot be saved.
    """
    path.mkdir()
    (path / _ENCODER).mkdir()
    if loaded.probe is not None:
        probe.keep(path / _ENCODER, loaded.probe)
    if loaded.form is KERAS:
        weights.save(path / _ENCODER / f"{loaded.weights_sha256}.h5", loaded.arrays())
    if network_file is not None:
        shutil.copyfile(network_file, path / _ENCODER / f"network{loaded.form.suffix}")
    not_saved = heads.save(head, path / _HEAD)
    if not_saved:
        raise RunError(
            f"Expected a head that can be saved. Received: {not_saved}",
            hint="Choose another --head.",
        )
    digests = {name: sha256_file(path / name) for name in _LISTED if (path / name).exists()}
    record = replace(record, files=digests)
    write_record(path / RECORD, record.as_json(), version=SCHEMA_VERSION)


def read(path: Path) -> ModelFolder:
    """Read a folder; the backbone's weights are read, and checked, when it is first needed.

    Raises:
        RunError: It lacks something, or the head is damaged.
        StoreError: The record cannot be read, or is of another version.
    """
    record = _read_record(path)
    for name in _LISTED:
        _require_as_written(path, name, record)
    head = heads.load(path / _HEAD)
    identity = record.identity
    networks = [path / _ENCODER / name for name in _NETWORKS]
    name = next((str(file) for file in networks if file.is_file()), identity.backbone)
    found = FrozenBackbone(
        # Keeps no converted copies: a shipped folder is only read, and its weights alone are used.
        lambda: _loaded(path, name, identity).built,
        name=name,
        image_size=identity.image_size,
        pooling=identity.pooling,
        dim=record.dim,
        weights_sha256=identity.weights_sha256,
        form=identity.form,
        # Folders of older releases have none.
        probe=probe.find(path / _ENCODER, identity, record.dim),
    )
    return ModelFolder(found, head, record)


def check(path: Path) -> list[tuple[str, str]]:
    """Return the files of a folder that are bad, each with what is wrong."""
    try:
        found = read(path)
    except PipelineError as error:
        return [(RECORD, error.message)]
    if found.backbone.form is not KERAS:
        return []
    saved = path / _ENCODER / f"{found.backbone.weights_sha256}.h5"
    try:
        weights.load(saved)
    except PipelineError as error:
        return [(f"{_ENCODER}/{saved.name}", error.message)]
    return []


def _read_record(path: Path) -> ModelRecord:
    """Read the record of a folder.

    Raises:
        RunError: It lacks something, or has a value that none can have.
        StoreError: It cannot be read, or is of another version.
    """
    said = read_record(path / RECORD, kind="exported model", version=SCHEMA_VERSION, older=_OLDER)
    try:
        record = ModelRecord.of(said or {})
        if not 0 < record.dim <= _MAX_DIM:
            raise MisfitError(f"dim = {record.dim}")
    except MisfitError as error:
        raise RunError(
            f"Expected {str(path / RECORD)!r} to describe a model. Received: {error}.",
            hint="Export it again.",
        ) from error
    return record


def _require_as_written(path: Path, name: str, record: ModelRecord) -> None:
    """Refuse a file that is not the one that the record was written with.

    Raises:
        RunError: It is another, is gone, or was not there.
    """
    if record.files is None:  # written by an older release
        return
    known = record.files.get(name)
    try:
        received = sha256_file(path / name)
    except FileNotFoundError:
        received = None
    except OSError as error:
        received = str(error.strerror)
    if received != known:
        raise RunError(
            f"Expected {str(path / name)!r} as it was exported. Received: other content, or none.",
            hint="Export it again.",
        )


def _loaded(path: Path, name: str, identity: Identity) -> FrozenBackbone:
    """Build the network of a name or file, with the weights of the folder.

    Raises:
        WeightsUnavailableError: They are gone, damaged, or of another network.
    """
    saved = path / _ENCODER / f"{identity.weights_sha256}.h5"
    is_file = name.endswith(_NETWORKS)
    preprocessing = identity.preprocessing if is_file else None
    if is_file and backbones.find(name, preprocessing, identity.output).name != identity.backbone:
        raise WeightsUnavailableError(
            f"Expected the network {identity.backbone} in {name!r}. Received: another.",
            hint="Export it again.",
        )
    loaded = frozen.load(
        name,
        weights="random",  # looked at in neither case: the values are those of the file
        seed=0,
        image_size=identity.image_size,
        pooling=identity.pooling,
        saved=None if is_file else saved,
        preprocessing=preprocessing,
        output=identity.output,
    )
    if is_file and loaded.form is KERAS:
        frozen.assign(loaded.network, weights.load(saved))
    return loaded
