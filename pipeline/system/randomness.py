"""Random numbers by purpose: each stream of a seed is drawn from apart from the others."""

from enum import IntEnum

import numpy as np


class RandomStream(IntEnum):
    """What random numbers are for.

    The values are a part of every recorded result: one that is given to another purpose makes
    runs that nobody can repeat. A new purpose takes a new number.
    """

    WEIGHTS = 0
    """Initial weights."""
    ORDER = 1
    """The order of rows in an epoch."""
    LAYERS = 2
    """What layers draw while they train: dropout, stochastic depth."""
    AUGMENTATION = 3
    """Windows, mirroring and colours of images."""
    VIEWS = 4
    """The view that each image begins with."""

    def generator(self, seed: int, *place: int) -> np.random.Generator:
        """Return the generator of this stream of a seed.

        Args:
            seed: Seed of everything that is random.
            place: What the draw belongs to, such as an epoch and a row.

        Example:
            >>> RandomStream.ORDER.generator(7, 3).permutation(4).tolist()
            [3, 0, 2, 1]
        """
        return np.random.default_rng([seed, self, *place])
