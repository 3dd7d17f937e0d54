"""The k-nearest-neighbours head: votes of the most similar train images; nothing is trained.

The weighted votes of Wu et al. 2018 with the temperature that DINO's evaluation uses (Caron et
al. 2021, "Emerging Properties in Self-Supervised Vision Transformers").
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from pipeline.heads.grid import GridHead, State
from pipeline.heads.head import Rule, is_count, is_number

# The share of a class that no neighbour voted for.
FLOOR: Final = 1e-6

Neighbours = tuple[NDArray[np.floating], NDArray[np.intp]]


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
    fitted: ClassVar[tuple[str, ...]] = (
        "classes_", "k_", "features_", "targets_", "weights_", "n_features_in_",
    )  # fmt: skip
    # Neighbours of val while k is chosen, for the largest k.
    _of_val: Neighbours | None

    def __init__(self, grid: Sequence[int] = (1, 5, 20, 50), temperature: float = 0.07) -> None:
        self.grid = grid
        self.temperature = temperature

    def _fit_path(
        self,
        X: NDArray[np.floating],
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        values: Sequence[float],
    ) -> Iterator[State]:
        """Keep train; the values differ in k alone."""
        kept = {
            "features_": normalize(X.astype(np.float32)),
            "targets_": numbers,
            "weights_": np.ones(len(X)) if weights is None else weights,
        }
        for k in values:
            yield {**kept, "k_": int(k)}

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        return self._votes(self._neighbours(X, self.k_))
