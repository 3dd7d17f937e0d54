"""One file per command, behind a lazy table: what it is given, and how its result is shown.

The work is done in the room of the command's stage: ``serving/predict.py`` for ``predict``.
A new command is a new file with a ``COMMAND``, and a row here.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result
from pipeline.config import options as config

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sample": "pipeline.cli.commands.sample",
        "extract": "pipeline.cli.commands.extract",
        "train-head": "pipeline.cli.commands.train_head",
        "sweep": "pipeline.cli.commands.sweep",
        "compare": "pipeline.cli.commands.compare",
        "finetune": "pipeline.cli.commands.finetune",
        "predict": "pipeline.cli.commands.predict",
        "evaluate": "pipeline.cli.commands.evaluate",
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


def perform(name: str, given: Result, call: Call) -> Result:
    """Run a command with what was given to it, over what its table of the file says.

    Args:
        name: Name of the command.
        given: Values of its options by field name.
        call: What every command is given.

    Returns:
        What ``--json`` prints.

    Raises:
        ConfigError: An option is unknown, missing, or has a value that it cannot have.
        PipelineError: See the command.
    """
    command = find(name)
    options: Any = config.build(command.options, {**call.tables.get(name, {}), **given})
    config.require_given(options, command=name, example=command.example)
    return command.run(options, call)
