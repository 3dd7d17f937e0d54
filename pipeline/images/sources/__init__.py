"""Where images come from: a table of the kinds of sources, each listed without decoding an image.

To add a kind: a module with ``recognizes`` and ``scan_source``, and its row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Final, cast

from pipeline.errors import ManifestError
from pipeline.files import remote
from pipeline.files.location import Location, Remote
from pipeline.images import place
from pipeline.images.manifest import Manifest
from pipeline.images.sources.folder_tree import Tree, objects_below
from pipeline.images.sources.given import Given

# From what a kind is called to its module; the first that recognizes the data lists it.
SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "a CSV": "pipeline.images.sources.csv_file",
        "a Hugging Face folder": "pipeline.images.sources.hub_folder",
        "a TensorFlow Datasets folder": "pipeline.images.sources.tfds_folder",
        "tables": "pipeline.images.sources.tables",
        "packed files": "pipeline.images.sources.packed_files",
        "a folder": "pipeline.images.sources.folder",
    }
)
# Those whose columns can be chosen.
_WITH_COLUMNS: Final = frozenset(
    {"a Hugging Face folder", "a TensorFlow Datasets folder", "packed files", "tables"}
)


def scan(
    data: Location,
    *,
    layout: str = "auto",
    unlabelled: Sequence[str] = (),
    image_column: str | None = None,
    label_column: str | None = None,
) -> Manifest:
    """List the images of a data set, without decoding any; keys and statuses are empty.

    Args:
        data: A folder with one sub-folder per class (label = first level, searched recursively);
            or split folders (``train``, ``val``, ``test``) above the class folders; or a CSV
            with columns ``path,label[,split][,group]``, paths relative to the CSV; or another kind
            of ``SOURCES``; on this machine or at an address.
        layout: What the folders are: ``classes``, ``splits``, or ``auto``, by their names.
        unlabelled: Names of folders, beside those of classes or splits, whose images have no label.
        image_column: Column of images of a Parquet or Arrow table, or what ends the names of
            images in tar shards; None for the only one.
        label_column: Column of labels of such a table, or where tar shards have them: ``cls``, or
            a key of their .json; None for the only one.

    Returns:
        The listing; its notes say what was assumed and what was left out.

    Raises:
        ManifestError: The data is missing or empty, has a loop of symbolic links, holds a mixture
            of split folders and others, or no folder that ``unlabelled`` names; or a table lacks a
            column, has a row that is none, or gives one path two splits or groups.
        ConfigError: A layout is given for data that says its splits itself, unlabelled folders for
            tables, columns for others, or what speaks to a storage is not installed.
        StorageError: A storage refuses, or cannot be reached.
    """
    # Whatever was known of objects, an edited one is seen.
    remote.forget()
    given = replace(
        _given(data, layout, unlabelled), image_column=image_column, label_column=label_column
    )
    for kind, name in SOURCES.items():
        source = import_module(name)
        if source.recognizes(given):
            if kind not in _WITH_COLUMNS:
                given.require_no_columns(kind)
            return with_states(cast(Callable[[Given], Manifest], source.scan_source)(given))
    if isinstance(data, Remote) and not remote.can_list(data):
        raise remote.refused_folder(data)
    raise ManifestError(
        f"Expected a folder, or a file such as a .csv. Received: the file {str(data)!r}.",
        hint="Give the folder that holds the class folders.",
    )


def _given(data: Location, layout: str, unlabelled: Sequence[str]) -> Given:
    """Return what the user gave, with what is below it if it is a folder.

    Raises:
        ManifestError: There is nothing.
    """
    if isinstance(data, Remote):
        return _given_at(data, layout, unlabelled)
    if not data.exists():
        raise _missing(data)
    tree = Tree.of(data) if data.is_dir() else None
    return Given(data, tree, layout, tuple(unlabelled))


def _given_at(data: Remote, layout: str, unlabelled: Sequence[str]) -> Given:
    """Return what is at an address; see ``_given``."""
    is_file = not remote.can_list(data) or (data.suffix and remote.state(data) is not None)
    states, odd = ({}, []) if is_file else objects_below(data)
    left_out = [f"{name!r} (no path)" for name in odd]
    if not (states or (is_file and remote.current(data) is not None)):
        raise _missing(data)
    tree = None if is_file else Tree.of_paths(states)
    return Given(data, tree, layout, tuple(unlabelled), states, left_out=left_out)


def _missing(data: Location) -> ManifestError:
    return ManifestError(
        f"There is no data at {str(data)!r}.",
        hint="Give a folder with one sub-folder per class, or a CSV with columns path,label.",
    )


def with_states(listing: Manifest) -> Manifest:
    """Return a listing that knows the states of its images, if some are at addresses.

    Raises:
        ConfigError: What speaks to a storage is not installed.
        StorageError: A storage is out of reach.
    """
    if listing.states and None not in listing.states:
        return listing
    with place.looked_up(listing.root, listing.paths) as is_remote:
        if not is_remote:
            return listing
        # Those that are known go with the labels that were read then.
        known = listing.states or [None] * len(listing)
        states = [
            before or place.state_of(listing.root, path)
            for before, path in zip(known, listing.paths, strict=True)
        ]
        return replace(listing, states=states)
