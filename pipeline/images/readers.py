"""Reading and decoding many images ahead of whoever takes them, in order."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import TypeAlias, TypeVar

from pipeline.images import reading
from pipeline.images.reading import Get, ReadFile, Reference

Wanted: TypeAlias = Callable[[str], Iterable[str]]
Argument = TypeVar("Argument")


class Readers:
    """What reads and decodes images, asked by several threads: here in the threads themselves.

    Attributes:
        workers: Threads that ask.
        group: Images that each of them asks for at once, if they are files of their own; packed
            files are read more nearly in their order one by one.
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


def is_file(get: Get) -> bool:
    """Tell whether an image is a file of its own on this machine."""
    return isinstance(get, Reference) and get.is_file


def _grouped(
    images: Iterable[tuple[Argument, Get]], size: int
) -> Iterator[list[tuple[Argument, Get]]]:
    """Yield groups of files, in order; anything else alone."""
    group: list[tuple[Argument, Get]] = []
    for image in images:
        is_alone = size == 1 or not is_file(image[1])
        if group and (is_alone or len(group) == size):
            yield group
            group = []
        group.append(image)
        if is_alone:
            yield group
            group = []
    if group:
        yield group
