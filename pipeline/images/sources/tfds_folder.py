"""A folder that TensorFlow Datasets prepared: refused, with the way on."""

from pipeline.errors import ManifestError
from pipeline.images.manifest import Manifest
from pipeline.images.sources.given import Given

_MARKS = frozenset(("dataset_info.json", "features.json"))


def recognizes(given: Given) -> bool:
    """Tell whether the data is such a folder."""
    return given.tree is not None and set(given.tree.paths) >= _MARKS


def scan_source(given: Given) -> Manifest:
    """Refuse the folder: its records can be read from front to back alone.

    Raises:
        ManifestError: Always.
    """
    raise ManifestError(
        f"Expected a kind of data that can be read in place. Received: a folder of TensorFlow "
        f"Datasets, {str(given.data)!r}.",
        hint="Write it as Parquet once, as docs/sources.md shows.",
    )
