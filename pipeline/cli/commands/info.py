"""The ``info`` command: what a store or a run is."""

from typing import Final

from pipeline.cli.class_tables import all_classes, worst_classes
from pipeline.cli.command import Call, Command
from pipeline.cli.leaderboard import head_rows, leaderboard, uncertainty
from pipeline.cli.text import Result, Text, size
from pipeline.config.upkeep import InfoOptions
from pipeline.system.wording import counted


def run(options: InfoOptions, call: Call) -> Result:
    """Say what a store or run is."""
    from pipeline.files.location import locate
    from pipeline.runs.info import info

    return info(locate(options.path), per_class=options.per_class, head=options.head)


def text(result: Result) -> Text:
    """Describe a store or a run."""
    if result["kind"] == "run":
        return _run_info(result)
    return [
        f"Store {result['path']}: {counted(result['rows'], 'image')} x {result['dim']:,} features "
        f"in {counted(result['shards'], 'shard')}, {size(result['bytes'])}",
        *_activations(result),
        f"Data: {result['root']}, {counted(result['images'], 'image')}; "
        f"statuses {result['statuses']}",
        f"Classes: {result['classes']}",
        *(f"  {name}: {value}" for name, value in result["identity"].items()),
        *(f"  made with {name}: {value}" for name, value in result["provenance"].items()),
    ]


def _run_info(result: Result) -> Text:
    """Describe a run, with the scores that it recorded."""
    heads = ", ".join(result["heads"]) or "none"
    shown = result["shown"]
    has_scores = result["split"]["test"] > 0 and result["heads"]
    return [
        f"Run {result['path']}: heads {heads}; best {result['best']}",
        f"Made from {result['store']}; split {result['split']}",
        f"Classes: {', '.join(result['classes'])}",
        *([leaderboard(head_rows(result))] if has_scores else ()),
        *(uncertainty(result["split"]["test"]) if has_scores else ()),
        *(all_classes(shown, result["classes"]) if shown else worst_classes(result)),
    ]


def _activations(store: Result) -> list[str]:
    """Say what fine-tuning keeps in a store, if anything."""
    if not store["boundary_shards"]:
        return []
    return [
        f"Frozen activations for finetune: {counted(store['boundary_shards'], 'shard')}, "
        f"{size(store['boundary_bytes'])} in boundary/ (safe to delete)"
    ]


COMMAND: Final = Command(InfoOptions, run, text, example="pipeline info runs/sample")
