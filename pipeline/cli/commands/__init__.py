"""One file per command, behind a lazy table: what it is given, does, and shows.

A new command is a new file with a ``COMMAND``, and a row here.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pipeline.cli.command import Command

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sample": "pipeline.cli.commands.sample",
        "extract": "pipeline.cli.commands.extract",
        "train-head": "pipeline.cli.commands.train_head",
        "sweep": "pipeline.cli.commands.sweep",
        "compare": "pipeline.cli.commands.compare",
        "finetune": "pipeline.cli.commands.finetune",
        "predict": "pipeline.cli.commands.predict",
        "export": "pipeline.cli.commands.export",
        "info": "pipeline.cli.commands.info",
        "verify": "pipeline.cli.commands.verify",
        "prune": "pipeline.cli.commands.prune",
    }
)


def find(name: str) -> Command:
    """Return a row of ``COMMANDS``, imported now."""
    command: Command = importlib.import_module(COMMANDS[name]).COMMAND
    return command


def records() -> dict[str, type]:
    """Return the option records of all commands by name."""
    return {name: find(name).options for name in COMMANDS}
