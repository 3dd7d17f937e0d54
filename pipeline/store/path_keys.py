"""Keys of features whose image nobody saw: made of its path, and never those of an image.

A store is keyed by the SHA-256 of an image file's bytes. Features that were imported without their
image have the SHA-256 of the path after a beginning that no image file has: it stays the same as
long as the path does, whatever the features are, so that stores of one list can be compared.
"""

import hashlib
from typing import Final

# No format of images begins with NUL and this text.
_BEGINNING: Final = b"\0features imported without their image:"


def key_of_path(path: str) -> str:
    """Return the key of a row whose image is not at hand."""
    named = path.encode("utf-8", errors="surrogateescape")
    return hashlib.sha256(_BEGINNING + named).hexdigest()
