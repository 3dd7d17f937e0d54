"""Labels that look alike: found and pointed out, and made one where that was asked for.

A class that is spelled in two ways is two classes, each with part of the images; nothing but a
person can tell whether that is meant.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pipeline.errors import mention
from pipeline.images.split_names import splits_of

_NUMBER: Final = re.compile(r"([+-]?)0*(\d+)(?:\.0*)?")
_BETWEEN_LETTERS: Final = re.compile(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])")
# Zero-width space, word joiner, byte order mark, soft hyphen: never part of a name on purpose.
_INVISIBLE: Final = re.compile("[\u00ad\u200b\u2060\ufeff]")
_VARIATION: Final = re.compile("[\ufe00-\ufe0f]")
# What other programs write where there is no label.
_PLACEHOLDERS: Final = frozenset({"-1", "n/a", "nan", "none", "null"})


def tidy(label: str) -> str:
    """Return a label without blanks around it, doubled blanks and invisible characters, in NFC."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", label)).split())


def look_alikes(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of different labels that a person may take for one, sorted.

    Alike are labels that differ in blanks, invisible characters, capitals, how accents are
    encoded, underscores for blanks, or how a whole number is written.
    """
    groups = defaultdict(set)
    for label in set(labels) - {""}:
        groups[_folded(label)].add(label)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def notes_of(labels: Iterable[str]) -> list[str]:
    """Return what to point out about labels, one line each."""
    distinct = set(labels)
    groups = look_alikes(distinct)
    notes = []
    if groups:
        listed = mention([_described(group) for group in groups], quoted=False)
        notes.append(
            f"Labels that look alike are separate classes: {listed}. To merge them, "
            "extract with --merge-labels or correct the labels"
        )
    paired = {label for group in groups for label in group}
    padded = sorted(label for label in distinct - paired if label != label.strip())
    if padded:
        notes.append(f"Labels with leading or trailing blanks, which are kept: {mention(padded)}")
    placeholders = sorted(label for label in distinct if label.strip().casefold() in _PLACEHOLDERS)
    if placeholders:
        notes.append(
            f"Labels that often stand for none are classes as others are: {mention(placeholders)}. "
            "Leave the label empty where there is none"
        )
    named = sorted(distinct - {""})
    if len(named) > 1 and all(splits_of(named).values()):
        notes.append(
            f"Every class has the name of a split: {mention(named)}. If these are splits, the "
            "classes are to be in folders below them"
        )
    return notes


def merged(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return labels in one spelling each, and what was changed, one line.

    Of those that look alike the commonest spelling is taken, ties by name, without blanks around
    it.
    """
    counts = Counter(labels)
    groups = defaultdict(list)
    for label in counts:
        groups[_folded(label) if label else ""].append(label)
    spelled = {
        label: tidy(min(group, key=lambda item: (-counts[item], item)))
        for group in groups.values()
        for label in group
    }
    changed = sorted(label for label in counts if spelled[label] != label)
    listed = [f"{_visible(label, spelled[label])} as {spelled[label]!r}" for label in changed]
    notes = []
    if changed:
        images = sum(counts[label] for label in changed)
        notes.append(f"Labels merged: {mention(listed, quoted=False)}; images: {images:,}")
    return [spelled[label] for label in labels], notes


def _folded(label: str) -> str:
    """Return what labels that look alike have in common."""
    text = label
    for fold in _FOLDS.values():
        text = fold(text)
    # Taking capitals away can leave another spelling of one accent; spelling it out, blanks.
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _without_blanks(label: str) -> str:
    seen = [character for character in label if unicodedata.category(character) != "Cf"]
    return " ".join("".join(seen).split())


def _as_number(label: str) -> str:
    number = _NUMBER.fullmatch(label)
    return number[1].replace("+", "") + number[2] if number else label


# What may tell two labels apart, in words, and what takes the difference away.
_FOLDS: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "in blanks": _without_blanks,
        "in the encoding of characters": lambda label: _VARIATION.sub(
            "", unicodedata.normalize("NFKC", label)
        ),
        "in capitals": str.casefold,
        "in how a number is written": _as_number,
        "in underscores and hyphens": lambda label: _BETWEEN_LETTERS.sub(" ", label),
    }
)


def _described(group: Sequence[str]) -> str:
    """Return a group with what its labels differ in."""
    reasons = [
        reason for reason, fold in _FOLDS.items() if len({fold(label) for label in group}) == 1
    ]
    shown = " and ".join(_visible(label, *group) for label in group)
    return f"{shown} (differ only {reasons[0] if reasons else 'in spelling'})"


def _visible(label: str, *others: str) -> str:
    """Return a label in quotes, with what would not be seen beside the others written out."""
    shown = unicodedata.normalize("NFC", label)
    hidden = any(
        label != other and shown == unicodedata.normalize("NFC", other) for other in others
    )
    return ascii(label) if hidden else repr(label)
