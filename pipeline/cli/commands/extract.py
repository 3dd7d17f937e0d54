"""The ``extract`` command: stage 1 on a data set."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Text, conflicting, duration, errors, features_at, size
from pipeline.config.extracting import ExtractOptions
from pipeline.system.wording import counted


def run(options: ExtractOptions, call: Call) -> Result:
    """Run stage 1."""
    from pipeline.extract.stage import extract

    return extract(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Describe what stage 1 did."""
    if result.get("dry_run"):
        return [
            f"{counted(result['images'], 'image')}: {result['new']:,} new, "
            f"{result['reused']:,} reused, {result['skipped']:,} bad",
            f"About {duration(result['estimated_seconds'])} and "
            f"{size(result['estimated_bytes'])} in {result['store']}"
            + (f" (rate: {result['estimated_from']})" if result["estimated_from"] else ""),
            "Nothing was written.",
        ]
    rate = result["images_per_second"]
    lines = [
        f"{result['encoded']:,} encoded, {result['reused']:,} reused, "
        f"{result['skipped']:,} skipped of {counted(result['images'], 'image')} in "
        f"{duration(result['seconds'])}" + (f" ({rate:,.0f} images/s)" if rate else "")
    ]
    lines += _bottleneck(result["bottleneck"])
    lines += [_node(node) for node in result["nodes"]]
    lines += [f"View {name}: {count:,} made" for name, count in result["views"].items()]
    lines += errors(result["errors"], "in the manifest")
    lines += conflicting(result)
    if result["weights"] == "random":
        lines.append(
            "The weights are random (an untrained network): fine for trying things out; "
            "use --weights imagenet on your photos"
        )
    lines.append(features_at(result))
    return lines


def _bottleneck(found: Result | None) -> list[str]:
    """Say what bounds the rate, and what would raise it."""
    if found is None:
        return []
    return [f"Bound by {found['bound']} (busy: {_busy(found)}); faster with {found['advice']}"]


def _node(found: Result) -> str:
    """Say what a node of a cluster did."""
    if not found["encoded"]:
        return f"{found['node']}: {found['decoded']:,} decoded for others (busy: {_busy(found)})"
    rate = found["images_per_second"]
    return (
        f"{found['node']}: {found['encoded']:,} encoded"
        + (f" ({rate:,.0f} images/s)" if rate else "")
        + f" on {found['device']}, bound by {found['bound']} (busy: {_busy(found)})"
    )


def _busy(found: Result) -> str:
    return ", ".join(
        f"{part} {100 * share:.0f} %" for part, share in found["busy"].items() if share is not None
    )


COMMAND: Final = Command(ExtractOptions, run, text, example="pipeline extract photos", keeps=True)
