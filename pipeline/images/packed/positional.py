"""Reading at a place of an open file, which any number of threads may do at once."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from pipeline.errors import UnreadableImageError
from pipeline.files.state import FileState
from pipeline.images.packed.kinds import ChangedPackError
from pipeline.images.packed.members import Members


class PositionalPack(ABC):
    """A packed file whose members are read at their places; see ``Pack``.

    No descriptor stays open, so there is nothing that forks could share.
    """

    is_forward = False
    kind: ClassVar[str]

    def __init__(self, path: Path, state: FileState, members: Members) -> None:
        """Describe the file.

        Args:
            path: The file.
            state: Its state as its members were listed.
            members: Their names, by number.
        """
        self.path, self.state, self.members = path, state, members

    @property
    def names(self) -> list[str]:
        """See ``Pack``."""
        return self.members.names

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the bytes of a member; see ``Pack``."""
        first, *others = self.members.find(name) or [-1]
        if first < 0:
            raise UnreadableImageError(f"cannot be read: not in the {self.kind} file")
        descriptor = unchanged(self.path, self.state)
        try:
            data = self._read(descriptor, first, limit)
            if any(self._read(descriptor, other, limit) != data for other in others):
                raise UnreadableImageError("members of this name hold different bytes")
        finally:
            os.close(descriptor)
        return data

    @abstractmethod
    def _read(self, descriptor: int, number: int, limit: int) -> bytes:
        """Return the bytes of the member of a number."""


def pread(descriptor: int, size: int, place: int) -> bytes:
    """Return bytes at a place, fewer at the end of the file alone.

    One call of the system gives 2 GB at most, and less over some networks.
    """
    data = os.pread(descriptor, size, place)
    if len(data) == size or not data:
        return data
    parts, got = [data], len(data)
    while got < size and (part := os.pread(descriptor, size - got, place + got)):
        parts.append(part)
        got += len(part)
    return b"".join(parts)


def unchanged(path: Path, state: FileState) -> int:
    """Return a descriptor of a file, open for reading, that is in a state.

    Raises:
        ChangedPackError: It is in another one.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if FileState.of(os.fstat(descriptor)) == state:
        return descriptor
    os.close(descriptor)
    raise ChangedPackError
