"""Features as Parquet: a column of lists of numbers beside path, label, split, group and key.

pyarrow reads and writes it, a row group at a time.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.errors import EngineUnavailableError, ManifestError, mention
from pipeline.exchange.feature_table import (
    BLOCK_ROWS,
    COLUMNS,
    FeatureTable,
    refusing,
    require_table,
    texts,
)
from pipeline.files.arrays import AnyArray
from pipeline.files.regular import require_regular
from pipeline.files.table import folded

FEATURES: Final = "features"
PIP_LINE: Final = "pip install 'embedding-pipeline[parquet]'"
_MADE_WITH: Final = b"made_with"
# Bytes of a column that are read at once.
_BUFFER: Final = 1 << 20


def require_installed() -> tuple[Any, Any]:
    """Return pyarrow and its module for Parquet, which have no types.

    Raises:
        EngineUnavailableError: They are not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise EngineUnavailableError(
            "Parquet files need pyarrow, which is not installed.", hint=f"Install it: {PIP_LINE}"
        ) from error


def read(path: Path, column: str | None) -> FeatureTable:
    """Describe the features of a file; they are read as they are asked for.

    Args:
        path: The file.
        column: Name of the column of features; None for the only one of lists of numbers.

    Raises:
        EngineUnavailableError: pyarrow is not installed.
        ManifestError: There is no such column, or a row has features of another length.
    """
    pyarrow, parquet = require_installed()
    with refusing(path):
        require_regular(path)
        file = parquet.ParquetFile(path)
        schema, count = file.schema_arrow, file.metadata.num_rows
        name = _chosen(pyarrow, schema, path, column)
        found = {key: place for key, place in _columns(schema, path).items() if place != name}
        table = file.read(columns=list(found.values()))
        columns = {key: texts(table[place].to_pylist()) for key, place in found.items()}
        dim, dtype = _width(pyarrow, parquet, path, name, schema.field(name).type)
        made_with = (schema.metadata or {}).get(_MADE_WITH, b"").decode(errors="replace")

    def blocks() -> Iterator[AnyArray]:
        done = 0
        for part in _parts(parquet, path, name):
            yield _numbers(pyarrow, part, dim, path, done)
            done += len(part)

    return FeatureTable(
        source=path,
        shape=require_table(path, (count, dim), dtype),
        dtype=dtype.name,
        columns=columns,
        blocks=blocks,
        made_with=made_with,
    )


def write(path: Path, table: FeatureTable) -> None:
    """Write features and texts, a row group at a time.

    Raises:
        EngineUnavailableError: pyarrow is not installed.
        OSError: It cannot be written.
    """
    pyarrow, parquet = require_installed()
    dim = table.shape[1]
    kinds = {name: _kind(pyarrow, cells) for name, cells in table.columns.items()}
    features = pyarrow.list_(pyarrow.float32(), dim)
    schema = pyarrow.schema(
        [*kinds.items(), (FEATURES, features)], metadata={_MADE_WITH: table.made_with.encode()}
    )
    with (
        path.open("wb") as file,
        parquet.ParquetWriter(
            file, schema, compression="none", use_dictionary=[*kinds], write_statistics=[*kinds]
        ) as writer,
    ):
        start = 0
        for block in table.rows():
            rows = slice(start, start + len(block))
            cells = [
                pyarrow.array([_encoded(cell, kind, pyarrow) for cell in cells[rows]], kind)
                for cells, kind in zip(table.columns.values(), kinds.values(), strict=True)
            ]
            numbers = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.ravel()), dim)
            writer.write_table(pyarrow.table([*cells, numbers], schema=schema))
            start = rows.stop


def _kind(pyarrow: Any, cells: Any) -> Any:
    """Return the type of a column: text, or bytes where a file's name is no UTF-8."""
    try:
        "\n".join(cells).encode()
    except UnicodeEncodeError:
        return pyarrow.binary()
    return pyarrow.string()


def _encoded(cell: str, kind: Any, pyarrow: Any) -> str | bytes:
    return cell.encode("utf-8", "surrogateescape") if kind == pyarrow.binary() else cell


def _chosen(pyarrow: Any, schema: Any, path: Path, column: str | None) -> str:
    """Return the name of the column that holds the features.

    Raises:
        ManifestError: Nobody can tell.
    """
    able = [field.name for field in schema if _element(pyarrow, field.type) is not None]
    if column is not None and column in able:
        return column
    if column is None and len(able) == 1:
        return str(able[0])
    expected = "one column of lists of numbers" if column is None else f"such a column {column!r}"
    raise ManifestError(
        f"{path}: expected {expected}. Received: {mention(able) or 'none'} of the columns "
        f"{mention(schema.names)}.",
        hint="Name the one that holds the features, with --column.",
    )


def _element(pyarrow: Any, kind: Any) -> Any:
    """Return the type of a list's numbers; None of what is no list of numbers."""
    kind = getattr(kind, "storage_type", kind)
    types = pyarrow.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list:
        return None
    inner = kind.value_type
    return inner if types.is_floating(inner) or types.is_integer(inner) else None


def _columns(schema: Any, path: Path) -> dict[str, str]:
    """Return the name in the file of each column that says something of its rows."""
    found: dict[str, str] = {}
    for name in schema.names:
        column = folded(name)
        if column in COLUMNS and found.setdefault(column, name) != name:
            raise ManifestError(
                f"{path}: expected one column {column!r}. Received: {found[column]!r}, {name!r}.",
                hint="Remove or rename the others.",
            )
    return found


def _width(
    pyarrow: Any, parquet: Any, path: Path, name: str, kind: Any
) -> tuple[int, np.dtype[Any]]:
    """Return the number of features of a row, 0 where no row has any, and their type."""
    storage = getattr(kind, "storage_type", kind)
    dtype = np.dtype(_element(pyarrow, kind).to_pandas_dtype())
    if pyarrow.types.is_fixed_size_list(storage):
        return int(storage.list_size), dtype
    for part in _parts(parquet, path, name):
        lengths = pyarrow.compute.list_value_length(part).drop_null()
        if len(lengths):
            return int(lengths[0].as_py()), dtype
    return 0, dtype


def _parts(parquet: Any, path: Path, name: str) -> Iterator[Any]:
    """Yield the column of features as arrays of lists."""
    import_module("pyarrow.compute")
    # Otherwise it holds the whole column, however little of it is asked for.
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
        for batch in file.iter_batches(BLOCK_ROWS, columns=[name]):
            array = batch.column(0)
            yield getattr(array, "storage", array)


def _numbers(pyarrow: Any, part: Any, dim: int, path: Path, done: int) -> AnyArray:
    """Return the features of some rows; not-a-number where there are none.

    Raises:
        ManifestError: A row has another number of them.
    """
    lengths = pyarrow.compute.list_value_length(part).fill_null(dim).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong):
        raise ManifestError(
            f"{path}: expected {dim:,} features in every row. Received: "
            f"{int(lengths[wrong[0]]):,} in row {done + int(wrong[0]) + 1:,}.",
            hint="Features of one store come from one network; import those of others apart.",
        )
    values: AnyArray = part.flatten().to_numpy(zero_copy_only=False)
    if not part.null_count:
        return values.reshape(len(part), dim)
    rows = np.full((len(part), dim), np.nan)
    rows[part.is_valid().to_numpy(zero_copy_only=False)] = values.reshape(-1, dim)
    return rows
