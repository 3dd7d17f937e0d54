"""The first look at features that are to be imported: their digest, and which rows can be used."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.copies import scratch
from pipeline.errors import ManifestError
from pipeline.exchange.feature_table import BLOCK_ROWS, Features, FeatureTable
from pipeline.system.progress import Reporter

# Blocks that are in memory together at most: as read, as float32, and what is made of one.
_BLOCKS: Final = 3
# What two encodings of one image differ by, as a share of the largest value.
_TOLERANCE: Final = 1e-3


@dataclass(slots=True)
class Examined:
    """What features are.

    Attributes:
        digest: SHA-256 of their shape, keys and float32 values.
        usable: Whether each row is finite, ``(n,)``.
        stored: The rows to store: the first usable one of each key, ``(n,)``.
        zeros: Rows of zeros alone.
    """

    digest: str
    usable: NDArray[np.bool_]
    stored: NDArray[np.bool_]
    zeros: list[int] = field(default_factory=list)


def num_blocks(table: FeatureTable) -> int:
    """Return how many blocks a table is read in, at the least."""
    return -(-table.shape[0] // BLOCK_ROWS)


def examine(
    table: FeatureTable,
    names: Sequence[str],
    keys: NDArray[np.bytes_],
    reporter: Reporter,
    folder: Path,
) -> Examined:
    """Read all features once.

    Args:
        table: The features.
        names: Path of each row, ``n`` of them.
        keys: Key of each row, ``(n,)``.
        reporter: Where progress is shown.
        folder: Where a file may hold rows that others are compared with; it goes with the process.

    Raises:
        ConfigError: Neither memory nor that folder's disk has room for these.
        ManifestError: Rows of one path or one image differ, or the file ends early.
    """
    count = table.shape[0]
    digest = hashlib.sha256(f"{table.shape};".encode() + np.ascontiguousarray(keys).tobytes())
    usable, zeros, start = np.zeros(count, bool), [], 0
    twins = _Twins(names, keys, table.shape[1], folder)
    with reporter.bar(num_blocks(table), "block") as bar:
        for block in table.rows():
            rows = slice(start, start + len(block))
            digest.update(block.data)
            usable[rows] = np.isfinite(block).all(axis=1)
            zeros += (np.flatnonzero(~block.any(axis=1)) + start).tolist()
            twins.compare(block, start, usable[rows])
            start = rows.stop
            bar.advance()
    if start != count:
        raise ManifestError(
            f"{table.source}: expected {count:,} rows of features. Received: {start:,}."
        )
    stored = np.zeros(count, bool)
    places = np.flatnonzero(usable)
    stored[places[np.unique(keys[places], return_index=True)[1]]] = True
    return Examined(digest.hexdigest(), usable, stored, zeros)


class _Twins:
    """Compares rows of one key with the first of them, as they come."""

    def __init__(
        self, names: Sequence[str], keys: NDArray[np.bytes_], dim: int, folder: Path
    ) -> None:
        self._names = names
        _, self._number, counts = np.unique(keys, return_inverse=True, return_counts=True)
        self._repeated = counts[self._number] > 1
        # Of each key: its first usable row, and where among those that are kept its features are.
        self._first = np.full(len(counts), -1)
        self._place = np.full(len(counts), -1)
        self._num_kept, count = 0, int((counts > 1).sum())
        self._kept = scratch.table(count, dim, folder, beside=_BLOCKS * 4 * BLOCK_ROWS * dim)

    def compare(self, block: Features, start: int, usable: NDArray[np.bool_]) -> None:
        """Look at a block that begins at a row.

        Raises:
            ManifestError: One of its rows is another than an earlier one of its key.
        """
        repeated = self._repeated[start : start + len(block)]
        for place in np.flatnonzero(repeated & usable).tolist():
            row, number = start + place, self._number[start + place]
            first = int(self._first[number])
            if first < 0:
                self._first[number], self._place[number] = row, self._num_kept
                self._kept[self._num_kept] = block[place]
                self._num_kept += 1
            elif not self._are_same(first, self._kept[self._place[number]], row, block[place]):
                raise self._differing(first, row)

    def _are_same(self, first: int, before: Features, row: int, values: Features) -> bool:
        if self._names[first] == self._names[row]:
            return bool((before == values).all())
        return bool(np.abs(before - values).max() <= _TOLERANCE * np.abs(before).max())

    def _differing(self, first: int, row: int) -> ManifestError:
        one, other = self._names[first], self._names[row]
        if one == other:
            return ManifestError(
                f"Expected one row of features per path. Received: {one!r} with two that differ, "
                f"rows {first + 1:,} and {row + 1:,}.",
                hint="Keep one of the rows.",
            )
        return ManifestError(
            f"Expected equal features of one image. Received: {one!r} and {other!r}, files of the "
            "same bytes, with features that differ.",
            hint="Check that features and paths are in the same order, or leave one of them out.",
        )
