"""The ``audit`` command: what is wrong with the data of a store."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from pipeline.cli.command import Call, Command
from pipeline.cli.text import Result, Table, Text, number
from pipeline.config.auditing import AuditOptions
from pipeline.copies.threshold import Threshold
from pipeline.system.wording import counted

# Of what was found, the first ones are shown; all are in audit.csv.
_SHOWN: Final = 5


def run(options: AuditOptions, call: Call) -> Result:
    """Look for copies, leaks, label errors, outliers, faults and confounders."""
    from pipeline.audit.stage import audit

    return audit(options, call.common, call.reporter, started=call.started)


def text(result: Result) -> Text:
    """Show the first findings of every section, and why a section has none."""
    return [
        f"{counted(result['images'], 'image')} ({result['distinct']:,} different) of "
        f"{counted(len(result['classes']), 'class', 'classes')}, "
        f"{result['unlabelled']:,} without a label{_imbalance(result)}",
        *_copies(result),
        *_leaks(result),
        *_label_errors(result),
        *_outliers(result),
        *_issues(result),
        *_confounders(result),
        *_note(result, "html"),
        f"Wrote {result['csv']}: edit its labels, then train-head --manifest {result['csv']}"
        + (" --split leak-free" if result["leaks"] else ""),
        *([f"Wrote {result['html']}: all of this with pictures"] if result["html"] else []),
    ]


def _note(result: Result, section: str) -> list[str]:
    note = result["notes"].get(section)
    return [f"  {note[:1].upper()}{note[1:]}"] if note else []


def _imbalance(result: Result) -> str:
    ratio = result["imbalance"]
    return f"; the largest class has {ratio:.1f} times the images of the smallest" if ratio else ""


def _copies(result: Result) -> Text:
    threshold, groups = Threshold.of(result["threshold"]), result["near_duplicates"]
    of_two = sum(len(set(group["labels"]) - {""}) > 1 for group in groups)
    chains = sum(group["is_chain"] for group in groups)
    return [
        f"Copies: {counted(len(result['copies']), 'group')} of equal files, "
        f"{counted(len(groups), 'group')} of nearly equal images ({of_two:,} under several labels, "
        f"{chains:,} chains); {threshold}",
        *map(_group, groups[:_SHOWN]),
    ]


def _group(group: Result) -> str:
    return f"  {group['similarity']:.3f}  {_listed(group['paths'])}"


def _listed(paths: Sequence[str]) -> str:
    more = len(paths) - 2
    return " = ".join(paths[:2]) + (f" and {more:,} more" if more > 0 else "")


def _leaks(result: Result) -> Text:
    leaks = result["leaks"]
    counts = Counter(leak["splits"][0] for leak in leaks)
    listed = ", ".join(f"{count:,} of {split}" for split, count in sorted(counts.items()))
    return [
        f"Leaks: {counted(len(leaks), 'held-out image')} with a copy in an earlier split"
        + (f" ({listed})" if listed else ""),
        *_note(result, "leaks"),
        *map(_group, leaks[:_SHOWN]),
        *_note(result, "scores"),
        *_scores(result["scores_without_leaks"]),
    ]


def _scores(scores: Result) -> list[Table]:
    if not scores:
        return []
    rows = [
        (name, *_accuracy(item["all"]), *_accuracy(item), f"{item['leaked']['n']:,}")
        for name, item in scores.items()
    ]
    return [
        Table([("head", "test acc", "95 % interval", "without", "95 % interval", "leaked"), *rows])
    ]


def _accuracy(score: Result) -> tuple[str, str]:
    interval = score["accuracy_ci95"]
    shown = f"{interval[0]:.3f} - {interval[1]:.3f}" if interval else "-"
    return number(score["accuracy"]), shown


def _label_errors(result: Result) -> Text:
    errors, made = result["label_errors"], result["label_error_head"]
    if made["head"] is None:
        return ["Label errors: not looked for", *_note(result, "label_errors")]
    return [
        f"Label errors: {made['estimated']:,} likely, by {made['head']} on {made['folds']} folds "
        f"(accuracy {made['accuracy']:.3f}), ranked by cleanlab",
        *_note(result, "label_errors"),
        *(
            f"  {item['path']}: {item['given']}, proposed {item['proposed']} ({item['score']:.4f})"
            for item in errors[:_SHOWN]
        ),
    ]


def _outliers(result: Result) -> Text:
    found = result["outliers"]
    return [
        f"Outliers: {counted(len(found), 'image')} unlike the others",
        *(f"  {item['path']} ({item['score']:.1f} deviations)" for item in found[:_SHOWN]),
    ]


def _issues(result: Result) -> Text:
    counts = Counter(item["issue"] for item in result["issues"])
    listed = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    return [f"Faults of files: {listed or 'none'}", *_note(result, "quality")]


def _confounders(result: Result) -> Text:
    return [
        "Confounders: what tells the class without the picture",
        *_note(result, "confounders"),
        *(
            f"  {item['name']}: accuracy {item['accuracy']:.3f}, {item['majority']:.3f} by the "
            f"largest class{': this data leaks its label' if item['tells'] else ''}"
            for item in result["confounders"]
        ),
    ]


COMMAND: Final = Command(AuditOptions, run, text, example="pipeline audit stores/photos")
