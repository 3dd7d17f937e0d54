"""The ``train-head`` command: stage 2 on a store."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.leaderboard import of_run
from pipeline.cli.reporting import train_and_report
from pipeline.cli.text import Result
from pipeline.config.options import TrainHeadOptions


def run(options: TrainHeadOptions, call: Call) -> Result:
    """Run stage 2."""
    from pipeline.train.train_head import train_head

    def train() -> dict[str, object]:
        return train_head(options, call.common, call.reporter, call.tables.get("heads", {}))

    return train_and_report("train-head", options, train, call.reporter)


COMMAND: Final = Command(
    TrainHeadOptions, run, of_run, example="pipeline train-head --store stores/sample", keeps=True
)
