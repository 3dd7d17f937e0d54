"""The folders on this machine that stand for stores at addresses, and how much they may take.

They lie in the user's cache folder, and may be deleted at any time. Shards of all of them share the
budget of copies (``PIPELINE_CACHE_GB``), and a tenth of the disk stays free.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pipeline.files import remote
from pipeline.files.location import Remote
from pipeline.store.storage import SHARD_SUFFIX

_STAYS_FREE: Final = 0.1
_DIGITS: Final = 16
# In the folder of all copies.
_FOLDER: Final = "stores"
# Below it, where shards of working copies are; stores of the user have other names.
_COPY: Final = f"*-{'[0-9a-f]' * _DIGITS}"
_SHARDS: Final = (f"{_COPY}/shards/*{SHARD_SUFFIX}", f"{_COPY}/views/*/*{SHARD_SUFFIX}")


def folder_of(place: Remote) -> Path:
    """Return the working copy of the store at an address, which may not be there yet."""
    digest = hashlib.sha256(place.url.encode()).hexdigest()[:_DIGITS]
    return remote.folder() / _FOLDER / f"{place.name}-{digest}"


@dataclass(slots=True)
class Room:
    """The room for shards of one store.

    Attributes:
        bytes: What they may take in addition, where those of other stores give way.
    """

    bytes: int
    _excess: int
    _others: list[tuple[float, int, Path]]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Look at all working copies.

        Args:
            folder: The working copy of the store.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own, others = 0, []
        for path in (found for form in _SHARDS for found in folder.parent.glob(form)):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process makes room
                continue
            if path.is_relative_to(folder):
                own += status.st_size
            else:
                others.append((status.st_mtime, status.st_size, path))
        disk = shutil.disk_usage(folder)
        total = sum(size for _, size, _ in others)
        left = min(remote.budget() - own, int(disk.free - _STAYS_FREE * disk.total) + total)
        return cls(left, total - left, sorted(others))

    def take(self, size: int) -> bool:
        """Make room for a shard, by those of other stores that were fetched first.

        Returns:
            Whether there is room; nothing is deleted otherwise.
        """
        if size > self.bytes:
            return False
        self.bytes -= size
        self._excess += size
        while self._excess > 0 and self._others:
            _, freed, path = self._others.pop(0)
            path.unlink(missing_ok=True)
            self._excess -= freed
        return True
