"""Scores with their uncertainty: labels and probabilities in, plain numbers out.

What is undefined is None, never NaN, so that every number can be written as JSON.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS: Final = 15
# Probability of a difference at least as large by chance, up to which it is called real.
SIGNIFICANT: Final = 0.05

# The two-sided 95 % quantile of the normal distribution.
_Z95: Final = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Answers:
    """What scores need of probabilities, row by row, so that these can be taken in parts.

    Attributes:
        y: Class numbers, ``(n,)``.
        predicted: Those of the highest probability, ``(n,)``.
        confidence: That probability, float64 ``(n,)``.
        losses: Negative log probability of the true class, in nats, float64 ``(n,)``.
        num_classes: Number of classes.
    """

    y: NDArray[np.integer]
    predicted: NDArray[np.integer]
    confidence: NDArray[np.float64]
    losses: NDArray[np.float64]
    num_classes: int

    @classmethod
    def of(cls, y: NDArray[np.integer], probabilities: NDArray[np.floating]) -> "Answers":
        """Return those of some rows; see ``score``."""
        return cls(
            y=y,
            predicted=probabilities.argmax(axis=1),
            confidence=probabilities.max(axis=1).astype(np.float64),
            losses=_losses(y, probabilities),
            num_classes=probabilities.shape[1],
        )

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """Return those of all rows of some parts, one or more."""
        return cls(
            y=np.concatenate([part.y for part in parts]),
            predicted=np.concatenate([part.predicted for part in parts]),
            confidence=np.concatenate([part.confidence for part in parts]),
            losses=np.concatenate([part.losses for part in parts]),
            num_classes=parts[0].num_classes,
        )


def score(y: NDArray[np.integer], probabilities: NDArray[np.floating]) -> dict[str, object]:
    """Score probabilities against labels.

    Args:
        y: Class numbers, shape ``(n,)``.
        probabilities: Shape ``(n, classes)``; a column of zeros is a class that train lacks.

    Returns:
        ``n``, ``accuracy``, ``accuracy_ci95`` (Wilson), ``balanced_accuracy``, ``macro_f1``,
        ``log_loss`` (nats) and ``ece`` (15 equal-width bins of the top label).
    """
    if len(y) == 0:
        names = ("accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1", "log_loss", "ece")
        return {"n": 0, **dict.fromkeys(names)}
    return score_answers(Answers.of(y, probabilities))


def score_answers(answers: Answers) -> dict[str, object]:
    """Score answers, one or more; see ``score``."""
    y, n = answers.y, len(answers.y)
    right = answers.predicted == y
    correct = int(right.sum())
    return {
        "n": n,
        "accuracy": correct / n,
        "accuracy_ci95": list(wilson(correct, n)),
        **_by_class(y, answers.predicted, answers.num_classes),
        "log_loss": float(answers.losses.mean()),
        "ece": _calibration_error(*_bins(answers.confidence, right)),
    }


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927); of nothing, all of [0, 1]."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    denominator = 1 + _Z95**2 / n
    centre = (share + _Z95**2 / (2 * n)) / denominator
    half = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2)) / denominator
    # At the ends the interval touches 0 or 1, which rounding may miss.
    low = 0.0 if correct == 0 else max(centre - half, 0.0)
    high = 1.0 if correct == n else min(centre + half, 1.0)
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947).

    Args:
        only_first: Images that only the first classifier gets right.
        only_second: Images that only the second one gets right.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(only_first, only_second), discordant, 0.5).pvalue)


def compared(
    only_first: int, only_second: int, n: int, *, comparisons: int = 1
) -> dict[str, object]:
    """Compare two classifiers on the same n images, as one of several comparisons.

    Test and interval are of one method: a difference is real if, and only if, its simultaneous
    interval leaves out zero. Both are corrected as Bonferroni did, by which all intervals hold the
    truth, and no difference is found that is not there, in 95 analyses of 100. (Holm's p-values are
    lower, but no intervals that say how large a difference is go with them.)

    Args:
        only_first: Images that only the first classifier gets right.
        only_second: Images that only the second one gets right.
        n: Images in all.
        comparisons: How many comparisons are looked at together.

    Returns:
        ``n``, ``difference`` in accuracy, ``difference_ci95`` and ``p_value`` of this comparison
        alone; ``simultaneous_ci95``, ``p_adjusted`` and ``is_real`` of it among ``comparisons``.
    """
    p_value = mcnemar(only_first, only_second)
    p_adjusted = min(1.0, comparisons * p_value)
    return {
        "n": n,
        "difference": (only_first - only_second) / n if n else 0.0,
        "difference_ci95": list(paired_difference(only_first, only_second, n)),
        "p_value": p_value,
        "p_adjusted": p_adjusted,
        "simultaneous_ci95": list(
            paired_difference(only_first, only_second, n, comparisons=comparisons)
        ),
        "comparisons": comparisons,
        "is_real": p_adjusted <= SIGNIFICANT,
    }


def paired_difference(
    only_first: int, only_second: int, n: int, *, comparisons: int = 1
) -> tuple[float, float]:
    """Return the 95 % interval of a difference in accuracy on the same n images.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions":
    Wald's interval after half an image was added to each of the four cells. Whether zero is in it
    is what McNemar's exact test says: where the two disagree, the end next to zero is that of the
    interval which goes with the test (Clopper and Pearson 1934, of the share of the first among
    the images that one alone gets right).

    Args:
        only_first: Images that only the first classifier gets right.
        only_second: Images that only the second one gets right.
        n: Images in all.
        comparisons: How many such intervals are to hold together.
    """
    if n == 0:
        return -1.0, 1.0
    if only_second > only_first:
        low, high = paired_difference(only_second, only_first, n, comparisons=comparisons)
        return -high, -low
    z = NormalDist().inv_cdf(1 - SIGNIFICANT / (2 * comparisons))
    first, second, total = only_first + 0.5, only_second + 0.5, n + 2
    centre = (first - second) / total
    half = z * math.sqrt(first + second - (first - second) ** 2 / total) / total
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    is_real = min(1.0, comparisons * mcnemar(only_first, only_second)) <= SIGNIFICANT
    if is_real != (low > 0):
        end = _conditional_low(only_first, only_second, n, comparisons)
        low = max(end, sys.float_info.min) if is_real else min(end, 0.0)
    if comparisons > 1:
        # The two may take that end from different intervals; together is never narrower than alone.
        low = min(low, paired_difference(only_first, only_second, n)[0])
    return low, high


def _conditional_low(only_first: int, only_second: int, n: int, comparisons: int) -> float:
    """Return the lower end that goes with McNemar's test, given how many images one alone gets."""
    from scipy.stats import binomtest

    discordant = only_first + only_second
    level = 1 - SIGNIFICANT / comparisons
    share = binomtest(only_first, discordant, 0.5).proportion_ci(level, method="exact")
    return float(discordant / n * (2 * share.low - 1))


