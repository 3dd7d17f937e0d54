"""Where the bytes of an image are: in a file, in a packed file, or at an address.

All that is known of an image is a root and a path. What stands at ``root/path`` may be a file, a
member of a packed file that is on the way there, or an object of a storage elsewhere.
"""

import errno
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from pipeline.errors import ManifestError, StorageError, UnreadableImageError
from pipeline.files import remote
from pipeline.files.location import Location, Remote, is_address, join
from pipeline.files.regular import UnfitFileError, read_regular
from pipeline.files.state import FileState
from pipeline.images import packed
from pipeline.images.packed.kinds import ChangedPackError, Pack

Result = TypeVar("Result")

# Of a packed file whose copy other processes delete, to make room for theirs.
_TRIES: Final = 5


def name_of(root: Location, path: str) -> str:
    """Return what names an image, whatever the root it was listed under.

    Without a path it is the root itself.
    """
    if not path:
        return str(root)
    if isinstance(root, Remote) or is_address(path):
        if ("?" in path or "#" in path) and not is_address(path) and packed.kind_of(root.name):
            return f"{root}/{path}"  # of a member, in whose name these begin no query
        return str(join(root, path))
    # Texts, not paths: at a million files the difference is ten seconds.
    text = str(root)
    if path.startswith("/") or text.endswith("/"):
        return os.path.join(text, path)  # noqa: PTH118
    return f"{text}/{path}"


def names_of(root: Location, paths: Sequence[str]) -> list[str]:
    """Return what ``name_of`` does of each of many paths."""
    start = f"{root}/"
    if isinstance(root, Remote) or start.endswith("//") or any(_is_whole(path) for path in paths):
        return [name_of(root, path) for path in paths]
    return [start + path for path in paths]


def _is_whole(path: str) -> bool:
    return not path or path[0] == "/" or "://" in path


def look_up(root: Location, paths: Iterable[str]) -> bool:
    """Ask for the states of images at addresses together, of which ``state_of`` then knows.

    Returns:
        Whether there are any.

    Raises:
        ConfigError: What speaks to a storage is not installed.
        StorageError: A storage is out of reach.
    """
    names = (name_of(root, path) for path in paths if isinstance(root, Remote) or is_address(path))
    places = [Remote(name) for name in names if not _has_pack(name)]
    remote.look_up(places)
    return bool(places)


@contextmanager
def looked_up(root: Location, paths: Iterable[str]) -> Iterator[bool]:
    """Know the states of images at addresses as long as the context lasts; see ``look_up``."""
    try:
        yield look_up(root, paths)
    finally:
        remote.forget_listed()


def is_waited_for(root: Location, paths: Sequence[str]) -> bool:
    """Tell whether images are objects of their own at addresses: reading them is mostly waiting."""
    name = name_of(root, paths[0]) if paths else str(root)
    return any(is_address(path) for path in paths) or (is_address(name) and not _has_pack(name))


def state_of(root: Location, path: str) -> FileState | None:
    """Return the state of an image without opening it; None where it is gone.

    That of a member of a packed file is the state of that file.

    Raises:
        StorageError: A storage refuses, or cannot be reached.
    """
    name = name_of(root, path)
    if is_address(name):
        found = _pack_at(name)
        return remote.state_of(Remote(name)) if found is None else remote.current(found[0])
    try:
        return FileState.of(os.stat(name))  # noqa: PTH116
    except NotADirectoryError:
        inside = packed.split(name)
        return None if inside is None else packed.state_of(inside[0])
    except (OSError, ValueError):  # such as a name too long for the file system
        return None


def exists(root: Location, path: str) -> bool:
    """Tell whether there is a file, a member of a packed file or an object.

    Raises:
        StorageError: A storage refuses, or cannot be reached.
    """
    name = name_of(root, path)
    try:
        if is_address(name):
            found = _pack_at(name)
            if found is None:
                return remote.state_of(Remote(name)) is not None
            return found[1] in pack_of(found[0]).members
        inside = packed.split(name)
        if inside is None:
            return os.path.exists(name)  # noqa: PTH110
        return inside[1] in packed.opened(inside[0]).members
    except (ManifestError, OSError, ValueError):
        return False


def is_relative_to(root: Location, path: str) -> bool:
    """Tell whether the path of an image is relative to a root: whether the image is there.

    One at an address is there, or not, whatever the others are relative to.
    """
    return bool(path) and not is_address(path) and exists(root, path)


def is_file(root: Location, path: str) -> bool:
    """Tell what is named on this machine, in no packed file; whether it is there is not asked."""
    name = name_of(root, path)
    return not is_address(name) and packed.split(name) is None


def may_hold_images(root: Location) -> bool:
    """Tell whether a place is a folder or a packed file; on the web it may be, whatever it is.

    Raises:
        StorageError: A storage refuses, or cannot be reached.
    """
    if isinstance(root, Path):
        return root.is_dir() or (packed.kind_of(root.name) is not None and root.is_file())
    if packed.kind_of(root.name):
        return remote.current(root) is not None
    return not remote.can_list(root) or remote.is_folder(root)


def pack_of(place: Location) -> Pack:
    """Return a packed file, open; see ``opened``."""
    return opened(place)[0]


