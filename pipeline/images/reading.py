"""The one door to image bytes: what a manifest lists, read, hashed and decoded.

Nothing else in the package opens an image file, or looks whether it is there. A row of a manifest
is all that is needed, so where the bytes come from is known here alone.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeAlias, TypeVar

from pipeline.errors import DecodeError, UnreadableImageError
from pipeline.files.location import Location, is_address
from pipeline.files.state import FileState
from pipeline.images import decoder, packed, place, views
from pipeline.images.decoder import Pixels
from pipeline.images.manifest import Manifest
from pipeline.system import machine

# Threads per processor where images are waited for, and most of them.
_WAITING: Final = 16
_MOST_WAITING: Final = 128
# Files read ahead, beside 16 per processor or 2 per thread: enough to fill a batch while another
# is encoded.
_AHEAD: Final = 32

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Content:
    """The bytes of an image file.

    Attributes:
        data: The bytes.
        state: The state of the file as read; None if it changed meanwhile, or was no file.
    """

    data: bytes
    state: FileState | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 of the bytes in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class ReadFile:
    """What a file turned out to hold.

    Attributes:
        key: SHA-256 of its bytes; empty if it could not be read.
        state: The state of the file as read; None if it changed meanwhile.
        pixels: uint8 ``(S, S, 3)`` by view; only of those that were wanted.
        reason: Why it is bad; empty if it is not.
        seconds: How long reading and decoding took.
        computing: Of these, seconds of processor time.
    """

    key: str = ""
    state: FileState | None = None
    pixels: Mapping[str, Pixels] = field(default_factory=dict)
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)
    computing: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the bytes of one image are; small, so that another process can be told.

    Called, it returns them.

    Attributes:
        root: What the path is relative to.
        path: The image; empty where it is the root itself.
        known: Its state as it was listed; None by a manifest that has no states.
    """

    root: Location
    path: str = ""
    known: FileState | None = None

    @property
    def name(self) -> str:
        """What names the image."""
        return place.name_of(self.root, self.path)

    @property
    def is_file(self) -> bool:
        """Whether it is a file of its own on this machine."""
        return place.is_file(self.root, self.path)

    def __call__(self) -> Content:
        """Return the bytes of the image.

        Raises:
            UnreadableImageError: There are none; the message is the reason alone.
        """
        # By the name: of a hundred gigabytes, nothing need be read.
        if packed.among((self.path or self.root.name,)) and self._is_there():
            raise UnreadableImageError("a packed file, which is not entered: unpack it")
        try:
            found = place.read(self.root, self.path, limit=decoder.MAX_BYTES, known=self.known)
        except UnreadableImageError as error:
            if os.path.isdir(self.name):  # noqa: PTH112
                raise UnreadableImageError("a folder: list its files") from error
            raise
        return Content(*found)

    def _is_there(self) -> bool:
        return is_address(self.name) or os.path.isfile(self.name)  # noqa: PTH113


@dataclass(frozen=True, slots=True)
class ReadImage:
    """An image that was read, or found to be unreadable.

    Attributes:
        content: The bytes; None of one that cannot be read.
        reason: Why it cannot be.
        seconds: How long reading took.
        computing: Of these, seconds of processor time.
    """

    content: Content | None
    reason: str
    seconds: float
    computing: float

    @classmethod
    def of(cls, get: "Get") -> "ReadImage":
        """Read an image; one that was read is taken as it is."""
        if isinstance(get, ReadImage):
            return get
        began, computed = time.monotonic(), time.thread_time()
        content, reason = None, ""
        try:
            content = get()
            _ = content.key  # kept with it
        except DecodeError as error:
            reason = str(error)
        return cls(content, reason, time.monotonic() - began, time.thread_time() - computed)

    @property
    def key(self) -> str:
        """SHA-256 of the bytes; empty without."""
        return "" if self.content is None else self.content.key

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return 0 if self.content is None else len(self.content.data)

    def decoded(self, wanted: Iterable[str], size: int, resize: str) -> ReadFile:
        """Decode views of it; see ``decoded``."""
        if self.content is None:
            return ReadFile(reason=self.reason, seconds=self.seconds, computing=self.computing)
        began, computed = time.monotonic(), time.thread_time()
        made: Mapping[str, Pixels] = {}
        reason = ""
        try:
            made = views.pixels(self.content.data, self.content.key, wanted, size, resize)
        except DecodeError as error:
            reason = str(error)
        seconds = self.seconds + time.monotonic() - began
        computing = self.computing + time.thread_time() - computed
        return ReadFile(self.content.key, self.content.state, made, reason, seconds, computing)


