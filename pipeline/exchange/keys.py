"""The keys of imported rows.

Where the image is at hand its key is the SHA-256 of its bytes; where the file says the key, it is
taken. Otherwise it is made of the path; see ``store.path_keys``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, ManifestError
from pipeline.files.location import is_address
from pipeline.images import reading
from pipeline.images.manifest import KEY_DTYPE, Manifest
from pipeline.store.path_keys import key_of_path
from pipeline.system import machine
from pipeline.system.progress import Reporter

_KEY: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RowKeys:
    """The keys of rows, and where they are from.

    Attributes:
        keys: ``S64`` ``(n,)``.
        given: How many the file says.
        content: How many are of the bytes of an image.
        paths: How many are of a path.
    """

    keys: NDArray[np.bytes_]
    given: int
    content: int
    paths: int

    def counts(self) -> dict[str, int]:
        """Return how many are from where."""
        return {"given": self.given, "content": self.content, "paths": self.paths}


def keys_of(listing: Manifest, given: Sequence[str], reporter: Reporter) -> RowKeys:
    """Return the key of each row.

    Args:
        listing: The rows.
        given: What the file says of their keys; empty where it says nothing.
        reporter: Where it is shown how many images were read.

    Raises:
        ManifestError: A key is none.
    """
    found = [_checked(text, path) for text, path in zip(given, listing.paths, strict=True)]
    unknown = [row for row, key in enumerate(found) if not key]
    there = [row for row in unknown if _is_at_hand(listing, row)]
    content = _of_images(listing, there, reporter)
    keys = [
        key or content.get(row) or key_of_path(path)
        for row, (key, path) in enumerate(zip(found, listing.paths, strict=True))
    ]
    return RowKeys(
        keys=np.array([key.encode() for key in keys], KEY_DTYPE),
        given=len(found) - len(unknown),
        content=len(content),
        paths=len(unknown) - len(content),
    )


def _is_at_hand(listing: Manifest, row: int) -> bool:
    """Tell whether an image can be read; one at an address only where all are to be there."""
    is_elsewhere = is_address(listing.paths[row]) and isinstance(listing.root, Path)
    return not is_elsewhere and reading.is_there(listing, row)


def _of_images(listing: Manifest, rows: Sequence[int], reporter: Reporter) -> dict[int, str]:
    """Return the keys of the images of rows that can be read."""
    keys = {}
    if rows:
        reporter.say(f"Reading {len(rows):,} images, whose contents are the keys")
    read = reading.in_threads(
        lambda row: reading.read(listing, row).key, rows, machine.processors()
    )
    with reporter.bar(len(rows), "img") as bar:
        for row, future in read:
            try:
                keys[row] = future.result()
            except DecodeError:
                continue  # as one that is not there
            finally:
                bar.advance()
    return keys


def _checked(text: str, path: str) -> str:
    key = text.strip()
    if key and not _KEY.fullmatch(key):
        raise ManifestError(
            f"Expected a key of 64 hexadecimal digits, the SHA-256 of an image, for {path!r}. "
            f"Received: {text!r}.",
            hint="Call other names of rows paths, or leave the keys out.",
        )
    return key
