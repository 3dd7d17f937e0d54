"""The ``verify`` command: whether a store, a run or an exported folder is as it was written."""

from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Text
from pipeline.config.upkeep import VerifyOptions
from pipeline.system.wording import counted


def run(options: VerifyOptions, call: Call) -> Result:
    """Check every byte of a store, a run or an exported folder."""
    from pipeline.verify.check import verify

    return verify(options, call.reporter)


def text(result: Result) -> Text:
    """Say what is bad, and what was done about it."""
    state = "every byte is right"
    if not result["ok"]:
        state = counted(len(result["problems"]), "problem")
    rows = counted(result["rows"], "row")
    if "kind" in result:
        found = f"{counted(result['heads'], 'good head')}, {rows}"
    else:
        count = result["boundary_shards"]
        of_activations = f", {counted(count, 'good shard')} of frozen activations"
        found = (
            f"{counted(result['shards'], 'good shard')}, {rows}{of_activations if count else ''}"
        )
    again = result.get("reencoded")
    return [
        f"{found}: {state}",
        *([f"{counted(again, 'row')} encoded again and compared"] if again else []),
        *(f"{item['problem']} {item['fix']}" for item in result["problems"]),
        *(f"Repaired: {done}" for done in result["repaired"]),
    ]


COMMAND: Final = Command(VerifyOptions, run, text, example="pipeline verify stores/sample")
