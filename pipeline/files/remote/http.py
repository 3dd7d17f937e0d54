"""Objects of the web: one request gives the bytes and what proves that they are unchanged."""

import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pipeline.errors import StorageError
from pipeline.files.regular import UnfitFileError
from pipeline.files.state import UNPROVEN, FileState

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Result = TypeVar("Result")

SCHEMES: Final = frozenset({"http", "https"})
# Compressed on the way, an object would have another size.
_HEADERS: Final = {"Accept-Encoding": "identity"}
# What servers answer that know no HEAD, or allow none.
_NO_HEAD: Final = frozenset({400, 403, 405, 501})
_PIECE: Final = 1 << 20
_NS: Final = 1_000_000_000


def state(system: "AbstractFileSystem", url: str) -> FileState:
    """Return the state of an object."""

    async def ask() -> FileState:
        session = await system.set_session()
        asked = {"headers": _HEADERS, "allow_redirects": True}
        address = system.encode_url(url)
        async with session.head(address, **asked) as response:
            if response.status not in _NO_HEAD:
                response.raise_for_status()
                return _state(response.headers)
        async with session.get(address, **asked) as response:
            response.raise_for_status()
            return _state(response.headers)

    return _waited(system, ask)


def read(system: "AbstractFileSystem", url: str, limit: int) -> tuple[bytes, FileState]:
    """Return the bytes of an object, and the state that they are of.

    Raises:
        UnfitFileError: It has more bytes than ``limit``.
    """

    async def ask() -> tuple[bytes, FileState]:
        session = await system.set_session()
        async with session.get(system.encode_url(url), headers=_HEADERS) as response:
            response.raise_for_status()
            data = bytearray()
            async for piece in response.content.iter_chunked(_PIECE):
                data += piece
                if len(data) > limit:
                    raise UnfitFileError(27, f"too large: more than {limit:,} bytes", url)
            found = _state(response.headers)
            return bytes(data), found._replace(size=len(data))

    return _waited(system, ask)


def fetch(system: "AbstractFileSystem", url: str, target: Path) -> FileState:
    """Write an object into a file of this machine, in one go; return the state that it is of."""

    async def ask() -> FileState:
        session = await system.set_session()
        async with session.get(system.encode_url(url), headers=_HEADERS) as response:
            response.raise_for_status()
            with target.open("wb") as file:
                async for piece in response.content.iter_chunked(_PIECE):
                    file.write(piece)
            return _state(response.headers)

    return _waited(system, ask)


def has_ranges(system: "AbstractFileSystem", url: str) -> bool:
    """Tell whether the server gives parts of an object."""

    async def ask() -> bool:
        session = await system.set_session()
        asked = {**_HEADERS, "Range": "bytes=0-0"}
        async with session.get(system.encode_url(url), headers=asked) as response:
            return bool(response.status == 206)

    return _waited(system, ask)


def _waited(system: "AbstractFileSystem", ask: Callable[[], Awaitable[Result]]) -> Result:
    """Run on the thread of the file system what asks, and wait for it."""
    from fsspec.asyn import sync

    result: Result = sync(system.loop, ask)
    return result


def _state(headers: Mapping[str, str]) -> FileState:
    """Return the state that the headers of an answer tell.

    A strong ETag proves the bytes. A weak one does not, nor does a time in whole seconds: with
    these an object counts as unchanged once it is older, by the server's clock, than two seconds.
    """
    size = int(headers.get("Content-Length") or 0)
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    if etag and not etag.startswith("W/"):
        return FileState(f"etag:{etag}", 0, size)
    if not modified:
        return UNPROVEN._replace(size=size)
    try:
        changed = parsedate_to_datetime(modified).timestamp()
        now = parsedate_to_datetime(headers["Date"]).timestamp() if "Date" in headers else None
    except ValueError:
        return UNPROVEN._replace(size=size)
    age = (time.time() if now is None else now) - changed
    return FileState(f"{etag}:{modified}:{size}", time.time_ns() - int(age * _NS), size)


def refuse_listing(url: str) -> StorageError:
    """Return the error for a folder: index pages are made for people, and may leave things out."""
    return StorageError(
        f"Expected a file at {url!r}. Received: a folder of the web, which cannot be listed.",
        hint="Give a .csv with the addresses of the images, or a packed file such as a .zip.",
    )
