"""The answer of an audit in plain words: what needs action, and what to do next."""

import shlex
from collections.abc import Mapping
from typing import Any, Final

from pipeline.audit.findings import Findings, Group
from pipeline.pages.frame import percent
from pipeline.system.wording import counted

# The largest class has this many times the images of the smallest: accuracy says little of it.
_UNEQUAL: Final = 10

# A sentence, and the section that it leads to.
Step = Mapping[str, str]


def answer(findings: Findings, best: str | None, csv: str) -> dict[str, Any]:
    """Return the answer.

    Args:
        findings: What was found.
        best: The head that the run chose; None without a run.
        csv: Where the table to edit is.

    Returns:
        ``headline``; ``text``, sentences below it; ``steps``, each with ``text`` and the section
        ``to`` look at; ``commands`` to go on with.
    """
    needed = _needed(findings)
    steps = [*_about_leaks(findings, best), *_about_confounders(findings), *_about_labels(findings),
             *_about_files(findings), *_about_classes(findings)]  # fmt: skip
    return {
        "headline": ", ".join(needed) or "Nothing that needs action was found",
        "text": [_looked_at(findings)],
        "steps": steps,
        "commands": _commands(findings, csv, has_steps=bool(steps)),
    }


def conflicting(findings: Findings) -> list[Group]:
    """Return the groups of copies under several labels, most similar first.

    Of chains, whose ends may be two pictures, only the equal files in them are among these.
    """
    equal = [group for group in findings.copies if _conflicts(group)]
    known = {tuple(group.paths) for group in equal}
    near = [
        group
        for group in findings.near_duplicates
        if _conflicts(group) and not group.is_chain and tuple(group.paths) not in known
    ]
    return equal + near


def _conflicts(group: Group) -> bool:
    return len(set(group.labels) - {""}) > 1


def _needed(findings: Findings) -> list[str]:
    """Return what needs action, in the order of what matters."""
    leaks, groups = len(findings.leaks), len(conflicting(findings))
    likely = findings.label_errors.estimated
    found = []
    if leaks:
        found.append(f"{counted(leaks, 'leak')} between splits")
    if groups:
        found.append(f"{counted(groups, 'group')} of copies under several labels")
    if likely:
        found.append(counted(likely, "likely wrong label"))
    if telling := _telling(findings):
        found.append(f"the class shows in the {' and the '.join(telling)}")
    return found


def _telling(findings: Findings) -> list[str]:
    return [item.name for item in findings.confounders if item.tells]


def _looked_at(findings: Findings) -> str:
    """Say what was audited."""
    copies = findings.images - findings.distinct
    without = findings.unlabelled
    return (
        f"In {counted(findings.images, 'image file')} of "
        f"{counted(len(findings.classes), 'class', 'classes')}"
        + (f", {copies:,} of them copies byte for byte" if copies else "")
        + (f", {without:,} without a label" if without else "")
        + "."
    )


def _about_leaks(findings: Findings, best: str | None) -> list[Step]:
    leaks = len(findings.leaks)
    if not leaks:
        return []
    verb = "has" if leaks == 1 else "have"
    said = f"{counted(leaks, 'held-out image')} {verb} a copy in an earlier split"
    scores = findings.scores.get(best or "")
    if scores is not None and scores.leaked["n"] and scores.without["n"]:
        said += (
            f". Without them {best} is right about {_accuracy(scores.without)} of the test images, "
            f"instead of {_accuracy(scores.everything)}"
        )
    said += (
        ". Keep copies in one split: train-head --split leak-free. Declared splits win, those of "
        "the table too: of copies in several, the ones nearest to test stay, others are left out"
    )
    return [{"text": f"{said}.", "to": "leaks"}]


def _accuracy(score: Any) -> str:
    return percent(score["accuracy"])


def _about_confounders(findings: Findings) -> list[Step]:
    return [
        {
            "text": f"The {item.name} alone tells the class of {percent(item.accuracy)} of the "
            "images. A head may learn that instead of the picture: make the files of all classes "
            "alike in it, or add photos that differ.",
            "to": "confounders",
        }
        for item in findings.confounders
        if item.tells
    ]


def _about_labels(findings: Findings) -> list[Step]:
    steps: list[Step] = []
    groups, likely = len(conflicting(findings)), findings.label_errors.estimated
    if groups:
        verb = "stands" if groups == 1 else "stand"
        steps.append(
            {
                "text": f"{counted(groups, 'group')} of copies {verb} under several labels, of "
                "which one is right at most: choose it, or leave the images out.",
                "to": "conflicts",
            }
        )
    if likely:
        verb = "is" if likely == 1 else "are"
        steps.append(
            {
                "text": f"{counted(likely, 'label')} {verb} likely wrong: look at the first ones, "
                "and take the proposed label where the picture shows it.",
                "to": "errors",
            }
        )
    return steps


def _about_files(findings: Findings) -> list[Step]:
    steps: list[Step] = []
    outliers, faults = len(findings.outliers), len({issue.path for issue in findings.issues})
    if outliers:
        verb = "is" if outliers == 1 else "are"
        steps.append(
            {
                "text": f"{counted(outliers, 'image')} {verb} unlike all others: a wrong file, or "
                "a rare case that needs more photos.",
                "to": "outliers",
            }
        )
    if faults:
        verb = "is" if faults == 1 else "are"
        steps.append(
            {
                "text": f"{counted(faults, 'file')} {verb} dark, bright, blurred, tiny or of an "
                "odd shape: replace those in which a person sees nothing.",
                "to": "faults",
            }
        )
    return steps


def _about_classes(findings: Findings) -> list[Step]:
    if not findings.imbalance or findings.imbalance < _UNEQUAL:
        return []
    return [
        {
            "text": f"The largest class has {findings.imbalance:.0f} times the images of the "
            "smallest: read balanced accuracy, and add photos of the small ones.",
            "to": "classes",
        }
    ]


def _commands(findings: Findings, csv: str, *, has_steps: bool) -> list[str]:
    """Return the commands to go on with, as they can be typed."""
    fixed = "runs/fixed"
    if has_steps:
        again = ["train-head", "--store", findings.store, "--run", fixed, "--manifest", csv]
        commands = [[*again, "--split", "leak-free"] if findings.leaks else again]
        if findings.run:
            commands.append(["compare", findings.run, fixed])
    elif findings.run:
        commands = [["report", findings.run]]
    else:
        commands = [["train-head", "--store", findings.store]]
    return [shlex.join(["pipeline", *command]) for command in commands]