def log_loss(y: NDArray[np.integer], probabilities: NDArray[np.floating]) -> float:
    """Return the mean negative log probability of the true label, in nats.

    Probabilities count as no less than the machine epsilon of their type (1.2e-7 in float32), as in
    scikit-learn, and no more than one.
    """
    return float(_losses(y, probabilities).mean())


def _losses(y: NDArray[np.integer], probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    true = probabilities[np.arange(len(y)), y]
    losses: NDArray[np.float64] = -np.log(
        np.clip(true, np.finfo(probabilities.dtype).eps, 1).astype(np.float64)
    )
    return losses


def log_loss_gain(
    y: NDArray[np.integer], before: NDArray[np.floating], after: NDArray[np.floating]
) -> tuple[float, tuple[float, float]]:
    """Return how much log loss falls from one classifier to another, and its 95 % interval.

    The interval is Student's, of the differences image by image. One image tells nothing: it gives
    the largest gain and loss that there can be.

    Args:
        y: Class numbers ``(n,)``.
        before: Probabilities ``(n, classes)``.
        after: The same images' probabilities of the other classifier.
    """
    from scipy.stats import t

    gains = _losses(y, before) - _losses(y, after)
    if len(gains) < 2:
        most = -math.log(min(np.finfo(before.dtype).eps, np.finfo(after.dtype).eps))
        return float(gains.mean()), (-most, most)
    half = t.ppf(1 - SIGNIFICANT / 2, len(gains) - 1) * gains.std(ddof=1) / math.sqrt(len(gains))
    return float(gains.mean()), (float(gains.mean() - half), float(gains.mean() + half))


def expected_calibration_error(
    y: NDArray[np.integer], probabilities: NDArray[np.floating]
) -> float:
    """Return the gap between confidence and accuracy, over 15 bins of the top label's probability.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    return _calibration_error(*calibration_bins(y, probabilities))


def calibration_bins(
    y: NDArray[np.integer], probabilities: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return what the calibration error is made of, in ``CALIBRATION_BINS`` bins of equal width.

    Returns:
        Images in each bin, the sum of their top probabilities, and how many are classified
        rightly, each of shape ``(bins,)``.
    """
    top = probabilities.max(axis=1).astype(np.float64)
    return _bins(top, probabilities.argmax(axis=1) == y)


def _bins(
    top: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the same of top probabilities and whether each is right; see ``calibration_bins``."""
    bins = np.clip(np.ceil(top * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS).astype(np.int64)
    confidence = np.bincount(bins, weights=top, minlength=CALIBRATION_BINS)
    correct = np.bincount(bins, weights=right, minlength=CALIBRATION_BINS)
    return counts, confidence.astype(np.float64), correct.astype(np.float64)


def _calibration_error(
    counts: NDArray[np.int64], confidence: NDArray[np.float64], correct: NDArray[np.float64]
) -> float:
    return float(np.abs(confidence - correct).sum() / counts.sum())


def counts_by_class(
    y: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return for each class how many rows are rightly taken for it, are of it, are taken for it.

    Args:
        y: Class numbers, shape ``(n,)``.
        predicted: Predicted class numbers, shape ``(n,)``.
        num_classes: Number of classes.
    """
    right, present, taken = (
        np.bincount(rows, minlength=num_classes) for rows in (y[y == predicted], y, predicted)
    )
    return right, present, taken


def _by_class(
    y: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int
) -> dict[str, float]:
    right, present, taken = counts_by_class(y, predicted, num_classes)
    # A class that is predicted but not present costs F1, and has no recall.
    either = present + taken > 0
    return {
        "balanced_accuracy": float((right[present > 0] / present[present > 0]).mean()),
        "macro_f1": float((2 * right[either] / (present + taken)[either]).mean()),
    }
