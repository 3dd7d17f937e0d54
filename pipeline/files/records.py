"""Records: JSON files that hold the digest of what they say, so that no byte changes unseen.

``store.json``, ``run.json``, ``head.json`` and ``model.json``. A record also holds the digests of
the files below it: whoever trusts the record can trust them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pipeline.errors import StoreError
from pipeline.files.atomic import Put, write_json
from pipeline.files.regular import read_regular

# The field that holds the digest of all others.
DIGEST: Final = "record_sha256"
VERSION: Final = "schema_version"
# Records of a thousand classes and a hundred heads are a fifth of this.
MAX_BYTES: Final = 256 << 20


def write_record(
    path: Path, record: Mapping[str, object], *, version: int, put: Put | None = None
) -> None:
    """Write a record with its schema version and its digest, atomically.

    Args:
        path: The file.
        record: What it says, as JSON values; NaN is refused.
        version: Schema version of its kind.
        put: Gives the finished file its name; by default it is renamed.
    """
    # First, so that a record has one order whether it was read before or not.
    said = {VERSION: version, **record}
    said[VERSION] = version
    said.pop(DIGEST, None)
    write_json(path, {**said, DIGEST: digest_of(said)}, put)


def read_record(
    path: Path, *, kind: str, version: int, older: Sequence[int] = ()
) -> dict[str, object] | None:
    """Read a record, without its digest; None where there is none.

    Args:
        path: The file.
        kind: What it is the record of, for messages.
        version: Schema version; such a record must have the right digest.
        older: Versions without a digest that are read as well.

    Raises:
        StoreError: It cannot be read, is of another version, or is not as it was written.
    """
    try:
        record = json.loads(read_regular(path, limit=MAX_BYTES)[0])
        said = record.pop(DIGEST, None) if isinstance(record, dict) else None
        is_as_written = said is None or said == digest_of(record)
    except (FileNotFoundError, NotADirectoryError):  # a place that is a file holds none
        return None
    except (OSError, ValueError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreError(f"{path} cannot be read: {cause}.", hint=_hint(kind)) from error
    if not is_as_written:
        raise _changed(path, kind, f"another digest than {DIGEST} says")
    found = record.get(VERSION) if isinstance(record, dict) else None
    if found not in (version, *older):
        raise StoreError(
            f"Expected a {kind} of schema version {version} at {str(path.parent)!r}. "
            f"Received: version {found!r}.",
            hint="Use the release of pipeline that wrote it, or make it anew.",
        )
    if said is None and found == version:
        raise _changed(path, kind, f"no {DIGEST}")
    return dict(record)


def digest_of(record: object) -> str:
    """Return the SHA-256 of a record's one canonical JSON text, as it will be read again."""
    # Sorted, so by its keys as texts: a key that is a number becomes one when it is written.
    plain = json.loads(json.dumps(record, allow_nan=False))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _changed(path: Path, kind: str, received: str) -> StoreError:
    return StoreError(
        f"Expected {str(path)!r} as it was written. Received: {received}: it is damaged, or was "
        "changed by hand.",
        hint=_hint(kind),
    )


def _hint(kind: str) -> str:
    return f"Put it back from a copy, or remove it all and make the {kind} anew."


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value (sorted keys, no spaces), for digests and equality."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
