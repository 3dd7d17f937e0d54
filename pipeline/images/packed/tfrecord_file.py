"""TFRecord files of ``tf.train.Example``, as TensorFlow Datasets prepares them.

Records follow each other, each with its length before it, so that their places are found without
reading them. What is in one is told by its protocol buffer alone; TensorFlow is not needed.
"""

from array import array
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedTableError, UnreadableImageError
from pipeline.files.regular import open_regular
from pipeline.images.packed.table_members import MemberNames, TableFile, arrow, image_columns

if TYPE_CHECKING:
    import pyarrow as pa

# Before a record its length and a checksum of that, after it one of the record.
_LENGTH: Final = 8
_HEAD: Final = 12
_TAIL: Final = 4
# What a record may have beside an image.
_BESIDE: Final = 16 << 20
# Messages of tensorflow/core/example: each field with its number and kind.
_MESSAGES: Final = {
    "BytesList": (("value", 1, "BYTES", ""),),
    "FloatList": (("value", 1, "FLOAT", ""),),
    "Int64List": (("value", 1, "INT64", ""),),
    "Feature": (
        ("bytes_list", 1, "MESSAGE", "BytesList"),
        ("float_list", 2, "MESSAGE", "FloatList"),
        ("int64_list", 3, "MESSAGE", "Int64List"),
    ),
    # How a map from names to features is written.
    "Entry": (("key", 1, "STRING", ""), ("value", 2, "MESSAGE", "Feature")),
    "Features": (("feature", 1, "MESSAGE", "Entry"),),
    "Example": (("features", 1, "MESSAGE", "Features"),),
}
_REPEATED: Final = ("BytesList", "FloatList", "Int64List", "Features")


class TfrecordPack(TableFile):
    """A TFRecord file; nothing of it stays open.

    Attributes:
        path: The file.
        state: Its state, which is that of its images.
        notes: None: see ``cut``.
        is_forward: Images are read in any order.
        schema: The features of the first record.
        rows: How many records there are; of a file that is cut short, those before the cut.
        cut: What is wrong with a file that is cut short; else empty.
        names: Names of its images.
        largest_group: 0: any record can be read at once.
    """

    is_forward = False
    largest_group = 0
    kind = "TFRecord"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._places, self.cut = _places_of(path)
        self.rows = len(self._places)
        if self.cut and not self.rows:
            raise _damaged(path, self.cut)
        self.schema = _schema(self._record(0) if self.rows else {})
        self.names = MemberNames(dict.fromkeys(image_columns(self.schema)), self.rows)

    def _read(self, column: str, row: int, limit: int) -> bytes:
        if self._places[row, 1] > limit + _BESIDE:
            raise UnreadableImageError(f"too large: {self._places[row, 1]:,} bytes")
        try:
            values = self._record(row).get(column, [])
        except DamagedTableError as error:
            raise UnreadableImageError(f"cannot be read: record {row:,} is damaged") from error
        if len(values) != 1 or not isinstance(values[0], bytes):
            raise UnreadableImageError("cannot be read: the record has no bytes")
        if len(values[0]) > limit:
            raise UnreadableImageError(f"too large: {len(values[0]):,} bytes")
        return values[0]

    def values(self, column: str, part: str = "") -> "pa.ChunkedArray":
        """Return a feature of all records, null where one has none; reads the whole file.

        Raises:
            DamagedTableError: A record is damaged.
        """
        kind = self.schema.field(column).type
        lists = [self._record(row).get(column, []) for row in range(self.rows)]
        found: list[Any] = lists
        if not arrow().types.is_list(kind):
            found = [values[0] if len(values) == 1 else None for values in lists]
        try:
            return arrow().chunked_array([arrow().array(found, kind)])
        except (TypeError, ValueError) as error:
            raise _damaged(self.path, f"other values of {column!r} than in the first") from error

    def has_bytes(self, column: str, *, exactly: bool = False) -> NDArray[np.bool_]:
        """Tell of each record whether its image is in the file: always."""
        return np.ones(self.rows, dtype=np.bool_)

    def _record(self, row: int) -> dict[str, list[Any]]:
        """Return the features of a record.

        Raises:
            DamagedTableError: It is no such record.
        """
        start, size = self._places[row].tolist()
        with open_regular(self.path) as file:
            file.seek(start)
            data = file.read(size)
        example, error = _example()
        try:
            parsed = example.FromString(data)
        except error as cause:
            raise _damaged(self.path, f"record {row:,}, which is no tf.train.Example") from cause
        found = {}
        for entry in parsed.features.feature:
            for kind in ("bytes_list", "int64_list", "float_list"):
                if entry.value.HasField(kind):
                    found[entry.key] = list(getattr(entry.value, kind).value)
        return found


def _places_of(path: Path) -> tuple[NDArray[np.int64], str]:
    """Return start and size of each record, int64, and what cuts the file short."""
    places, cut, place = array("q"), "", 0
    with open_regular(path) as file:
        end = file.seek(0, 2)
        while place < end:
            file.seek(place)
            size = int.from_bytes(file.read(_HEAD)[:_LENGTH], "little")
            following = place + _HEAD + size + _TAIL
            if following > end:
                cut = f"record {len(places) // 2:,} goes on beyond its end"
                break
            places.extend((place + _HEAD, size))
            place = following
    return np.array(places, dtype=np.int64).reshape(-1, 2), cut


def _schema(features: dict[str, list[Any]]) -> "pa.Schema":
    """Return the types of a record's features as those of columns."""
    pa = arrow()
    kinds = {bytes: pa.binary(), float: pa.float32(), int: pa.int64()}
    columns = []
    for name, values in sorted(features.items()):
        kind = kinds[type(values[0])] if values else pa.null()
        columns.append((name, kind if len(values) == 1 else pa.list_(kind)))
    return pa.schema(columns)


@lru_cache(maxsize=1)
def _example() -> tuple[Any, type[Exception]]:
    """Return the class of ``tf.train.Example``, and what it raises on other bytes."""
    described = import_module("google.protobuf.descriptor_pb2")
    file = described.FileDescriptorProto(name="example.proto", package="pipeline", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, other in fields:
            label = "LABEL_REPEATED" if name in _REPEATED else "LABEL_OPTIONAL"
            made = message.field.add(name=field, number=number)
            made.type = getattr(described.FieldDescriptorProto, f"TYPE_{kind}")
            made.label = getattr(described.FieldDescriptorProto, label)
            if other:
                made.type_name = f".pipeline.{other}"
    pool = import_module("google.protobuf.descriptor_pool").DescriptorPool()
    pool.Add(file)
    factory = import_module("google.protobuf.message_factory")
    example = factory.GetMessageClass(pool.FindMessageTypeByName("pipeline.Example"))
    return example, import_module("google.protobuf.message").DecodeError


def _damaged(path: Path, received: str) -> DamagedTableError:
    return DamagedTableError(
        f"Expected a TFRecord file at {str(path)!r}. Received: {received}.",
        hint="Fetch or make it again: it may have been cut short.",
    )


def open_pack(path: Path) -> TfrecordPack:
    """Open a TFRecord file.

    Raises:
        ConfigError: pyarrow is not installed.
        DamagedTableError: It is none, or is cut short before its second record.
        OSError: It cannot be read.
    """
    return TfrecordPack(path)
