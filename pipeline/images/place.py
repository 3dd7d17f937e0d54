"""Where the bytes of an image are: in a file, in a packed file, or at an address.

All that is known of an image is a root and a path. What stands at ``root/path`` may be a file, a
member of a packed file that is on the way there, or an object of a storage elsewhere.
"""

import os
from pathlib import Path

from pipeline.errors import ManifestError, UnreadableImageError
from pipeline.files import remote
from pipeline.files.atomic import UnfitFileError, read_regular
from pipeline.files.location import Location, Remote, is_address, join
from pipeline.files.state import FileState
from pipeline.images import packed


def name_of(root: Location, path: str) -> str:
    """Return what names an image, whatever the root it was listed under.

    Without a path it is the root itself.
    """
    if not path:
        return str(root)
    if isinstance(root, Remote) or is_address(path):
        return str(join(root, path))
    # A text, not a path: at a hundred thousand files the difference is a second.
    return os.path.join(root, path)  # noqa: PTH118


def state_of(root: Location, path: str) -> FileState | None:
    """Return the state of an image without opening it; None where it is gone.

    That of a member of a packed file is the state of that file.
    """
    name = name_of(root, path)
    if is_address(name):
        found = _pack_at(name)
        return remote.state(Remote(name) if found is None else found[0])
    try:
        return FileState.of(os.stat(name))  # noqa: PTH116
    except NotADirectoryError:
        inside = packed.split(name)
        return None if inside is None else packed.state_of(inside[0])
    except (OSError, ValueError):  # such as a name too long for the file system
        return None


def exists(root: Location, path: str) -> bool:
    """Tell whether there is a file, a member of a packed file or an object."""
    name = name_of(root, path)
    try:
        if is_address(name):
            found = _pack_at(name)
            if found is None:
                return remote.state(Remote(name)) is not None
            return found[1] in packed.opened(remote.local_copy(found[0])).members
        if Path(name).exists():
            return True
        inside = packed.split(name)
        return inside is not None and inside[1] in packed.opened(Path(inside[0])).members
    except (ManifestError, OSError, ValueError):
        return False


def read(root: Location, path: str, *, limit: int) -> tuple[bytes, FileState | None]:
    """Return the bytes of an image, and the state that they are of; None if it changed meanwhile.

    Raises:
        UnreadableImageError: There are none, or more than ``limit``; the message is the reason
            alone.
    """
    name = name_of(root, path)
    try:
        if is_address(name):
            return _read_remote(name, limit)
        return _read_local(name, limit)
    except UnfitFileError as error:
        raise UnreadableImageError(str(error.strerror)) from error
    except (ManifestError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImageError(f"cannot be read: {reason}") from error


def _read_local(name: str, limit: int) -> tuple[bytes, FileState | None]:
    path = Path(name)
    try:
        data, before = read_regular(path, limit=limit)
    except NotADirectoryError:
        inside = packed.split(name)
        if inside is None:
            raise
        return _member(Path(inside[0]), inside[1], limit)
    after = path.stat()
    unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(data))
    return data, FileState.of(after) if unchanged else None


def _member(pack: Path, name: str, limit: int) -> tuple[bytes, FileState | None]:
    before = FileState.of(pack.stat())
    data = packed.opened(pack).read(name, limit=limit)
    return data, before if packed.state_of(str(pack)) == before else None


def _read_remote(name: str, limit: int) -> tuple[bytes, FileState | None]:
    found = _pack_at(name)
    if found is None:
        return remote.read(Remote(name), limit=limit)
    pack, member = found
    before = remote.state(pack)
    data = packed.opened(remote.local_copy(pack)).read(member, limit=limit)
    return data, before


def _pack_at(name: str) -> tuple[Remote, str] | None:
    """Return the packed object in an address and the member's name; None where none is there."""
    start = name.index("://") + 3
    while (end := name.find("/", start)) >= 0:
        pack = Remote(name[:end])
        if packed.kind_of(name[:end]) and remote.state(pack) is not None:
            return pack, name[end + 1 :]
        start = end + 1
    return None
