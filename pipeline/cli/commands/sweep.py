"""The ``sweep`` command: many heads and settings on a store."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.leaderboard import of_run
from pipeline.cli.reporting import train_and_report
from pipeline.cli.text import Result, Text
from pipeline.config.options import SweepOptions
from pipeline.runs.verdict import interval
from pipeline.system.wording import counted


def run(options: SweepOptions, call: Call) -> Result:
    """Try many heads and settings."""
    from pipeline.train.sweep import sweep

    def train() -> dict[str, object]:
        return sweep(options, call.common, call.reporter, call.tables)

    return train_and_report("sweep", options, train, call.reporter)


def text(result: Result) -> Text:
    """Show the leaderboard of the chosen settings and how far the best one leads."""
    lead = result["lead"]
    if lead is None:
        return of_run(result)
    says = "a real difference" if lead["is_real"] else "no real difference"
    return of_run(
        result,
        f"In the search, {lead['best']} leads {lead['next']} by "
        f"{100 * lead['difference']:.1f} points on {counted(lead['n'], 'image')} "
        f"({interval(lead)}: {says})",
    )


COMMAND: Final = Command(
    SweepOptions, run, text, example="pipeline sweep --store stores/sample", keeps=True
)
