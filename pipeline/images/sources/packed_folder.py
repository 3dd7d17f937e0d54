"""A packed file with class folders in it, such as a zip: read as the folder that was packed."""

from pathlib import Path

from pipeline.files import remote
from pipeline.files.location import Remote
from pipeline.images import packed
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
    data = given.data
    path = remote.local_copy(data) if isinstance(data, Remote) else Path(data)
    tree = Tree.of_paths(packed.opened(path).names)
    return scan_tree(tree, given)
