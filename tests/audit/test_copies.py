"""Leaks and groups of copies: the same as by looking at every two files, without looking at them.

What is quadratic in the files of one image, or in groups and pairs, takes hours of a million.
"""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from pipeline.audit.groups import near_groups
from pipeline.audit.leaks import find_leaks
from pipeline.audit.listing import Listing
from pipeline.copies.duplicates import Duplicates, _components, choose
from pipeline.copies.neighbours import Pairs, similarities
from pipeline.images.manifest import Manifest

BEFORE = {"test": ("train", "val"), "val": ("train",)}


class Counted(list[str]):
    """Texts, and how often one of them was looked at."""

    looked_at = 0

    def __getitem__(self, place: object) -> str:  # type: ignore[override]
        self.looked_at += 1
        return super().__getitem__(place)  # type: ignore[index]


def listed(image_of: list[int], splits: list[str], dim: int = 8) -> Listing:
    rows = len(image_of)
    rng = np.random.default_rng(1)
    units = rng.normal(size=(max(image_of) + 1, dim)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    keys = np.array([f"{image:064x}" for image in image_of], "S64")
    manifest = Manifest(
        Path(), [f"{row:05}.png" for row in range(rows)], ["a"] * rows, Counted(splits), keys,
        ["ok"] * rows,
    )  # fmt: skip
    return Listing(manifest, np.array(image_of), units, "manifest", ())


def found_in(listing: Listing, pairs: list[tuple[int, int]]) -> Duplicates:
    first, second = np.array(pairs, np.intp).reshape(-1, 2).T
    # With one digit many are as similar as others.
    similarity = np.round(similarities(listing.units, first, second), 1)
    together = Pairs(first, second, similarity)
    return Duplicates(choose(listing.units), together, _components(together, len(listing)),
                      listing.units)  # fmt: skip


def by_every_two_files(listing: Listing, found: Duplicates) -> set[tuple[str, str, float]]:
    splits, rows_of = listing.manifest.splits, listing.rows_of
    similar = {(image, image): 1.0 for image in range(len(listing))}
    for one, other, score in zip(
        found.pairs.first, found.pairs.second, found.pairs.similarity, strict=True
    ):
        similar |= {(int(one), int(other)): float(score), (int(other), int(one)): float(score)}
    best: dict[int, tuple[float, int]] = {}
    for (one, other), score in similar.items():
        for row, copy in product(rows_of[one].tolist(), rows_of[other].tolist()):
            if splits[copy] in BEFORE.get(splits[row], ()):
                best[row] = min(best.get(row, (2.0, 0)), (-score, copy))
    paths = listing.manifest.paths
    return {(paths[row], paths[copy], -score) for row, (score, copy) in best.items()}


@pytest.mark.parametrize("seed", range(4))
def test_leaks_are_those_of_every_two_files(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image_of = [*range(30), *rng.integers(0, 30, 40).tolist()]
    splits = rng.choice(["train", "val", "test", ""], len(image_of)).tolist()
    listing = listed(image_of, splits)
    pairs = [pair for pair in combinations(range(30), 2) if rng.random() < 0.1]
    found = found_in(listing, pairs)
    leaks = find_leaks(listing, found)
    told = [(leak.paths[0], leak.paths[1], leak.similarity) for leak in leaks]
    assert leaks and set(told) == by_every_two_files(listing, found)
    assert len(told) == len(set(told))
    order = [(leak.splits[0] != "test", -leak.similarity, leak.paths) for leak in leaks]
    assert order == sorted(order)


def test_a_placeholder_that_stands_everywhere_takes_no_longer_than_its_files() -> None:
    count = 2000
    listing = listed([0] * count + [1], ["train", "test"] * (count // 2) + ["test"])
    leaks = find_leaks(listing, found_in(listing, [(0, 1)]))
    assert len(leaks) == count // 2 + 1
    assert {leak.paths[1] for leak in leaks} == {"00000.png"}
    assert isinstance(listing.manifest.splits, Counted)
    assert listing.manifest.splits.looked_at < 10 * count


def test_groups_are_told_from_chains_without_a_look_at_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listing = listed([*range(12), 0, 11], [""] * 14)
    found = found_in(listing, [(0, 1), (0, 2), (1, 2), (3, 4), (4, 5), (6, 7)])
    monkeypatch.delattr(np, "isin")
    groups = {tuple(group.paths): group for group in near_groups(listing, found)}
    names = [f"{row:05}.png" for row in range(14)]
    assert list(groups) == [
        *((names[0], names[1], names[2], names[12]), (names[11], names[13])),
        *sorted(
            ((names[3], names[4], names[5]), (names[6], names[7])),
            key=lambda paths: -groups[paths].similarity,
        ),
    ]
    assert {len(paths): group.is_chain for paths, group in groups.items()} == {
        4: False, 3: True, 2: False,
    }  # fmt: skip
    scores = dict(
        zip(zip(found.pairs.first, found.pairs.second, strict=True), found.pairs.similarity,
            strict=True)
    )  # fmt: skip
    assert groups[names[3], names[4], names[5]].similarity == max(scores[3, 4], scores[4, 5])
