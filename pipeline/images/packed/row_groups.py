"""Columns of row groups of Parquet files, decoded from front to back, with a bounded memory.

A row group can only be decoded from its start. What was decoded last is kept, so that readers in
threads, which are never far apart, share one pass; whoever goes back further starts it again.
"""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Final

from pipeline.errors import UnreadableImageError
from pipeline.images.packed.table_members import ERRORS

if TYPE_CHECKING:
    import pyarrow as pa

# Row groups that are kept, over all files.
_GROUPS: Final = 4
# Of each of them at least so many rows, and else so many bytes.
_ROWS: Final = 16
KEPT_BYTES: Final = 64 << 20

_kept: OrderedDict[Hashable, "RowGroup"] = OrderedDict()
_lock = threading.Lock()


class RowGroup:
    """One column of bytes of one row group; safe to use from many threads."""

    def __init__(self, decode: Callable[[], Iterator["pa.Array"]]) -> None:
        """Describe it; nothing is decoded yet.

        Args:
            decode: Starts a pass, which yields arrays of consecutive rows.
        """
        self._decode = decode
        self._lock = threading.Lock()
        self._failure: tuple[int, Exception] | None = None
        self._start()

    def value(self, row: int, *, limit: int) -> bytes | None:
        """Return the bytes of a row, counted from the start of the row group; None of a null.

        Raises:
            UnreadableImageError: There are more bytes than ``limit``.
            Exception: One of ``table_members.ERRORS``: the row cannot be decoded.
        """
        with self._lock:
            array, place = self._array_of(row)
            scalar = array[place]
        data = scalar.as_buffer()
        if data is None:
            return None
        if data.size > limit:
            raise UnreadableImageError(f"too large: {data.size:,} bytes")
        return bytes(data)

    def _start(self) -> None:
        self._arrays: deque[tuple[int, pa.Array]] = deque()
        self._bytes = self._next = 0
        self._pass = self._decode()

    def _array_of(self, row: int) -> tuple["pa.Array", int]:
        """Return the array that a row is in, and its place there."""
        if self._failure is not None and row >= self._failure[0]:
            raise self._failure[1]
        if row < self._next and row < self._arrays[0][0]:
            self._start()
        while row >= self._next:
            self._decode_next()
        return next((array, row - start) for start, array in reversed(self._arrays) if start <= row)

    def _decode_next(self) -> None:
        first = self._next
        try:
            array = next(self._pass)
        except MemoryError:
            self._start()
            raise
        except StopIteration as error:
            self._fail(first, ValueError("fewer rows than its header says"), error)
        except ERRORS as error:
            self._fail(first, error, error)
        self._arrays.append((first, array))
        self._next += len(array)
        self._bytes += array.nbytes
        while self._bytes > KEPT_BYTES and self._next - self._arrays[1][0] >= _ROWS:
            self._bytes -= self._arrays.popleft()[1].nbytes

    def _fail(self, row: int, failure: Exception, cause: Exception) -> None:
        """Remember that nothing can be decoded from a row on, so that it isn't tried for each."""
        self._failure = (row, failure)
        self._start()
        raise failure from cause


def row_group(key: Hashable, decode: Callable[[], Iterator["pa.Array"]]) -> RowGroup:
    """Return a row group that is kept, or begin one in the place of the one used longest ago."""
    with _lock:
        found = _kept.get(key)
        if found is None:
            found = _kept[key] = RowGroup(decode)
            while len(_kept) > _GROUPS:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return found


def forget() -> None:
    """Drop what is kept: a forked process would wait for threads that it does not have."""
    global _lock
    _lock = threading.Lock()
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
