"""What is audited: the different images of a manifest, with labels and splits.

These are those of the manifest, or of a run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.findings import Group
from pipeline.copies.distinct import DistinctImages, distinct_images
from pipeline.errors import RunError
from pipeline.images.manifest import OK, Manifest
from pipeline.runs.backbone import require_features_of
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system.progress import SILENCE, Reporter


@dataclass(frozen=True)
class Listing(DistinctImages):
    """Images with labels and splits.

    Attributes:
        splits_of: Where splits are from: ``run``, ``manifest``, or empty where there are none.
        skipped: Path of each file that is not audited, and why.
    """

    splits_of: str
    skipped: Sequence[tuple[str, str]]

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


def read_listing(
    store: Store, manifest: Path | None, run: Run | None, reporter: Reporter = SILENCE
) -> Listing:
    """Read rows and features.

    Args:
        store: The store.
        manifest: A manifest to use instead of the store's own.
        run: The run whose labels and splits are taken.
        reporter: Where progress is shown.

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
    found = distinct_images(store, rows, reporter)
    skipped = _skipped(rows, found.manifest)
    return Listing(
        found.manifest, found.image_of, found.units, splits_of, skipped, scratch=found.scratch
    )


def _skipped(rows: Manifest, audited: Manifest) -> list[tuple[str, str]]:
    paths = set(audited.paths)
    return [
        (path, "no features in the store" if status == OK else status)
        for path, status in zip(rows.paths, rows.statuses, strict=True)
        if path not in paths
    ]


def _with_run(rows: Manifest, run: Run, store: Store) -> Manifest:
    """Return rows with the labels and splits of a run; those that it does not use are in none."""
    require_features_of(store, run)
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
