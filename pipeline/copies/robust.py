"""What is usual among numbers of which some are not: a middle and a spread."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Turns the median absolute deviation into the standard deviation of a normal distribution.
_MAD: Final = 1.4826


def middle_and_spread(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the median and the robust standard deviation, 1.4826 times the median absolute one.

    Args:
        values: Numbers, ``(n,)``, one or more.
    """
    middle = float(np.median(values))
    return middle, _MAD * float(np.median(np.abs(values - middle)))
