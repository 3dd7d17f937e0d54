"""Splits: which images train, which choose, which are scored once; by content, not by chance.

An image's place is ``u = sha256("<split seed>:<key>")`` read as a number in [0, 1), compared
with the shares of train, val and test. It depends on nothing else, so adding, deleting or
relabelling images never moves another, and copies of one image never straddle. Declared splits
win; where only one of val and test is declared, it is the test split.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.errors import ConfigError, ManifestError

SPLITS: Final = ("train", "val", "test")

Ratios = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Moved:
    """A key that left its place by hash because its class had an empty split."""

    label: str
    key: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """The split of every row.

    Attributes:
        splits: One of train, val, test a row; empty for rows dropped because their key
            straddles declared splits.
        moved: The exceptions to the hash rule.
        straddling: How many keys stood in more than one declared split.
        is_declared: Whether the source says what is held out.
        notes: What was made of splits that the source declares in part, one line each.
    """

    splits: tuple[str, ...]
    moved: tuple[Moved, ...]
    straddling: int
    is_declared: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What declared splits mean.

    Attributes:
        shares: By declared split, the shares of the splits that its keys are hashed into; keys of
            others stay.
        renamed: Declared splits that count as another.
        note: What was made of it, if the source does not say it all.
    """

    shares: Mapping[str, Mapping[str, float]]
    renamed: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def parse_ratios(text: str) -> Ratios:
    """Read shares such as ``70/15/15`` or ``0.7/0.15/0.15`` into fractions; val may be zero.

    Raises:
        ConfigError: There are not three such numbers, or they sum to neither 100 nor 1.
    """
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        shares = []
    finite = len(shares) == 3 and all(0 <= share < float("inf") for share in shares)
    if not finite or not shares[0] or not shares[2]:
        raise ConfigError(
            "--split: expected three numbers, train/val/test, of which only val may be zero. "
            f"Received: {text!r}.",
            hint="For example --split 70/15/15.",
        )
    total = sum(shares)
    if not any(math.isclose(total, whole, rel_tol=1e-6) for whole in (1, 100)):
        raise ConfigError(
            f"--split: expected shares that sum to 100, or to 1. Received: {text!r}, which sums to "
            f"{total:g}.",
            hint="For example --split 70/15/15.",
        )
    return shares[0] / total, shares[1] / total, shares[2] / total


