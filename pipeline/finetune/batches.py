"""Batches of images for fine-tuning: their order, their parts, and reading ahead."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.files.arrays import AnyArray
from pipeline.system.randomness import RandomStream

Part = TypeVar("Part")
Loaded = TypeVar("Loaded")


class BatchSource(Protocol):
    """What a network is trained on: images, or activations at its boundary."""

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> AnyArray:
        """Return the inputs of rows; augmented as in an epoch of training unless it is None."""
        ...


def order_of(seed: int, epoch: int, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return rows in the order of one epoch."""
    return RandomStream.ORDER.generator(seed, epoch).permutation(rows)


def parts_of(rows: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    """Return rows in parts of ``size``; the last may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def read_ahead(
    load: Callable[[Part], Loaded], parts: Iterable[Part]
) -> Iterator[tuple[Part, Loaded]]:
    """Yield (part, loaded); the next part is being loaded while one is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: tuple[Part, Future[Loaded]] | None = None
        for part in parts:
            following = (part, thread.submit(load, part))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def class_weights(y: NDArray[np.integer], kind: str | None) -> NDArray[np.float32]:
    """Return a weight a row: one, or by the inverse of the class' frequency (``balanced``).

    Args:
        y: Class numbers of train, ``(n,)``.
        kind: None or ``balanced``.
    """
    if kind is None:
        return np.ones(len(y), np.float32)
    _, numbers = np.unique(y, return_inverse=True)
    totals = np.bincount(numbers)
    weights: NDArray[np.float32] = (len(y) / (len(totals) * totals))[numbers].astype(np.float32)
    return weights


def unique_rows(keys: Sequence[bytes] | NDArray[np.bytes_]) -> NDArray[np.intp]:
    """Return the first row of every key, ascending; rows of one key are one image."""
    _, first = np.unique(np.asarray(keys), return_index=True)
    return np.sort(first)
