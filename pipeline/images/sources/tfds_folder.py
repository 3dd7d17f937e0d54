"""A folder that TensorFlow Datasets prepared, as TFRecord files; neither library is needed."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pipeline.errors import ManifestError, mention
from pipeline.files import remote
from pipeline.files.location import Remote, join
from pipeline.files.regular import read_regular
from pipeline.images import packed
from pipeline.images.manifest import Manifest
from pipeline.images.sources.given import Given
from pipeline.images.sources.tables import TableFile, scan_tables
from pipeline.images.split_names import splits_of

_INFO: Final = "dataset_info.json"
_FEATURES: Final = "features.json"
_KIND: Final = ".tfrecord"
# Bytes; descriptions of ten thousand classes take less.
_LARGEST: Final = 64 << 20


def recognizes(given: Given) -> bool:
    """Tell whether the data is such a folder."""
    return given.tree is not None and {_INFO, _FEATURES} <= set(given.tree.paths)


def scan_source(given: Given) -> Manifest:
    """List the images of such a folder; see ``sources.scan``.

    Labels are in the records, so that all of them are read.
    """
    given.require_no_folders("a folder of TensorFlow Datasets", "which says its splits itself")
    info, described = _record(given, _INFO), _record(given, _FEATURES)
    paths = given.tree.paths if given.tree is not None else []
    names = [path for path in paths if packed.kind_of(path) == _KIND]
    if info.get("fileFormat", "tfrecord") != "tfrecord" or not names:
        raise ManifestError(
            f"Expected TFRecord files in {str(given.data)!r}. Received: the format "
            f"{str(info.get('fileFormat', 'of no files'))!r}.",
            hint="Prepare the data set with file_format='tfrecord'.",
        )
    splits = {path: _split_of(path, str(info.get("name", ""))) for path in names}
    known = splits_of(set(splits.values()))
    features = _features(given, described)
    files = [TableFile(path, known[split], features) for path, split in splits.items()]
    listing = scan_tables(files, given, root=given.data)
    return replace(listing, notes=(*_notes(known, info, listing), *listing.notes))


def _split_of(path: str, name: str) -> str:
    """Return what a file calls its split: that of ``x-train.tfrecord-00000-of-00002`` is train."""
    return path.lower().partition(_KIND)[0].removeprefix(f"{name.lower()}-")


def _notes(known: Mapping[str, str], info: Mapping[str, Any], listing: Manifest) -> list[str]:
    notes = []
    unnamed = [split for split, stands_for in known.items() if not stands_for]
    if unnamed:
        notes.append(
            f"Splits of the data that are none of train, val or test: {mention(unnamed)}; their "
            "images are divided by hash"
        )
    promised = _promised(info)
    if promised not in (0, len(listing)):
        notes.append(f"{_INFO} tells of {promised:,} records, and there are {len(listing):,}")
    return notes


def _promised(info: Mapping[str, Any]) -> int:
    """Return how many records there should be; 0 where that is not told."""
    try:
        return sum(int(length) for split in info["splits"] for length in split["shardLengths"])
    except (KeyError, TypeError, ValueError):
        return 0


def _features(given: Given, described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return kinds of features and names of classes as Hugging Face's libraries write them."""
    try:
        features = described["featuresDict"]["features"]
        kinds = {
            name: text["pythonClassName"].rpartition(".")[2] for name, text in features.items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise _malformed(given, _FEATURES, "no features of records") from error
    return {
        name: {"_type": kind, "names": _names(given, name, kind)} for name, kind in kinds.items()
    }


def _names(given: Given, feature: str, kind: str) -> list[str]:
    """Return the names of a label's classes; none where there are none."""
    name = f"{feature}.labels.txt"
    if kind != "ClassLabel" or given.tree is None or name not in given.tree.paths:
        return []
    try:
        return _read(given, name).decode("utf-8").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise _malformed(given, name, str(error)) from error


def _record(given: Given, path: str) -> Mapping[str, Any]:
    try:
        found = json.loads(_read(given, path))
    except (OSError, ValueError) as error:
        raise _malformed(given, path, getattr(error, "strerror", None) or str(error)) from error
    if not isinstance(found, dict):
        raise _malformed(given, path, "no object")
    return found


def _read(given: Given, path: str) -> bytes:
    place = join(given.data, path)
    if isinstance(place, Remote):
        return remote.read(place, limit=_LARGEST)[0]
    return read_regular(place, limit=_LARGEST)[0]


def _malformed(given: Given, path: str, received: str) -> ManifestError:
    return ManifestError(
        f"Expected a folder of TensorFlow Datasets in {str(given.data)!r}. Received: {received} in "
        f"{path!r}.",
        hint="Prepare it again.",
    )
