"""Which view of each image an epoch of fine-tuning shows: all of them, in turn.

It is a function of the seed, the epoch and the row, so that images and cached activations show the
same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.images.views import PLAIN
from pipeline.system.randomness import RandomStream


@dataclass(frozen=True, slots=True)
class Turns:
    """Views that take turns.

    Every row starts at a view drawn for it, so that each epoch shows all of them, and goes on to
    the next one with every epoch, so that after as many epochs as there are views it has shown
    each once.

    Attributes:
        names: The views; the first is the image as it is.
        starts: Place in ``names`` of each row's view in epoch 0, ``(rows,)``.
    """

    names: tuple[str, ...]
    starts: NDArray[np.int64]

    @classmethod
    def drawn(cls, views: Sequence[str], *, seed: int, rows: int) -> "Turns":
        """Draw where each row starts.

        Args:
            views: Views beside the image as it is.
            seed: Seed of the draw.
            rows: How many rows there are.
        """
        names = (PLAIN, *views)
        generator = RandomStream.VIEWS.generator(seed)
        return cls(names, generator.integers(0, len(names), rows))

    def shown(self, rows: NDArray[np.intp], epoch: int | None) -> list[str]:
        """Return the view of each of some rows; the image as it is where no epoch trains on it."""
        if epoch is None:
            return [PLAIN] * len(rows)
        return [self.names[place] for place in (self.starts[rows] + epoch) % len(self.names)]
