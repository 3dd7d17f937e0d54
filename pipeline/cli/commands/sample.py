"""The ``sample`` command: handwritten digits as a data set to try things out on."""

from pathlib import Path
from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import CLASS, Result, Text
from pipeline.config.options import SampleOptions
from pipeline.system.wording import counted


def run(options: SampleOptions, call: Call) -> Result:
    """Write the sample data set."""
    from pipeline.files import outputs
    from pipeline.images.sample import write_sample

    outputs.require_folder("OUT", Path(options.out))
    return write_sample(Path(options.out), force=call.common.force)


def text(result: Result) -> Text:
    """Describe the written sample."""
    return [
        f"{counted(result['images'], 'image')} in {counted(result['classes'], *CLASS)} in "
        f"{result['out']} ({result['written']:,} written now)"
    ]


COMMAND: Final = Command(SampleOptions, run, text, example="pipeline sample digits", keeps=True)
