"""A packed file with class folders in it, such as a zip: read as the folder that was packed."""

from pipeline.images import place
from pipeline.images.manifest import Manifest
from pipeline.images.sources.folder import scan_tree
from pipeline.images.sources.folder_tree import Tree
from pipeline.images.sources.given import Given

_SUFFIXES = (".zip",)


def recognizes(given: Given) -> bool:
    """Tell whether the data is such a file."""
    return given.is_file(*_SUFFIXES)


def scan_source(given: Given) -> Manifest:
    """List the members; see ``sources.scan``."""
    return scan_tree(Tree.of_paths(place.pack_of(given.data).names), given)
