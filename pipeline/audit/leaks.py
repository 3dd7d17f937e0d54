"""Leaks: images of one split that are copies of images of another, and what they do to scores."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.findings import Group, HeadScores
from pipeline.audit.listing import Listing
from pipeline.copies.duplicates import Duplicates
from pipeline.runs import metrics
from pipeline.runs.run import Run
from pipeline.runs.scored_rows import scored_rows

# What a split is kept apart from: test from what was trained or chosen on, val from train.
_BEFORE: Final[Mapping[str, tuple[str, ...]]] = {"test": ("train", "val"), "val": ("train",)}


def find_leaks(listing: Listing, found: Duplicates) -> list[Group]:
    """Return, for each held-out file with a copy in an earlier split, it and its nearest copy.

    Each has two paths: the held-out one, and the copy. Test files come first, then those of val,
    the most similar first. Of copies that are as near, the first in the manifest counts, so that
    all files of an image in one split have the same.
    """
    splits = np.array(listing.manifest.splits)
    images, pairs = np.arange(len(listing)), found.pairs
    # Every image beside itself, of which other files are copies, and each pair from either side.
    held_out = np.concatenate([images, pairs.first, pairs.second])
    others = np.concatenate([images, pairs.second, pairs.first])
    similarity = np.concatenate([np.ones(len(images)), pairs.similarity, pairs.similarity])
    leaks = []
    for split, before in _BEFORE.items():
        copy_of = _first_rows(listing, np.isin(splits, before))
        is_held_out = _first_rows(listing, splits == split) >= 0
        leaking = is_held_out[held_out] & (copy_of[others] >= 0)
        ours, copies, scores = held_out[leaking], copy_of[others[leaking]], similarity[leaking]
        order = np.lexsort((copies, -scores, ours))
        nearest = order[np.unique(ours[order], return_index=True)[1]]
        of_split = [
            listing.group((row, copy), similarity=score, lowest=score, is_chain=False)
            for image, copy, score in zip(
                *(part[nearest].tolist() for part in (ours, copies, scores)), strict=True
            )
            for row in listing.rows_of[image].tolist()
            if listing.manifest.splits[row] == split
        ]
        leaks += sorted(of_split, key=lambda leak: (-leak.similarity, leak.paths))
    return leaks


def _first_rows(listing: Listing, wanted: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the first wanted row of each image, -1 where it has none, ``(images,)``."""
    rows = np.flatnonzero(wanted)
    first = np.full(len(listing), -1, np.intp)
    # In reverse, so that the first one is what stays.
    first[listing.image_of[rows[::-1]]] = rows[::-1]
    return first


def scores_without(run: Run, leaks: list[Group]) -> dict[str, HeadScores]:
    """Return the test scores of each head of a run: of all images, without leaked ones, of these.

    Args:
        run: The run.
        leaks: What ``find_leaks`` says with its splits.
    """
    manifest, classes = run.manifest(), run.record.classes
    test = scored_rows(manifest, classes, "test")
    leaked_paths = {leak.paths[0] for leak in leaks if leak.splits[0] == "test"}
    leaked = np.array([manifest.paths[row] in leaked_paths for row in test.rows.tolist()], bool)
    found = {}
    for name in run.record.heads:
        probabilities = run.probabilities(name)[test.places]
        found[name] = HeadScores(
            without=metrics.score(test.y[~leaked], probabilities[~leaked]),
            everything=metrics.score(test.y, probabilities),
            leaked=metrics.score(test.y[leaked], probabilities[leaked]),
        )
    return found
