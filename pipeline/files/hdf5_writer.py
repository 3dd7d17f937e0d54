"""HDF5 files to be written: every one of ours goes through here.

HDF5 does not survive a write that fails: on a full disk it fails again in closing, with a traceback
of its destructor, and at times brings the process down. So it never learns of a failure: the bytes
go through ``_Sink``, which keeps the first one, and it is raised once HDF5 is done.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py

# Opened by every release of HDF5 since 1.10, whatever wrote it.
_PORTABLE: Final = ("v110", "v110")


@contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """Open a file to write it anew; its bytes are with the system when the context ends.

    Args:
        path: The file.

    Raises:
        OSError: Something could not be written.
        BaseException: Whatever else was raised while writing, such as an interrupt.
    """
    with path.open("w+b", buffering=0) as raw:
        sink = _Sink(raw.fileno())
        try:
            with h5py.File(sink, "w", libver=_PORTABLE) as file:
                yield file
        except Exception as error:
            if sink.failure is not None:  # the first of them; HDF5 has stumbled over it
                raise sink.failure from error
            raise
        if sink.failure is not None:
            raise sink.failure


class _Sink:
    """A file as h5py takes it; writing to it always succeeds, as far as HDF5 can see.

    Attributes:
        failure: What was raised first; nothing is written any more after it.
    """

    def __init__(self, descriptor: int) -> None:
        self.failure: BaseException | None = None
        self._descriptor = descriptor
        self._place = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place}.get(whence)
        self._place = offset + (os.fstat(self._descriptor).st_size if base is None else base)
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Read bytes; h5py knows a file by this method."""
        data = os.pread(self._descriptor, max(size, 0), self._place)
        self._place += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        data = memoryview(buffer).cast("B")
        data[:] = self.read(len(data)).ljust(len(data), b"\0")
        return len(data)

    def write(self, buffer: Any) -> int:
        """Write all of a buffer."""
        data = memoryview(buffer).cast("B")
        size = len(data)
        try:
            while data and self.failure is None:
                written = os.pwrite(self._descriptor, data, self._place)
                self._place += written
                data = data[written:]
        except BaseException as error:
            self.failure = error
        return size

    def truncate(self, size: int) -> int:
        """Set the size."""
        try:
            if self.failure is None:
                os.ftruncate(self._descriptor, size)
        except BaseException as error:
            self.failure = error
        return size

    def flush(self) -> None:
        """Do nothing: nothing is held back."""
