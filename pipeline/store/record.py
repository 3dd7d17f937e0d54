"""The record of a store: what ``store.json`` must hold, with the type of every field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pipeline.backbones.identity import Identity
from pipeline.errors import StoreError
from pipeline.files import places
from pipeline.files.location import Location
from pipeline.files.records import VERSION, read_record, write_record
from pipeline.files.typed_record import MisfitError, Record, lenient
from pipeline.store.storage import Storage
from pipeline.system.provenance import provenance

SCHEMA_VERSION: Final = 2
RECORD: Final = "store.json"

# Without a digest.
_OLDER: Final = (1,)


@dataclass(frozen=True, kw_only=True)
class WrittenManifest(Record):
    """A manifest that extract wrote.

    Attributes:
        root: What its paths are relative to.
        nearby_root: The same, from the store.
        nearby: Where the manifest is, from the store.
        sha256: The digests that it may have; the newest first.
    """

    root: str
    nearby_root: str | None = None
    nearby: str | None = None
    sha256: Sequence[str] = field(metadata=lenient(()))


@dataclass(frozen=True, kw_only=True)
class StoreProvenance(Record):
    """Where and with what the features were made; recorded and never compared.

    Attributes:
        weights: The option that the weights were asked for with.
        seed: The seed of weights that are drawn.
        engine: What ran the network.
        device: What it ran on.
        images_per_second: How fast that was; None where it was not measured.
        bottleneck: What bounded that rate, and what would raise it; None where it was not measured.
    """

    weights: str | None = None
    seed: int | None = None
    engine: str | None = None
    device: str | None = None
    images_per_second: float | None = None
    bottleneck: Mapping[str, object] | None = None

    @classmethod
    def made_here(
        cls,
        *,
        weights: str,
        seed: int,
        engine: str,
        device: str,
        images_per_second: float | None,
        bottleneck: Mapping[str, object] | None,
    ) -> "StoreProvenance":
        """Return what is said of features that this process made."""
        made = cls(
            weights=weights,
            seed=seed,
            engine=engine,
            device=device,
            images_per_second=images_per_second,
            bottleneck=bottleneck,
            other=provenance(),
        )
        own = ("weights", "seed", "engine", "device", "images_per_second", "bottleneck")
        return replace(made, order=(*made.other, *own))


@dataclass(frozen=True, kw_only=True)
class StoreRecord(Record):
    """What ``store.json`` says of a store.

    Attributes:
        identity: How the features were made.
        dim: Length of a feature row.
        root: Where the images were last.
        nearby_root: The same, from the store.
        manifests: What extract wrote, by name within the store or by full path.
        views: The rules of the views that it holds, by name.
        weights: Digests of weights by the text that stands for where they come from.
        provenance: Where and with what the features were made.
        unproven: Set in records of releases that could write rows of other images after an
            interrupt, until every row was encoded again and found right.
        features_sha256: The digests that ``features.h5`` may have; the newest first.
        unlabelled: Folders of the last DATA whose images ``--unlabelled`` says have no label.
    """

    identity: Identity
    dim: int
    root: str
    nearby_root: str | None = None
    manifests: Mapping[str, WrittenManifest]
    views: Mapping[str, str] = field(metadata=lenient({}))
    weights: Mapping[str, str]
    provenance: StoreProvenance
    unproven: bool | None = None
    features_sha256: Sequence[str] | None = None
    unlabelled: Sequence[str] | None = None

    @classmethod
    def empty(
        cls, identity: Identity, *, dim: int, root: Location, store: Location
    ) -> "StoreRecord":
        """Return the record of a store without features."""
        record = cls(
            identity=identity,
            dim=dim,
            root="",
            manifests={},
            views={},
            weights={},
            provenance=StoreProvenance(),
        )
        return record.with_root(root, store)

    def with_root(self, root: Location, store: Location) -> "StoreRecord":
        """Return this record with another place of the images."""
        nearby = places.nearby(root, store)
        return replace(self, root=places.absolute(root), nearby_root=nearby)

    def with_weights(self, token: str, digest: str) -> "StoreRecord":
        """Return this record with the digest that one more text stands for."""
        return replace(self, weights={**self.weights, token: digest})


def read(folder: Path, place: Location) -> StoreRecord:
    """Read the record of a store.

    Args:
        folder: Where it is on this machine.
        place: What users call it.

    Raises:
        StoreError: There is none, it lacks something, cannot be read, is of another version, or
            is not as it was written.
    """
    said = read_record(folder / RECORD, kind="feature store", version=SCHEMA_VERSION, older=_OLDER)
    if said is None:
        raise StoreError(
            f"There is no feature store at {str(place)!r}.",
            hint="Make one with pipeline extract DATA --store DIR.",
        )
    try:
        record = StoreRecord.of(said)
    except MisfitError as error:
        raise StoreError(
            f"Expected {str(folder / RECORD)!r} to describe a store. Received: {error}.",
            hint="Put it back as it was, or extract into another --store.",
        ) from error
    return record if said[VERSION] == SCHEMA_VERSION else replace(record, unproven=True)


def write(record: StoreRecord, storage: Storage) -> None:
    """Write the record of a store."""
    path = storage.folder / RECORD
    write_record(path, record.as_json(), version=SCHEMA_VERSION, put=storage.put)
