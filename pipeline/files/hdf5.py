"""HDF5 files that may come from anywhere: what is read is data of their own, and all there.

An HDF5 file can name other files (links, external and virtual datasets), promise more values than
it has, or have them unpacked from a few bytes. All of that is refused here.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import h5py
import numpy as np

from pipeline.files.regular import require_regular

# What h5py raises on damage, besides errors of the system.
HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError)


class UnfitDatasetError(ValueError):
    """A member of an HDF5 file that is not read."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a regular file for reading.

    Without a lock: our files never change, and some file systems have no locks.

    Raises:
        UnfitFileError: It is no regular file.
        OSError: It cannot be opened, or is no HDF5 file.
    """
    require_regular(path)
    with h5py.File(path, "r", locking=False) as file:
        yield file


def plain_member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return a member that lies in this file under this one name.

    Soft, external and virtual members can read other files, and a second hard link to a group
    can make a loop. Neither this package nor Keras writes any of them.

    Raises:
        UnfitDatasetError: It is another kind of member.
        KeyError: There is none.
    """
    if name not in group:
        raise KeyError(f"there is no {name!r}")
    kind = type(group.get(name, getlink=True)).__name__
    item = group[name] if kind == "HardLink" else None
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        kind = "external or virtual dataset"
    elif isinstance(item, h5py.Group | h5py.Dataset) and h5py.h5o.get_info(item.id).rc == 1:
        return item
    raise UnfitDatasetError(f"expected data of its own at {name!r}. Received a link ({kind})")


def set_text(file: h5py.File, name: str, text: str) -> None:
    """Give a file an attribute whose text lies in its header, which HDF5 keeps a checksum of.

    h5py would put it into a heap without one, and HDF5 loops for ever over some damaged heaps.
    """
    file.attrs[name] = np.bytes_(text.encode())


def text_of(file: h5py.File, name: str) -> str:
    """Return an attribute that is a text, whoever wrote it; empty where there is none."""
    value = file.attrs.get(name, "")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def plain_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return a dataset whose values lie in this file as they are: all of them, and unpacked.

    Raises:
        UnfitDatasetError: It is no such dataset.
        KeyError: There is none.
    """
    item = plain_member(group, name)
    if not isinstance(item, h5py.Dataset):
        raise UnfitDatasetError(f"expected a dataset {name!r}. Received a group")
    promised = math.prod(item.shape or ()) * item.dtype.itemsize
    if item.chunks is not None or item.shape is None or item.dtype.hasobject:
        raise UnfitDatasetError(f"expected plain numbers at {name!r}. Received other data")
    if item.id.get_storage_size() != promised:
        raise UnfitDatasetError(
            f"expected {promised:,} bytes at {name!r}. Received {item.id.get_storage_size():,}"
        )
    return item


def datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every dataset below a group with its path from there.

    Raises:
        UnfitDatasetError: A member does not lie in this file under this one name.
    """
    for name in group:
        item = plain_member(group, name)
        if isinstance(item, h5py.Dataset):
            yield name, item
        else:
            yield from ((f"{name}/{path}", dataset) for path, dataset in datasets(item))
