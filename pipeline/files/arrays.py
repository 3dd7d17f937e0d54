"""Arrays in files: ``.npy`` and ``.npz`` without pickle, no larger in memory than on disk.

A header may promise more values than there are: it is compared with the bytes at hand before
memory is taken for it.
"""

import math
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.files.atomic import write_atomically
from pipeline.files.regular import read_regular

# Of any type and shape.
AnyArray: TypeAlias = NDArray[Any]
Sums = NDArray[np.uint32]

# Of a file; a head on features of a million images has a thousandth.
MAX_BYTES: Final = 8 << 30
_SUFFIX: Final = ".npy"


def write(path: Path, array: AnyArray) -> None:
    """Write one array as ``.npy``, atomically."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomically(path, fill)


def write_all(path: Path, arrays: Mapping[str, AnyArray]) -> None:
    """Write arrays by name as ``.npz``, uncompressed, atomically."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    write_atomically(path, fill)


def read(path: Path) -> AnyArray:
    """Read what ``write`` wrote.

    Raises:
        ValueError: It is not an array file, or holds other than its header says.
        OSError: It is no regular file, or cannot be read.
    """
    return _array(read_regular(path, limit=MAX_BYTES)[0])


def read_all(path: Path) -> dict[str, AnyArray]:
    """Read what ``write_all`` wrote; see ``read`` for what is raised."""
    data, _ = read_regular(path, limit=MAX_BYTES)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            packed = [item.filename for item in archive.infolist() if item.compress_type]
            if packed:
                raise ValueError(f"expected arrays as they are, received {packed[0]!r} compressed")
            return {
                name.removesuffix(_SUFFIX): _array(archive.read(name))
                for name in archive.namelist()
            }
    except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def row_sums(array: AnyArray) -> Sums:
    """Return the sum of each row's bytes, taken four at a time, uint32 ``(n,)``.

    Every changed byte shows. It takes a tenth of the time that reading the row does; a digest
    would take three times as long as that.

    Args:
        array: ``(n, ...)``, contiguous.
    """
    if not array.size:
        return np.zeros(len(array), np.uint32)
    data = array.reshape(len(array), -1).view(np.uint8)
    words = data if data.shape[1] % 4 else data.view(np.uint32)
    sums: Sums = np.add.reduce(words, axis=1, dtype=np.uint32)
    return sums


def _array(data: bytes) -> AnyArray:
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"expected an array of format 1 or 2, received {version}")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError("expected numbers, received objects, which allow_pickle would load")
    promised, held = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if promised != held:
        raise ValueError(
            f"expected {promised:,} bytes of {dtype} of shape {shape}, received {held:,}"
        )
    stream.seek(0)
    array: AnyArray = np.load(stream, allow_pickle=False)
    return array


_HEADERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
