"""The table of plain files of features, by suffix, and the list that stands for missing texts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.errors import ConfigError, ManifestError
from pipeline.exchange import hdf5, listed, npy, parquet
from pipeline.exchange.feature_table import KEY, PATH, FeatureTable
from pipeline.files.location import Location


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file.

    Attributes:
        name: What it is called.
        read: Describes the features of a file, given the name of a column or None.
        write: Writes features into a file that is not in its place yet.
        has_texts: Whether it holds what is said of rows; otherwise a table beside it does.
    """

    name: str
    read: Callable[[Path, str | None], FeatureTable]
    write: Callable[[Path, FeatureTable], None]
    has_texts: bool = True


_HDF5: Final = Format("hdf5", hdf5.read, hdf5.write)
FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        ".h5": _HDF5,
        ".hdf5": _HDF5,
        ".npy": Format("npy", npy.read, npy.write, has_texts=False),
        ".parquet": Format("parquet", parquet.read, parquet.write),
    }
)


def of_file(path: Path) -> Format:
    """Return the format that a file's name says.

    Raises:
        ConfigError: It says none of the table.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise ConfigError(
            f"FILE: expected a name that ends in {', '.join(FORMATS)}. Received: {str(path)!r}.",
            hint="Choose one of these by the suffix.",
        )
    return found


def beside(path: Path) -> Path:
    """Return the table that goes beside a file without texts."""
    return path.with_suffix(".csv")


def read(
    path: Path, *, paths: Path | None, column: str | None, root: Location | None
) -> FeatureTable:
    """Describe the features of a file, with what it or a list says of their rows.

    Args:
        path: The file.
        paths: A list of the rows; None for the one beside the file, where it has no texts.
        column: Column or dataset of the features, where it cannot be told.
        root: What paths are relative to; None for the folder of what lists them.

    Raises:
        ConfigError: The suffix is unknown, or a list is given for a file that has paths.
        EngineUnavailableError: What reads it is not installed.
        ManifestError: It cannot be read, or nothing says what its rows are.
    """
    form = of_file(path)
    if not path.is_file():
        raise ManifestError(
            f"There is no file of features at {str(path)!r}.",
            hint=f"Give one that ends in {', '.join(FORMATS)}.",
        )
    table = form.read(path, column)
    if column is not None and not form.has_texts:
        raise ConfigError(
            f"--column: expected none for {path.suffix}, which holds one array. "
            f"Received: {column!r}.",
            hint="Leave it out.",
        )
    has_rows = bool({PATH, KEY} & set(table.columns))
    if has_rows and paths is not None:
        raise ConfigError(
            f"--paths: expected none, as {str(path)!r} says what its rows are. "
            f"Received: {str(paths)!r}.",
            hint="Leave it out.",
        )
    if has_rows:
        return table
    chosen = paths or listed.beside(path)
    if chosen is None:
        tried = " or ".join(path.with_suffix(suffix).name for suffix in listed.SUFFIXES)
        raise ManifestError(
            f"{path}: expected paths of the rows. Received: none in it, and no {tried} beside it.",
            hint="Give a CSV path,label[,split][,group], or a text of one path a line, in the "
            "order of the rows, with --paths.",
        )
    columns, notes = listed.read(chosen, root or chosen.resolve().parent)
    return replace(table, columns={**table.columns, **columns}, notes=(*table.notes, *notes))
