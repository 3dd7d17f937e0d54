"""The record of a store: what ``store.json`` must hold."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pipeline.errors import StoreError
from pipeline.files.records import VERSION, Kind, misfit, read_record, write_record

SCHEMA_VERSION: Final = 2
RECORD: Final = "store.json"

# Set in records of releases that could write rows of other images after an interrupt, until every
# row was encoded again and found right.
UNPROVEN: Final = "unproven"

# Without a digest.
_OLDER: Final = (1,)
_FIELDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "identity": dict,
        "dim": int,
        "root": str,
        "manifests": dict,
        "weights": dict,
        "provenance": dict,
    }
)


def read(folder: Path) -> dict[str, Any]:
    """Read the record of a store.

    Raises:
        StoreError: There is none, it lacks something, cannot be read, is of another version, or
            is not as it was written.
    """
    record = read_record(
        folder / RECORD, kind="feature store", version=SCHEMA_VERSION, older=_OLDER
    )
    if record is None:
        raise StoreError(
            f"There is no feature store at {str(folder)!r}.",
            hint="Make one with pipeline extract DATA --store DIR.",
        )
    wrong = misfit(record, _FIELDS)
    if wrong is None and "views" in record:
        wrong = misfit(record, {"views": dict})
    if wrong is not None:
        raise StoreError(
            f"Expected {str(folder / RECORD)!r} to describe a store. Received: {wrong}.",
            hint="Put it back as it was, or extract into another --store.",
        )
    return record if record[VERSION] == SCHEMA_VERSION else {**record, UNPROVEN: True}


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a store."""
    write_record(folder / RECORD, record, version=SCHEMA_VERSION)
