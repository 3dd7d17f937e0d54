"""One file per command, behind a lazy table: what it is given, and how its result is shown.

The work is done in the room of the command's stage: ``serving/predict.py`` for ``predict``.
A new command is a new file with a ``COMMAND``, and a row here.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result
from pipeline.config import options as config


class Row(NamedTuple):
    """Where a command is, and its line in ``--help``, which imports none of them."""

    module: str
    summary: str


COMMANDS: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "sample": Row(
            "pipeline.cli.commands.sample",
            "Write the embedded sample, handwritten digits, as class folders of PNG files.",
        ),
        "extract": Row(
            "pipeline.cli.commands.extract",
            "Stage 1: run the frozen backbone once over the images and store the pooled features.",
        ),
        "train-head": Row(
            "pipeline.cli.commands.train_head",
            "Stage 2: train heads on stored features, choose on val, score test once.",
        ),
        "sweep": Row(
            "pipeline.cli.commands.sweep",
            "Try many heads and settings in one pass; val chooses, test is scored once.",
        ),
        "compare": Row(
            "pipeline.cli.commands.compare",
            "Show a leaderboard of runs on their common test images, with paired tests.",
        ),
        "finetune": Row(
            "pipeline.cli.commands.finetune",
            "Stage 3: put a trained head on the backbone and train its top layers at a low rate.",
        ),
        "predict": Row(
            "pipeline.cli.commands.predict",
            "Classify images with a head of a run.",
        ),
        "evaluate": Row(
            "pipeline.cli.commands.evaluate",
            "Score a saved head on other labelled data.",
        ),
        "export": Row(
            "pipeline.cli.commands.export",
            "Write a head with its backbone as one model that takes decoded images.",
        ),
        "report": Row(
            "pipeline.cli.commands.report",
            "Write a page that shows what a run found: scores, mistakes, pictures, a map.",
        ),
        "audit": Row(
            "pipeline.cli.commands.audit",
            "Find copies, leaks between splits, label errors, outliers, confounders.",
        ),
        "suggest": Row(
            "pipeline.cli.commands.suggest",
            "Say which unlabelled images to label next: uncertain ones, unlike each other.",
        ),
        "import-features": Row(
            "pipeline.cli.commands.import_features",
            "Make a store of features that were made elsewhere: .npy, Parquet or HDF5.",
        ),
        "export-features": Row(
            "pipeline.cli.commands.export_features",
            "Write the features of a store into one plain file: HDF5, .npy or Parquet.",
        ),
        "info": Row(
            "pipeline.cli.commands.info",
            "Say what a store or a run is.",
        ),
        "verify": Row(
            "pipeline.cli.commands.verify",
            "Check every byte of a store, a run or an exported folder against its checksums.",
        ),
        "prune": Row(
            "pipeline.cli.commands.prune",
            "Drop features and frozen activations that no manifest row needs; merge small shards.",
        ),
    }
)


def find(name: str) -> Command:
    """Return a row of ``COMMANDS``, imported now."""
    command: Command = importlib.import_module(COMMANDS[name].module).COMMAND
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
