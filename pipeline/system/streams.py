"""Standard output and error as a program finds them: closed, given up by their reader, not UTF-8.

Imports nothing of the package, and prints nothing.
"""

import os
import sys
from pathlib import Path
from typing import Final, TextIO

_DESCRIPTORS: Final = (0, 1, 2)


def open_all() -> None:
    """Give every standard descriptor that is closed a place, the one that swallows everything.

    Else the next file that anything opens gets the descriptor, and libraries that write notes to
    descriptor 2 write them into it. Python has no stream of such a descriptor.
    """
    for descriptor in _DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()


def take_any_name() -> None:
    """Let every text be written: file names need not be Unicode, nor terminals be UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Write out what is buffered.

    Raises:
        BrokenPipeError: Whoever read it has gone.
        OSError: It cannot be written, such as to a full disk.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def flushed() -> bool:
    """Write out what is buffered; what cannot be written is swallowed, now and later.

    Returns:
        Whether everything could be written.
    """
    is_written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            is_written = False
            _redirect(stream.fileno())
    return is_written


def _redirect(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
