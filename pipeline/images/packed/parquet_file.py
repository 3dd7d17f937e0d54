"""Parquet files with images in a column: bytes alone, or bytes and path, as Hugging Face has it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableImageError
from pipeline.images.packed import row_groups
from pipeline.images.packed.table_members import (
    ERRORS,
    MemberNames,
    TableFile,
    arrow,
    damage_of,
    first_line,
    image_columns,
    short_names,
)

if TYPE_CHECKING:
    import pyarrow as pa

# Decoded at once, as far as rows allow.
_BATCH_BYTES: Final = 8 << 20
_BUFFER: Final = 1 << 20
_WHAT: Final = "a Parquet file"


class ParquetPack(TableFile):
    """A Parquet file; every pass over a row group opens it anew, so threads share nothing.

    Attributes:
        path: The file.
        state: Its state, which is that of its images.
        notes: None: what is damaged shows when it is read.
        schema: Its columns.
        rows: How many rows it has.
        cut: Empty: a file that is cut short cannot be opened.
        names: Names of its images.
        largest_group: Bytes of the largest row group.
    """

    cut = ""
    kind = "Parquet"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._opened() as file:
            self._metadata = file.metadata
            self.schema: pa.Schema = file.schema_arrow
        self.rows: int = self._metadata.num_rows
        self._parts = image_columns(self.schema)
        self.names = MemberNames(
            {
                name: partial(self._short_names, name) if "path" in parts else None
                for name, parts in self._parts.items()
            },
            self.rows,
        )
        groups = range(self._metadata.num_row_groups)
        counts = [self._metadata.row_group(group).num_rows for group in groups]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.largest_group: int = max(map(self._size, groups), default=0)

    @property
    def is_forward(self) -> bool:
        """Whether reading in another order than the stored one is slow."""
        return self.largest_group > row_groups.KEPT_BYTES

    def _read(self, column: str, row: int, limit: int) -> bytes:
        group = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        # Threads that meet a file for the first time may open it twice, but decode it once.
        where = (self.path, self.state, column, group)
        kept = row_groups.row_group(where, partial(self._decode, column, group))
        try:
            data = kept.value(row - first, limit=limit)
        except UnreadableImageError:
            raise
        except MemoryError as error:
            raise UnreadableImageError("too large: no memory") from error
        except ERRORS as error:
            raise UnreadableImageError(f"cannot be read: {first_line(error)}") from error
        if data is None:
            raise self._no_bytes(column, row)
        return data

    def values(self, column: str, part: str = "") -> "pa.ChunkedArray":
        """Return a column, or a part of one, whole.

        Raises:
            DamagedTableError: It cannot be decoded.
        """
        leaf = f"{column}.{part}" if part else column
        with damage_of(_WHAT, self.path), self._opened() as file:
            # By name: a column called ``image.bytes`` comes with a part of ``image``.
            values = file.read(columns=[leaf], use_threads=False).column(column)
            if part:
                kind = values.type.field(0).type
                parts = [chunk.flatten()[0] for chunk in values.chunks]
                values = arrow().chunked_array(parts, type=kind)
            values.validate(full=True)
        return values

    def has_bytes(self, column: str, *, exactly: bool = False) -> NDArray[np.bool_]:
        """Tell of each row whether its image is in the file.

        Where one of the first rows is, all are taken to be, so that not every image is read, unless
        it is asked ``exactly``. Counts of nulls would tell more, but where they are damaged, asking
        for them aborts the process.

        Raises:
            DamagedTableError: The first rows cannot be decoded.
        """
        with damage_of(_WHAT, self.path):
            parts = self._are_valid(column)
            first = next(parts, np.zeros(0, dtype=np.bool_))
            if "path" not in self._parts[column] or (first.any() and not exactly):
                return np.ones(self.rows, dtype=np.bool_)
            return np.concatenate([first, *parts])

    def _are_valid(self, column: str) -> Iterator[NDArray[np.bool_]]:
        for group in range(len(self._ends)):
            for values in self._decode(column, group):
                yield np.asarray(values.is_valid())

    def _decode(self, column: str, group: int) -> Iterator["pa.Array"]:
        rows = self._metadata.row_group(group).num_rows
        a_row = max(1, self._size(group) // max(1, rows))
        with self._opened(metadata=self._metadata) as file:
            for batch in file.iter_batches(
                batch_size=int(np.clip(_BATCH_BYTES // a_row, 1, 1024)),
                row_groups=[group],
                columns=[self._leaf(column)],
                use_threads=False,
            ):
                values = batch.column(column)
                yield values.flatten()[0] if self._parts[column] else values

    def _opened(self, **options: Any) -> Any:
        """Open the file, to be read through a buffer: else a row group is read at once."""
        arrow()
        import pyarrow.parquet as pq

        return pq.ParquetFile(
            self.path, memory_map=False, buffer_size=_BUFFER, pre_buffer=False, **options
        )

    def _short_names(self, column: str) -> "pa.Array":
        return short_names(self.values(column, "path"))

    def _leaf(self, column: str) -> str:
        return f"{column}.bytes" if self._parts[column] else column

    def _size(self, group: int) -> int:
        # Of all columns: of one, damaged metadata would abort the process within pyarrow.
        return int(self._metadata.row_group(group).total_byte_size)


def open_pack(path: Path) -> ParquetPack:
    """Open a Parquet file.

    Raises:
        ConfigError: pyarrow is not installed.
        DamagedTableError: It is no Parquet file, or cut short.
        OSError: It cannot be read.
    """
    with damage_of(_WHAT, path):
        return ParquetPack(path)
