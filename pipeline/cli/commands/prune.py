"""The ``prune`` command: what no manifest needs is dropped from a store."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Text, size
from pipeline.config.upkeep import PruneOptions
from pipeline.system.wording import counted


def run(options: PruneOptions, call: Call) -> Result:
    """Drop the features and frozen activations that no manifest needs."""
    from pipeline.files.location import locate
    from pipeline.store.prune import prune

    return prune(locate(options.store))


def text(result: Result) -> Text:
    """Say what was dropped."""
    activations = ""
    if result["boundary_dropped"] or result["boundary_shards"]:
        activations = (
            f", {counted(result['boundary_dropped'], 'shard')} of frozen activations dropped, "
            f"{result['boundary_shards']} kept"
        )
    return [
        f"{counted(result['dropped'], 'feature')} dropped, {result['rows']:,} kept "
        f"in {counted(result['shards'], 'shard')}{activations}; "
        f"{size(max(result['freed_bytes'], 0))} freed"
    ]


COMMAND: Final = Command(
    PruneOptions, run, text, example="pipeline prune stores/sample", keeps=True
)
