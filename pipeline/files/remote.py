"""Objects at addresses (``s3://``, ``gs://``, ``http://``), read through fsspec.

Credentials come from the environment alone, as the storage's own tools take them, and appear in no
message, record or file.
"""

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, ManifestError
from pipeline.files.location import Remote
from pipeline.files.state import FileState

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def listing(place: Remote) -> dict[str, FileState]:
    """Return every object below an address, by its path relative to it, sorted.

    Raises:
        ConfigError: What speaks to such a storage is not installed.
        ManifestError: There is nothing, or the storage refuses.
    """
    system, path = _resolved(place)
    prefix = path.rstrip("/") + "/"
    try:
        found: dict[str, dict[str, Any]] = system.find(path, detail=True)
    except OSError as error:
        raise ManifestError(f"{str(place)!r} cannot be listed: {error}.") from error
    return {
        name.removeprefix(prefix): _state(info)
        for name, info in sorted(found.items())
        if name.startswith(prefix)
    }


def state(place: Remote) -> FileState | None:
    """Return the state of an object; None where there is none."""
    system, path = _resolved(place)
    try:
        info = system.info(path)
    except FileNotFoundError:
        return None
    return _state(info) if info["type"] == "file" else None


def read(place: Remote, *, limit: int) -> tuple[bytes, FileState]:
    """Return the bytes of an object, and the state that they are of.

    Raises:
        OSError: There is none, or the storage refuses; or it has more bytes than ``limit``.
    """
    system, path = _resolved(place)
    found = _state(system.info(path))
    if found.size > limit:
        raise OSError(f"too large: {found.size:,} bytes")
    return system.cat_file(path), found


def local_copy(place: Remote) -> Path:
    """Return a copy of an object on this machine's disk, fetched if there is none of its state.

    Raises:
        OSError: There is no object, or the storage refuses.
    """
    system, path = _resolved(place)
    found = _state(system.info(path))
    folder = _copies() / f"{abs(hash((place.url, found.stamp))):x}"
    copy = folder / place.name
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        system.get_file(path, str(copy))
    return copy


@lru_cache(maxsize=1)
def _copies() -> Path:
    return Path(tempfile.mkdtemp(prefix="pipeline-"))


def _resolved(place: Remote) -> tuple["AbstractFileSystem", str]:
    """Return the file system of an address, and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise ConfigError(
            f"{str(place)!r} needs fsspec.", hint="pip install 'embedding-pipeline[remote]'"
        ) from error
    try:
        system, path = fsspec.core.url_to_fs(place.url)
    except ImportError as error:
        raise ConfigError(
            f"{str(place)!r} needs another library: {error}.",
            hint="pip install 'embedding-pipeline[remote]'",
        ) from error
    return system, path


def _state(info: dict[str, Any]) -> FileState:
    size = int(info.get("size") or 0)
    etag = info.get("ETag") or info.get("etag")
    when = info.get("LastModified") or info.get("mtime") or info.get("created")
    return FileState(f"etag:{etag}" if etag else f"{size}:{when}", 0, size)