def opened(place: Location) -> tuple[Pack, FileState]:
    """Return a packed file, open, and its state; at an address, its copy and the object's state.

    Raises:
        ManifestError: It is damaged, or of another kind than its name says.
        OSError: It cannot be read, or there is none.
        StorageError: A storage refuses, or cannot be reached.
    """
    if isinstance(place, Remote):
        return _from_copy(place, lambda copy: packed.opened(copy.path))
    pack = packed.opened(place)
    return pack, pack.state


def texts(
    place: Remote, listed: FileState, suffixes: Collection[str], *, limit: int
) -> Iterator[tuple[str, bytes]]:
    """Yield what ``Pack.texts`` does of a packed file at an address.

    Its copy is fetched again where it had to give way after the file was listed, and stays open
    while it is read.

    Args:
        place: The file.
        listed: The state in which it was listed.
        suffixes: What the names of the members end in.
        limit: Most bytes that one may have.

    Raises:
        ChangedPackError: It is in another state.
        ManifestError, OSError, StorageError: As for ``opened``.
    """

    def begun(copy: remote.Copy) -> Iterator[tuple[str, bytes]]:
        if copy.state.stamp != listed.stamp:
            raise ChangedPackError
        found = packed.opened(copy.path).texts(suffixes, limit=limit)
        first = next(found, None)  # from here on the copy is open
        return iter(()) if first is None else itertools.chain([first], found)

    return _from_copy(place, begun, listed)[0]


def forward_only(root: Location, paths: Iterable[str]) -> list[str]:
    """Return the packed files on this machine that are read from front to back alone, sorted."""
    whole = packed.outer(f"{root}/")
    inner = {packed.outer(path) for path in paths} if whole is None else {""}
    found = []
    for name in sorted({whole or name_of(root, pack) for pack in inner if pack is not None}):
        with suppress(ManifestError, OSError):
            if not is_address(name) and Path(name).is_file() and packed.opened(name).is_forward:
                found.append(name)
    return found


def read(
    root: Location, path: str, *, limit: int, known: FileState | None = None
) -> tuple[bytes, FileState | None]:
    """Return the bytes of an image, and the state that they are of; None if it changed meanwhile.

    Args:
        root: What the path is relative to.
        path: The image.
        limit: Most bytes that it may have.
        known: Its state as it was listed, which spares a question; that of a packed file has to be
            the same still, since what is labelled as the image may be another one by now.

    Raises:
        UnreadableImageError: There are none, or more than ``limit``; the message is the reason
            alone.
        StorageError: The storage is out of reach altogether: that is no fault of an image.
    """
    name = name_of(root, path)
    try:
        if is_address(name):
            return _read_remote(name, limit, known)
        return _read_local(name, limit, known)
    except UnfitFileError as error:
        raise UnreadableImageError(str(error.strerror)) from error
    except (ManifestError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImageError(f"cannot be read: {reason}") from error
    except StorageError as error:
        if error.is_lost:
            raise
        raise UnreadableImageError(f"cannot be read: {error.reason}") from error


def _read_local(name: str, limit: int, known: FileState | None) -> tuple[bytes, FileState | None]:
    inside = packed.split(name)
    if inside is not None:
        return packed.read(*inside, limit=limit, known=known)
    data, before = read_regular(name, limit=limit)
    after = os.stat(name)  # noqa: PTH116
    unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(data))
    return data, FileState.of(after) if unchanged else None


def _read_remote(name: str, limit: int, known: FileState | None) -> tuple[bytes, FileState | None]:
    found = _pack_at(name)
    if found is None:
        return remote.read(Remote(name), limit=limit, known=known)
    pack, member = found

    def use(copy: remote.Copy) -> bytes:
        if known is not None:
            packed.require_listed(copy.state, known)
        return packed.read(copy.path, member, limit=limit)[0]

    return _from_copy(pack, use, known)


def _from_copy(
    place: Remote, use: Callable[[remote.Copy], Result], listed: FileState | None = None
) -> tuple[Result, FileState]:
    """Do something with the copy of a packed file at an address; return the state that it is of.

    That is the state in which it was listed, as long as there is such a copy.
    """
    for _ in range(_TRIES):
        copy = remote.copied(place, listed)
        try:
            return use(copy), copy.state
        except ManifestError as error:
            message = error.message.replace(str(copy.path), str(place))
            raise type(error)(message, hint=error.hint) from error
        except (OSError, UnreadableImageError):
            if copy.path.exists():
                raise
            # Another process needed the room.
    raise FileNotFoundError(
        errno.ENOENT, "its copy on this machine is deleted at once: the cache is too small",
        str(place),
    )  # fmt: skip


def _has_pack(name: str) -> bool:
    """Tell whether the name of a packed file is on the way to an image."""
    return any(True for _ in _packs_on(name))


def _pack_at(name: str) -> tuple[Remote, str] | None:
    """Return the packed object in an address and the member's name; None where none is there."""
    for pack in _packs_on(name):
        if remote.current(pack) is not None:
            return pack, name[len(pack.url) + 1 :]
    return None


def _packs_on(name: str) -> Iterator[Remote]:
    """Yield what may be packed objects on the way to an image, by their names, the outer first."""
    start = name.index("://") + 3
    while (end := name.find("/", start)) >= 0:
        pack = Remote(name[:end])
        if packed.kind_of(pack.name):
            yield pack
        start = end + 1
