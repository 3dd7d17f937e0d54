"""Groups of near duplicates, searched once and kept in the store: training again takes no search.

A file is named by a digest of the images and of how they are compared. One that is damaged or does
not fit is passed over and made again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.copies import descriptors, duplicates, pixels
from pipeline.copies.distinct import distinct_images
from pipeline.copies.photos import read_photos
from pipeline.copies.search import search, without_photos
from pipeline.copies.threshold import Threshold
from pipeline.errors import PipelineError, StoreError
from pipeline.files.records import canonical_json, read_record, write_record
from pipeline.files.typed_record import MisfitError, Record
from pipeline.images import reading
from pipeline.images.manifest import Manifest
from pipeline.store.store import COPIES, Store
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

_SCHEMA_VERSION: Final = 1
# What else the groups depend on; the rule itself has a number, to be raised when it changes.
_METHOD: Final = {
    "rule": 1,
    "far_below": duplicates.FAR_BELOW,
    "below": duplicates.BELOW,
    "queries": duplicates.QUERIES,
    "candidates": duplicates.CANDIDATES,
    "same": pixels.SAME,
    "edges": descriptors.EDGES,
}


@dataclass(frozen=True, kw_only=True)
class NearDuplicates(Record):
    """Near duplicates among some images.

    Attributes:
        searched: Digest of these images and of how they are compared.
        images: How many they are.
        absent: How many of their files were not at hand.
        threshold: From which similarity two are.
        groups: Keys of each group, two or more, ascending.
    """

    searched: str
    images: int
    absent: int
    threshold: Threshold
    groups: Sequence[Sequence[str]]

    def __str__(self) -> str:
        sizes = [len(group) for group in self.groups]
        largest = f" (the largest of {max(sizes):,})" if sizes else ""
        lacking = f" ({self.absent:,} files are not at hand)" if self.absent else ""
        return (
            f"Near duplicates stay in one split: {counted(len(self.groups), 'group')} of "
            f"{counted(sum(sizes), 'image')}{largest}, of {self.images:,} compared by "
            f"{self.threshold.compared_by}{lacking}, {self.threshold}"
        )


def near_duplicates(store: Store, rows: Manifest, reporter: Reporter) -> NearDuplicates:
    """Return the near duplicates among images, as the store keeps them or by a search.

    Pixels are compared where all files are at hand. What was found without them is kept until
    files that were not there are back.

    Args:
        store: Their features; what is found is kept there.
        rows: The images.
        reporter: Where progress is shown.

    Raises:
        ConfigError: Their features do not fit into memory.
        ManifestError: None of them has features.
        PipelineError: Nearly all of them are similar.
        StoreError: The store is damaged.
    """
    # By key, so that the name of a file has no part in what is found.
    ordered = rows.take(np.argsort(rows.keys, kind="stable").tolist())
    searched = _digest(store, ordered)
    path = store.path / COPIES / f"{searched}.json"
    kept = _kept(path, searched, ordered, reporter)
    if kept is not None and kept.threshold.pixels is not None:
        return kept
    absent = _absent(ordered)
    if kept is not None and (absent or not kept.absent):
        return kept
    found = _searched(store, ordered, searched, absent, reporter)
    try:
        write_record(path, found.as_json(), version=_SCHEMA_VERSION)
    except OSError as error:
        reporter.say(
            f"Note: the near duplicates are not kept in {str(store.path)!r} ({error.strerror}), "
            "and are searched again next time"
        )
    return found


def read(path: Path) -> NearDuplicates | None:
    """Read what a store keeps; None where there is no file.

    Raises:
        StoreError: It is damaged.
    """
    said = read_record(path, kind="search for near duplicates", version=_SCHEMA_VERSION)
    try:
        return None if said is None else NearDuplicates.of(said)
    except MisfitError as error:
        raise StoreError(
            f"Expected {str(path)!r} to hold near duplicates. Received: {error}.",
            hint="Delete it; it is made again when it is needed.",
        ) from error


def _kept(path: Path, searched: str, rows: Manifest, reporter: Reporter) -> NearDuplicates | None:
    """Return what is kept of a search, if it is one of these images."""
    try:
        kept = read(path)
    except StoreError as error:
        reporter.say(f"Note: near duplicates are searched again: {error.message}")
        return None
    if kept is None or kept.searched != searched:
        return None
    named = {key for group in kept.groups for key in group}
    return kept if named <= {key.decode() for key in rows.keys} else None


def _searched(
    store: Store, rows: Manifest, searched: str, absent: int, reporter: Reporter
) -> NearDuplicates:
    images = distinct_images(store, rows)
    reporter.say(f"Looking for near duplicates among {counted(len(images), 'image')}")
    photos = without_photos(images) if absent else read_photos(images, reporter)
    try:
        found = search(images, photos, reporter)
    except PipelineError as error:
        raise PipelineError(
            f"--split leak-free: {error.message}",
            hint="Name what belongs together in a column, and give that with --group.",
        ) from error
    keys = images.manifest.keys[images.first_row]
    return NearDuplicates(
        searched=searched,
        images=len(images),
        absent=absent,
        threshold=found.threshold,
        groups=[[key.decode() for key in keys[group]] for group in found.groups],
    )


def _digest(store: Store, rows: Manifest) -> str:
    """Return the digest of images, each once, and of how they are compared."""
    about = canonical_json({"identity": store.identity.as_json(), "method": _METHOD})
    digest = hashlib.sha256(about.encode())
    digest.update(np.unique(rows.keys).tobytes())
    return digest.hexdigest()


def _absent(rows: Manifest) -> int:
    """Return of how many images no file is there, without opening any."""
    there = {rows.keys[row] for row in range(len(rows)) if reading.find(rows, row) is not None}
    return len(np.unique(rows.keys)) - len(there)
