"""What is done with objects: listed, looked at, read, written and deleted.

Every function asks as often as ``retries`` allows. Any number of threads may call them.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import StorageError
from pipeline.files.location import Remote
from pipeline.files.regular import UnfitFileError
from pipeline.files.remote import http
from pipeline.files.remote.retries import request
from pipeline.files.remote.systems import scheme_of
from pipeline.files.state import UNPROVEN, FileState

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# The ETag of an object that S3 got in one piece, unless it is encrypted with a key of one's own.
_MD5: Final = re.compile(r"etag:([0-9a-f]{32}):\d+")


def can_list(place: Remote) -> bool:
    """Tell whether a storage knows folders; the web does not."""
    return scheme_of(place) not in http.SCHEMES


def listing(place: Remote) -> dict[str, FileState]:
    """Return every object below an address, by its path relative to it, sorted; empty of none.

    Raises:
        ConfigError: What speaks to such a storage is not installed.
        StorageError: There is no such bucket, or the storage refuses or cannot be reached.
    """
    if not can_list(place):
        raise http.refuse_listing(str(place))

    def find(system: "AbstractFileSystem", path: str) -> dict[str, FileState]:
        prefix = path.rstrip("/") + "/"
        found: dict[str, dict[str, Any]] = system.find(path, detail=True)
        names = sorted(name for name in found if name.startswith(prefix) and name != prefix)
        # Some tools make folders by empty objects whose names end in a slash.
        files = [name for name in names if name[-1] != "/"]
        return {name[len(prefix) :]: _state(found[name]) for name in files}

    try:
        return request(place, "listed", find)
    except FileNotFoundError:
        return {}


def directly_in(place: Remote) -> dict[str, FileState]:
    """Return the objects directly in a folder, by name; empty of none.

    Raises:
        ConfigError, StorageError: As for ``listing``.
    """

    def ask(system: "AbstractFileSystem", path: str) -> dict[str, FileState]:
        found: list[dict[str, Any]] = system.ls(path, detail=True)
        return {
            str(info["name"]).rpartition("/")[2]: _state(info)
            for info in found
            if info["type"] == "file"
        }

    try:
        return request(place, "listed", ask)
    except FileNotFoundError:
        return {}


def state(place: Remote) -> FileState | None:
    """Return the state of an object; None where there is none.

    Raises:
        ConfigError, StorageError: As for ``listing``.
    """

    def ask(system: "AbstractFileSystem", path: str) -> FileState | None:
        if not can_list(place):
            return http.state(system, path)
        info = system.info(path)
        return _state(info) if info["type"] == "file" else None

    try:
        return request(place, "looked at", ask)
    except FileNotFoundError:
        return None


def is_folder(place: Remote) -> bool:
    """Tell whether there are objects below an address.

    Raises:
        ConfigError, StorageError: As for ``listing``.
    """
    if not can_list(place):
        return False
    try:
        info = request(place, "looked at", lambda system, path: system.info(path))
    except FileNotFoundError:
        return False
    return bool(info["type"] == "directory")


def read(
    place: Remote, *, limit: int, known: FileState | None = None
) -> tuple[bytes, FileState | None]:
    """Return the bytes of an object, and the state that they are of; None if it changed meanwhile.

    One request where the state is known and the storage's ETag is a digest of the bytes, or on the
    web; else up to two more look at the state before and after.

    Args:
        place: The object.
        limit: Most bytes that it may have.
        known: Its state, as a listing told it.

    Raises:
        FileNotFoundError: There is no such object.
        UnfitFileError: It has more bytes.
        ConfigError, StorageError: As for ``listing``.
    """
    if not can_list(place):
        return request(place, "read", lambda system, path: http.read(system, path, limit))
    before = known if known is not None and known.is_proof else state(place)
    if before is None:
        raise FileNotFoundError(2, "there is no such object", str(place))
    if before.size > limit:
        raise UnfitFileError(27, f"too large: {before.size:,} bytes", str(place))
    data: bytes = request(place, "read", lambda system, path: system.cat_file(path))
    if _proves(before, data):
        return data, before
    after = state(place)
    if after is None or not (after.stamp == before.stamp or _proves(after, data)):
        return data, None
    return data, after if after.size == len(data) else None


def read_range(place: Remote, start: int, size: int) -> bytes:
    """Return some of the bytes of an object.

    Args:
        place: The object.
        start: The first one.
        size: How many; all of them are there.

    Raises:
        FileNotFoundError: There is no such object.
        ConfigError, StorageError: As for ``listing``; or it ends before.
    """

    def ask(system: "AbstractFileSystem", path: str) -> bytes:
        data: bytes = system.cat_file(path, start=start, end=start + size) if size else b""
        if len(data) != size:
            raise ConnectionError(f"{len(data)} of {size} bytes")
        return data

    return request(place, "read", ask)


def write(place: Remote, data: bytes) -> None:
    """Write an object, which is visible as a whole or not at all; one in its place is replaced.

    Raises:
        ConfigError, StorageError: As for ``listing``.
    """
    request(place, "written", lambda system, path: system.pipe_file(path, data))


def upload(place: Remote, path: Path) -> None:
    """Write a file of this machine as an object; see ``write``."""
    request(place, "written", lambda system, name: system.put_file(str(path), name))


def delete(place: Remote) -> None:
    """Delete an object; nothing happens where there is none.

    Raises:
        ConfigError, StorageError: As for ``listing``.
    """
    try:
        request(place, "deleted", lambda system, path: system.rm_file(path))
    except FileNotFoundError:
        return


def fetch(place: Remote, target: Path) -> FileState:
    """Write an object of the web into a file, in one go; return the state that it is of."""
    return request(place, "read", lambda system, path: http.fetch(system, path, target))


def has_ranges(place: Remote) -> bool:
    """Tell whether the storage gives parts of an object."""
    if can_list(place):
        return True
    return request(place, "read", lambda system, path: http.has_ranges(system, path))


def refused_folder(place: Remote) -> StorageError:
    """Return the error for a folder where none can be listed."""
    return http.refuse_listing(str(place))


def _proves(found: FileState, data: bytes) -> bool:
    """Tell whether an ETag is the digest of the bytes."""
    match = _MD5.fullmatch(found.stamp)
    return match is not None and (hashlib.md5(data, usedforsecurity=False).hexdigest() == match[1])


def _state(info: Mapping[str, Any]) -> FileState:
    """Return the state that a file system of fsspec tells."""
    size = int(info.get("size") or 0)
    etag = str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "").strip('"')
    if etag:
        return FileState(f"etag:{etag}:{size}", 0, size)
    names = ("LastModified", "last_modified", "mtime", "updated", "created")
    when = next((info[name] for name in names if info.get(name)), None)
    if when is None:
        return UNPROVEN._replace(size=size)
    if isinstance(when, datetime):
        moment = when if when.tzinfo else when.replace(tzinfo=UTC)
        changed = int(moment.timestamp() * 1e9)
    else:
        changed = int(float(when) * 1e9) if isinstance(when, int | float) else 0
    return FileState(f"{size}:{when}", changed or UNPROVEN.changed_ns, size)
