"""Features and class numbers by split, as stage 2 fits and scores them.

They are in memory or on disk; fitting and scoring a head is the same for both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.config.options import StageTwoOptions
from pipeline.dataset.examples import Examples, SplitRule
from pipeline.dataset.splits import SPLITS, read_split
from pipeline.heads.rows import BLOCK_ROWS, blocks, row_blocks
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures
from pipeline.system.progress import SILENCE, Bar, Reporter

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

# In memory, or on disk.
Features = NDArray[np.floating] | StoredFeatures
Scores = list[NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class SplitFeatures:
    """Features and class numbers, grouped train, val, test.

    Attributes:
        X: Features of all rows, float32 ``(n, dim)``, in memory or on disk (``rows.FeatureRows``).
        y: int64 ``(n,)``.
        keys: Content keys, ``(n,)``; rows of one key are one image.
        rows: Where each split is; neighbours, so that slices copy nothing.
        num_classes: Number of classes.
        augment: Features of views to fit on too, each of the shape of X.
        average: Features of views to average probabilities over, each of the shape of X.
        together: Name of what each row belongs to, ``(n,)``, which cross-validation keeps on one
            side; None stands for the keys.
    """

    X: Features
    y: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    rows: Mapping[str, slice]
    num_classes: int
    augment: Sequence[Features] = ()
    average: Sequence[Features] = ()
    together: NDArray[np.str_] | None = None

    @classmethod
    def of(
        cls,
        examples: Examples,
        features: Features,
        *,
        augment: Sequence[Features] = (),
        average: Sequence[Features] = (),
    ) -> "SplitFeatures":
        """Join rows with their features, which are in the same order."""
        rows = {name: examples.rows(name) for name in SPLITS}
        return cls(
            X=features,
            y=examples.y,
            keys=examples.keys,
            rows=rows,
            num_classes=len(examples.names),
            augment=augment,
            average=average,
            together=examples.together if examples.groups else None,
        )

    def part(self, *names: str) -> tuple[Features, NDArray[np.int64]]:
        """Return the features and class numbers of one split, or of neighbouring ones."""
        rows = self._range(*names)
        return self.X[rows], self.y[rows]

    def to_fit(self, *names: str) -> tuple[Features, NDArray[np.int64]]:
        """Return the same with the views to fit on after the images as they are."""
        return self.of_rows(self._range(*names))

    def of_rows(self, rows: slice | NDArray[np.intp]) -> tuple[Features, NDArray[np.int64]]:
        """Return the features to fit on and class numbers of some rows."""
        y = self.y[rows]
        if not self.augment:
            return self.X[rows], y
        views = (self.X, *self.augment)
        # One after another, so that no more than one copy of the rows is beside the result.
        X = np.empty((len(views), len(y), self.X.shape[1]), np.float32)
        for out, view in zip(X, views, strict=True):
            out[:] = np.asarray(view[rows])
        return X.reshape(-1, X.shape[2]), np.tile(y, len(views))

    def scores(self, head: "Head", name: str) -> Scores:
        """Return a head's scores for one split; see ``scores_of``."""
        return self.scores_of(head, self.rows[name])

    def scores_of(self, head: "Head", rows: slice | NDArray[np.intp]) -> Scores:
        """Return a head's scores for some rows, ``(n, num_classes)`` a view.

        The images as they are come first, then the views to average over; a class that train
        lacks has a score of minus infinity.
        """
        found: Scores = []
        for view in (self.X, *self.average):
            made = head.scores(view[rows])
            scores = np.full((len(made), self.num_classes), -np.inf, dtype=made.dtype)
            scores[:, head.classes_] = made
            found.append(scores)
        return found

    def score_blocks(self, head: "Head", name: str) -> Iterator[tuple[NDArray[np.intp], Scores]]:
        """Yield (row numbers within a split, a head's scores for them; see ``scores_of``).

        Scores of a million images and a thousand classes take as much memory as their features.
        """
        start = self.rows[name].start
        for rows in row_blocks(self.part(name)[0]):
            yield rows, self.scores_of(head, start + rows)

    def _range(self, *names: str) -> slice:
        return slice(self.rows[names[0]].start, self.rows[names[-1]].stop)


def rule_of(options: StageTwoOptions) -> SplitRule:
    """Return the rule of splits that options ask for."""
    leak_free, ratios = read_split(options.split)
    return SplitRule(
        ratios=ratios,
        seed=options.split_seed,
        min_per_class=options.min_per_class,
        rare=options.rare,
        leak_free=leak_free,
        by_group=options.group is not None,
    )


def features_of(
    store: Store,
    examples: Examples,
    options: StageTwoOptions,
    *,
    in_memory: bool = True,
    reporter: Reporter = SILENCE,
) -> SplitFeatures:
    """Read the features of rows and of the views asked for, or leave them on disk.

    Args:
        store: Where they are.
        examples: The rows.
        options: Which views are asked for.
        in_memory: Whether to read them, as views have to be.
        reporter: Where progress is shown.

    Raises:
        StoreError: The store has no such view, or lacks features.
    """
    names: list[str | None] = [None, *dict.fromkeys((*options.augment, *options.average))]
    stored = {name: StoredFeatures.of(store.set_of(name), examples.keys) for name in names}
    if not in_memory:
        return SplitFeatures.of(examples, stored[None])
    with reporter.bar(len(stored) * -(-len(examples) // BLOCK_ROWS), "block") as bar:
        read = {name: _in_memory(features, bar) for name, features in stored.items()}
    return SplitFeatures.of(
        examples,
        read[None],
        augment=[read[name] for name in options.augment],
        average=[read[name] for name in options.average],
    )


def _in_memory(features: StoredFeatures, bar: Bar) -> NDArray[np.float32]:
    """Read all features, a block at a time."""
    out = np.empty(features.shape, np.float32)
    for rows, part in blocks(features):
        out[rows] = part
        bar.advance()
    return out
