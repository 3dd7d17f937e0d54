"""The ``evaluate`` command: a saved head scored on other labelled data."""

from typing import Final

from pipeline.cli.class_tables import matrix, score_table, worst_of
from pipeline.cli.command import Call, Command
from pipeline.cli.text import CLASS, Result, Table, Text, errors, number
from pipeline.config.serving import EvaluateOptions
from pipeline.errors import mention
from pipeline.system.wording import counted

# Of more classes the worst are shown: a wider matrix is read by programs.
_SHOWN_CLASSES: Final = 20


def run(options: EvaluateOptions, call: Call) -> Result:
    """Score a head on labelled images."""
    from pipeline.serving.evaluate import evaluate

    return evaluate(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Show the scores, those of every class, and what was left out."""
    written = f"; wrote {result['csv']}" if result["csv"] else ""
    return [
        _scores(result),
        f"Accuracy on {counted(result['scored'], 'image')} of {result['data']}; Wilson interval.",
        *_reject(result["reject"]),
        *_classes(result),
        *errors(result["errors"], "by --json"),
        *_left_out(result),
        *_seen(result),
        f"{result['scored']:,} scored of {counted(result['images'], 'image')}, "
        f"{result['skipped']:,} skipped ({result['images_per_second']:,.0f} images/s, "
        f"{result['engine']}){written}",
    ]


def _scores(result: Result) -> Table:
    scores = result["scores"]
    low, high = scores["accuracy_ci95"]
    shares = ("balanced_accuracy", "macro_f1", "log_loss", "ece")
    return Table(
        [
            ("head", "accuracy", "95 % interval", "bal acc", "F1", "loss", "ECE"),
            (
                result["head"],
                number(scores["accuracy"]),
                f"{low:.3f}-{high:.3f}",
                *(number(scores[name]) for name in shares),
            ),
        ]
    )


def _reject(reject: Result) -> list[str]:
    """Say what withholding answers does, where the run does so."""
    if not reject["threshold"]:
        return []
    return [
        f"At probability {reject['threshold']:g} or above it answers "
        f"{100 * reject['coverage']:.1f} % of these images, with accuracy "
        f"{number(reject['accuracy'])}; the scores above are of all"
    ]


def _classes(result: Result) -> Text:
    scores, classes, title = result["scores"], result["classes"], f"on {result['data']}"
    if len(classes) > _SHOWN_CLASSES:
        return worst_of(scores, classes, title=title, all_by="--json")
    return [*score_table(scores, classes, title=title), *matrix(scores, classes, title=title)]


def _left_out(result: Result) -> list[str]:
    """Say which images are not in the scores though nothing is wrong with them."""
    lines = []
    unknown = result["unknown"]
    if unknown:
        named = mention([f"{name!r} ({count:,})" for name, count in unknown.items()], quoted=False)
        lines.append(
            f"Left out: {counted(sum(unknown.values()), 'image')} of "
            f"{counted(len(unknown), *CLASS)} that the run does not know: {named}"
        )
    if result["unlabelled"]:
        lines.append(f"Left out: {counted(result['unlabelled'], 'image')} without a label")
    if result["conflicting"]:
        lines.append(f"Left out: {counted(result['conflicting'], 'image')} under two labels")
    return lines


def _seen(result: Result) -> list[str]:
    """Say how many of the images the run knows; scores on them say little about others."""
    if result["seen"] is None:
        return ["An exported folder does not tell whether these are images it was trained on"]
    seen = {split: count for split, count in result["seen"].items() if count}
    if not seen:
        return []
    listed = " and ".join(f"{count:,} in {split}" for split, count in seen.items())
    return [
        f"The run was trained or chosen on {sum(seen.values()):,} of these images ({listed}): "
        "the scores are optimistic"
    ]


COMMAND: Final = Command(EvaluateOptions, run, text, example="pipeline evaluate runs/photos more")
