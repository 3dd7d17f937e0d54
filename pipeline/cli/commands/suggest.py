"""The ``suggest`` command: which unlabelled images to label next."""

import shlex
from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Table, Text, number
from pipeline.config.suggesting import SuggestOptions
from pipeline.system.wording import counted

# Of what is suggested, the first ones are shown; all are in the table that is written.
_SHOWN: Final = 5


def run(options: SuggestOptions, call: Call) -> Result:
    """Choose what to label next."""
    from pipeline.suggest.stage import suggest

    return suggest(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Show the first suggestions, and what to do with them."""
    found = result["suggestions"]
    more = len(found) - _SHOWN
    store, place, csv = result["store"], result["next_run"], result["csv"]
    train = ["pipeline", "train-head", "--store", store, "--run", place, "--manifest", csv]
    return [
        f"{counted(result['images'], 'image')}: {result['labelled']:,} labelled, of "
        f"{counted(len(result['classes']), 'class', 'classes')}; {result['unlabelled']:,} to "
        "choose from",
        *_head(result),
        _table(found[:_SHOWN]),
        *([f"and {more:,} more"] if more > 0 else []),
        f"Wrote {csv}: fill in the labels of its first {counted(len(found), 'row')}, then",
        f"  {shlex.join(train)}",
    ]


def _head(result: Result) -> list[str]:
    if result["head"] is None:
        return []
    if result["run"] is not None:
        return [f"Asked: {result['head']} of {result['run']}"]
    share = result["accuracy"]
    how = "" if share is None else f"; accuracy {share:.3f} on unseen folds"
    return [f"Asked: {result['head']}, fitted on the labels{how}"]


def _table(found: list[Result]) -> Table:
    if found[0]["proposed"] is None:
        return Table([("rank", "path"), *_ranked(found)], has_words=True, whole=("path",))
    return Table(
        [
            ("rank", "probability", "uncertainty", "proposed", "path"),
            *(
                (rank, number(item["probability"]), number(item["uncertainty"]),
                 item["proposed"], path)
                for (rank, path), item in zip(_ranked(found), found, strict=True)
            ),
        ],
        has_words=True,
        whole=("path",),
    )  # fmt: skip


def _ranked(found: list[Result]) -> list[tuple[str, str]]:
    return [(str(rank), item["path"]) for rank, item in enumerate(found, start=1)]


COMMAND: Final = Command(SuggestOptions, run, text, example="pipeline suggest stores/photos")
