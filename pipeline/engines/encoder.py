"""The seam between a network and stage 1: an encoder turns images into features.

``engines`` implement it, ``extract`` calls it; neither knows the other.
"""

from abc import ABC, abstractmethod
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Features = NDArray[np.float32]


class Pending(Protocol):
    """Features that may still be being computed."""

    def __call__(self, timeout: float | None = None) -> Features:
        """Wait for the features; may be called again after it raised.

        Args:
            timeout: Most seconds to wait; None for as long as it takes.

        Returns:
            float32 ``(n, dim)``, in memory of its own.

        Raises:
            TimeoutError: They are not there yet.
        """
        ...


class Encoder(ABC):
    """A loaded backbone with its preprocessing, on an engine.

    Any number of threads may share one. A process that was forked may not: the threads of an
    engine stay behind in the parent.

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

    def submit(self, images: Images) -> Pending:
        """Start to encode images; call what is returned to wait for their features.

        An engine that computes in the background overrides this. ``images`` may be changed as soon
        as this returns. What is returned gives the features of these very images or raises,
        whatever was interrupted in between.
        """
        features = self(images)
        return lambda timeout=None: features


# Features that are made again must agree this well, relative to the largest value:
# engines differ by 1e-5, a JPEG library of another make by 1e-2 and more.
DRIFT_TOLERANCE: Final = 1e-3


def drift(stored: Features, made: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return how far features that are made now are from stored ones.

    Args:
        stored: float32 ``(n, dim)``.
        made: The same features, floats ``(n, dim)``.

    Returns:
        Floats ``(n,)``: the largest difference of each row, as a share of its largest value.
    """
    largest = np.maximum(np.abs(stored).max(axis=1), np.float32(1e-30))
    found: NDArray[np.floating] = np.abs(made - stored).max(axis=1) / largest
    return found
