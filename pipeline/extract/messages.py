"""What the leader of an extraction on Ray and the nodes tell each other, as plain records."""

import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pipeline import errors
from pipeline.backbones.identity import Identity
from pipeline.backbones.probe import Probe
from pipeline.errors import ClusterError, PipelineError, StorageError, hint_for
from pipeline.files.location import Location
from pipeline.images.manifest import Manifest
from pipeline.images.reading import ReadFile


@dataclass(frozen=True, slots=True)
class Job:
    """What every node is told.

    Attributes:
        number: Tells jobs apart within a process.
        store: Where features go: a folder that every node sees by this path, or an address.
        identity: How they are made.
        views: The views to make; ``PLAIN`` is the image as it is.
        engine: The engine asked for.
        batch_size: Most images in one call of the network.
        threads: Threads of one decoding task.
        cores: Processors of one actor; None where it has a GPU.
        probe: What the features of the probe images must be; None before there is one.
        sight: One row of the data, whose image every node must see.
        stored: By view, Ray's reference to the keys that the store has, ascending, ``S64``.
    """

    number: str
    store: Location
    identity: Identity
    views: tuple[str, ...]
    engine: str
    batch_size: int
    threads: int
    cores: int | None
    probe: Probe | None
    sight: Manifest
    stored: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A few rows of a listing.

    Attributes:
        listing: These rows alone.
        rows: Their places in the whole listing.
    """

    listing: Manifest
    rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node could not do a part.

    Attributes:
        node: Its name.
        is_final: Whether it must not go on, rather than try again: it is not what is asked for.
        kind: Name of the error.
        message: What happened, with the node's name.
        hint: What to do.
    """

    node: str
    is_final: bool
    kind: str
    message: str
    hint: str

    @classmethod
    def of(cls, error: Exception, node: str) -> Self:
        """Return what an error says, with the name of the node that it came up on."""
        kind = ClusterError.__name__
        if isinstance(error, PipelineError):
            # A file that could not be read for a moment says nothing of what is in it.
            passes = isinstance(error, StorageError) or isinstance(error.__cause__, OSError)
            kind, is_final = type(error).__name__, not passes
            return cls(node, is_final, kind, f"The node {node}: {error.message}", error.hint)
        if isinstance(error, OSError):
            place = f" ({error.filename})" if error.filename else ""
            message = f"The node {node}: {error.strerror or error}{place}."
            return cls(node, False, kind, message, hint_for(error))
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
        hint = "The log of the worker, below Ray's folder on that node, has the traceback."
        return cls(node, False, kind, f"The node {node}: {said}.", hint)

    def error(self) -> PipelineError:
        """Return the error again, for whoever leads the nodes."""
        kind = getattr(errors, self.kind, ClusterError)
        try:
            found: PipelineError = kind(self.message, hint=self.hint)
        except TypeError:  # one that carries more than its text
            return ClusterError(self.message, hint=self.hint)
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """How a part was read and decoded.

    Attributes:
        node: Where.
        images: Files that were read.
        began: Time of the clock of the node.
        ended: Time of the same clock.
        busy: Seconds of threads at work.
    """

    node: str
    images: int
    began: float
    ended: float
    busy: float


@dataclass(frozen=True, slots=True)
class Making:
    """How a part was encoded and stored.

    Attributes:
        node: Where.
        actor: Which of the node's actors.
        images: Images whose features were made.
        began: Time of the clock of the node.
        ended: Time of the same clock.
        encoding: Seconds during which the network had work.
        writing: Seconds during which shards were written.
        engine: What ran the network.
        device: What the engine ran on.
    """

    node: str
    actor: int
    images: int
    began: float
    ended: float
    encoding: float
    writing: float
    engine: str
    device: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A part whose images were read; their pixels are beside it.

    Attributes:
        paths: Names of its images, for messages.
        files: Its files without pixels, by place in the whole listing.
        views: Of each file, the views whose pixels there are.
        reading: How that went.
        refusal: Why none of it could be done.
    """

    paths: Sequence[str] = ()
    files: Sequence[tuple[int, ReadFile]] = ()
    views: Sequence[Sequence[str]] = ()
    reading: Reading | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a part; its features are in the store.

    Attributes:
        files: Its files without pixels, by place in the whole listing.
        shards: View and name of each shard that was written.
        reading: How it was read.
        making: How it was encoded.
        refusal: Why none of it could be done.
    """

    files: Sequence[tuple[int, ReadFile]] = ()
    shards: Sequence[tuple[str, str]] = ()
    reading: Reading | None = None
    making: Making | None = None
    refusal: Refusal | None = None


def packed(value: Part | Decoded | Answer) -> bytes:
    """Return a record as bytes.

    Small ones travel with Ray's own messages, and are not lost with the node that they come from.
    """
    return zlib.compress(pickle.dumps(value), 1)


def unpacked(data: bytes) -> Any:
    """Return the record that ``packed`` made bytes of; only of a node of the same job."""
    return pickle.loads(zlib.decompress(data))  # noqa: S301 - never from a file or a user