def position(key: str, seed: int) -> float:
    """Return a key's place in [0, 1): the first 8 bytes of sha256 of ``<seed>:<key>``."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    # 53 bits, as many as a double holds: more could round up to 1.0.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def assign(
    keys: Sequence[str],
    labels: Sequence[str],
    declared: Sequence[str],
    *,
    ratios: Ratios,
    seed: int,
    asked: bool = False,
) -> Assignment:
    """Give every row its split.

    Args:
        keys: Content keys; rows of equal key have equal labels.
        labels: Class names, none empty.
        declared: Splits from the source, empty where it declares none.
        ratios: Shares of train, val, test, summing to one.
        seed: Seed of the hash rule.
        asked: Whether the user gave the ratios: then splits that the data lacks are taken from
            train, and those it declares stay.

    Raises:
        ManifestError: Splits are declared but no train.
    """
    declared_of, straddling = _declared_by_key(keys, declared)
    plan = _plan(set(declared_of.values()), ratios, asked=asked)
    declared = [plan.renamed.get(said, said) for said in declared]
    declared_of = {key: plan.renamed.get(said, said) for key, said in declared_of.items()}
    shares = plan.shares
    label_of = dict(zip(keys, labels, strict=True))
    split_of = {
        key: _by_hash(position(key, seed), shares[said]) if said in shares else said
        for key, said in declared_of.items()
    }
    moved = []
    for label, members in _group(label_of).items():
        hashed = [key for key in members if declared_of[key] in shares]
        moved += _fill_empty_splits(label, members, hashed, split_of, declared_of, shares, seed)
    splits = tuple(
        "" if said and said != declared_of[key] else split_of[key]
        for key, said in zip(keys, declared, strict=True)
    )
    return Assignment(
        splits,
        tuple(moved),
        straddling,
        is_declared=not {"val", "test"}.isdisjoint(declared_of.values()),
        notes=(plan.note,) if plan.note else (),
    )


def _declared_by_key(keys: Sequence[str], declared: Sequence[str]) -> tuple[dict[str, str], int]:
    """Return each key's declared split and how many keys stand in several.

    Of several, the one nearest to test counts, so that nothing scored was trained on.
    """
    said: dict[str, set[str]] = defaultdict(set)
    for key, split in zip(keys, declared, strict=True):
        said[key].add(split)
    latest = {
        key: max(splits, key=lambda split: SPLITS.index(split) if split else -1)
        for key, splits in said.items()
    }
    return latest, sum(len(splits - {""}) > 1 for splits in said.values())


def _plan(declared: set[str], ratios: Ratios, *, asked: bool) -> _Plan:
    """Return what the splits that a source declares mean.

    Keys that declare nothing are hashed into all three; keys of a declared train also feed
    the splits that the data lacks; all others stay where they were declared.
    """
    by_name = {name: share for name, share in zip(SPLITS, ratios, strict=True) if share}
    named = [name for name in SPLITS if name in declared]
    if not named:
        return _Plan({"": by_name})
    if "" in declared:
        return _Plan(
            {"": by_name}, note="Only some images declare a split; the others are placed by hash"
        )
    if named[0] != "train":
        raise ManifestError(
            f"The data declares splits but no train. Received: {', '.join(named)}.",
            hint="Add training images, or put the images of all splits into class folders.",
        )
    lacking = [name for name in by_name if name not in named]
    taken = {"train": {name: by_name[name] for name in ("train", *lacking)}}
    said = f"The data declares {' and '.join(named)} but no {' and no '.join(lacking)}: "
    if not lacking:
        return _Plan({})
    if named == ["train", "val"] and not asked:
        # The held-out split of a data set with one is what its makers score on.
        return _Plan(
            {"train": {name: by_name[name] for name in ("train", "val")}},
            renamed={"val": "test"},
            note=said + "val is the test split, scored once, and another val is taken from train "
            "by hash (with --split A/B/C val stays val, and test is taken from train)",
        )
    return _Plan(taken, note=said + f"{' and '.join(lacking)} taken from train by hash")


def _by_hash(place: float, shares: Mapping[str, float]) -> str:
    """Return the split whose interval holds a place."""
    for name, (_, high) in _intervals(shares).items():
        if place < high:
            return name
    return list(shares)[-1]


def _intervals(shares: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    total = sum(shares.values())
    intervals = {}
    low = 0.0
    for name, share in shares.items():
        high = low + share / total
        intervals[name] = (low, high)
        low = high
    return intervals


def _group(label_of: Mapping[str, str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = defaultdict(list)
    for key, label in label_of.items():
        members[label].append(key)
    return members


def _fill_empty_splits(
    label: str,
    members: Sequence[str],
    hashed: Sequence[str],
    split_of: dict[str, str],
    declared_of: Mapping[str, str],
    shares: Mapping[str, Mapping[str, float]],
    seed: int,
) -> list[Moved]:
    """Move the key nearest the threshold into each empty split of a class, while it can."""
    moved = []
    # Train first and val last: a class of two images can be learned and scored.
    for target in ("train", "test", "val"):
        present = [split_of[key] for key in members]
        candidates = [
            key
            for key in hashed
            if target in shares[declared_of[key]] and present.count(split_of[key]) > 1
        ]
        if target in present or not candidates:
            continue

        def distance(key: str, target: str = target) -> tuple[float, str]:
            low, high = _intervals(shares[declared_of[key]])[target]
            place = position(key, seed)
            return max(low - place, place - high, 0.0), key

        key = min(candidates, key=distance)
        moved.append(Moved(label, key, split_of[key], target))
        split_of[key] = target
    return moved
