"""The join of a manifest with a store: features, labels and splits, ready to train on.

Rows stay in the manifest's order, and every row that is left out is counted with the reason.
Imports neither Keras nor scikit-learn.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config.fields import expanded
from pipeline.config.options import DEFAULT_SPLIT, TrainHeadOptions, default_of
from pipeline.dataset import groups, splits
from pipeline.dataset.checks import check_classes, check_shares, require_classes, require_splits
from pipeline.dataset.labels import notes_of as notes_of_labels
from pipeline.dataset.splits import SPLITS, Moved
from pipeline.errors import ManifestError, mention
from pipeline.files.location import locate
from pipeline.images.manifest import CONFLICT, GROUP, OK, Manifest, mark_conflicts
from pipeline.store.store import Store
from pipeline.system.wording import counted


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled rows with a split, grouped train, val, test.

    Attributes:
        paths: POSIX paths relative to the data.
        labels: Class names.
        splits: Split of each row.
        keys: Content keys, ``S64``.
        names: All class names, sorted; a label's number is its place here.
        moved: Keys that left their place by hash.
        dropped: How many rows are left out, by reason.
        notes: What was assumed about labels and splits, or is wrong with them, one line each.
        is_declared: Whether the source says what is held out.
        groups: Name of the group of each row, which is in one split; empty of one that is alone.
            No values at all where there are no groups.
        declared: What the source declares of each row, where it declares some in train and
            nothing of the others; no values at all otherwise.
    """

    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    keys: NDArray[np.bytes_]
    names: tuple[str, ...]
    moved: tuple[Moved, ...]
    dropped: dict[str, int]
    notes: tuple[str, ...] = ()
    is_declared: bool = False
    groups: Sequence[str] = ()
    declared: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def y(self) -> NDArray[np.int64]:
        """Class numbers, int64, shape ``(n,)``."""
        return _numbers(self.labels, self.names)

    @property
    def together(self) -> NDArray[np.str_]:
        """The name of each row's group, or its key, ``(n,)``: rows of one stay on one side."""
        keys = self.keys.astype(str)
        if not self.groups:
            return keys
        names = np.array(self.groups, dtype=str)
        return np.where(names == "", keys, names)

    def rows(self, split: str) -> slice:
        """Return where a split's rows are; they are neighbours."""
        first = list(self.splits).index(split) if split in self.splits else 0
        return slice(first, first + list(self.splits).count(split))

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {name: list(self.splits).count(name) for name in SPLITS}


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """How rows without a declared split get one, and which classes are too small.

    Attributes:
        ratios: As typed, such as ``70/15/15``, where splits that the data lacks are then taken
            from train; None stands for the default, and for taking the only held-out split that
            the data declares for test.
        seed: Seed of the hash rule.
        min_per_class: Fewest distinct images of a class.
        rare: ``raise`` or ``drop`` a smaller class.
        leak_free: Whether near duplicates are to stay in one split.
        by_group: Whether images of one group of the manifest stay in one split.
    """

    ratios: str | None = None
    seed: int = default_of(TrainHeadOptions, "split_seed")
    min_per_class: int = default_of(TrainHeadOptions, "min_per_class")
    rare: str = default_of(TrainHeadOptions, "rare")
    leak_free: bool = False
    by_group: bool = False

    @property
    def shares(self) -> splits.Ratios:
        """The shares of train, val and test.

        Raises:
            ConfigError: They are none.
        """
        return splits.parse_ratios(self.ratios or DEFAULT_SPLIT)


