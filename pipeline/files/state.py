"""What must be equal for the bytes at a place to count as unchanged."""

import os
from typing import Final, NamedTuple


class FileState(NamedTuple):
    """The state of a file, as far as it can be told without reading it.

    Attributes:
        stamp: Changes with the content: size, times and inode of a file, the ETag of an object.
        changed_ns: When it last changed, nanoseconds since 1970; 0 where the stamp alone proves
            the content.
        size: Bytes.
    """

    stamp: str
    changed_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        """Return the state of a file of this machine."""
        stamp = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
        return cls(stamp, max(status.st_mtime_ns, status.st_ctime_ns), status.st_size)

    def elsewhere(self) -> "FileState":
        """Return a file's state as other machines see it, to whom inode and times may differ.

        What is left is size and time of writing, with which every stamp of the file begins.
        """
        return self._replace(stamp=":".join(self.stamp.split(":")[:2]))

    def is_of(self, known: "FileState") -> bool:
        """Tell whether this is the state of the file of a known one, seen here or elsewhere."""
        return self.stamp == known.stamp or self.stamp.startswith(f"{known.stamp}:")

    @property
    def is_proof(self) -> bool:
        """Whether an equal state says that the bytes are equal."""
        return bool(self.stamp)


# Of what is there, and of which nothing tells whether it changed: never old enough to be trusted.
UNPROVEN: Final = FileState("", 1 << 62, 0)
