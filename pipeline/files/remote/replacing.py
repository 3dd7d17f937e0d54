"""Objects that are replaced only as long as they are those that were read.

An object storage has no locks. What it has is a condition on a put: it succeeds where the object is
still in a known state, and fails otherwise.
"""

from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError
from pipeline.files.location import Remote
from pipeline.files.remote import objects
from pipeline.files.remote.retries import request
from pipeline.files.remote.systems import scheme_of
from pipeline.files.state import FileState

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Storages where an object appears whole, by what they promise.
WHOLE: Final = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "s3", "s3a"})
# Those that compare and put in one step; elsewhere a moment lies between the two.
_CONDITIONAL: Final = frozenset({"s3", "s3a"})
# What S3 says where a condition does not hold, or another put is under way.
_UNMET: Final = frozenset({"ConditionalRequestConflict", "PreconditionFailed"})
# What storages say that speak S3 without conditions.
_UNKNOWN: Final = "NotImplemented"


class ChangedError(Exception):
    """An object is no longer the one that was to be replaced."""


def require_whole(place: Remote) -> None:
    """Refuse a storage that may show half of an object, or cannot be written to.

    Raises:
        ConfigError: With what can be used instead.
    """
    if scheme_of(place) not in WHOLE:
        raise ConfigError(
            "Expected a folder, or an address of a storage that takes objects whole "
            f"({', '.join(sorted(WHOLE))}). Received: {str(place)!r}.",
            hint="Keep the store there, or in a folder of this machine.",
        )


def replace(place: Remote, data: bytes, *, before: FileState | None) -> FileState:
    """Write an object in the place of one whose state is known, and of no other.

    Args:
        place: Where.
        data: Its bytes.
        before: The state of the object that is to be replaced; None where there is to be none.

    Returns:
        The state of the new one.

    Raises:
        ChangedError: What is there is another, or none.
        ConfigError, StorageError: As for ``objects.listing``.
    """
    if not _is_unchanged(place, before):
        raise ChangedError
    if scheme_of(place) in _CONDITIONAL:
        found = request(place, "written", lambda system, path: _put(system, path, data, before))
        if found is not None:
            return found
    else:
        objects.write(place, data)
    # A put that was answered by an error, and so repeated, finds what it wrote itself.
    try:
        present, state = objects.read(place, limit=len(data))
    except OSError as error:
        raise ChangedError from error
    if present != data or state is None:
        raise ChangedError
    return state


def _put(
    system: "AbstractFileSystem", path: str, data: bytes, before: FileState | None
) -> FileState | None:
    """Put an object of S3; return its state, None where the condition does not hold."""
    try:
        answer: dict[str, Any] = system.pipe_file(path, data, **_condition(before))
    except OSError as error:
        said = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
        if isinstance(error, FileExistsError) or said in _UNMET:
            return None
        if said != _UNKNOWN:
            raise
        # A storage without conditions: it was compared a moment ago.
        answer = system.pipe_file(path, data)
    etag = answer["ETag"].strip('"')
    return FileState(f"etag:{etag}:{len(data)}", 0, len(data))


def _condition(before: FileState | None) -> dict[str, str]:
    if before is None:
        return {"mode": "create"}
    return {"IfMatch": f'"{before.stamp.removeprefix("etag:").rpartition(":")[0]}"'}


def _is_unchanged(place: Remote, before: FileState | None) -> bool:
    found = objects.state(place)
    return (found and found.stamp) == (before and before.stamp)
