"""What packed files of all kinds have in common."""

from collections.abc import Collection, Container, Iterator, Sequence, Sized
from pathlib import Path
from typing import Protocol

from pipeline.files.state import FileState


class ChangedPackError(Exception):
    """A packed file is not the one any more whose members were listed."""


class Names(Container[str], Sized, Protocol):
    """Names in which one is found at once."""


class Texts(Protocol):
    """Names of members, and the bytes of those that hold what is said of others."""

    @property
    def names(self) -> Sequence[str]:
        """POSIX paths of the members that are files, each once, in stored order."""

    def texts(self, suffixes: Collection[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of the members whose names end so, in stored order.

        Members of one name are all among them; those are not that have more than ``limit`` bytes,
        or are cut short or damaged.

        Raises:
            ChangedPackError: The file changed since its members were listed.
            OSError: The file cannot be read.
        """


class Pack(Texts, Protocol):
    """The members of a packed file; safe to use from many threads."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def state(self) -> FileState:
        """The state of the file whose members these are."""

    @property
    def notes(self) -> Sequence[str]:
        """What to say of it: what was left out, what is damaged."""

    @property
    def is_forward(self) -> bool:
        """Whether it is read from front to back alone, so that who asks in another order waits."""

    @property
    def members(self) -> Names:
        """The same names, in which one is found at once."""

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the bytes of a member.

        Raises:
            ChangedPackError: The file changed since its members were listed.
            UnreadableImageError: There is none of that name, it is cut short or damaged, has more
                bytes than ``limit``, or several members of that name differ; the message is the
                reason alone.
        """
