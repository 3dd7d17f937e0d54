"""The answer of a report in plain words: which head, how good, and what to do next."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pipeline.pages.frame import percent
from pipeline.report.scored import ScoredHead
from pipeline.system.wording import counted

# An interval wider than this says little; a class with fewer images has a recall that says little.
_WIDE: Final = 0.1
_FEW: Final = 20
# A mistake this sure is more often a wrong label than a hard picture.
_SURE: Final = 0.9
# A gap between train and the scored split that more photos, or fine-tuning, would narrow.
_GAP: Final = 0.1
# A pair of classes that is confused this often is no accident.
_REPEATED: Final = 3
_STEPS: Final = 3

# A sentence, and the section that it leads to.
Step = Mapping[str, str]


def answer(head: ScoredHead, leaderboard: Mapping[str, Any], confusion: Mapping[str, Any]) -> Any:
    """Return the answer.

    Args:
        head: The head that the report is about.
        leaderboard: What ``tables.leaderboard_of`` returns.
        confusion: What ``tables.confusion`` returns.

    Returns:
        ``accuracy`` and ``interval`` for the headline, None where nothing was scored; ``text``,
        sentences below it; ``steps``, each with ``text`` and the section ``to`` look at.
    """
    score = head.score
    return {
        "accuracy": score.accuracy,
        "interval": score.accuracy_ci95,
        "text": [*_how_good(head), *_lead(head, leaderboard)],
        "steps": _steps(head, confusion),
    }


def _how_good(head: ScoredHead) -> list[str]:
    score = head.score
    if not score.n or score.accuracy_ci95 is None:
        return ["This run has neither test nor val images, so nobody knows how good it is."]
    low, high = score.accuracy_ci95
    right = round((score.accuracy or 0.0) * score.n)
    said = [
        f"It classifies {right:,} of {counted(score.n, f'{head.split} image')} correctly. On "
        f"other photos like these, expect between {percent(low)} and {percent(high)} "
        "(95 % interval)."
    ]
    if head.split == "val":
        said.append(
            "There are no test images: these are val's, which the head was chosen on, so they "
            "flatter it."
        )
    return said


def _lead(head: ScoredHead, leaderboard: Mapping[str, Any]) -> list[str]:
    """Say whether the head is really better than the others."""
    if head.run.record.finetune and head.run.record.finetune.verdict:
        return [str(head.run.record.finetune.verdict["text"])]
    others = len(leaderboard["rows"]) - 1
    if not others:
        return []
    if head.name != head.run.record.best:
        return [f"It is not the run's choice: on val, {head.run.record.best} is better."]
    return [f"Of {counted(others + 1, 'head')} it is the best on val, which chose it."]


def _steps(head: ScoredHead, confusion: Mapping[str, Any]) -> list[Step]:
    """Return what to do next, the most useful first."""
    found = [*_about_size(head), *_about_labels(head), *_about_pairs(head, confusion),
             *_about_gap(head), *_about_classes(head)]  # fmt: skip
    if not found and head.score.n:
        found = [
            {
                "text": "Nothing stands out. Try it on photos from elsewhere: pipeline evaluate.",
                "to": "wrong",
            }
        ]
    return found[:_STEPS]


def _about_size(head: ScoredHead) -> list[Step]:
    if head.split == "val":
        return [{"text": "Train again with a --split that gives test a share.", "to": "leaders"}]
    low, high = head.score.accuracy_ci95 or (0.0, 1.0)
    if high - low <= _WIDE:
        return []
    return [
        {
            "text": f"Label more test images: with {counted(head.score.n, 'image')} the interval "
            f"is {100 * (high - low):.0f} points wide, and small differences cannot be seen.",
            "to": "leaders",
        }
    ]


def _about_labels(head: ScoredHead) -> list[Step]:
    """Point at mistakes that the head is sure of."""
    sure = int(((head.predicted != head.y) & (head.confidence >= _SURE)).sum())
    if not sure:
        return []
    verb = "is" if sure == 1 else "are"
    return [
        {
            "text": f"Look at the {counted(sure, 'image')} that {verb} wrong at a probability of "
            f"{_SURE:g} or more: often the label is what is wrong.",
            "to": "wrong",
        }
    ]


def _about_pairs(head: ScoredHead, confusion: Mapping[str, Any]) -> list[Step]:
    """Point at the pair of classes that is confused most."""
    if not confusion["pairs"] or confusion["pairs"][0]["count"] < _REPEATED:
        return []
    pair = confusion["pairs"][0]
    true, predicted = (head.classes[pair[name]] for name in ("true", "predicted"))
    return [
        {
            "text": f"Compare \u2068{true}\u2069 with \u2068{predicted}\u2069: "
            f"{counted(pair['count'], 'image')} of the first are taken for the second, the most "
            f"frequent of {counted(confusion['mistakes'], 'mistake')}.",
            "to": "confusion",
        }
    ]


def _about_gap(head: ScoredHead) -> list[Step]:
    """Say what a gap between train and test is closed by."""
    train, here = head.record.train.accuracy, head.score.accuracy
    if train is None or here is None or train - here < _GAP:
        return []
    more = "" if head.run.record.finetune else ", or pipeline finetune"
    return [
        {
            "text": f"Add photos{more}: the head knows its own training images better "
            f"({percent(train)}) than new ones ({percent(here)}).",
            "to": "learning",
        }
    ]


def _about_classes(head: ScoredHead) -> list[Step]:
    """Point at classes whose scores rest on a handful of images."""
    support = np.array(head.shown["per_class"]["support"])
    few = int((support < _FEW).sum())
    if not few or not head.score.n:
        return []
    return [
        {
            "text": f"Do not lean on the scores of single classes: {few:,} of {len(support):,} "
            f"have fewer than {_FEW} {head.split} images.",
            "to": "classes",
        }
    ]
