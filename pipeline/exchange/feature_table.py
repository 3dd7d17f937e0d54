"""Features with what is said of each row: what a plain file holds, and what is written into one.

The features come in blocks, so that they are never in memory as a whole; the texts are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ManifestError, PipelineError
from pipeline.files.arrays import AnyArray
from pipeline.images.manifest import GROUP

PATH: Final = "path"
LABEL: Final = "label"
SPLIT: Final = "split"
KEY: Final = "key"
# What a file may say of a row, by the name of the column.
COLUMNS: Final = (PATH, LABEL, SPLIT, GROUP, KEY)
# Rows that are read and written together: 64 MB of 2,048 float32 features.
BLOCK_ROWS: Final = 8192

Features = NDArray[np.float32]
# What readers of files raise on damage, besides errors of the system; those of pyarrow among them.
_DAMAGE: Final = (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, EOFError)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTable:
    """Features and what is said of their rows.

    Attributes:
        source: Where they are, for messages.
        shape: ``(n, dim)``.
        dtype: Type of the numbers there, such as ``float64``.
        columns: Texts by name (``COLUMNS``), n of each; those that there are.
        blocks: Yields numbers ``(k, dim)``, n rows in all, each time it is called. A row that has
            no features is not-a-number.
        notes: What was assumed or left out, one line each.
        made_with: What the file says of how they were made; empty where it says nothing.
    """

    source: Path
    shape: tuple[int, int]
    dtype: str
    columns: Mapping[str, Sequence[str]]
    blocks: Callable[[], Iterator[AnyArray]]
    notes: tuple[str, ...] = ()
    made_with: str = ""

    def rows(self) -> Iterator[Features]:
        """Yield the features, float32 ``(k, dim)``, in order; what float32 lacks is infinite.

        Raises:
            ManifestError: The file cannot be read to its end.
        """
        with refusing(self.source):
            for block in self.blocks():
                with np.errstate(over="ignore"):
                    yield np.ascontiguousarray(block, dtype="<f4")


def require_table(source: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the shape of features, if they are a table of real numbers.

    Raises:
        ManifestError: They are none.
    """
    if dtype.kind not in "fiu" or len(shape) != 2 or 0 in shape:
        raise ManifestError(
            f"{source}: expected numbers of shape (rows, features). "
            f"Received: {dtype} of shape {tuple(shape)}.",
            hint="Save one row of numbers per image.",
        )
    return int(shape[0]), int(shape[1])


def texts(values: Iterable[object]) -> list[str]:
    """Return the cells of a column as text; empty where there is nothing."""
    return [_text(value) for value in values]


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="surrogateescape")
    if value is None or value != value:  # nothing, or not a number
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))  # a column of whole numbers with gaps
    return str(value)


@contextmanager
def refusing(source: Path) -> Iterator[None]:
    """Say of a file that cannot be read that it is that file.

    Raises:
        ManifestError: It is damaged, of another kind, or the system does not let it be read.
    """
    try:
        yield
    except PipelineError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ManifestError(
            f"The features in {str(source)!r} cannot be read: {reason}.",
            hint="Check that the file is whole, and of the kind that its name says.",
        ) from error
