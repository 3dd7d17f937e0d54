"""Reading at a place of an open file, which any number of threads may do at once."""

import os
from pathlib import Path

from pipeline.files.state import FileState
from pipeline.images.packed.kinds import ChangedPackError


def pread(descriptor: int, size: int, place: int) -> bytes:
    """Return bytes at a place, fewer at the end of the file alone.

    One call of the system gives 2 GB at most, and less over some networks.
    """
    data = os.pread(descriptor, size, place)
    if len(data) == size or not data:
        return data
    parts, got = [data], len(data)
    while got < size and (part := os.pread(descriptor, size - got, place + got)):
        parts.append(part)
        got += len(part)
    return b"".join(parts)


def unchanged(path: Path, state: FileState) -> int:
    """Return a descriptor of a file, open for reading, that is in a state.

    Raises:
        ChangedPackError: It is in another one.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if FileState.of(os.fstat(descriptor)) == state:
        return descriptor
    os.close(descriptor)
    raise ChangedPackError
