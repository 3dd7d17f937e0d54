"""Groups of near duplicates, searched once and kept in the store: training again takes no search.

A file is named by a digest of the images and of how they are compared. One that is damaged or does
not fit is passed over and made again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.copies import descriptors, duplicates, pixels
from pipeline.copies.at_hand import FilesAtHand
from pipeline.copies.distinct import DistinctImages, distinct_images
from pipeline.copies.photos import Photos, read_photos
from pipeline.copies.search import search, without_photos
from pipeline.copies.threshold import Threshold
from pipeline.errors import PipelineError, StorageError, StoreError
from pipeline.files.records import canonical_json, read_record, write_record
from pipeline.files.typed_record import MisfitError, Record, lenient
from pipeline.images.manifest import Manifest
from pipeline.store.store import COPIES, Store
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

_SCHEMA_VERSION: Final = 1
# Images without a usable file that are named.
_NAMED: Final = 3
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
        absent: Of how many the file was gone, bad, or not the one that was encoded.
        named: Paths of a few of these.
        files: Digest of the state of all files at that time; empty where pixels were compared.
        threshold: From which similarity two are.
        groups: Keys of each group, two or more, ascending.
    """

    searched: str
    images: int
    absent: int
    named: Sequence[str] = field(metadata=lenient(()))
    files: str = field(metadata=lenient(""))
    threshold: Threshold
    groups: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return (
            f"{self._groups()} {counted(self.images, 'image')} compared by "
            f"{self.threshold.compared_by}{self._lacking()}, {self.threshold}"
        )

    def _groups(self) -> str:
        sizes = [len(group) for group in self.groups]
        if not sizes:
            return "No near duplicates found among"
        return (
            f"Near duplicates stay in one split: {counted(len(sizes), 'group')} of "
            f"{counted(sum(sizes), 'image')} (the largest of {max(sizes):,}), of"
        )

    def _lacking(self) -> str:
        """Return why pixels were not compared, if files were the reason."""
        if not self.absent:
            return ""
        verb = "was" if self.absent == 1 else "were"
        more = self.absent - len(self.named)
        named = ", ".join(map(repr, self.named)) + (f" and {more:,} more" if more else "")
        return (
            f" ({counted(self.absent, 'file')} {verb} not at hand, bad or changed since extract: "
            f"{named})"
        )


def near_duplicates(store: Store, rows: Manifest, reporter: Reporter) -> NearDuplicates:
    """Return the near duplicates among images, as the store keeps them or by a search.

    Pixels are compared where all files are at hand and as they were encoded. What was found without
    them is kept until all are there, and any of them is another than at that time.

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
    store.storage.fetch(path)
    kept = _kept(path, searched, ordered, reporter)
    if kept is not None and kept.threshold.pixels is not None:
        return kept
    files = _Files.of(ordered)
    if kept is not None and (files.gone or files.digest == kept.files):
        return kept
    found = _searched(store, ordered, searched, files, reporter)
    try:
        write_record(path, found.as_json(), version=_SCHEMA_VERSION, put=store.storage.put)
    except (OSError, StorageError) as error:
        cause = error.strerror if isinstance(error, OSError) else error.message
        reporter.say(
            f"Note: the near duplicates are not kept in {str(store.place)!r} ({cause}), "
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
    store: Store, rows: Manifest, searched: str, files: "_Files", reporter: Reporter
) -> NearDuplicates:
    images = distinct_images(store, rows, reporter)
    reporter.say(f"Looking for near duplicates among {counted(len(images), 'image')}")
    photos = without_photos(images) if files.gone else read_photos(images, reporter)
    if lost := files.lost or photos.lost:
        reporter.say(f"Note: images at addresses are taken as not at hand: {lost}")
    absent = files.gone or _unusable(images, photos)
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
        absent=len(absent),
        named=absent[:_NAMED],
        files="" if found.threshold.pixels is not None else files.digest,
        threshold=found.threshold,
        groups=[[key.decode() for key in keys[group]] for group in found.groups],
    )


def _digest(store: Store, rows: Manifest) -> str:
    """Return the digest of images, each once, and of how they are compared."""
    about = canonical_json({"identity": store.identity.as_json(), "method": _METHOD})
    digest = hashlib.sha256(about.encode())
    digest.update(np.unique(rows.keys).tobytes())
    return digest.hexdigest()


def _unusable(images: DistinctImages, photos: Photos) -> Sequence[str]:
    """Return a path of each image whose files are bad, or not those that were encoded."""
    read = set(photos.images.tolist())
    return [images.path(image) for image in range(len(images)) if image not in read]


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of images, without opening any.

    Attributes:
        gone: A path of each image that has none at hand.
        digest: Digest of the size and times of all.
        lost: Why images at addresses are not at hand; empty where they were asked for.
    """

    gone: Sequence[str]
    digest: str
    lost: str

    @classmethod
    def of(cls, rows: Manifest) -> "_Files":
        """Look at the files of rows."""
        digest = hashlib.sha256()
        gone: dict[bytes, str] = {}
        there = set()
        files = FilesAtHand(rows)
        with files.looked_up():
            for row, (key, path) in enumerate(zip(rows.keys.tolist(), rows.paths, strict=True)):
                found = files.find(row)
                if found is None:
                    gone.setdefault(key, path)
                    continue
                there.add(key)
                digest.update(f"{row} {found.state.stamp};".encode())
        absent = [path for key, path in gone.items() if key not in there]
        return cls(absent, digest.hexdigest(), files.lost)