def load(
    store: str | Path,
    manifest: str | Path | None = None,
    split: str | None = None,
    view: str | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Load stored features with their labels, without TensorFlow.

    Args:
        store: Store directory.
        manifest: A manifest to use instead of the store's own; a run's ``manifest.csv`` gives
            the very rows and splits of that run.
        split: ``train``, ``val`` or ``test``, as declared, or by the default rule where nothing
            is declared. None gives every row with status ``ok`` and a label.
        view: A stored view, such as ``flip``, instead of the images as they are.

    Returns:
        Features float32 ``(n, dim)`` in manifest order, class numbers int64 ``(n,)``, and the
        class names, sorted.

    Raises:
        ManifestError: The manifest cannot be used, or the split's name is unknown.
        StoreError: The store is missing, damaged, or lacks features.

    Example:
        X, y, names = pipeline.load("stores/sample", split="train")
    """
    opened = Store.open(locate(expanded(store)))
    keys, y, names = labelled(opened, manifest, split)
    return opened.read(keys, view), y, names


def labelled(
    store: Store, manifest: str | Path | None, split: str | None
) -> tuple[NDArray[np.bytes_], NDArray[np.int64], list[str]]:
    """Return keys and class numbers of the rows that ``load`` returns, and the class names.

    Raises:
        ManifestError: The manifest cannot be used, or the split's name is unknown.
    """
    chosen = Path(expanded(manifest)) if manifest is not None else None
    listing = store.read_manifest(chosen)
    rows, _ = usable_rows(listing)
    names = tuple(sorted({listing.labels[index] for index in rows}))
    if split is not None:
        if split not in SPLITS:
            raise ManifestError(f"Expected a split of {', '.join(SPLITS)}. Received: {split!r}.")
        assigned = _assign(listing, rows, SplitRule(), {}).splits
        rows = [index for index, name in zip(rows, assigned, strict=True) if name == split]
    labels = [listing.labels[index] for index in rows]
    return listing.keys[rows], _numbers(labels, names), list(names)


def prepare(manifest: Manifest, rule: SplitRule, copies: Sequence[Sequence[str]] = ()) -> Examples:
    """Choose the rows to train, choose and score on.

    Args:
        manifest: The rows.
        rule: How they get splits.
        copies: Keys of near duplicates, two or more in each group, which stay in one split.

    Raises:
        ManifestError: Fewer than two classes are left, or are in train, a class is too small, or
            the declared splits cannot be used.
    """
    usable, dropped = usable_rows(manifest)
    rows, rare = _without_rare(manifest, usable, rule)
    names = tuple(sorted({manifest.labels[index] for index in rows}))
    require_classes(names, len(manifest), dropped, rare)
    group_of = _groups(manifest, rows, rule, copies)
    assignment = _assign(manifest, rows, rule, group_of)
    place = {name: number for number, name in enumerate(SPLITS)}
    kept = [
        (place[name], index) for name, index in zip(assignment.splits, rows, strict=True) if name
    ]
    order = [index for _, index in sorted(kept)]
    dropped |= {"rare class": len(usable) - len(rows), **assignment.dropped}
    keys = manifest.keys[order]
    names_of = [group_of.get(key.decode(), "") for key in keys]
    declared = [] if assignment.is_declared else [manifest.splits[index] for index in order]
    examples = Examples(
        paths=[manifest.paths[index] for index in order],
        labels=[manifest.labels[index] for index in order],
        splits=[SPLITS[number] for number, _ in sorted(kept)],
        keys=keys,
        names=names,
        moved=assignment.moved,
        dropped={reason: count for reason, count in dropped.items() if count},
        notes=(
            *manifest.notes, *notes_of(manifest), *_notes_of_groups(manifest, rows, rule),
            *assignment.notes,
        ),
        is_declared=assignment.is_declared,
        groups=names_of if group_of else (),
        declared=declared if len(set(declared)) > 1 else (),
    )  # fmt: skip
    require_splits(examples.counts(), rule.shares)
    missing = check_classes(examples.labels, examples.splits, names)
    uneven = [] if any(manifest.splits) else check_shares(examples.splits, names_of, rule.shares)
    return replace(examples, notes=(*examples.notes, *missing, *uneven))


def rows_in_use(manifest: Manifest, rule: SplitRule) -> Manifest:
    """Return the rows that ``prepare`` gives splits.

    Raises:
        ManifestError: A class is too small.
    """
    usable, _ = usable_rows(manifest)
    return manifest.take(_without_rare(manifest, usable, rule)[0])


def notes_of(manifest: Manifest) -> list[str]:
    """Return what to point out about the labels of a listing, one line each."""
    bare = Counter(
        split
        for split, label in zip(manifest.splits, manifest.labels, strict=True)
        if split and not label
    )
    labelled = {
        split for split, label in zip(manifest.splits, manifest.labels, strict=True) if label
    }
    return [
        *notes_of_labels(manifest.labels),
        *(
            f"Images declared {name} have no label, all {bare[name]:,} of them: they are never "
            "trained or scored on, and are for pipeline predict"
            for name in SPLITS
            if bare[name] and name not in labelled
        ),
    ]


def usable_rows(manifest: Manifest) -> tuple[list[int], dict[str, int]]:
    """Return the rows with status ``ok`` and a label, and how many others there are, by reason."""
    marked = mark_conflicts(manifest)
    dropped: Counter[str] = Counter()
    rows = []
    for index, (status, label) in enumerate(zip(marked.statuses, marked.labels, strict=True)):
        if status == OK and label:
            rows.append(index)
        else:
            dropped[
                "no label" if status == OK else CONFLICT if status == CONFLICT else "bad image"
            ] += 1
    return rows, dict(dropped)


def _groups(
    manifest: Manifest, rows: Sequence[int], rule: SplitRule, copies: Sequence[Sequence[str]]
) -> dict[str, str]:
    names = [manifest.groups[index] for index in rows] if rule.by_group and manifest.groups else ()
    return groups.united([manifest.keys[index].decode() for index in rows], names, copies)


def _notes_of_groups(manifest: Manifest, rows: Sequence[int], rule: SplitRule) -> list[str]:
    """Return how many groups of the manifest stay whole, or that they are not used."""
    if manifest.groups and not rule.by_group:
        return [
            f"The data has a column {GROUP!r}, which is not used: --group {GROUP} keeps images of "
            "one group in one split"
        ]
    if rule.by_group and not manifest.groups:
        return ["The column of --group is empty: every image is on its own"]
    if not rule.by_group:
        return []
    sizes = Counter(name for row in rows if (name := manifest.groups[row]))
    return [
        f"Groups of the manifest stay in one split: {counted(len(sizes), 'group')} of "
        f"{counted(sizes.total(), 'image')}, of {len(rows):,}"
    ]


def _assign(
    manifest: Manifest, rows: Sequence[int], rule: SplitRule, group_of: Mapping[str, str]
) -> splits.Assignment:
    return splits.assign(
        [manifest.keys[index].decode() for index in rows],
        [manifest.labels[index] for index in rows],
        [manifest.splits[index] for index in rows],
        ratios=rule.shares,
        seed=rule.seed,
        asked=rule.ratios is not None,
        groups=group_of,
    )


def _without_rare(
    manifest: Manifest, rows: Sequence[int], rule: SplitRule
) -> tuple[list[int], list[str]]:
    """Return the rows of classes that have enough distinct images, and the other classes."""
    keys = defaultdict(set)
    for index in rows:
        keys[manifest.labels[index]].add(manifest.keys[index])
    rare = {label: len(found) for label, found in keys.items() if len(found) < rule.min_per_class}
    listed = [f"{label} ({count})" for label, count in sorted(rare.items())]
    if rare and rule.rare == "raise":
        # A class may be small because it is another, spelled in a second way.
        alike = "".join(f" {note}." for note in notes_of_labels(keys))
        raise ManifestError(
            f"Expected {rule.min_per_class} or more different images per class. "
            f"Received: {mention(listed)}.{alike}",
            hint="Add images, leave these classes out with --rare drop, or lower --min-per-class.",
        )
    return [index for index in rows if manifest.labels[index] not in rare], listed


def _numbers(labels: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[label] for label in labels], dtype=np.int64)