# How the bytes of an image are had; of one that was read it is known.
Get: TypeAlias = Callable[[], Content] | ReadImage


@dataclass(frozen=True, slots=True)
class Found:
    """An image that is there, as far as can be told without opening it.

    Attributes:
        name: What names it outside its manifest, such as in the scan cache.
        state: Its state.
    """

    name: str
    state: FileState


def find(manifest: Manifest, row: int) -> Found | None:
    """Look for the image of a row without opening it; None where it is gone."""
    state = manifest.states[row] if manifest.states else place.state_of(*_place(manifest, row))
    return None if state is None else Found(name_of(manifest, row), state)


def looked_up(manifest: Manifest) -> AbstractContextManager[object]:
    """Know which images at addresses are there, asked together, as long as the context lasts."""
    return place.looked_up(manifest.root, manifest.paths)


def find_all(manifest: Manifest, rows: Sequence[int]) -> list[tuple[int, str, FileState]]:
    """Look for the images of rows without opening them: row, name and state of those there."""
    if not manifest.states:
        found = [(row, find(manifest, row)) for row in rows]
        return [(row, item.name, item.state) for row, item in found if item is not None]
    names = place.names_of(manifest.root, [manifest.paths[row] for row in rows])
    return [
        (row, name, state)
        for row, name in zip(rows, names, strict=True)
        if (state := manifest.states[row]) is not None
    ]


def name_of(manifest: Manifest, row: int) -> str:
    """Return what names the image of a row outside its manifest."""
    return place.name_of(*_place(manifest, row))


def is_there(manifest: Manifest, row: int) -> bool:
    """Tell whether there is a file, or a link to one, for a row."""
    return place.exists(*_place(manifest, row))


def forward_only(manifest: Manifest) -> list[str]:
    """Return the packed files of a manifest that are read from front to back alone."""
    return place.forward_only(manifest.root, manifest.paths)


def reference(manifest: Manifest, row: int) -> Reference:
    """Return where the bytes of the image of a row are."""
    known = manifest.states[row] if manifest.states else None
    return Reference(*_place(manifest, row), known)


def read(manifest: Manifest, row: int) -> Content:
    """Return the bytes of the image of a row.

    Raises:
        UnreadableImageError: There are none; the message is the reason alone.
    """
    return reference(manifest, row)()


def _place(manifest: Manifest, row: int) -> tuple[Location, str]:
    return manifest.root, manifest.paths[row]


def num_threads(manifest: Manifest, chosen: int | None = None) -> int:
    """Return how many threads are to read and decode images, unless a number is chosen.

    One per processor; of images at addresses several, since they wait for most of the time.
    """
    if chosen is not None:
        return chosen
    return num_waiting_threads() if is_waited_for(manifest) else machine.processors()


def num_waiting_threads() -> int:
    """Return how many threads are to read and decode images at addresses."""
    processors = machine.processors()
    return max(processors, min(_WAITING * processors, _MOST_WAITING))


def is_waited_for(manifest: Manifest) -> bool:
    """Tell whether images are at addresses, so that reading them is mostly waiting."""
    return place.is_waited_for(manifest.root, manifest.paths)


def decoded(get: Get, wanted: Callable[[str], Iterable[str]], size: int, resize: str) -> ReadFile:
    """Read an image and decode what is wanted of it; a bad one has a reason and no pixels.

    Args:
        get: Returns its bytes; may raise ``DecodeError``.
        wanted: Returns the views that are wanted, given the key of the bytes.
        size: Side of the encoder's input in pixels.
        resize: How an image of another shape becomes a square.
    """
    image = ReadImage.of(get)
    return image.decoded(wanted(image.key) if image.key else (), size, resize)


def in_threads(
    function: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    workers: int,
    *,
    images: int = 1,
) -> Generator[tuple[Argument, Future[Result]]]:
    """Yield (argument, future) in order, computed in threads, a bounded number ahead.

    Args:
        function: What is computed.
        arguments: What it is computed of.
        workers: Threads.
        images: Images of one argument.
    """
    waiting: deque[tuple[Argument, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    most = _AHEAD + max(16 * min(workers, machine.processors()), 2 * workers)
    try:
        for argument in arguments:
            waiting.append((argument, pool.submit(function, argument)))
            if len(waiting) * images > most:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        # Whoever leaves early does not wait for what nobody will look at.
        pool.shutdown(wait=False, cancel_futures=True)
