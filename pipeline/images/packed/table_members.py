"""Names of the images in a table's columns, such as ``image/00000017-cat.png``.

The column says which of several, the row number where; it comes first in the name, so that reading
in the order of names never goes back. The end is what the image was called before it was packed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, overload
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
    ConfigError,
    DamagedTableError,
    PipelineError,
    UnreadableImageError,
)
from pipeline.files.location import Location
from pipeline.files.state import FileState
from pipeline.images.packed.kinds import ChangedPackError

if TYPE_CHECKING:
    import pyarrow as pa

# What Arrow raises on damaged bytes.
ERRORS: Final = (LookupError, NotImplementedError, OSError, TypeError, ValueError)
# Digits of a row number, so that the order of names is that of rows.
_WIDTH: Final = 8
_LONGEST: Final = 100
# Of a path of either system, all but the last part; then what no file should be called.
_FOLDERS: Final = r"(?s)^.*[/\\]"
_CONTROLS: Final = r"[\x00-\x1f\x7f]"


class TablePack(Protocol):
    """What listing asks of a packed file that is a table, beside what a ``Pack`` has.

    Attributes:
        state: Its state, which is that of its images.
        schema: Its columns.
        rows: How many rows it has; of a file that is cut short, those before the cut.
        cut: What is wrong with a file that is cut short; else empty.
        names: Names of its images.
        largest_group: Bytes of the largest row group, which is decoded from its start whenever a
            reader goes back; 0 where any row can be read at once.
    """

    state: FileState
    schema: "pa.Schema"
    rows: int
    cut: str
    names: "MemberNames"
    largest_group: int

    def values(self, column: str, part: str = "") -> "pa.ChunkedArray":
        """Return a column, or a part of one, whole.

        Raises:
            DamagedTableError: It is damaged.
        """

    def has_bytes(self, column: str, *, exactly: bool = False) -> NDArray[np.bool_]:
        """Tell of each row whether its image is in the file.

        Args:
            column: Its images.
            exactly: Whether every row is looked at, where that means to decode all images.
        """


class TableFile(ABC):
    """What packed files that are tables have in common; nothing of one stays open.

    Attributes:
        path: The file.
        state: Its state, which is that of its images.
        names: Names of its images.
    """

    notes = ()
    kind: ClassVar[str]
    names: "MemberNames"

    def __init__(self, path: Path) -> None:
        """Take down the state of a file before it is read."""
        self.path = path
        self.state = FileState.of(path.stat())

    @property
    def members(self) -> "MemberNames":
        """The same names."""
        return self.names

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the bytes of an image; see ``Pack``."""
        column, row = self._place(name)
        try:
            return self._read(column, row, limit)
        finally:
            # What was read, or failed to be, says nothing of a file that changed meanwhile.
            if FileState.of(self.path.stat()) != self.state:
                raise ChangedPackError

    @abstractmethod
    def _read(self, column: str, row: int, limit: int) -> bytes:
        """Return the bytes of an image; see ``Pack.read``."""

    def texts(self, suffixes: Collection[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
        """Yield nothing: a table has columns in the place of texts beside images."""
        yield from ()

    def _no_bytes(self, column: str, row: int) -> UnreadableImageError:
        """Return the error for a row without bytes."""
        end = self.names.name(column, row).partition("/")[2].partition("-")[2]
        if not end:
            return UnreadableImageError("cannot be read: the row has no bytes")
        return UnreadableImageError(
            f"cannot be read: the row has no bytes, and no file was found at its path, .../{end}"
        )

    def _place(self, name: str) -> tuple[str, int]:
        """Return column and row of an image."""
        found = self.names.find(name)
        if found is None:
            raise UnreadableImageError(f"cannot be read: no image in the {self.kind} file")
        return found


def arrow() -> Any:
    """Return pyarrow.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError(
            "Parquet and Arrow files need pyarrow.",
            hint="pip install 'embedding-pipeline[parquet]'",
        ) from error
    return pyarrow


def first_line(error: Exception) -> str:
    """Return what an error of Arrow says, without the lines of its own code."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def damage_of(what: str, where: Location) -> Iterator[None]:
    """Turn what Arrow raises on damaged bytes into one error; whatever it may be.

    Args:
        what: What is expected, such as ``a Parquet file``.
        where: The file.

    Raises:
        DamagedTableError: The file is damaged.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, PipelineError):
        raise
    except ERRORS as error:
        raise DamagedTableError(
            f"Expected {what} at {str(where)!r}. Received: {first_line(error)}.",
            hint="Fetch or make it again: it may have been cut short.",
        ) from error


def image_columns(schema: "pa.Schema") -> dict[str, tuple[str, ...]]:
    """Return the columns that may hold images, with the parts of each: ``bytes`` and ``path``.

    A column of plain bytes has no parts.
    """
    found = {}
    for field in schema:
        parts = _parts(field.type)
        if parts is not None and schema.names.count(field.name) == 1:
            found[field.name] = parts
    return found


def _parts(kind: "pa.DataType") -> tuple[str, ...] | None:
    pa = arrow()
    if _is_binary(kind):
        return ()
    if not pa.types.is_struct(kind):
        return None
    parts = {field.name: field.type for field in kind}
    if "bytes" not in parts or not _is_binary(parts["bytes"]):
        return None
    return ("bytes", "path") if "path" in parts and is_text(parts["path"]) else ("bytes",)


def _is_binary(kind: "pa.DataType") -> bool:
    types = arrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_text(kind: "pa.DataType") -> bool:
    """Tell whether a column holds texts, also where each is kept once."""
    types = arrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def short_names(paths: "pa.ChunkedArray") -> "pa.Array":
    """Return the last parts of paths, without what no file should be called."""
    pa = arrow()
    import pyarrow.compute as pc

    whole = pa.concat_arrays([pa.array([], paths.type), *paths.chunks]).cast(pa.string())
    names = pc.replace_substring_regex(whole, _FOLDERS, "")
    names = pc.replace_substring_regex(names, _CONTROLS, "_")
    return pc.utf8_slice_codeunits(names, start=-_LONGEST)


class MemberNames(Sequence[str]):
    """The names of all images of a table, made when they are asked for.

    Example:
        names = MemberNames({"image": None}, 3)
        names.find("image/00000002")  # ("image", 2)
    """

    def __init__(self, columns: Mapping[str, Callable[[], "pa.Array"] | None], rows: int) -> None:
        """Describe the table.

        Args:
            columns: By column, what gives the short names of its rows; None where there are none.
            rows: How many rows there are.
        """
        self._columns = MappingProxyType(dict(columns))
        self._rows = rows
        self._short: dict[str, pa.Array | None] = {}

    def __len__(self) -> int:
        return self._rows * len(self._columns)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        column, row = divmod(index % len(self), self._rows)
        return self.name(tuple(self._columns)[column], row)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def name(self, column: str, row: int) -> str:
        """Return the name of the image in a row."""
        short = self._short_names(column)
        end = None if short is None else short[row].as_py()
        return _name(_folder(column), row, end)

    def of(self, column: str) -> list[str]:
        """Return the names of all images in a column, by row."""
        short = self._short_names(column)
        ends = [None] * self._rows if short is None else short.to_pylist()
        folder = _folder(column)
        return [_name(folder, row, end) for row, end in enumerate(ends)]

    def find(self, name: str) -> tuple[str, int] | None:
        """Return column and row of an image; None where there is none of that very name."""
        quoted, _, rest = name.partition("/")
        column, digits = unquote(quoted), rest.partition("-")[0]
        if column not in self._columns or not (digits.isascii() and digits.isdecimal()):
            return None
        row = int(digits)
        return (column, row) if row < self._rows and self.name(column, row) == name else None

    def _short_names(self, column: str) -> "pa.Array | None":
        if column not in self._short:
            make = self._columns[column]
            self._short[column] = None if make is None else make()
        return self._short[column]


def name_of(column: str, row: int) -> str:
    """Return what an image without a former name is called."""
    return _name(_folder(column), row, None)


def _folder(column: str) -> str:
    return quote(column, safe=" ")


def _name(folder: str, row: int, end: str | None) -> str:
    start = f"{folder}/{row:0{_WIDTH}}"
    return f"{start}-{end}" if end else start
