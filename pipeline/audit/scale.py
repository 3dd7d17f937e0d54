"""How similar is the same, drawn: copies, other images, and the threshold on one scale.

The scale is the logarithm of the distance of two images, on which the threshold was chosen.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

from pipeline.audit.findings import Group
from pipeline.copies.threshold import Threshold

# The most similar ones are drawn at this end, and others up to these spreads above the middle.
_MOST: Final = 0.999
_SPREADS: Final = 3.0
_BINS: Final = 30
_TICKS: Final = (0.999, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
# Labels of ticks nearer than this, as a share of the width, would stand on each other.
_APART: Final = 0.09


def drawn(threshold: Threshold, groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return what a page draws of the choice of a threshold; None where the data did not choose.

    Returns:
        Shares of the width from the most similar on, and of the height: ``bars`` of ``left``,
        ``height`` and ``count`` of groups by their most similar two images, ``width`` of a bar;
        ``hill``, points ``(x, y)`` of the normal curve that the threshold was chosen by; ``ticks``
        of ``left`` and ``text``; ``certain`` and ``candidates``, where the thresholds are.
    """
    if threshold.median is None or not threshold.spread:
        return None
    least, middle = _logarithm(_MOST), _logarithm(threshold.median)
    width = middle + _SPREADS * threshold.spread - least

    def place(similarity: float) -> float:
        return min(1.0, max(0.0, (_logarithm(similarity) - least) / width))

    counts = [0] * _BINS
    for group in groups:
        counts[min(_BINS - 1, int(place(group.similarity) * _BINS))] += 1
    steps = [step / 100 for step in range(101)]
    return {
        "width": 1 / _BINS,
        "bars": [
            {"left": number / _BINS, "height": count / max(counts), "count": count}
            for number, count in enumerate(counts)
            if count
        ],
        "hill": [(x, _bell((least + x * width - middle) / threshold.spread)) for x in steps],
        "ticks": _ticks(place),
        "certain": place(threshold.similarity),
        "candidates": place(threshold.candidates),
    }


def _logarithm(similarity: float) -> float:
    """Return the logarithm of the distance of two vectors with a norm of one."""
    return math.log(math.sqrt(max(2 - 2 * similarity, 1e-6)))


def _bell(deviations: float) -> float:
    return math.exp(-deviations * deviations / 2)


def _ticks(place: Any) -> list[dict[str, Any]]:
    """Return the round similarities that are on the scale and leave room for their labels."""
    ticks: list[dict[str, Any]] = []
    for similarity in _TICKS:
        left = place(similarity)
        if left < 1.0 and (not ticks or left - ticks[-1]["left"] >= _APART):
            ticks.append({"left": left, "text": f"{similarity:g}"})
    return ticks
