"""What a command is, and what it is called with beside its own options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cli.text import Result, Text
from pipeline.config.options import CommonOptions
from pipeline.system.progress import Reporter

Tables = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Call:
    """What every command is given.

    Attributes:
        common: The options of every command.
        reporter: Where notes and progress go.
        tables: The tables of the configuration file, ``heads`` and ``grids`` among them.
        started: ``time.monotonic()`` at the start of the process.
    """

    common: CommonOptions
    reporter: Reporter
    tables: Tables
    started: float


@dataclass(frozen=True, slots=True)
class Command:
    """One command: a file in ``commands`` makes it, a row of the table there names the file.

    Attributes:
        options: Its record of options.
        run: Options to the result that ``--json`` prints; it imports what it needs when it is
            called, so that ``--help`` answers at once.
        text: The result for a person: lines, and tables.
        example: What to type; shown where an argument is missing.
        keeps: Whether an interrupted one keeps what it has finished.
    """

    options: type
    run: Callable[[Any, Call], Result]
    text: Callable[[Result], Text]
    example: str
    keeps: bool = False
