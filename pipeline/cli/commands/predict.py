"""The ``predict`` command: images to labels."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Text, errors
from pipeline.config.serving import PredictOptions
from pipeline.system.wording import counted


def run(options: PredictOptions, call: Call) -> Result:
    """Classify images."""
    from pipeline.serving.predict import predict

    return predict(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Show one line an image."""
    lines = []
    for item in result["predictions"]:
        top = ", ".join(f"{row['label']} {row['probability']:.3f}" for row in item["top"])
        lines.append(f"{item['path']}: {top}" + ("" if item["label"] else " (no answer)"))
    rate = result["images_per_second"]
    written = f"; wrote {result['csv']}" if result["csv"] else ""
    return [
        *lines,
        *errors(result["errors"], "by --json"),
        f"{counted(len(result['predictions']), 'image')} classified, {result['skipped']:,} skipped "
        f"({rate:,.0f} images/s, {result['engine']}){written}",
    ]


COMMAND: Final = Command(
    PredictOptions, run, text, example="pipeline predict runs/photos new-photos"
)
