"""The ``report`` command: a page that shows what a run found."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Text, size
from pipeline.config.options import ReportOptions
from pipeline.system.wording import counted


def run(options: ReportOptions, call: Call) -> Result:
    """Write the report of a run."""
    from pipeline.report.page import report

    return report(options, call.reporter)


def text(result: Result) -> Text:
    """Say what was written."""
    return [
        f"Wrote {result['report']} ({size(result['bytes'])}): {result['head']} on "
        f"{result['split']}, {counted(result['pictures'], 'picture')}, a map of "
        f"{counted(result['points'], 'image')} ({result['seconds']:.1f} s)"
    ]


COMMAND: Final = Command(ReportOptions, run, text, example="pipeline report runs/photos")
