"""Reading and decoding many images ahead of whoever takes them, in order."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import islice
from typing import TypeAlias, TypeVar

from pipeline.images import reading
from pipeline.images.reading import Content, ReadFile

Get: TypeAlias = Callable[[], Content]
Wanted: TypeAlias = Callable[[str], Iterable[str]]
Argument = TypeVar("Argument")
Item = TypeVar("Item")


class Readers:
    """What reads and decodes images, asked by several threads: here in the threads themselves.

    Attributes:
        workers: Threads that ask.
        group: Images that each of them asks for at once.
    """

    def __init__(self, workers: int, group: int = 1) -> None:
        self.workers = workers
        self.group = group

    def read(
        self,
        images: Iterable[tuple[Argument, Get]],
        wanted: Wanted,
        size: int,
        resize: str,
        *,
        late: Callable[[Future[list[ReadFile]]], None],
    ) -> Generator[tuple[Argument, ReadFile]]:
        """Yield what images turn out to hold, in order, a bounded number of them read ahead.

        Args:
            images: What names an image for the caller, and how its bytes are had.
            wanted: Returns the views that are wanted, given the key of the bytes.
            size: Side of the encoder's input in pixels.
            resize: How an image of another shape becomes a square.
            late: Called with what is not there yet, to wait for it.
        """

        def read(group: Sequence[tuple[Argument, Get]]) -> list[ReadFile]:
            return self.decoded([get for _, get in group], wanted, size, resize)

        groups = _grouped(images, self.group)
        made = reading.in_threads(read, groups, self.workers, images=self.group)
        with closing(made) as found:
            for group, future in found:
                if not future.done():
                    late(future)
                for (argument, _), file in zip(group, future.result(), strict=True):
                    yield argument, file

    def decoded(
        self, gets: Sequence[Get], wanted: Wanted, size: int, resize: str
    ) -> list[ReadFile]:
        """Read and decode images; see ``reading.decoded``. Safe to call from many threads."""
        return [reading.decoded(get, wanted, size, resize) for get in gets]


def _grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while group := list(islice(left, size)):
        yield group
