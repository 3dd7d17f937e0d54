"""Features as ``.npy``: an array ``(n, dim)``; what is said of its rows is in a table beside it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.exchange.feature_table import BLOCK_ROWS, FeatureTable, refusing, require_table
from pipeline.files.arrays import AnyArray
from pipeline.files.regular import require_regular


def read(path: Path, column: str | None) -> FeatureTable:
    """Describe an array; it is read as it is asked for.

    Raises:
        ManifestError: It is no array of numbers ``(n, dim)``.
    """
    with refusing(path):
        require_regular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise ValueError("it holds several arrays")

    shape = require_table(path, array.shape, array.dtype)

    def blocks() -> Iterator[AnyArray]:
        for start in range(0, shape[0], BLOCK_ROWS):
            count = min(BLOCK_ROWS, shape[0] - start)
            if array.flags.c_contiguous:
                # Read, not mapped: what is mapped counts as memory until somebody needs it.
                offset = array.offset + start * shape[1] * array.dtype.itemsize
                block = np.fromfile(path, array.dtype, count * shape[1], offset=offset)
                yield block.reshape(count, shape[1])
            else:
                yield np.array(array[start : start + count])

    return FeatureTable(source=path, shape=shape, dtype=array.dtype.name, columns={}, blocks=blocks)


def write(path: Path, table: FeatureTable) -> None:
    """Write an array, a block at a time.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": table.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in table.rows():
            file.write(block.data)
