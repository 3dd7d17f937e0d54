"""The k-nearest-neighbours head: votes of the most similar train images; nothing is trained.

The weighted votes of Wu et al. 2018 with the temperature that DINO's evaluation uses (Caron et
al. 2021, "Emerging Properties in Self-Supervised Vision Transformers").
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.calibration import calibrated_loss
from pipeline.heads.grid_head import GridHead, State
from pipeline.heads.head import Rule, is_count, is_number
from pipeline.heads.neighbours import Neighbours, nearest, normalized
from pipeline.heads.rows import Validation

# The share of a class that no neighbour voted for. A lower one lets a few rows of val drive the
# temperature up: on scikit-learn's digits, with 100 and 1,000 rows of train, every step from 1e-12
# to 1e-3 lowered the log loss of rows kept apart, by 25 to 59 % in all.
FLOOR: Final = 1e-3
# Images times images of train times features that are compared in a second, at the least.
_RATE: Final = 4e10


class KnnHead(GridHead):
    """Similarity-weighted votes of the k nearest train rows; k is chosen on val.

    Similarity is the cosine between features as they are, without a scaler. A neighbour votes for
    its class with ``exp(similarity / temperature)``, times its row weight. The probability of a
    class is its share of the votes; the scores are the logarithms, of ``FLOOR`` at least.

    Args:
        grid: Values of k. Without val, or with one value, nothing is chosen: k is that value, or
            20 where there are several. Where train has fewer rows, all of them vote.
        temperature: How much nearer neighbours count for more: less where it is higher.

    Attributes:
        k_: The chosen value.
        features_: float32 ``(n, dim)``, the rows of train with an L2 norm of one.
        targets_: Their class numbers, ``(n,)``.
        weights_: Their weights, float64 ``(n,)``.
    """

    name: ClassVar[str] = "knn"
    strength: ClassVar[str] = "k"
    fallback: ClassVar[float] = 20
    copies: ClassVar[float] = 2.5
    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "k_", "features_", "targets_", "weights_", "n_features_in_",
    )  # fmt: skip
    # Neighbours of val for the largest k, while k is chosen.
    _of_val: Neighbours | None = None

    def __init__(self, grid: Sequence[int] = (1, 5, 20, 50), temperature: float = 0.07) -> None:
        self.grid = grid
        self.temperature = temperature

    def seconds(self, images: int, scored: int, dim: int, classes: int, settings: int = 1) -> float:
        """See ``Head.seconds``; every image scored is compared with every one of train."""
        return images * scored * dim / _RATE

    def _fit_path(
        self,
        X: NDArray[np.floating],
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        values: Sequence[float],
    ) -> Iterator[State]:
        """Keep the rows of train; the fits differ in k alone."""
        kept = {
            "features_": normalized(X),
            "targets_": numbers,
            "weights_": np.ones(len(X)) if weights is None else weights,
        }
        self._of_val = None
        for k in values:
            yield {**kept, "k_": int(k)}
        self._of_val = None

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        return self._votes(self._neighbours(X, self.k_))

    def _loss(self, validation: Validation) -> float:
        """Return the loss as every grid head does, with the neighbours found once for all k."""
        X, y = np.asarray(validation[0]), np.asarray(validation[1])
        known = np.isin(y, self.classes_)
        if not known.any():
            return 0.0
        if self._of_val is None:
            self._of_val = self._neighbours(X[known], max(self.grid))
        return calibrated_loss(self._votes(self._of_val), np.searchsorted(self.classes_, y[known]))

    def _neighbours(self, X: NDArray[np.floating], k: float) -> Neighbours:
        """Return similarities and row numbers of the most similar rows, both ``(n, k)``."""
        return nearest(self.features_, normalized(X), min(int(k), len(self.features_)))

    def _votes(self, neighbours: Neighbours) -> NDArray[np.float64]:
        """Return the scores ``(n, classes)`` that the k nearest of the neighbours give."""
        similarities, rows = (found[:, : self.k_] for found in neighbours)
        # Nearest come first. A factor common to a row's votes has no effect; without it a low
        # temperature would overflow.
        shifted = similarities - similarities[:, :1]
        votes = self.weights_[rows] * np.exp(shifted / self.temperature)
        num_rows, num_classes = len(rows), len(self.classes_)
        places = np.arange(num_rows)[:, None] * num_classes + self.targets_[rows]
        totals = np.bincount(places.ravel(), votes.ravel(), num_rows * num_classes)
        shares = totals.reshape(num_rows, num_classes) / votes.sum(axis=1, keepdims=True)
        scores: NDArray[np.float64] = np.log(np.maximum(shares, FLOOR))
        return scores

    def _rules(self) -> Iterable[Rule]:
        is_list = isinstance(self.grid, list | tuple | np.ndarray) and len(self.grid) > 0
        counts = is_list and all(is_count(k) for k in self.grid)
        return (
            ("grid", counts, "a list of integers above 0"),
            ("temperature", is_number(self.temperature, low=0), "a number above 0"),
        )
