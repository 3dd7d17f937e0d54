"""One head of a run on the images that it was not trained on, and which of them to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError, unknown_name
from pipeline.images.manifest import Manifest
from pipeline.runs import per_class
from pipeline.runs.record import HeadRecord, Score
from pipeline.runs.run import Run
from pipeline.runs.scored_rows import scored_rows

# Most confident mistakes that have a picture, those of each of the most frequent kinds, and in all.
_CONFIDENT: Final = 96
_OF_KIND: Final = 3
_MISTAKES: Final = 240
_UNCERTAIN: Final = 48


@dataclass(frozen=True, slots=True)
class ScoredHead:
    """A head and what it says of val or test.

    Attributes:
        run: Its run.
        name: Its name.
        split: ``test``; ``val`` where there is no test image.
        manifest: The rows of the run.
        rows: Those of the split, by number in the manifest, ``(n,)``.
        y: Their class numbers, int64 ``(n,)``.
        probabilities: float32 ``(n, classes)``.
        shown: Scores of each class and the confusion matrix; see ``per_class``.
    """

    run: Run
    name: str
    split: str
    manifest: Manifest
    rows: NDArray[np.intp]
    y: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    shown: dict[str, Any]

    @property
    def record(self) -> HeadRecord:
        """What the run says of the head."""
        return self.run.record.heads[self.name]

    @property
    def score(self) -> Score:
        """Its recorded scores on these rows."""
        return self.record.test if self.split == "test" else self.record.val

    @property
    def classes(self) -> Sequence[str]:
        """Class names, in the order of class numbers."""
        return self.run.record.classes

    @property
    def predicted(self) -> NDArray[np.intp]:
        """Predicted class numbers, ``(n,)``."""
        numbers: NDArray[np.intp] = self.probabilities.argmax(axis=1)
        return numbers

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Probability of the predicted class, ``(n,)``."""
        highest: NDArray[np.float32] = self.probabilities.max(axis=1)
        return highest


def scored_head(run: Run, asked: str | None) -> ScoredHead:
    """Read what a head says of test, or of val where there is no test.

    Args:
        run: The run.
        asked: Name of the head; None for the run's best.

    Raises:
        ConfigError: The run has no such head.
        RunError: It has no head at all, or files of it are damaged.
    """
    heads = run.record.heads
    if not heads:
        raise RunError(
            f"Expected a run with a finished head. Received: {str(run.path)!r}.",
            hint="Run train-head.",
        )
    if asked is not None and asked not in heads:
        raise unknown_name("head", asked, heads, where=str(run.path))
    shown = per_class.of_head(run, asked)
    name, split, manifest = str(shown["head"]), str(shown["split"]), run.manifest()
    found = scored_rows(manifest, run.record.classes, split)
    probabilities = run.probabilities(name)[found.places]
    return ScoredHead(run, name, split, manifest, found.rows, found.y, probabilities, shown)


def mistakes(head: ScoredHead) -> list[int]:
    """Return the places of the mistakes to look at, the most confident first.

    The most confident ones are among them, and the most confident ones of every frequent kind.
    """
    wrong = np.flatnonzero(head.predicted != head.y)
    ordered = wrong[np.argsort(-head.confidence[wrong], kind="stable")].tolist()
    chosen = dict.fromkeys(ordered[:_CONFIDENT])
    kinds: dict[tuple[int, int], list[int]] = {}
    predicted = head.predicted
    for place in ordered:
        kinds.setdefault((int(head.y[place]), int(predicted[place])), []).append(place)
    for places in sorted(kinds.values(), key=len, reverse=True):
        if len(chosen) >= _MISTAKES:
            break
        chosen |= dict.fromkeys(places[:_OF_KIND])
    return sorted(chosen, key=lambda place: (-float(head.confidence[place]), place))


def uncertain(head: ScoredHead) -> list[int]:
    """Return the places of the images that the head is least certain of, those first."""
    return [int(place) for place in np.argsort(head.confidence, kind="stable")[:_UNCERTAIN]]
