"""The ``export-features`` command: the features of a store as one plain file."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Text, size
from pipeline.config.exchanging import ExportFeaturesOptions
from pipeline.system.wording import counted


def run(options: ExportFeaturesOptions, call: Call) -> Result:
    """Write features into one plain file."""
    from pipeline.exchange.exporting import export_features

    return export_features(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Say what was written."""
    beside = f" and {result['list']}" if result["list"] else ""
    return [
        f"Wrote {result['file']}{beside} ({result['format']}, {size(result['bytes'])}): "
        f"{counted(result['images'], 'row')} of {result['dim']:,} features, "
        f"{result['labelled']:,} with a label"
    ]


COMMAND: Final = Command(
    ExportFeaturesOptions,
    run,
    text,
    example="pipeline export-features stores/sample features.h5",
)
