"""Memory for features, of this machine or, where it has no room, of a disk.

A file without a name holds what does not fit: the system removes it with the process, however that
ends.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.files.atomic import TEMPORARY_PREFIX
from pipeline.system import machine


def table(rows: int, dim: int, folder: Path | None, *, beside: int = 0) -> NDArray[np.float32]:
    """Return an empty table, float32 ``(rows, dim)``.

    Args:
        rows: Rows.
        dim: Columns.
        folder: Where a file may hold it; None keeps it in memory.
        beside: Bytes of memory that the work on it takes.

    Raises:
        ConfigError: The folder's disk has no room for it.
    """
    size = 4 * rows * dim
    if folder is None or not size or size + beside <= machine.free_memory():
        return np.empty((rows, dim), np.float32)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ConfigError(
            f"Expected {size / 1e9:.1f} GB of disk space for the features of {rows:,} images, "
            f"which do not fit into memory. Received: {free / 1e9:.1f} GB free at {str(folder)!r}.",
            hint="Free disk space, or take a part of the images.",
        )
    with TemporaryFile(dir=folder, prefix=TEMPORARY_PREFIX) as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, dim)).view(np.ndarray)
