"""Where the time of an extraction goes, and the one setting that would change it.

``Clock`` is read along the way by ``extract``; ``diagnose`` turns it into a verdict. The verdict
rests on what the calling thread waits for: whoever lets it wait is what bounds the rate.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Part = Literal["decode", "encode", "write"]

PARTS: Final[Sequence[Part]] = ("decode", "encode", "write")
# Threads that compute for less than this share of their busy time mostly wait for the disk.
_COMPUTING: Final = 0.5


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


@dataclass(frozen=True, slots=True)
class Setting:
    """What an extraction ran with.

    Attributes:
        workers: Reading threads.
        processors: Processors at hand.
        engine: Name of the engine.
        best_engine: What ``auto`` would take if everything were installed.
        on_gpu: Whether the encoder runs on a GPU.
        precision: Arithmetic of the backbone.
        faster_precision: A faster one that the device has; None without one.
    """

    workers: int
    processors: int
    engine: str
    best_engine: str
    on_gpu: bool
    precision: str
    faster_precision: str | None


def diagnose(clock: Clock, setting: Setting) -> dict[str, Any] | None:
    """Say what bounds an extraction.

    Returns:
        ``bound`` (``decode``, ``encode`` or ``write``), ``busy`` (share of the time that each
        part was at work, 0 to 1; decode is the mean over its threads) and ``advice``; None when
        nothing was encoded.
    """
    if not clock.seconds or not clock.encoding:
        return None
    bound = max(PARTS, key=lambda part: clock.waited[part])
    busy = {
        "decode": clock.reading / setting.workers,
        "encode": clock.encoding,
        "write": clock.writing,
    }
    advice = {"decode": _for_decode, "encode": _for_encode, "write": _for_write}[bound]
    return {
        "bound": bound,
        "busy": {part: round(min(1.0, spent / clock.seconds), 3) for part, spent in busy.items()},
        "advice": advice(clock, setting),
    }


def _for_decode(clock: Clock, setting: Setting) -> str:
    if setting.workers < setting.processors:
        return f"--workers {setting.processors}, one a processor"
    if clock.computing < _COMPUTING * clock.reading:
        return f"--workers {2 * setting.workers}: the threads mostly wait for the disk"
    return "smaller copies of the images: decoding them takes all processors at hand"


def _for_encode(clock: Clock, setting: Setting) -> str:
    if setting.engine != setting.best_engine:
        return f"--engine {setting.best_engine}"
    if setting.faster_precision:
        return (
            f"--precision {setting.faster_precision} into another --store "
            "(features a little less exact)"
        )
    return "a smaller --image-size" if setting.on_gpu else "a machine with a GPU"


def _for_write(clock: Clock, setting: Setting) -> str:
    return "--store on a faster disk"
