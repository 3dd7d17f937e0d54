"""Splits: which images train, which choose, which are scored once; by content, not by chance.

An image's place is ``u = sha256("<split seed>:<key>")`` read as a number in [0, 1), compared
with the shares of train, val and test. It depends on nothing else, so adding, deleting or
relabelling images never moves another, and copies of one image never straddle. Images of one group
have one place, that of the group's name in the place of a key. Declared splits win; where only one
of val and test is declared, it is the test split.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from pipeline.errors import ConfigError, ManifestError

SPLITS: Final = ("train", "val", "test")
LEAK_FREE: Final = "leak-free"
# Why a row is in no split.
STRADDLES: Final = "in two declared splits"
GROUP_STRADDLES: Final = "group in two declared splits"

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
        splits: One of train, val, test a row; empty for rows dropped because their key, or
            their group, straddles declared splits.
        moved: The exceptions to the hash rule.
        straddling: How many keys stood in more than one declared split.
        is_declared: Whether the source says what is held out.
        notes: What was made of splits that the source declares in part, one line each.
        dropped: How many rows are in no split, by reason.
    """

    splits: tuple[str, ...]
    moved: tuple[Moved, ...]
    straddling: int
    is_declared: bool = False
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


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


def read_split(text: str | None) -> tuple[bool, str | None]:
    """Return what ``--split`` asks for: whether near duplicates stay in one split, and shares.

    Example:
        >>> read_split("leak-free:80/10/10")
        (True, '80/10/10')

    Raises:
        ConfigError: After the colon of ``leak-free:`` are no shares.
    """
    if text is None:
        return False, None
    name, colon, ratios = text.partition(":")
    if name.strip() != LEAK_FREE:
        return False, text
    if colon:
        parse_ratios(ratios)
    return True, ratios if colon else None


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
            "--split: expected three numbers, train/val/test, of which only val may be zero, or "
            f"{LEAK_FREE}. Received: {text!r}.",
            hint=f"For example --split 70/15/15, {LEAK_FREE} or {LEAK_FREE}:70/15/15.",
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
    """Return the place of a key, or of a group's name, in [0, 1).

    These are the first 8 bytes of sha256 of ``<seed>:<key>``.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode(errors="surrogateescape")).digest()
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
    groups: Mapping[str, str] = MappingProxyType({}),
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
        groups: Name of the group of each key that is in one; all keys of a group get one split.
            Where they are declared in several, those of the one nearest to test stay.

    Raises:
        ManifestError: Splits are declared but no train.
    """
    group_of = {key: groups.get(key, key) for key in keys}
    said_of, straddling = _nearest_to_test(keys, declared)
    declared_of, _ = _nearest_to_test([group_of[key] for key in said_of], list(said_of.values()))
    plan = _plan(set(said_of.values()), ratios, asked=asked)
    declared = [plan.renamed.get(said, said) for said in declared]
    said_of = {key: plan.renamed.get(said, said) for key, said in said_of.items()}
    declared_of = {name: plan.renamed.get(said, said) for name, said in declared_of.items()}
    staying = {
        key: group_of[key]
        for key, said in said_of.items()
        if said in ("", declared_of[group_of[key]])
    }
    places = _Places(dict(zip(keys, labels, strict=True)), staying, declared_of, plan.shares, seed)
    moved = places.fill()
    dropped: Counter[str] = Counter()
    splits = []
    for key, said in zip(keys, declared, strict=True):
        if said and said != said_of[key]:
            dropped[STRADDLES] += 1
        elif key not in staying:
            dropped[GROUP_STRADDLES] += 1
        else:
            splits.append(places.split_of[group_of[key]])
            continue
        splits.append("")
    return Assignment(
        tuple(splits),
        tuple(moved),
        straddling,
        is_declared=not {"val", "test"}.isdisjoint(said_of.values()),
        notes=(plan.note,) if plan.note else (),
        dropped=dict(dropped),
    )


def _nearest_to_test(names: Sequence[str], declared: Sequence[str]) -> tuple[dict[str, str], int]:
    """Return the declared split of each key, or group, and how many of them stand in several.

    Of several, the one nearest to test counts, so that nothing scored was trained on.
    """
    said: dict[str, set[str]] = defaultdict(set)
    for name, split in zip(names, declared, strict=True):
        said[name].add(split)
    latest = {
        name: max(splits, key=lambda split: SPLITS.index(split) if split else -1)
        for name, splits in said.items()
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


class _Places:
    """Which split each group is in, by hash at first.

    Attributes:
        split_of: The split of each group.
    """

    def __init__(
        self,
        label_of: Mapping[str, str],
        group_of: Mapping[str, str],
        declared_of: Mapping[str, str],
        shares: Mapping[str, Mapping[str, float]],
        seed: int,
    ) -> None:
        """Place groups by hash where declared splits leave them to it.

        Args:
            label_of: Class of each key.
            group_of: Group of each key that is in a split.
            declared_of: Declared split of each group.
            shares: See ``_Plan``.
            seed: Seed of the hash rule.
        """
        self._label_of, self._declared_of, self._shares = label_of, declared_of, shares
        self._place = {name: position(name, seed) for name in declared_of}
        self.split_of = {
            name: _by_hash(self._place[name], shares[said]) if said in shares else said
            for name, said in declared_of.items()
        }
        self._keys_of: dict[str, list[str]] = defaultdict(list)
        self._groups_of: dict[str, dict[str, None]] = defaultdict(dict)
        for key, name in group_of.items():
            self._keys_of[name].append(key)
            self._groups_of[label_of[key]][name] = None

    def fill(self) -> list[Moved]:
        """Move the group nearest the threshold into each empty split of a class, while it can."""
        sources: dict[str, str] = {}
        for label in sorted(self._groups_of):
            # Train first and val last: a class of two images can be learned and scored.
            for target in ("train", "test", "val"):
                candidates = self._candidates(label, target)
                if candidates:
                    name = min(candidates, key=lambda name: (self._distance(name, target), name))
                    sources.setdefault(name, self.split_of[name])
                    self.split_of[name] = target
        return [
            Moved(self._label_of[key], key, source, self.split_of[name])
            for name, source in sources.items()
            for key in sorted(self._keys_of[name])
            if source != self.split_of[name]
        ]

    def _candidates(self, label: str, target: str) -> list[str]:
        """Return the groups that may fill a split which has none of a class, if it has none."""
        if self._counts(label)[target]:
            return []
        classes_of = {
            name: {self._label_of[key] for key in self._keys_of[name]}
            for name in self._groups_of[label]
            if target in self._shares.get(self._declared_of[name], ())
        }
        counts = {other: self._counts(other) for other in set().union(*classes_of.values())}
        # No class may lose a split by it.
        return [
            name
            for name, classes in classes_of.items()
            if all(counts[other][self.split_of[name]] > 1 for other in classes)
        ]

    def _counts(self, label: str) -> Counter[str]:
        """Return how many groups of a class each split has."""
        return Counter(self.split_of[name] for name in self._groups_of[label])

    def _distance(self, name: str, target: str) -> float:
        low, high = _intervals(self._shares[self._declared_of[name]])[target]
        return max(low - self._place[name], self._place[name] - high, 0.0)
