"""The record of a run: what ``run.json`` must hold, and the digests in it of the run's files.

What is read is checked as a whole before anything of it is used.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Final

from pipeline.errors import RunError
from pipeline.files.atomic import sha256_file
from pipeline.files.records import Kind, misfit, read_record, write_record

SCHEMA_VERSION: Final = 3
RECORD: Final = "run.json"
# Where a record keeps the digests of files: of the run, and of each head. Two where the newer file
# may not have got its name yet.
DIGESTS: Final = "files"

# In a run of finetune: its record, the head on the changed network, and the folder of its weights.
FINETUNED: Final = "finetune"

# Without a digest.
_OLDER: Final = (2,)
# What readers of a record rely on; ``inputs`` are looked at by those who use them.
_FIELDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "inputs": dict,
        "classes": list[str],
        "split": dict,
        "root": str,
        "source": dict,
        "heads": dict,
        "best": (str, NoneType),
    }
)
_FINETUNED_FIELDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {"weights_sha256": str, "backbone_sha256": str}
)


def read(folder: Path) -> dict[str, Any]:
    """Read the record of a run.

    Raises:
        RunError: There is none, or it lacks something.
        StoreError: It cannot be read, is of another version, or is not as it was written.
    """
    record = read_record(folder / RECORD, kind="run", version=SCHEMA_VERSION, older=_OLDER)
    if record is None:
        raise RunError(
            f"There is no run at {str(folder)!r}.",
            hint="Make one with pipeline train-head --store STORE --run RUN.",
        )
    wrong = _misfit(record)
    if wrong is not None:
        raise RunError(
            f"Expected {str(folder / RECORD)!r} to describe a run. Received: {wrong}.",
            hint="Put it back as it was, or delete the run and make it again.",
        )
    return record


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run."""
    write_record(folder / RECORD, record, version=SCHEMA_VERSION)


def require_as_written(path: Path, known: Sequence[str] | None) -> None:
    """Refuse a file that is not as it was written.

    Args:
        path: The file.
        known: The digests that it may have; None where an older release took down none.

    Raises:
        RunError: It is gone, or changed.
    """
    if known is None:
        return
    try:
        received = sha256_file(path)
    except OSError as error:
        raise damaged(path, str(error.strerror)) from error
    if received not in known:
        raise damaged(path, "another content than its record tells")


def damaged(path: Path, received: str) -> RunError:
    """Return the error for a file of a run that is not as it was written."""
    return RunError(
        f"Expected {str(path)!r} as it was written. Received: {received}.",
        hint="Put it back from a copy, or use pipeline verify RUN --repair and train again.",
    )


def _misfit(record: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a run's record; None where it can be used."""
    wrong = misfit(record, _FIELDS)
    if wrong is None:
        wrong = misfit(record["heads"], dict.fromkeys(record["heads"], dict))
    # Until it ends, fine-tuning keeps notes there, and has no head.
    if wrong is None and FINETUNED in {*record, *record["heads"]}:
        wrong = misfit(record, {FINETUNED: dict})
    if wrong is None and FINETUNED in record["heads"]:
        wrong = misfit(record[FINETUNED], _FINETUNED_FIELDS)
    return wrong
