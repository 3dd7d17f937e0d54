"""The rows of one split of a run, and where its recorded probabilities have them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.images.manifest import Manifest


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Rows of val or of test.

    Attributes:
        rows: Their numbers in the run's manifest, ``(n,)``.
        places: Their numbers in ``Run.probabilities``, which leave train out, ``(n,)``.
        y: Class numbers, int64 ``(n,)``.
    """

    rows: NDArray[np.intp]
    places: NDArray[np.intp]
    y: NDArray[np.int64]


def scored_rows(manifest: Manifest, classes: Sequence[str], split: str) -> ScoredRows:
    """Return the rows of ``val`` or ``test``, in the order of the manifest.

    Args:
        manifest: The rows of a run.
        classes: Its class names.
        split: Which of the two.
    """
    number = {label: place for place, label in enumerate(classes)}
    splits = np.array(manifest.splits, dtype=str)
    rows = np.flatnonzero(splits == split)
    places = np.flatnonzero(splits[splits != "train"] == split)
    y = np.array([number[manifest.labels[row]] for row in rows.tolist()], dtype=np.int64)
    return ScoredRows(rows, places, y)
