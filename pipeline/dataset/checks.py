"""What a data set must have to be learned from: two classes, and rows in every split."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.dataset.splits import SPLITS
from pipeline.errors import ManifestError, mention
from pipeline.system.wording import counted


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
