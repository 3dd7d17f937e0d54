"""Zip files."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ManifestError, UnreadableImageError


class ZipPack:
    """A zip file; ``zipfile`` reads from many threads, each member with its checksum."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        self.names: Sequence[str] = tuple(self.members)

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the bytes of a member; see ``Pack``."""
        info = self.members.get(name)
        if info is None:
            raise UnreadableImageError("cannot be read: not in the zip file")
        if info.file_size > limit:
            raise UnreadableImageError(f"too large: {info.file_size:,} bytes")
        try:
            return self._archive.read(info)
        except (EOFError, NotImplementedError, OSError, RuntimeError, ValueError,
                zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
            raise UnreadableImageError(f"cannot be read: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._archive.close()


def open_pack(path: Path) -> ZipPack:
    """Open a zip file.

    Raises:
        ManifestError: It is none, or cut short.
        OSError: It cannot be read.
    """
    try:
        return ZipPack(zipfile.ZipFile(path))
    except (NotImplementedError, ValueError, zipfile.BadZipFile) as error:
        raise ManifestError(
            f"Expected a zip file at {str(path)!r}. Received: {error}.",
            hint="Fetch or make it again: it may have been cut short.",
        ) from error
