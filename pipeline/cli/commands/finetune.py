"""The ``finetune`` command: stage 3 on a run."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.leaderboard import of_run
from pipeline.cli.reporting import train_and_report
from pipeline.cli.text import Result, Text
from pipeline.config.options import FinetuneOptions


def run(options: FinetuneOptions, call: Call) -> Result:
    """Run stage 3."""
    from pipeline.finetune.stage import finetune

    def train() -> dict[str, object]:
        return finetune(options, call.common, call.reporter)

    return train_and_report("finetune", options, train, call.reporter)


def text(result: Result) -> Text:
    """Show both heads and whether fine-tuning was worth it."""
    return of_run(result, result["finetune"]["verdict"]["text"])


COMMAND: Final = Command(
    FinetuneOptions, run, text, example="pipeline finetune runs/sample", keeps=True
)
