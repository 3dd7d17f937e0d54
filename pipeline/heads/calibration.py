"""Calibration: one temperature for a head's scores, and when to give no answer.

Guo et al. 2017, "On Calibration of Modern Neural Networks": probabilities are
``softmax(scores / T)``, with T of the lowest log loss on val. A val of few images may be answered
without an error, by luck, which is no reason to be sure; so one more image counts, of which any
class is as likely (Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# A temperature's logarithm counts as normal with this standard deviation beforehand: worth less
# than one image of val, but scores that say nothing need some temperature.
PRIOR_SD: Final = 2.0
_LOG_RANGE: Final = (-12.0, 12.0)
_TOLERANCE: Final = 1e-5


def probabilities(
    scores: Sequence[NDArray[np.floating]], temperature: float
) -> NDArray[np.float64]:
    """Return the mean over views of ``softmax(scores / temperature)``, float64 ``(n, classes)``.

    Args:
        scores: One array ``(n, classes)`` a view; minus infinity is a class that cannot be.
        temperature: Above zero.
    """
    total: NDArray[np.float64] | None = None
    for view in scores:
        # In place: of many images and classes, each array more is as large as the scores.
        found = view.astype(np.float64)
        found /= temperature
        found -= found.max(axis=1, keepdims=True)
        np.exp(found, out=found)
        found /= found.sum(axis=1, keepdims=True)
        total = found if total is None else np.add(total, found, out=total)
    if total is None:
        raise ValueError("Expected scores of one view or more. Received: none.")
    total /= len(scores)
    return total


def fit_temperature(scores: Sequence[NDArray[np.floating]], y: NDArray[np.integer]) -> float:
    """Return the temperature of the lowest log loss on rows and on one more, of any class.

    It is 1 where there is nothing to fit on.

    Args:
        scores: One array ``(n, classes)`` a view.
        y: Class numbers, shape ``(n,)``; rows whose class has a score of minus infinity are left
            out, since no temperature changes them.
    """
    from scipy.optimize import minimize_scalar

    known = np.isfinite(scores[0][np.arange(len(y)), y])
    y, views = y[known], [view[known].astype(np.float64) for view in scores]
    if not len(y):
        return 1.0
    true = [view[np.arange(len(y)), y] for view in views]
    typical = [np.mean(view, axis=1, where=np.isfinite(view)) for view in views]

    def objective(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        sums = [_log_sums(view / temperature) for view in views]
        right = [score / temperature - total for score, total in zip(true, sums, strict=True)]
        any_class = [
            score / temperature - total for score, total in zip(typical, sums, strict=True)
        ]
        of_rows = _log_sums(np.stack(right, axis=1)) - np.log(len(views))
        prior = log_temperature**2 / (2 * PRIOR_SD**2)
        return float(-of_rows.sum() - np.mean(any_class) + prior)

    found = minimize_scalar(
        objective, bounds=_LOG_RANGE, method="bounded", options={"xatol": _TOLERANCE}
    )
    return float(np.exp(found.x))


def calibrated_loss(scores: NDArray[np.floating], y: NDArray[np.integer]) -> float:
    """Return the log loss, in nats, at the temperature fitted on the very same rows."""
    return _loss([scores], y, fit_temperature([scores], y))


def coverage_curve(
    y: NDArray[np.integer], probabilities: NDArray[np.floating], thresholds: Sequence[float]
) -> list[dict[str, float | None]]:
    """Return coverage and accuracy when answers below a probability are withheld.

    Returns:
        One row a threshold: ``threshold``, ``n`` (images answered), ``coverage`` (their share)
        and ``accuracy`` among them; None where it is undefined.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    rows = []
    for threshold in thresholds:
        answered = confidence >= threshold
        count = int(answered.sum())
        rows.append(
            {
                "threshold": threshold,
                "n": count,
                "coverage": count / len(y) if len(y) else None,
                "accuracy": float(correct[answered].mean()) if count else None,
            }
        )
    return rows


def _log_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the sum of the exponentials of each row."""
    largest = values.max(axis=1)
    sums: NDArray[np.float64] = largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))
    return sums


def _loss(
    scores: Sequence[NDArray[np.floating]], y: NDArray[np.integer], temperature: float
) -> float:
    true = probabilities(scores, temperature)[np.arange(len(y)), y]
    return float(-np.log(np.maximum(true, np.finfo(np.float64).tiny)).mean())
