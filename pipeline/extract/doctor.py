"""Where the time of an extraction goes, and the one setting that would change it.

``Clock`` is read along the way by ``extract``; ``diagnose`` turns it into a verdict. The verdict
rests on what the calling thread waits for: whoever lets it wait is what bounds the rate.
"""

from dataclasses import dataclass
from typing import Final

from pipeline.engines.clock import PARTS, Clock

# Threads that compute for less than this share of their busy time mostly wait for the disk.
_COMPUTING: Final = 0.5


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


def diagnose(clock: Clock, setting: Setting) -> dict[str, object] | None:
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
        return f"--workers {setting.processors}, one per processor"
    # More threads than processors wait for each other, too.
    could_compute = min(clock.reading, setting.processors * clock.seconds)
    if clock.computing < _COMPUTING * could_compute:
        return (
            f"--workers {2 * setting.workers}: the threads mostly wait for the disk or the network"
        )
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
