"""The different images of a manifest, each content once, with its features.

Rows are files; two rows of equal bytes are one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.copies import neighbours, scratch
from pipeline.copies.projection import Units
from pipeline.errors import ConfigError, ManifestError
from pipeline.heads.rows import blocks
from pipeline.images.manifest import CONFLICT, OK, Manifest, mark_conflicts
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures
from pipeline.system import machine
from pipeline.system.progress import SILENCE, Reporter
from pipeline.system.wording import counted

# What work on features takes beside them, as a share: products, a head, scaled parts.
_BESIDE: Final = 0.8
# Numbers beside those of a search: the components that very many images are put into cells by, and
# more of that kind.
_MORE: Final = 128
# What the file of an image says: a small grey copy, and its measures.
BYTES_OF_FILE: Final = 1536
# Rows that are read together.
_AT_ONCE: Final = 8192


@dataclass(frozen=True)
class DistinctImages:
    """Files, and which of them are one image.

    Attributes:
        manifest: One row per file that has features.
        image_of: Number of each row's image, ``(rows,)``; images count in the manifest's order.
        units: Features of each image with a norm of one, float32 ``(images, dim)``; in a file
            where they do not fit into memory.
        scratch: Folder for more of that kind; None keeps it in memory.
    """

    manifest: Manifest
    image_of: NDArray[np.intp]
    units: Units
    scratch: Path | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def first_row(self) -> NDArray[np.intp]:
        """The first row of each image, ``(images,)``."""
        return np.unique(self.image_of, return_index=True)[1].astype(np.intp)

    @cached_property
    def rows_of(self) -> Sequence[NDArray[np.intp]]:
        """The rows of each image."""
        order = np.argsort(self.image_of, kind="stable")
        starts = np.searchsorted(self.image_of[order], np.arange(len(self) + 1))
        return [order[start:stop] for start, stop in pairwise(starts)]

    def path(self, image: int) -> str:
        """Return the path of the first file of an image."""
        return self.manifest.paths[int(self.first_row[image])]


def distinct_images(
    store: Store, manifest: Manifest, reporter: Reporter = SILENCE
) -> DistinctImages:
    """Read the features of all images of a manifest that have any.

    Args:
        store: The store.
        manifest: The images.
        reporter: Where progress is shown.

    Raises:
        ConfigError: They do not fit into memory.
        ManifestError: No image has features.
        StoreError: The store is damaged.
    """
    rows = _usable(mark_conflicts(manifest), store)
    keys, image_of = np.unique(rows.keys, return_inverse=True)
    beside, free = bytes_beside(len(keys), store.dim), machine.free_memory()
    if beside > free:
        raise ConfigError(
            f"Expected memory to compare {len(keys):,} images, beside their features, which may "
            f"lie on disk: {beside / 1e9:.1f} GB. Received: {free / 1e9:.1f} GB free.",
            hint="Take a part of the images, with --manifest.",
        )
    # In the order of the manifest, so that what is said of images does not follow their digests.
    first = np.unique(image_of, return_index=True)[1]
    order = np.argsort(first, kind="stable")
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order))
    units = scratch.table(len(keys), store.dim, store.path, beside=beside)
    reporter.say(f"Reading the features of {counted(len(keys), 'image')}")
    _read_units(store, keys[order], units, reporter)
    return DistinctImages(rows, place[image_of], units, scratch=store.path)


def bytes_beside(count: int, dim: int) -> int:
    """Return what work on images takes beside their features, and what is known of their files."""
    numbers = max(_BESIDE * dim, neighbours.numbers_beside(dim) + _MORE)
    return int((4 * numbers + BYTES_OF_FILE) * count)


def _usable(rows: Manifest, store: Store) -> Manifest:
    """Return the rows that have features.

    Raises:
        ManifestError: There are none.
    """
    good = [row for row, status in enumerate(rows.statuses) if status in (OK, CONFLICT)]
    known = np.isin(rows.keys[good], store.index.keys)
    kept = np.array(good, np.intp)[known].tolist()
    if not kept:
        raise ManifestError(
            f"Expected images with features in {str(store.place)!r}. Received: none.",
            hint="Run extract again, or give the manifest of its images.",
        )
    return rows.take(kept)


def _read_units(store: Store, keys: NDArray[np.bytes_], units: Units, reporter: Reporter) -> None:
    """Read features and bring them to a norm of one; a row of zeros stays as it is."""
    features = StoredFeatures.of(store.plain, keys)
    with reporter.bar(-(-len(keys) // _AT_ONCE), "block") as bar:
        for rows, part in blocks(features, _AT_ONCE):
            norms = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
            units[rows] = part / np.where(norms, norms, 1.0)[:, None].astype(np.float32)
            bar.advance()
