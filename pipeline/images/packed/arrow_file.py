"""Arrow files with images in a column, as Hugging Face ``datasets`` keeps them on disk.

They are not compressed, so every image lies somewhere in the file as it is: that place is found out
once, and the image read from there.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ManifestError, UnreadableImageError
from pipeline.files.regular import open_regular
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

_MAGIC: Final = b"ARROW1"
# What ends a stream.
_END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_WHAT: Final = "an Arrow file"


class ArrowPack(TableFile):
    """An Arrow file or stream; nothing of it stays open or mapped.

    Attributes:
        path: The file.
        state: Its state, which is that of its images.
        notes: None: see ``cut``.
        is_forward: Images are read in any order.
        schema: Its columns.
        rows: How many rows it has; of a file that is cut short, those before the cut.
        cut: What is wrong with a file that is cut short; else empty.
        names: Names of its images.
        largest_group: 0: any row can be read at once.
    """

    is_forward = False
    largest_group = 0
    kind = "Arrow"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        whole = self._mapped()
        self.schema, batches, self.cut = _batches(whole)
        self.rows = sum(batch.num_rows for batch in batches)
        self._parts = image_columns(self.schema)
        self._places = {
            name: _places_of(path, whole, [batch.column(name) for batch in batches])
            for name in self._parts
        }
        self.names = MemberNames(
            {
                name: partial(self._short_names, name) if "path" in parts else None
                for name, parts in self._parts.items()
            },
            self.rows,
        )

    def _read(self, column: str, row: int, limit: int) -> bytes:
        start, size = self._places[column][row].tolist()
        if size < 0:
            raise self._no_bytes(column, row)
        if size > limit:
            raise UnreadableImageError(f"too large: {size:,} bytes")
        with open_regular(self.path) as file:
            file.seek(max(0, start))
            data = file.read(size)
        if len(data) != size:  # or what the file says of its rows is damaged
            raise UnreadableImageError("cannot be read: the Arrow file is cut short")
        return data

    def values(self, column: str, part: str = "") -> "pa.ChunkedArray":
        """Return a column, or a part of one, whole.

        Raises:
            DamagedTableError: It cannot be read.
        """
        schema, batches, _ = _batches(self._mapped())
        chunks = [batch.column(column) for batch in batches]
        kind = schema.field(column).type
        if part:
            place = kind.get_field_index(part)
            chunks, kind = [chunk.flatten()[place] for chunk in chunks], kind.field(place).type
        values = arrow().chunked_array(chunks, type=kind)
        with damage_of(_WHAT, self.path):
            values.validate(full=True)
        return values

    def has_bytes(self, column: str, *, exactly: bool = False) -> NDArray[np.bool_]:
        """Tell of each row whether its image is in the file: always exactly."""
        return self._places[column][:, 1] >= 0

    def _mapped(self) -> "pa.Buffer":
        with arrow().memory_map(str(self.path)) as file:
            return file.read_buffer()

    def _short_names(self, column: str) -> "pa.Array":
        return short_names(self.values(column, "path"))


def _batches(whole: "pa.Buffer") -> tuple["pa.Schema", list["pa.RecordBatch"], str]:
    """Return schema and batches of a file, without its images, and what cuts it short."""
    ipc = arrow().ipc
    if whole.size >= len(_MAGIC) and bytes(whole[: len(_MAGIC)]) == _MAGIC:
        reader = ipc.open_file(whole)
        return reader.schema, [*map(reader.get_batch, range(reader.num_record_batches))], ""
    reader = ipc.open_stream(whole)
    batches, cut = _until_cut(reader.read_next_batch)
    if not cut and bytes(whole[-len(_END) :]) != _END:
        cut = "it ends without the mark of an end"
    return reader.schema, batches, cut


def _until_cut(following: Callable[[], Any]) -> tuple[list["pa.RecordBatch"], str]:
    batches = []
    try:
        while True:
            batches.append(following())
    except StopIteration:
        return batches, ""
    except ERRORS as error:
        return batches, first_line(error)


def _places_of(path: Path, whole: "pa.Buffer", chunks: list["pa.Array"]) -> NDArray[np.int64]:
    """Return where in the file the bytes of each row are: int64, start and size; -1 of a null.

    Raises:
        ManifestError: The file is compressed.
        ValueError: It is damaged.
    """
    found = [np.zeros((0, 2), dtype=np.int64)]
    for chunk in chunks:
        chunk.validate()
        values = chunk
        if arrow().types.is_struct(chunk.type):
            values = chunk.flatten()[chunk.type.get_field_index("bytes")]
        found.append(_in_file(path, whole, values))
    return np.concatenate(found)


def _in_file(path: Path, whole: "pa.Buffer", values: "pa.Array") -> NDArray[np.int64]:
    rows = len(values)
    _, offsets, data = values.buffers()
    places = np.zeros((rows, 2), dtype=np.int64)
    if rows and data is not None and data.size:
        start = data.address - whole.address
        if not 0 <= start <= whole.size - data.size:
            raise ManifestError(
                f"Expected an Arrow file without compression at {str(path)!r}. "
                "Received: a compressed one.",
                hint="Write it without compression, or as Parquet.",
            )
        is_wide = arrow().types.is_large_binary(values.type)
        ends = np.frombuffer(offsets, dtype=np.int64 if is_wide else np.int32)
        ends = ends[values.offset : values.offset + rows + 1].astype(np.int64)
        places[:, 0], places[:, 1] = start + ends[:-1], np.diff(ends)
    places[~np.asarray(values.is_valid())] = (0, -1)
    return places


def open_pack(path: Path) -> ArrowPack:
    """Open an Arrow file or stream.

    Raises:
        ConfigError: pyarrow is not installed.
        ManifestError: It is compressed.
        DamagedTableError: It is none, or is cut short before its first row.
        OSError: It cannot be read.
    """
    with damage_of(_WHAT, path):
        return ArrowPack(path)
