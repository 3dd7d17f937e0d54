"""What a node of a cluster did, and what bounded it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.extract.messages import Making, Reading

# A network that has work for this share of the time is what bounds.
_BUSY: Final = 0.9


@dataclass(slots=True)
class _Span:
    """From the beginning of the first of some parts to the end of the last."""

    began: float = float("inf")
    ended: float = 0.0

    def stretch(self, done: Reading | Making) -> None:
        """Take in a part."""
        self.began, self.ended = min(self.began, done.began), max(self.ended, done.ended)

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.began)


@dataclass(slots=True)
class NodeWork:
    """What a node did, part by part.

    Attributes:
        name: Its name.
        cpus: Its processors; 0 where that is not known.
        parts: Parts that it had a share in.
        decoded: Images that were read there.
        encoded: Images that were encoded there.
        reading: Seconds of decoding threads at work.
        encoding: Seconds during which the networks had work, summed over actors.
        writing: Seconds during which shards were written.
        engine: What ran the network; None where nothing was encoded.
        device: What the engine ran on.
    """

    name: str
    cpus: float = 0.0
    parts: int = 0
    decoded: int = 0
    encoded: int = 0
    reading: float = 0.0
    encoding: float = 0.0
    writing: float = 0.0
    engine: str | None = None
    device: str | None = None
    _read: _Span = field(default_factory=_Span)
    _made: _Span = field(default_factory=_Span)
    _actors: set[int] = field(default_factory=set)

    def add(self, done: Reading | Making) -> None:
        """Count a part."""
        self.parts += 1
        if isinstance(done, Reading):
            self.decoded += done.images
            self.reading += done.busy
            self._read.stretch(done)
            return
        self.encoded += done.images
        self.encoding += done.encoding
        self.writing += done.writing
        self.engine, self.device = done.engine, done.device
        self._made.stretch(done)
        self._actors.add(done.actor)

    @property
    def seconds(self) -> float:
        """From the first part that was encoded to the last."""
        return self._made.seconds

    @property
    def reading_capacity(self) -> float:
        """Seconds that its processors had together, from the first part read to the last."""
        return self._read.seconds * self.cpus

    @property
    def capacity(self) -> float:
        """Seconds that its actors had together."""
        return self.seconds * len(self._actors)

    def as_json(self) -> dict[str, object]:
        """Return it as in docs/json.md."""
        return {
            "node": self.name,
            "decoded": self.decoded,
            "encoded": self.encoded,
            "images_per_second": round(self.encoded / self.seconds, 2) if self.seconds else None,
            "bound": bound_of([self]) if self.encoded else None,
            "busy": busy_of([self]),
            "device": self.device,
        }


def busy_of(nodes: Iterable[NodeWork]) -> dict[str, float | None]:
    """Return the share of the time that each part was at work, 0 to 1; None where it is unknown."""
    found = list(nodes)
    capacity = sum(node.capacity for node in found)
    cpus = sum(node.reading_capacity for node in found)
    return {
        "decode": _share(sum(node.reading for node in found), cpus),
        "encode": _share(sum(node.encoding for node in found), capacity),
        "write": _share(sum(node.writing for node in found), capacity),
    }


def bound_of(nodes: Sequence[NodeWork]) -> str:
    """Return what the others waited for: ``decode``, ``encode`` or ``write``."""
    busy = busy_of(nodes)
    encode, write = busy["encode"] or 0.0, busy["write"] or 0.0
    if encode >= _BUSY:
        return "encode"
    return "write" if write > 1 - encode else "decode"


def bottleneck_of(nodes: Sequence[NodeWork]) -> dict[str, object] | None:
    """Say what bounded all nodes together; see ``doctor.diagnose``. None of nothing encoded."""
    if not any(node.encoded for node in nodes):
        return None
    bound = bound_of(nodes)
    advice = {
        "decode": "more processors: nodes without an encoding actor decode too",
        "encode": "more nodes, or some with GPUs",
        "write": "--store on a faster file system",
    }[bound]
    busy = {part: share or 0.0 for part, share in busy_of(nodes).items()}
    return {"bound": bound, "busy": busy, "advice": advice}


def _share(spent: float, of: float) -> float | None:
    return round(min(1.0, spent / of), 3) if of else None
