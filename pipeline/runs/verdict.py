"""What a paired test shows, in plain words; imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

from pipeline.system.wording import counted


def verdict(pair: Mapping[str, Any]) -> str:
    """Say in plain words what a paired test shows, after correction for many pairs."""
    points = f"{abs(100 * pair['difference']):.1f} points"
    where = f"on {counted(pair['n'], 'image')} ({interval(pair)}"
    p_value = f"p = {pair['p_adjusted']:.2g})"
    if not pair["is_real"]:
        return (
            f"{pair['a']} and {pair['b']} differ by {points} {where}): no real difference shown "
            f"({p_value}"
        )
    word = "better" if pair["difference"] > 0 else "worse"
    return f"{pair['a']} is {points} {word} than {pair['b']} {where}, {p_value}"


def interval(compared: Mapping[str, Any]) -> str:
    """Return the interval that goes with a verdict, in points."""
    low, high = (100 * end for end in compared["simultaneous_ci95"])
    simultaneous = "simultaneous " if compared["comparisons"] > 1 else ""
    return f"{simultaneous}95 % interval {low:+.1f} to {high:+.1f}"
