"""The candidates: which images of a manifest have a label, and which may be suggested."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.copies.distinct import DistinctImages, distinct_images
from pipeline.copies.projection import Units
from pipeline.errors import ManifestError
from pipeline.images.manifest import Manifest
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

# Splits whose images are not to be chosen: a score on chosen images is not that of others.
_HELD_OUT = frozenset(("test", "val"))


@dataclass(frozen=True, slots=True)
class Candidates:
    """Images, each content once, by what is known of them.

    Attributes:
        listing: All rows of the manifest, also those of files without features.
        images: All images, with their files and features.
        unlabelled: Numbers of the images that may be suggested, ascending, ``(k,)``.
        labelled: Numbers of the images with one label, ascending, ``(m,)``.
        y: Class numbers of these, int64 ``(m,)``.
        names: Class names, sorted.
        held_out: Images without a label that are declared val or test, and so no candidates.
    """

    listing: Manifest
    images: DistinctImages
    unlabelled: NDArray[np.intp]
    labelled: NDArray[np.intp]
    y: NDArray[np.int64]
    names: tuple[str, ...]
    held_out: int

    def keys(self, images: NDArray[np.intp]) -> NDArray[np.bytes_]:
        """Return the content keys of some images."""
        return self.images.manifest.keys[self.images.first_row[images]]

    def units(self, images: NDArray[np.intp]) -> Units:
        """Return the features of some images with a norm of one, float32 ``(k, dim)``."""
        return self.images.units[images]


def read_candidates(
    store: Store, manifest: Path | None, run: Run | None, reporter: Reporter
) -> Candidates:
    """Read rows and features.

    Args:
        store: The store.
        manifest: A manifest to use instead of the store's own.
        run: The run whose head is to be asked; images that it was made with are no candidates.
        reporter: Where progress is shown.

    Raises:
        ConfigError: The features do not fit into memory.
        ManifestError: The manifest cannot be used, or has no image to suggest.
        RunError: The rows of the run are damaged.
        StoreError: The store is damaged.
    """
    listing = store.read_manifest(manifest)
    images = distinct_images(store, listing, reporter)
    used = run.manifest().keys if run is not None else np.zeros(0, "S64")
    rows = images.manifest
    is_used = np.isin(rows.keys[images.first_row], used).tolist()
    unlabelled, labelled, labels, held_out = [], [], [], 0
    for image, of_image in enumerate(images.rows_of):
        found = {rows.labels[row] for row in of_image.tolist()} - {""}
        if len(found) == 1:
            labelled.append(image)
            labels.append(found.pop())
        elif not found and not _HELD_OUT.isdisjoint(rows.splits[row] for row in of_image.tolist()):
            held_out += 1
        elif not found and not is_used[image]:
            unlabelled.append(image)
    _require_candidates(len(images), len(unlabelled), held_out)
    names = tuple(sorted(set(labels)))
    number = {name: place for place, name in enumerate(names)}
    return Candidates(
        listing=listing,
        images=images,
        unlabelled=np.array(unlabelled, np.intp),
        labelled=np.array(labelled, np.intp),
        y=np.array([number[label] for label in labels], np.int64),
        names=names,
        held_out=held_out,
    )


def _require_candidates(images: int, candidates: int, held_out: int) -> None:
    if candidates:
        return
    others = f", of which {held_out:,} without a label are declared val or test" * bool(held_out)
    raise ManifestError(
        f"Expected images without a label to suggest. Received: none among "
        f"{counted(images, 'image')}{others}.",
        hint="Add some: extract a CSV with empty labels, or a folder with --unlabelled NAME.",
    )
