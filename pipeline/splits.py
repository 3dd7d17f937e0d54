"""Splits: which images train, which choose, which are scored once; by content, not by chance.

An image's place is ``u = sha256("<split seed>:<key>")`` read as a number in [0, 1), compared
with the shares of train, val and test. It depends on nothing else, so adding, deleting or
relabelling images never moves another, and copies of one image never straddle. Declared splits
win. Called by ``dataset``.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    splits: tuple[str, ...]
    moved: tuple[Moved, ...]
    straddling: int


def parse_ratios(text: str) -> Ratios:
    """Read shares such as ``70/15/15`` into fractions of one; val may be zero.

    Raises:
        ConfigError: There are not three such numbers.
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
    fill_missing_test: bool = False,
) -> Assignment:
    """Give every row its split.

    Args:
        keys: Content keys; rows of equal key have equal labels.
        labels: Class names, none empty.
        declared: Splits from the source, empty where it declares none.
        ratios: Shares of train, val, test, summing to one.
        seed: Seed of the hash rule.
        fill_missing_test: Whether a data set that declares splits but no test may take test
            from train.

    Raises:
        ManifestError: Splits are declared but train or test is missing.
    """
    declared_of, straddling = _declared_by_key(keys, declared)
    shares = _shares_by_declared(set(declared_of.values()), ratios, fill_missing_test)
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
    return Assignment(splits, tuple(moved), straddling)


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


def _shares_by_declared(
    declared: set[str], ratios: Ratios, fill_missing_test: bool
) -> dict[str, dict[str, float]]:
    """Return, by declared split, the shares of the splits its keys are hashed into.

    Keys that declare nothing are hashed into all three; keys of a declared train also feed
    the splits that the data lacks; all others stay where they were declared.
    """
    by_name = {name: share for name, share in zip(SPLITS, ratios, strict=True) if share}
    if declared <= {""}:
        return {"": by_name}
    lacking = [] if "" in declared else [name for name in by_name if name not in declared]
    if "train" in lacking:
        raise ManifestError(
            f"The data declares splits but no train. Received: {', '.join(sorted(declared))}.",
            hint="Add training images, or put the images of all splits into class folders.",
        )
    if "test" in lacking and not fill_missing_test:
        raise ManifestError(
            "The data declares splits but no test.",
            hint="Add a test split, or take one from train with --split 70/15/15.",
        )
    shares = {"": by_name}
    if lacking:
        shares["train"] = {name: by_name[name] for name in ("train", *lacking)}
    return shares


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
