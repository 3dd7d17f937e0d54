"""Learning curves: a head fitted on growing parts of train, each within the next.

On test, a curve shows what more photos bring; on val, from a quarter, a half and all of train, what
is to gain before anything is fine-tuned.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.features import SplitFeatures
from pipeline.dataset.splits import position
from pipeline.heads.calibration import probabilities
from pipeline.runs import metrics

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

# Shares of train below all of it that head-room is judged by.
HEAD_ROOM_SHARES: Final = (0.25, 0.5)
# A gain in accuracy from twice as many photos that is too small to take them for.
SMALL_GAIN: Final = 0.02

_MEANINGS: Final = {
    "falling": "It still falls: more photos may help as much as fine-tuning",
    "flat": f"Twice as many photos gain less than {SMALL_GAIN:g}: the features are the limit, and "
    "fine-tuning can help",
    "none": "No error on val is left to gain",
    "undecided": "Val is too small to tell whether more photos or fine-tuning would help",
}


class Point(TypedDict):
    """A point of a learning curve; see ``head_room``."""

    share: float
    n_train: int
    error: float
    error_ci95: list[float]


def nested(
    data: SplitFeatures, shares: Sequence[float]
) -> Iterator[tuple[float, NDArray[np.intp]]]:
    """Yield growing parts of train, each within the next and with two rows of every class.

    Rows come in the order of a hash of their content, class by class, so that classes keep
    their shares and nothing depends on the order of files.

    Args:
        data: Features and labels by split.
        shares: Shares of train, ascending.

    Returns:
        Each share with its rows, ascending.
    """
    train = np.arange(data.rows["train"].start, data.rows["train"].stop)
    place = np.array([position(data.keys[row].decode(), 1) for row in train])
    by_class = [
        train[data.y[train] == label][np.argsort(place[data.y[train] == label], kind="stable")]
        for label in np.unique(data.y[train])
    ]
    for share in shares:
        parts = [rows[: max(2, round(share * len(rows)))] for rows in by_class]
        yield share, np.sort(np.concatenate(parts))


def fit_on(head: "Head", data: SplitFeatures, rows: NDArray[np.intp]) -> "Head":
    """Fit a head on some rows of train, choosing on val."""
    return head.fit(*data.of_rows(rows), validation=data.part("val"))


def is_right(head: "Head", data: SplitFeatures, split: str) -> NDArray[np.bool_]:
    """Tell which rows of a split a head classifies rightly, ``(n,)``."""
    found = probabilities(data.scores(head, split), 1.0)
    right: NDArray[np.bool_] = found.argmax(axis=1) == data.part(split)[1]
    return right


def head_room(head: "Head", data: SplitFeatures) -> dict[str, object]:
    """Tell from a learning curve whether more photos or better features are to gain by.

    Copies of the head, with what it chose on val, are fitted on a quarter and on half of train.
    Whether the error still falls is judged by the gain in val accuracy from half to all of train
    and its paired 95 % interval: it falls where that lies above zero; it is flat where it lies
    below ``SMALL_GAIN``; else val is too small to tell.

    Args:
        head: Fitted on all of train.
        data: Features and labels by split.

    Returns:
        ``curve``, rows of ``share``, ``n_train``, ``error`` and ``error_ci95`` (Wilson) on val;
        ``gain`` from half to all of train, ``gain_ci95``, ``finding`` and ``text``.
    """
    from sklearn.base import clone

    curve = []
    for share, rows in nested(data, HEAD_ROOM_SHARES):
        part = clone(head).set_params(**head.selected_params())
        # The last one is of half of train, which all of it is compared with.
        half = is_right(fit_on(part, data, rows), data, "val")
        curve.append(_point(share, len(rows), half))
    full = is_right(head, data, "val")
    curve.append(_point(1.0, len(data.part("train")[1]), full))
    gained, lost = int((full & ~half).sum()), int((half & ~full).sum())
    low, high = metrics.paired_difference(gained, lost, len(full))
    finding = _finding(low, high, is_perfect=bool(full.all()))
    gain = (gained - lost) / len(full)
    errors = ", ".join(f"{point['error']:.4f} on {point['n_train']:,}" for point in curve)
    return {
        "curve": curve,
        "gain": gain,
        "gain_ci95": [low, high],
        "finding": finding,
        "text": f"Val error of {head.name} by training images: {errors}. {_MEANINGS[finding]}",
    }


def _finding(low: float, high: float, *, is_perfect: bool) -> str:
    """Return what an interval of the gain from twice as much train shows."""
    if is_perfect:
        return "none"
    if low > 0:
        return "falling"
    return "flat" if high < SMALL_GAIN else "undecided"


def _point(share: float, num_train: int, right: NDArray[np.bool_]) -> Point:
    n, correct = len(right), int(right.sum())
    low, high = metrics.wilson(correct, n)
    return {
        "share": share,
        "n_train": num_train,
        "error": 1 - correct / n,
        "error_ci95": [1 - high, 1 - low],
    }
