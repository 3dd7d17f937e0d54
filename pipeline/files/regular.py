"""Files to read where something else may stand in their place: a pipe, a device, a folder."""

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path


class UnfitFileError(OSError):
    """Something that is not read: no regular file, or one larger than it can be."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, and nothing else: a pipe would wait for ever, a device not end.

    Raises:
        UnfitFileError: It is no regular file.
        OSError: It cannot be opened.
    """
    return os.fdopen(_opened(path)[0], "rb")


def _opened(path: Path | str) -> tuple[int, os.stat_result]:
    """Return the descriptor of a regular file and its state; see ``open_regular``."""
    # Without blocking, which has no effect on regular files.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor, status
    os.close(descriptor)
    raise UnfitFileError(errno.EINVAL, "not a regular file", str(path))


def require_regular(path: Path) -> int:
    """Return the size of a file that another library is to open.

    Raises:
        UnfitFileError: It is no regular file.
        OSError: There is none.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnfitFileError(errno.EINVAL, "not a regular file", str(path))
    return status.st_size


def read_regular(path: Path | str, *, limit: int) -> tuple[bytes, os.stat_result]:
    """Return a file's bytes, and its state as it was opened.

    By the fewest calls of the system, since every one of them lets other threads go first.

    Args:
        path: The file.
        limit: Most bytes that it may have.

    Raises:
        UnfitFileError: It is no regular file, or has more bytes.
        OSError: It cannot be read.
    """
    descriptor, status = _opened(path)
    try:
        if status.st_size > limit:
            reason = f"too large: {status.st_size:,} bytes"
            raise UnfitFileError(errno.EFBIG, reason, str(path))
        data = os.read(descriptor, status.st_size)
        # What is cut short ends a file, a signal or a network's part of it.
        while len(data) < status.st_size:
            more = os.read(descriptor, status.st_size - len(data))
            if not more:
                break
            data += more
        return data, status
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a regular file's bytes as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
