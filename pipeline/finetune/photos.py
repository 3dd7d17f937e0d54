"""The images that fine-tuning is trained on: read, checked against their keys, decoded, augmented.

Everything random is a function of the seed, the epoch and the row, so that a run that was killed
goes on exactly as it would have.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
    DecodeError,
    ManifestError,
    StaleFeaturesError,
    UnreadableImageError,
    mention,
)
from pipeline.finetune.origin import _HINT
from pipeline.finetune.turns import Turns
from pipeline.images import decoder, reading, resizing, views
from pipeline.images.decoder import Pixels
from pipeline.images.manifest import Manifest
from pipeline.system import machine
from pipeline.system.randomness import RandomStream

# Factors of brightness, contrast and of each channel are drawn from 1 less and 1 more than these.
_BRIGHTNESS: Final = 0.2
_CONTRAST: Final = 0.2
_COLOUR: Final = 0.1
# What the larger decoding is called, beside the names of views.
_WIDE: Final = "wide"


class Photos:
    """The images of a manifest, by row number, checked against their keys.

    Images of batches stay in memory, decoded, where they fit; else every epoch decodes them again,
    in threads.

    Example:
        with Photos(rows, 224, "squash", augment_seed=None) as photos:
            pixels = photos.batch(np.arange(32), None)
    """

    def __init__(
        self,
        rows: Manifest,
        size: int,
        resize: str,
        *,
        augment_seed: int | None,
        turns: Turns | None = None,
    ) -> None:
        """Describe the images; nothing is read yet.

        Args:
            rows: The images with their keys.
            size: Side of the network's input in pixels.
            resize: How an image of another shape becomes a square.
            augment_seed: Seed of augmentation; None for none.
            turns: Which view an epoch shows, without augmentation; None for images as they are.
        """
        self._rows = rows
        self._size = size
        self._resize = resize
        self._seed = augment_seed
        self._turns = turns or Turns.drawn((), seed=0, rows=len(rows))
        side = size if augment_seed is None else resizing.wide(size)
        needed = 3 * side * side * len(rows) * len(self._turns.names)
        self._is_kept = needed <= machine.free_memory() // 4
        self._kept: dict[tuple[int, str], Pixels] = {}
        self._threads = ThreadPoolExecutor(reading.num_threads(rows), thread_name_prefix="reader")

    def __enter__(self) -> "Photos":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown()

    def require(self) -> None:
        """Refuse a data set some of whose images are gone.

        Raises:
            ManifestError: Names the first ones.
        """
        with reading.looked_up(self._rows):
            gone = [
                path
                for row, path in enumerate(self._rows.paths)
                if not reading.is_there(self._rows, row)
            ]
        if gone:
            raise ManifestError(
                f"Expected the images of the run in {str(self._rows.root)!r}. "
                f"Received: {len(gone):,} of {len(self._rows):,} are gone: {mention(gone)}.",
                hint=_HINT,
            )

    def notes(self) -> list[str]:
        """Return what to say of images that take long to read in random order."""
        slow = reading.forward_only(self._rows)
        if not slow:
            return []
        once = "the first epoch reads" if self._is_kept else "every epoch reads"
        return [
            f"Note: {once} images in random order, and {mention(slow)} can be read from front to "
            "back alone: each image may take a pass over its file. Decompress it (gunzip FILE), "
            "then extract and train the head again: nothing is encoded again"
        ]

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> NDArray[np.uint8]:
        """Return images, uint8 ``(n, S, S, 3)``; see ``BatchSource``.

        Raises:
            StaleFeaturesError: An image is not the one that the run was made from; names it.
        """
        seed = self._seed
        if seed is not None and epoch is not None:
            return self._stacked(lambda row: self._augmented(row, seed, epoch), rows)
        shown = dict(zip(rows.tolist(), self._turns.shown(rows, epoch), strict=True))
        return self._stacked(
            lambda row: self._keep(row, shown[row], self._view(row, shown[row])), rows
        )

    def view(self, rows: NDArray[np.intp], name: str) -> NDArray[np.uint8]:
        """Return one view of images, uint8 ``(n, S, S, 3)``; ``PLAIN`` for them as they are.

        For one pass over them, as when a cache is filled: they do not stay in memory.

        Raises:
            StaleFeaturesError: An image is not the one that the run was made from; names it.
        """
        return self._stacked(lambda row: self._view(row, name), rows)

    def _stacked(self, make: Callable[[int], Pixels], rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        return np.stack(list(self._threads.map(make, rows.tolist())))

    def _augmented(self, row: int, seed: int, epoch: int) -> Pixels:
        def wide() -> Pixels:
            return decoder.decode(self._read(row), self._size, self._resize, is_wide=True)

        generator = RandomStream.AUGMENTATION.generator(seed, epoch, row)
        pixels = self._keep(row, _WIDE, self._decoded(row, _WIDE, wide))
        return augmented(pixels, self._size, generator)

    def _view(self, row: int, name: str) -> Pixels:
        def made() -> Pixels:
            key = self._rows.keys[row].decode()
            return views.pixels(self._read(row), key, [name], self._size, self._resize)[name]

        return self._decoded(row, name, made)

    def _decoded(self, row: int, kind: str, make: Callable[[], Pixels]) -> Pixels:
        """Return pixels that were kept, or make them."""
        kept = self._kept.get((row, kind))
        if kept is not None:
            return kept
        try:
            return make()
        except DecodeError as error:
            raise self._changed(row, str(error)) from error

    def _keep(self, row: int, kind: str, pixels: Pixels) -> Pixels:
        """Keep pixels for later epochs, where there is room for all; return them."""
        if self._is_kept:
            self._kept[row, kind] = pixels
        return pixels

    def _read(self, row: int) -> bytes:
        try:
            content = reading.read(self._rows, row)
        except UnreadableImageError as error:
            raise self._changed(row, str(error)) from error
        if content.key != self._rows.keys[row].decode():
            raise self._changed(row, f"its content changed to {content.key}")
        return content.data

    def _changed(self, row: int, reason: str) -> StaleFeaturesError:
        return StaleFeaturesError(
            f"Expected {str(self._rows.file(row))!r} as the run was made from it, with the key "
            f"{self._rows.keys[row].decode()}. Received: {reason}.",
            hint=_HINT,
        )


def augmented(pixels: Pixels, size: int, generator: np.random.Generator) -> Pixels:
    """Return a random window of an image, mirrored or not, with other colours.

    Args:
        pixels: uint8, larger than the window.
        size: Side of the window.
        generator: Where everything random is generator from.

    Returns:
        uint8 ``(size, size, 3)``.
    """
    top, left = generator.integers(0, len(pixels) - size + 1, 2)
    window = pixels[top : top + size, left : left + size]
    if generator.random() < 0.5:
        window = window[:, ::-1]
    brightness = generator.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS)
    contrast = generator.uniform(1 - _CONTRAST, 1 + _CONTRAST)
    colour = generator.uniform(1 - _COLOUR, 1 + _COLOUR, 3)
    levels = window.astype(np.float32)
    mean = levels.mean(dtype=np.float64)
    levels = ((levels - mean) * contrast + mean) * (brightness * colour)
    rounded: Pixels = np.rint(levels).clip(0, 255).astype(np.uint8)
    return rounded
