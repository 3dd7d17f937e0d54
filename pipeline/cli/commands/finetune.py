"""The ``finetune`` command: stage 3 on a run."""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.cli.command import Call, Command, Result
from pipeline.cli.leaderboard import of_run
from pipeline.cli.text import Text
from pipeline.config.options import FinetuneOptions


def run(options: FinetuneOptions, call: Call) -> Result:
    """Run stage 3."""
    from pipeline.finetune.stage import finetune

    return finetune(options, call.common, call.reporter)


def text(result: Mapping[str, Any]) -> Text:
    """Show both heads and whether fine-tuning was worth it."""
    lines = of_run(result)
    return [*lines[:-1], result["finetune"]["verdict"]["text"], lines[-1]]


COMMAND: Final = Command(
    FinetuneOptions, run, text, example="pipeline finetune runs/sample", keeps=True
)
