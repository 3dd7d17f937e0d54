"""What is audited: the images of a manifest, each content once, with its features.

Rows are files; two rows of equal bytes are one image. Labels and splits are those of the manifest,
or of a run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.findings import Group
from pipeline.audit.neighbours import Units
from pipeline.errors import ConfigError, ManifestError, RunError
from pipeline.images.manifest import CONFLICT, OK, Manifest, mark_conflicts
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system import machine

# What the features take beside themselves, as a share: their projections, products, a head.
_BESIDE: Final = 0.6


@dataclass(frozen=True)
class Listing:
    """Files with labels and splits, and which of them are one image.

    Attributes:
        manifest: One row per file that has features.
        image_of: Number of each row's image, ``(rows,)``.
        units: Features of each image with a norm of one, float32 ``(images, dim)``.
        splits_of: Where splits are from: ``run``, ``manifest``, or empty where there are none.
    """

    manifest: Manifest
    image_of: NDArray[np.intp]
    units: Units
    splits_of: str

    def __len__(self) -> int:
        return len(self.units)

    def group(
        self, rows: Iterable[int], *, similarity: float, lowest: float | None, is_chain: bool
    ) -> Group:
        """Return files that are copies of one another, in the order given; see ``Group``."""
        places = list(rows)
        return Group(
            paths=[self.manifest.paths[row] for row in places],
            labels=[self.manifest.labels[row] for row in places],
            splits=[self.manifest.splits[row] for row in places],
            similarity=similarity,
            lowest_similarity=lowest,
            is_chain=is_chain,
        )

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

    @cached_property
    def label_of(self) -> Sequence[str]:
        """The label of each image; empty where it has none, or two."""
        labels = []
        for rows in self.rows_of:
            found = {self.manifest.labels[row] for row in rows.tolist()} - {""}
            labels.append(found.pop() if len(found) == 1 else "")
        return labels

    @cached_property
    def labelled(self) -> NDArray[np.intp]:
        """The images with one label, ``(k,)``."""
        return np.array([image for image, label in enumerate(self.label_of) if label], np.intp)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The class names of these, sorted."""
        return tuple(sorted(set(self.label_of) - {""}))

    @cached_property
    def y(self) -> NDArray[np.int64]:
        """The class number of each of ``labelled``, int64 ``(k,)``."""
        number = {name: place for place, name in enumerate(self.names)}
        return np.array([number[self.label_of[image]] for image in self.labelled], np.int64)

    def path(self, image: int) -> str:
        """Return the path of the first file of an image."""
        return self.manifest.paths[int(self.first_row[image])]


def read_listing(store: Store, manifest: Path | None, run: Run | None) -> Listing:
    """Read rows and features.

    Raises:
        ConfigError: The features do not fit into memory.
        ManifestError: The manifest cannot be used, or none of its images has features.
        RunError: The run is of other features, or of other images.
        StoreError: The store is damaged.
    """
    rows = store.read_manifest(manifest)
    splits_of = "manifest" if any(rows.splits) else ""
    if run is not None:
        rows, splits_of = _with_run(rows, run, store), "run"
    rows = _usable(mark_conflicts(rows), store)
    keys, image_of = np.unique(rows.keys, return_inverse=True)
    needed, free = int((1 + _BESIDE) * 4 * store.dim * len(keys)), machine.free_memory()
    if needed > free:
        raise ConfigError(
            f"Expected memory for the features of {len(keys):,} images: {needed / 1e9:.1f} GB. "
            f"Received: {free / 1e9:.1f} GB free.",
            hint="Audit a part of the images, with --manifest.",
        )
    # In the order of the manifest, so that what is said of images does not follow their digests.
    first = np.unique(image_of, return_index=True)[1]
    order = np.argsort(first, kind="stable")
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order))
    return Listing(rows, place[image_of], _units(store.read(keys[order])), splits_of)


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
            f"Expected images with features in {str(store.path)!r}. Received: none.",
            hint="Run extract again, or give the manifest of its images.",
        )
    return replace(
        rows,
        paths=[rows.paths[row] for row in kept],
        labels=[rows.labels[row] for row in kept],
        splits=[rows.splits[row] for row in kept],
        keys=rows.keys[kept],
        statuses=[rows.statuses[row] for row in kept],
    )


def _with_run(rows: Manifest, run: Run, store: Store) -> Manifest:
    """Return rows with the labels and splits of a run; those that it does not use are in none."""
    if run.inputs.identity != store.identity:
        raise RunError(
            f"Expected a run on the features of {str(store.path)!r}. Received: "
            f"{str(run.path)!r}, whose features were made in another way.",
            hint="Give the store that the run was trained on.",
        )
    used = run.manifest()
    of_path = {path: place for place, path in enumerate(used.paths)}
    places = [of_path.get(path, -1) for path in rows.paths]
    if max(places, default=-1) < 0:
        raise RunError(
            f"Expected a run on images of the manifest. Received: {str(run.path)!r}, "
            "which shares no path with it.",
            hint="Give the manifest that the run was trained with, by --manifest.",
        )
    return replace(
        rows,
        labels=[
            used.labels[place] if place >= 0 else label
            for place, label in zip(places, rows.labels, strict=True)
        ],
        splits=[used.splits[place] if place >= 0 else "" for place in places],
    )


def _units(features: NDArray[np.float32]) -> Units:
    """Bring rows to a norm of one, in place; a row of zeros stays as it is."""
    for start in range(0, len(features), 4096):
        part = features[start : start + 4096]
        norms = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
        part /= np.where(norms, norms, 1.0)[:, None].astype(np.float32)
    return features
