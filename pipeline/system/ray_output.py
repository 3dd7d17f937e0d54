"""What Ray would print: kept off stdout and stderr, which belong to results and to our notes.

What of it matters is said in one line by whoever asks here.
"""

import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_SILENT: Final = logging.CRITICAL + 1


@dataclass(slots=True)
class Trouble:
    """What Ray would have printed last of what went wrong; empty of nothing.

    Attributes:
        text: One line.
    """

    text: str = ""


def one_line(said: str) -> str:
    """Return what Ray says in one line: of a traceback of another process the end."""
    lines = _COLOURS.sub("", said).strip().splitlines() or [""]
    is_traceback = any(line.startswith("  File ") for line in lines)
    text = lines[-1] if is_traceback else " ".join(lines)
    return " ".join(text.split())[:300].rstrip(".")


@contextmanager
def troubles() -> Iterator[Trouble]:
    """Give the last thing that Ray says went wrong, as long as the context lasts."""
    trouble = Trouble()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            trouble.text = one_line(str(error) if error is not None else record.getMessage())

    listener = Listener(level=logging.ERROR)
    for logger in _loggers():
        logger.addHandler(listener)
    try:
        yield trouble
    finally:
        for logger in _loggers():
            logger.removeHandler(listener)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keep what Ray prints off stdout and stderr, which belong to results and to our notes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(ray|pandas|pyarrow)(\.|$)")
        importlib.import_module("ray.data")  # which sets up its logger
        worker = importlib.import_module("ray._private.worker")
        annotations = importlib.import_module("ray.util.annotations")
        # Of what goes with a later release; which releases are taken, the extra says.
        warnings.filterwarnings("ignore", category=annotations.RayDeprecationWarning)
        streams = [
            handler
            for logger in _loggers()
            for handler in logger.handlers
            if isinstance(handler, logging.StreamHandler)
        ]
        levels = [handler.level for handler in streams]
        printed = vars(worker).get("print_to_stdstream")
        for handler in streams:
            handler.setLevel(_SILENT)
        if printed is not None:
            vars(worker)["print_to_stdstream"] = lambda *_, **__: None
        try:
            yield
        finally:
            if printed is not None:
                vars(worker)["print_to_stdstream"] = printed
            for handler, level in zip(streams, levels, strict=True):
                handler.setLevel(level)


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(name) for name in ("ray", "ray.data")]


@contextmanager
def without_stderr() -> Iterator[None]:
    """Keep what libraries in C++ write to stderr off it, as long as the context lasts."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
