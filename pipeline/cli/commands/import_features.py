"""The ``import-features`` command: features that were made elsewhere become a store."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Text, conflicting, duration, errors, features_at
from pipeline.config.exchanging import ImportFeaturesOptions
from pipeline.system.wording import counted


def run(options: ImportFeaturesOptions, call: Call) -> Result:
    """Make a store of a file of features."""
    from pipeline.exchange.importing import import_features

    return import_features(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Describe what was imported."""
    return [
        f"{result['imported']:,} imported, {result['reused']:,} reused, "
        f"{result['skipped']:,} skipped of {counted(result['images'], 'row')} of "
        f"{result['dim']:,} features in {duration(result['seconds'])}",
        *errors(result["errors"], "in the manifest"),
        *conflicting(result),
        f"Imported features {result['name']!r}, digest {result['digest']}",
        features_at(result),
    ]


COMMAND: Final = Command(
    ImportFeaturesOptions,
    run,
    text,
    example="pipeline import-features clip.npy --paths photos.csv",
    keeps=True,
)
