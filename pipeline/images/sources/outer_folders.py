"""Folders around packed files that are classes: as if each file were unpacked where it is."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import ManifestError, mention
from pipeline.images.manifest import Manifest
from pipeline.images.sources import file_splits
from pipeline.images.sources.folder import scan_tree
from pipeline.images.sources.folder_tree import Tree, parent
from pipeline.images.sources.given import Given


def prefixes(
    given: Given, paths: Sequence[str], *, inside: bool
) -> tuple[list[str], list[str]] | None:
    """Return the folder that each file would be if unpacked, and what to say of it.

    Names of files may say splits, which are folders above the classes then.

    Args:
        given: The data.
        paths: The packed files.
        inside: Whether there are folders in them.

    Returns:
        None where the folders around are no classes.

    Raises:
        ManifestError: Folders inside may be the classes as well, some files are in no folder, or
            some are named as splits and some are not.
    """
    folders = sorted({parent(path) for path in paths})
    is_open = given.layout == "auto"
    if given.layout == "splits" or len(folders) == 1 or (is_open and _hold_shards(folders)):
        return None
    listing = _listed(given, folders)
    classes = sorted(set(listing.labels) - {""}) if listing else []
    if listing is None or not classes:
        return None
    has_splits = any(listing.splits)
    if is_open and inside:
        raise _either(given, folders, has_splits=has_splits)
    if is_open and "" in folders:
        beside = [path for path in paths if "/" not in path]
        raise ManifestError(
            f"Expected packed files in one folder, or each in the folder of its class. Received: "
            f"{mention(beside)} beside folders with others ({mention(classes)}).",
            hint="Move them, or take the folders for classes by --layout classes; files beside "
            "these have no label then.",
        )
    splits: Sequence[str | None] = [""] * len(paths)
    notes = [f"Folders around packed files are classes: {mention(classes)}"]
    if not has_splits:
        splits, said = file_splits.of_files(given, paths, [()] * len(paths))
        notes += said
    where = [file_splits.stem(path) if "/" in path else "" for path in paths]
    found = zip(splits, where, strict=True)
    return ["/".join(filter(None, parts)) for parts in found], notes


def _hold_shards(folders: Sequence[str]) -> bool:
    """Tell whether folders are numbered parts (part-00); bare numbers may be names of classes."""
    last = [folder.rpartition("/")[2] for folder in folders]
    return not any(name.isdigit() for name in last) and file_splits.are_numbered(last)


def _listed(given: Given, folders: Sequence[str]) -> Manifest | None:
    """Return an image in each folder with its label and split; None where they fit no layout."""
    tree = Tree.of_paths([f"{folder}/1".lstrip("/") for folder in folders])
    try:
        return scan_tree(tree, Given(given.data, tree, given.layout, given.unlabelled))
    except ManifestError:  # splits beside others, of which the caller has more to say
        return None


def _either(given: Given, folders: Sequence[str], *, has_splits: bool) -> ManifestError:
    """Return that folders around packed files and those in them may be the classes."""
    around = _listed(replace(given, layout="classes"), folders)
    classes = mention(sorted(set(around.labels) - {""})) if around else "none"
    ways = [f"--layout classes takes the folders around them for classes ({classes})"]
    if has_splits:
        ways.append("--layout splits those named as splits for splits, and the folders inside")
    return ManifestError(
        "Expected packed files that hold class folders in one folder, or in folders that are named "
        f"as splits. Received: such files in several folders of {str(given.data)!r}: "
        f"{mention([folder or '.' for folder in folders])}.",
        hint=f"{'; '.join(ways)}. For those inside alone, put the packed files into one folder.",
    )
