"""Where the time of an extraction goes: read along the way by the queue and by the stages."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

Part = Literal["decode", "encode", "write"]


PARTS: Final[Sequence[Part]] = ("decode", "encode", "write")


@dataclass(slots=True)
class Clock:
    """Seconds of one extraction by part.

    Attributes:
        seconds: From the start of encoding to its end.
        waited: How long the calling thread waited for each part.
        encoding: How long the encoder had work.
        reading: Seconds of reading threads at work, summed over threads.
        computing: Of these, seconds of processor time.
        writing: How long shards were being written.
    """

    seconds: float = 0.0
    waited: dict[Part, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    encoding: float = 0.0
    reading: float = 0.0
    computing: float = 0.0
    writing: float = 0.0
    _since: float | None = None

    @contextmanager
    def waiting(self, part: Part) -> Iterator[None]:
        """Count the time in the context as waiting for a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.waited[part] += time.monotonic() - began

    def encoder_has_work(self, has_work: bool) -> None:
        """Note that the encoder was given work, or has done all it was given."""
        now = time.monotonic()
        if self._since is not None:
            self.encoding += now - self._since
        self._since = now if has_work else None
