"""Leaks: images of one split that are copies of images of another, and what they do to scores."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from pipeline.audit.findings import Group, HeadScores
from pipeline.audit.listing import Listing
from pipeline.copies.duplicates import Duplicates
from pipeline.dataset.splits import SPLITS
from pipeline.runs import metrics
from pipeline.runs.run import Run
from pipeline.runs.scored_rows import scored_rows

# What a split is kept apart from: test from what was trained or chosen on, val from train.
_BEFORE: Final[Mapping[str, tuple[str, ...]]] = {"test": ("train", "val"), "val": ("train",)}


def find_leaks(listing: Listing, found: Duplicates) -> list[Group]:
    """Return, for each held-out file with a copy in an earlier split, it and its nearest copy.

    Each has two paths: the held-out one, and the copy. Test files come first, then those of val,
    the most similar first.
    """
    best: dict[int, tuple[float, int]] = {}
    manifest = listing.manifest

    def offer(held_out: int, other: int, similarity: float) -> None:
        if manifest.splits[other] not in _BEFORE.get(manifest.splits[held_out], ()):
            return
        before = best.get(held_out)
        if before is None or (-similarity, other) < (-before[0], before[1]):
            best[held_out] = (similarity, other)

    for rows in listing.rows_of:
        if len({manifest.splits[row] for row in rows.tolist()}) > 1:
            for one in rows.tolist():
                for other in rows.tolist():
                    offer(one, other, 1.0)
    pairs = found.pairs
    for first, second, similarity in zip(
        pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist(), strict=True
    ):
        for one in listing.rows_of[first].tolist():
            for other in listing.rows_of[second].tolist():
                offer(one, other, similarity)
                offer(other, one, similarity)
    leaks = [
        listing.group((row, other), similarity=similarity, lowest=similarity, is_chain=False)
        for row, (similarity, other) in best.items()
    ]
    order = {name: place for place, name in enumerate(reversed(SPLITS))}
    return sorted(leaks, key=lambda leak: (order[leak.splits[0]], -leak.similarity, leak.paths))


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
