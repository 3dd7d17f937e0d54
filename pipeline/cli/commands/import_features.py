"""The ``import-features`` command: features that were made elsewhere become a store."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Text, duration, errors
from pipeline.config.exchanging import ImportFeaturesOptions
from pipeline.files.location import is_address
from pipeline.system.wording import counted


def run(options: ImportFeaturesOptions, call: Call) -> Result:
    """Make a store of a file of features."""
    from pipeline.exchange.importing import import_features

    return import_features(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Describe what was imported."""
    lines = [
        f"{result['imported']:,} imported, {result['reused']:,} reused, "
        f"{result['skipped']:,} skipped of {counted(result['images'], 'row')} of "
        f"{result['dim']:,} features in {duration(result['seconds'])}",
        *errors(result["errors"], "in the manifest"),
    ]
    if result["conflicting"]:
        lines.append(
            f"{counted(result['conflicting'], 'image')} under two labels, in no split "
            f"(status 'conflicting label' in {result['manifest']})"
        )
    # At an address there is no file that other programs could read.
    view = "" if is_address(result["store"]) else "/features.h5"
    return [
        *lines,
        f"Imported features {result['name']!r}, digest {result['digest']}",
        f"Features: {result['store']}{view}   Manifest: {result['manifest']}",
    ]


COMMAND: Final = Command(
    ImportFeaturesOptions,
    run,
    text,
    example="pipeline import-features clip.npy --paths photos.csv",
    keeps=True,
)
