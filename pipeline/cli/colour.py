"""Colour on a terminal, sparingly; none where ``NO_COLOR`` is set (no-color.org)."""

import os
from typing import Final, TextIO

_BOLD: Final = 1
_RED: Final = 31


def bold(text: str, stream: TextIO) -> str:
    """Return what is bold on a stream that shows it."""
    return _styled(text, _BOLD, stream)


def red(text: str, stream: TextIO) -> str:
    """Return what is red on a stream that shows it."""
    return _styled(text, _RED, stream)


def _styled(text: str, code: int, stream: TextIO) -> str:
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain or not stream.isatty() else f"\x1b[{code}m{text}\x1b[0m"
