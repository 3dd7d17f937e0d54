"""The ``predict`` command: images to labels."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import CLASS, Result, Table, Text, errors
from pipeline.config.serving import PredictOptions
from pipeline.system.wording import counted

# Images, or classes, that are shown one by one.
_LISTED: Final = 20


def run(options: PredictOptions, call: Call) -> Result:
    """Classify images."""
    from pipeline.serving.predict import predict

    return predict(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Show one line per image; of many that are in a CSV, how many are of each class."""
    is_written = result["csv"] and len(result["predictions"]) > _LISTED
    rate = result["images_per_second"]
    written = f"; wrote {result['csv']}" if result["csv"] else ""
    return [
        *(_counts(result["predictions"]) if is_written else map(_line, result["predictions"])),
        *errors(result["errors"], "by --json"),
        f"{counted(len(result['predictions']), 'image')} classified, {result['skipped']:,} skipped "
        f"({rate:,.0f} images/s, {result['engine']}){written}",
    ]


def _line(item: Result) -> str:
    top = ", ".join(f"{row['label']} {row['probability']:.3f}" for row in item["top"])
    return f"{item['path']}: {top}" + ("" if item["label"] else " (no answer)")


def _counts(predictions: Sequence[Result]) -> Text:
    """Show how many images are of each predicted class, the most frequent first."""
    found = Counter(item["label"] or "(no answer)" for item in predictions).most_common()
    rows = [("predicted", "images"), *((label, f"{count:,}") for label, count in found[:_LISTED])]
    more = found[_LISTED:]
    total = sum(count for _, count in more)
    return [
        Table(rows),
        *([f"and {counted(len(more), *CLASS)} more, {total:,} images"] if more else []),
    ]


COMMAND: Final = Command(
    PredictOptions, run, text, example="pipeline predict runs/photos new-photos"
)
