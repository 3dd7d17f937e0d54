"""What a data set must have to be learned from: two classes, and rows in every split."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.dataset.splits import SPLITS
from pipeline.errors import ManifestError, mention
from pipeline.system.wording import counted

# A share of the images that is off by more is said; of a small split, by more than half of it.
_OFF: Final = 0.1


def require_classes(
    names: Sequence[str], images: int, dropped: Mapping[str, int], rare: Sequence[str]
) -> None:
    """Refuse fewer than two classes.

    Args:
        names: The classes that are left.
        images: Images of the data set.
        dropped: How many were left out, by reason.
        rare: Classes that were left out as too small.

    Raises:
        ManifestError: Tells why, and what was left out.
    """
    if len(names) >= 2:
        return
    left_out = [f"{count:,} left out: {reason}" for reason, count in dropped.items()]
    hint = "Give DATA one sub-folder per class, or a CSV with a label column, and extract again."
    if rare:
        left_out.append(f"classes left out as too small: {mention(rare)}")
        hint = "Add images, or lower --min-per-class."
    raise ManifestError(
        f"Expected images of two or more classes. Received: {mention(names) or 'no class'} "
        f"({'; '.join([counted(images, 'image'), *left_out])}).",
        hint=hint,
    )


def check_classes(labels: Sequence[str], splits: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return what to say of classes that a split lacks.

    Args:
        labels: Class of each row.
        splits: Split of each row.
        names: All classes.

    Raises:
        ManifestError: Train has one class, of which nothing can be told apart.
    """
    found: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
    for label, split in zip(labels, splits, strict=True):
        found[split][label] += 1
    if len(found["train"]) < 2:
        raise ManifestError(
            f"Expected images of two or more classes in train. "
            f"Received: {mention(list(found['train']))} alone, of "
            f"{len(names):,} classes ({ {name: found[name].total() for name in SPLITS} }).",
            hint="Correct the splits that the data declares.",
        )
    unseen = [name for name in names if not found["train"][name]]
    unscored = [name for name in names if not found["test"][name]]
    notes = []
    if unseen:
        listed = [
            f"{name!r} ({found['val'][name]:,} in val, {found['test'][name]:,} in test)"
            for name in unseen
        ]
        notes.append(
            "Classes that train lacks can never be predicted, so that their images count as wrong: "
            + mention(listed, quoted=False)
        )
    if unscored:
        notes.append(f"Classes without an image in test are not scored: {mention(unscored)}")
    return notes


def check_shares(
    splits: Sequence[str], groups: Sequence[str], ratios: Sequence[float]
) -> list[str]:
    """Return that groups make shares uneven, where a split's is off by a lot.

    Args:
        splits: Split of each row.
        groups: Name of the group of each row; empty where it is on its own.
        ratios: Shares of train, val and test that were asked for.
    """
    sizes, counts = Counter(name for name in groups if name), Counter(splits)
    found = [counts[name] / len(splits) for name in SPLITS]
    # Without groups, a share would hardly ever be off by three standard deviations.
    chance = [3 * math.sqrt(asked * (1 - asked) / len(splits)) for asked in ratios]
    if not sizes or all(
        abs(got - asked) <= max(min(_OFF, asked / 2), by_chance)
        for got, asked, by_chance in zip(found, ratios, chance, strict=True)
    ):
        return []
    shown, wanted = ("/".join(f"{100 * share:.0f}" for share in parts) for parts in (found, ratios))
    return [
        f"Groups stay whole, so that train/val/test have {shown} % of the images where {wanted} "
        f"were asked for; the largest of {counted(len(sizes), 'group')} has "
        f"{max(sizes.values()):,} of {counted(len(splits), 'image')}"
    ]


def require_splits(counts: Mapping[str, int], ratios: Sequence[float]) -> None:
    """Refuse a split without images that was to have a share of them.

    Args:
        counts: Images by split.
        ratios: Shares of train, val and test.

    Raises:
        ManifestError: Names what is empty.
    """
    shares = dict(zip(SPLITS, ratios, strict=True))
    empty = [name for name, count in counts.items() if shares[name] and not count]
    if empty:
        raise ManifestError(
            f"Expected images in every split. Received: none in {', '.join(empty)} "
            f"({dict(counts)}).",
            hint="Add images, or choose other shares with --split.",
        )
