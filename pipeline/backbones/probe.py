"""The probe: what an encoder made of the eight probe images, kept to be compared with later.

``probe.json`` lies in a store, beside the weights of a fine-tuned network, and in an exported
folder. It is a record with a digest of its own. ``engines.probing`` makes and compares it.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones.identity import Identity
from pipeline.errors import StaleFeaturesError, StoreError
from pipeline.files.records import read_record, write_record
from pipeline.files.typed_record import MisfitError, Record, first_difference
from pipeline.images import probe_images

FILE: Final = "probe.json"

_SCHEMA_VERSION: Final = 1
_VALUE_BYTES: Final = 4
_HINT: Final = (
    "pipeline verify --repair drops it from a store or a run, and the next extract into the store "
    "makes another; export a folder again."
)


@dataclass(frozen=True, kw_only=True)
class ProbeRecord(Record):
    """What ``probe.json`` says.

    Attributes:
        identity: How the features are made.
        images_sha256: Digest of the files that were encoded.
        pixels: SHA-256 of what each was decoded to, by name.
        features: Of each image in turn, float32 ``(8, dim)``, little-endian, in base64.
        decoder: Versions of what decoded them, by name.
        network: Engine, device and versions of what ran the network, by name.
    """

    identity: Identity
    images_sha256: str
    pixels: Mapping[str, str]
    features: str
    decoder: Mapping[str, str]
    network: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Probe:
    """What an encoder made of the probe images.

    Attributes:
        identity: How the features are made.
        pixels: SHA-256 of what each image was decoded to, in the order of ``probe_images.NAMES``.
        features: float32 ``(8, dim)``.
        decoder: Versions of what decoded them, by name.
        network: Engine, device and versions of what ran the network, by name.
        folder: Where it is kept; None of one that was made now.
    """

    identity: Identity
    pixels: tuple[str, ...]
    features: NDArray[np.float32]
    decoder: Mapping[str, str]
    network: Mapping[str, str]
    folder: Path | None = None


def keep(folder: Path, probe: Probe) -> None:
    """Write a probe into a folder, atomically."""
    record = ProbeRecord(
        identity=probe.identity,
        images_sha256=probe_images.digest(),
        pixels=dict(zip(probe_images.NAMES, probe.pixels, strict=True)),
        features=base64.b64encode(probe.features.astype("<f4").tobytes()).decode(),
        decoder=probe.decoder,
        network=probe.network,
    )
    write_record(folder / FILE, record.as_json(), version=_SCHEMA_VERSION)


def find(folder: Path, identity: Identity, dim: int | None = None) -> Probe | None:
    """Return the probe that a folder keeps; None where there is none, or of other images.

    Args:
        folder: Where it lies.
        identity: How the features are made that it must be of.
        dim: Length of a feature row, where it is known.

    Raises:
        StaleFeaturesError: It is of other features.
        StoreError: It is damaged.
    """
    path = folder / FILE
    try:
        said = read_record(path, kind="probe", version=_SCHEMA_VERSION)
        record = None if said is None else ProbeRecord.of(said)
        if record is None or record.images_sha256 != probe_images.digest():
            return None
        _require_same(path, identity, record.identity)
        return _read(record, identity, dim, folder)
    except StaleFeaturesError:
        raise
    except StoreError as error:
        raise StoreError(error.message, hint=_HINT) from error
    except MisfitError as error:
        raise StoreError(
            f"Expected {str(path)!r} to hold a probe of the features beside it. Received: {error}.",
            hint=_HINT,
        ) from error


def _require_same(path: Path, expected: Identity, received: Identity) -> None:
    found = first_difference(expected.as_json(), received.as_json())
    if found is not None:
        raise StaleFeaturesError(
            f"Expected {str(path)!r} to be of features of {found.name} = {found.first!r}. "
            f"Received: {found.second!r}.",
            hint=_HINT,
        )


def _read(record: ProbeRecord, identity: Identity, dim: int | None, folder: Path) -> Probe:
    """Return the probe of a record.

    Raises:
        MisfitError: It lacks images or features.
    """
    if tuple(sorted(record.pixels)) != probe_images.NAMES:
        raise MisfitError(f"pixels of {', '.join(record.pixels) or 'no image'}")
    try:
        data = base64.b64decode(record.features, validate=True)
    except ValueError as error:
        raise MisfitError(f"features: {error}") from error
    found, rest = divmod(len(data), _VALUE_BYTES * len(probe_images.NAMES))
    if rest or not found or found != (dim or found):
        raise MisfitError(f"{len(data):,} bytes of features")
    return Probe(
        identity=identity,
        pixels=tuple(record.pixels[name] for name in probe_images.NAMES),
        features=np.frombuffer(data, "<f4").reshape(-1, found).astype(np.float32),
        decoder=record.decoder,
        network=record.network,
        folder=folder,
    )
