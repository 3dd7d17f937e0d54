"""A folder of Hugging Face ``datasets``, as ``save_to_disk`` writes it; perhaps one per split.

Its JSON files say which Arrow files there are, and what their columns mean; that library is not
needed.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pipeline.errors import ManifestError, mention
from pipeline.files import remote
from pipeline.files.location import Remote, join
from pipeline.files.regular import read_regular
from pipeline.images.manifest import Manifest
from pipeline.images.sources.given import Given
from pipeline.images.sources.tables import TableFile, scan_tables
from pipeline.images.split_names import splits_of

_SPLITS: Final = "dataset_dict.json"
_INFO: Final = "dataset_info.json"
_STATE: Final = "state.json"
# Bytes; descriptions of ten thousand classes take less.
_LARGEST: Final = 64 << 20
_AGAIN: Final = "Write it again with save_to_disk."


def recognizes(given: Given) -> bool:
    """Tell whether the data is such a folder."""
    if given.tree is None:
        return False
    paths = set(given.tree.paths)
    return _SPLITS in paths or {_INFO, _STATE} <= paths


def scan_source(given: Given) -> Manifest:
    """List the images of such a folder; see ``sources.scan``."""
    given.require_no_folders("a folder of Hugging Face datasets", "which says its splits itself")
    if given.tree is not None and _SPLITS in given.tree.paths:
        names = _texts(_record(given, _SPLITS).get("splits"))
        if not names:
            raise _malformed(given, _SPLITS, "no splits")
        splits = splits_of(names)
        files = [
            replace(file, split=splits[name])
            for name in names
            for file in _files(given, f"{name}/")
        ]
        unnamed = [name for name in names if not splits[name]]
    else:
        files = _files(given, "")
        name = _split_of(_record(given, _STATE))
        unnamed = [name] if name and not splits_of([name])[name] else []
    listing = scan_tables(files, given, root=given.data)
    if not unnamed:
        return listing
    note = f"Splits of the data that are none of train, val or test: {mention(unnamed)}"
    return replace(listing, notes=(f"{note}; their images are divided by hash", *listing.notes))


def _files(given: Given, folder: str) -> list[TableFile]:
    """Return the files of one data set.

    Raises:
        ManifestError: It is not what that library writes, or a selection of its rows.
    """
    state = _record(given, f"{folder}{_STATE}")
    chosen = [name for name, value in state.items() if name.startswith("_indices") and value]
    if chosen:
        raise ManifestError(
            f"Expected a data set whose files hold its rows alone, in {str(given.data)!r}. "
            f"Received: one that is a selection of them ({folder}{_STATE}: {mention(chosen)}).",
            hint="Load it with datasets, and write flatten_indices() of it with save_to_disk.",
        )
    entries = state.get("_data_files")
    found = entries if isinstance(entries, list) else []
    names = _texts([entry.get("filename") for entry in found if isinstance(entry, Mapping)])
    if not names:
        raise _malformed(given, f"{folder}{_STATE}", "no _data_files")
    features = _record(given, f"{folder}{_INFO}").get("features")
    split = splits_of([_split_of(state)]).popitem()[1]
    described = features if isinstance(features, Mapping) else None
    return [TableFile(f"{folder}{name}", split, described) for name in names]


def _split_of(state: Mapping[str, Any]) -> str:
    return str(state.get("_split") or "")


def _texts(values: object) -> list[str]:
    """Return the texts of a list that name something directly in a folder, each once."""
    if not isinstance(values, list):
        return []
    texts = [value for value in values if isinstance(value, str) and value and "/" not in value]
    return list(dict.fromkeys(texts))


def _record(given: Given, path: str) -> Mapping[str, Any]:
    place = join(given.data, path)
    try:
        if isinstance(place, Remote):
            data, _ = remote.read(place, limit=_LARGEST)
        else:
            data, _ = read_regular(place, limit=_LARGEST)
        found = json.loads(data)
    except (OSError, ValueError) as error:
        raise _malformed(given, path, getattr(error, "strerror", None) or str(error)) from error
    if not isinstance(found, dict):
        raise _malformed(given, path, "no object")
    return found


def _malformed(given: Given, path: str, received: str) -> ManifestError:
    return ManifestError(
        f"Expected a folder of Hugging Face datasets in {str(given.data)!r}. Received: {received} "
        f"in {path!r}.",
        hint=_AGAIN,
    )
