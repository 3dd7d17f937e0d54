"""The keys of imported rows.

Where the image is at hand its key is the SHA-256 of its bytes; where the file says the key, it is
taken. Otherwise it is made of the path; see ``store.path_keys``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, ManifestError
from pipeline.files.location import Remote, is_address
from pipeline.images import reading
from pipeline.images.manifest import KEY_DTYPE, Manifest
from pipeline.store.path_keys import key_of_path
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

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
    content = _of_images(listing, _at_hand(listing, unknown, reporter), reporter)
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


def _at_hand(listing: Manifest, rows: Sequence[int], reporter: Reporter) -> list[int]:
    """Return the rows whose image can be read; one at an address only where all are to be there."""
    asked = [
        row
        for row in rows
        if isinstance(listing.root, Remote) or not is_address(listing.paths[row])
    ]
    if asked:
        reporter.say(f"Looking for {counted(len(asked), 'image')} in {str(listing.root)!r}")
    there = []
    with (
        reading.looked_up(listing.take(asked)),
        reporter.bar(len(asked), "img") as bar,
    ):
        for row in asked:
            if reading.is_there(listing, row):
                there.append(row)
            bar.advance()
    return there


def _of_images(listing: Manifest, rows: Sequence[int], reporter: Reporter) -> dict[int, str]:
    """Return the keys of the images of rows that can be read."""
    keys = {}
    if rows:
        reporter.say(f"Reading {counted(len(rows), 'image')}, whose contents are the keys")
    workers = reading.num_threads(listing.take(rows))
    read = reading.in_threads(lambda row: reading.read(listing, row).key, rows, workers)
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
