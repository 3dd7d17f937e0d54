"""The ``export`` command: a head with its backbone as one model."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import CLASS, Result, Text, size
from pipeline.config.serving import ExportOptions
from pipeline.system.wording import counted


def run(options: ExportOptions, call: Call) -> Result:
    """Write a head with its backbone as one model."""
    from pipeline.serving.export import export

    return export(options, call.common, call.reporter)


def text(result: Result) -> Text:
    """Say what was written and that it was checked."""
    stitch = result["stitch"]
    return [
        f"Wrote {result['out']} ({result['format']}, {size(result['bytes'])}): "
        f"{result['head']}, {counted(len(result['classes']), *CLASS)}",
        f"Agrees with the cached path on {counted(stitch['n'], 'image')}: "
        f"largest difference of a probability {stitch['max_difference']:.1e}",
    ]


COMMAND: Final = Command(
    ExportOptions, run, text, example="pipeline export runs/sample sample.keras"
)
