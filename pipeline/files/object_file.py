"""An object read in place: a file whose bytes are fetched by ranges as they are asked for."""

import io
import os
from collections.abc import Callable
from typing import Final

# Small reads (headers of HDF5) fetch and keep a block; larger ones fetch what is asked for.
BLOCK_BYTES: Final = 1 << 16


class ObjectFile(io.RawIOBase):
    """A read-only file over ranges of an object that does not change.

    Example:
        with h5py.File(ObjectFile(size, partial(read_range, place)), "r") as file:
            keys = file["keys"][:]
    """

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        """Describe a file; nothing is fetched.

        Args:
            size: Bytes of the object.
            read_range: From a start and a number of bytes to these bytes.
        """
        self._size = size
        self._read_range = read_range
        self._at = 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that it can be read anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; returns it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer from the place on; returns how many bytes that were."""
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._size)
        if stop <= self._at:
            return 0
        is_large = stop - self._at >= BLOCK_BYTES
        data = self._read_range(self._at, stop - self._at) if is_large else self._from_blocks(stop)
        view[: len(data)] = data
        self._at = stop
        return len(data)

    def _from_blocks(self, stop: int) -> bytes:
        first, last = self._at // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        data = b"".join(self._block(number) for number in range(first, last + 1))
        start = first * BLOCK_BYTES
        return data[self._at - start : stop - start]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK_BYTES
            self._blocks[number] = self._read_range(start, min(BLOCK_BYTES, self._size - start))
        return self._blocks[number]
