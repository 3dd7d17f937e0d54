"""What a process of ``reading_processes`` does: it answers threads until they hang up."""

import mmap
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Final

import numpy as np
from PIL import ImageFile

from pipeline.images import decoder
from pipeline.images.memory_budget import OverBudgetError
from pipeline.images.reading import Get, ReadFile, ReadImage

# Bytes of files that one thread holds; the next image is asked for again.
_READ_AT_ONCE: Final = 16 << 20


def serve(
    lines: Sequence[tuple[int, int]], size: int, budget: int, *, takes_truncated: bool
) -> None:
    """Read and decode until the other end of every line is gone.

    Args:
        lines: Descriptors of a socket and of memory for pixels, for each thread.
        size: Bytes of that memory.
        budget: Bytes that images decoded at once may take in this process.
        takes_truncated: Pillow's setting, as the program that started this has it.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = takes_truncated
    decoder.BUDGET.take_at_most(budget)
    # Where one cannot start, the others end with the process, and every line hears of it.
    threads = [
        threading.Thread(
            target=_serve, args=(Connection(line), mmap.mmap(memory, size)), daemon=True
        )
        for line, memory in lines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(connection: Connection, memory: mmap.mmap) -> None:
    """Answer one thread; after an error it hangs up."""
    area = np.frombuffer(memory, np.uint8)
    with suppress(EOFError, OSError), connection:
        while True:
            gets = connection.recv()
            try:
                read = _read(gets)
                connection.send([image.key for image in read])
                views, size, resize = connection.recv()
                files = [
                    _decoded(image, names, size, resize)
                    for image, names in zip(read, views, strict=True)
                ]
            except Exception as error:
                connection.send(error)
                return
            made = [pixels for file in files if file for pixels in file.pixels.values()]
            for place, pixels in enumerate(made):
                area[place * pixels.size : (place + 1) * pixels.size] = pixels.ravel()
            connection.send(
                [
                    (file and replace(file, pixels={}), list(file.pixels) if file else [])
                    for file in files
                ]
            )
            del gets, read, files, made


def _read(gets: Sequence[Get]) -> list[ReadImage]:
    """Read the first of some images, at least one, and no more than so many bytes."""
    read: list[ReadImage] = []
    held = 0
    for get in gets:
        image = ReadImage.of(get)
        read.append(image)
        held += image.size
        if held > _READ_AT_ONCE:
            break
    return read


def _decoded(image: ReadImage, views: Sequence[str], size: int, resize: str) -> ReadFile | None:
    """Decode views of an image; None where the memory of this process is too small for it."""
    try:
        return image.decoded(views, size, resize)
    except OverBudgetError:
        return None
