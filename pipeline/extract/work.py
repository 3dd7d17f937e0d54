"""How features were made: what the command says of it, and what the store keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """How the features that a ledger lacked were made.

    Attributes:
        startup: Seconds from the start to the first read.
        engine: What ran the network; None where nothing had to be encoded.
        device: What the engine ran on.
        images_per_second: Images encoded a second, from the first read to the last shard.
        bottleneck: What bounded that, as ``doctor.diagnose`` says.
        nodes: What each node of a cluster did, as docs/json.md says.
    """

    startup: float
    engine: str | None = None
    device: str | None = None
    images_per_second: float | None = None
    bottleneck: Mapping[str, object] | None = None
    nodes: Sequence[Mapping[str, object]] = ()


def rate_of(encoded: int, seconds: float) -> float | None:
    """Return images encoded a second, from the first read to the last shard; None of none."""
    return round(encoded / seconds, 2) if encoded and seconds else None
