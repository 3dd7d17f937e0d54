"""Folds of cross-validation that keep classes in proportion and groups whole."""

import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray

Folds = list[tuple[NDArray[np.intp], NDArray[np.intp]]]

# Groups that StratifiedGroupKFold deals out in a second; of 50,000 it takes 15.
_FEW: Final = 4000


def grouped_folds(y: NDArray[np.integer], groups: NDArray[np.generic], count: int) -> Folds:
    """Return the rows to fit on and those held out, of each fold.

    Few groups are dealt out by scikit-learn's ``StratifiedGroupKFold``, which looks at all their
    labels; many by its ``StratifiedKFold``, each as one row with the label of its first.

    Args:
        y: Class numbers, ``(n,)``.
        groups: What rows of one group share, ``(n,)``.
        count: Number of folds; at most that of the groups of the largest class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    labels = y[first]
    with warnings.catch_warnings():
        # A class of fewer groups than folds is in some of them alone.
        warnings.simplefilter("ignore", UserWarning)
        if len(first) <= _FEW or np.unique(labels, return_counts=True)[1].max() < count:
            splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
            return list(splitter.split(y, y, groups=number))
        fold_of_group = np.empty(len(first), np.intp)
        splits = StratifiedKFold(count, shuffle=True, random_state=0).split(first, labels)
        for fold, (_, held_out) in enumerate(splits):
            fold_of_group[held_out] = fold
    fold_of = fold_of_group[number]
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold))
            for fold in range(count)]  # fmt: skip
