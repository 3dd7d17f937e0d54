"""The seam between a network and stage 1: an encoder turns images into features.

``engines`` implement it, ``extract`` calls it; neither knows the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Features = NDArray[np.float32]


class Encoder(ABC):
    """A loaded backbone with its preprocessing, on an engine.

    Attributes:
        engine: Name of the engine.
        device: What it runs on, in words.
        dim: Number of features.
        batch_size: Most images in one call.
    """

    engine: str
    device: str
    dim: int
    batch_size: int

    @abstractmethod
    def __call__(self, images: Images) -> Features:
        """Encode images.

        Args:
            images: uint8, shape (n, S, S, 3), RGB, 1 <= n <= batch_size. Never modified.

        Returns:
            float32, shape (n, dim), in memory of its own. A row depends on its image alone.
        """

    def submit(self, images: Images) -> Callable[[], Features]:
        """Start to encode images; call what is returned to wait for their features.

        An engine that computes in the background overrides this. Called from one thread, which
        collects the results in the order of its calls. ``images`` may be changed as soon as this
        returns.
        """
        features = self(images)
        return lambda: features
