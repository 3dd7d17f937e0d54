"""Whether a disk has room for features, asked before they are written."""

import shutil
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError
from pipeline.files import remote
from pipeline.files.location import Location, Remote

# Of a row, beside its features: keys, sums, texts.
_BESIDE: Final = 100


def require_room(place: Path, rows: int, dim: int) -> None:
    """Refuse features that the disk of a place has no room for.

    Raises:
        ConfigError: Says how much they need, and how much there is.
    """
    folder = folder_near(place)
    needed, free = rows * (4 * dim + _BESIDE), shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"Expected {needed / 1e9:.1f} GB of disk space for {rows:,} rows of {dim:,} features. "
            f"Received: {free / 1e9:.1f} GB free at {str(folder)!r}.",
            hint="Free disk space, or choose another place.",
        )


def folder_near(place: Location) -> Path:
    """Return a folder of the disk that a place is on, or where copies of one at an address are."""
    path = remote.folder() if isinstance(place, Remote) else place
    return next(parent for parent in path.absolute().parents if parent.exists())
