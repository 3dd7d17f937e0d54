"""Folders around packed files that are classes: as if each file were unpacked where it is."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pipeline.errors import ManifestError, mention
from pipeline.images.manifest import Manifest
from pipeline.images.sources import file_splits
from pipeline.images.sources.folder import scan_tree
from pipeline.images.sources.folder_tree import Tree, parent
from pipeline.images.sources.given import Given

# A part of a data set, whatever is in it.
_PART: Final = re.compile(r"(?:batch|chunk|part|shard)(?:es|s)?[ _.-]?\d+", re.IGNORECASE)


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
    if len(folders) == 1 or (given.layout == "splits" and inside):
        return None
    is_open = given.layout == "auto"
    listing = _listed(given, folders)
    if listing is None and not is_open:
        _require_open(given, folders)
    classes = sorted(set(listing.labels) - {""}) if listing else []
    # Numbered parts of a data set are no classes.
    if listing is None or not classes or (is_open and all(map(_PART.fullmatch, classes))):
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
        notes += said if any(splits) else []
    where = [file_splits.stem(path) if "/" in path else "" for path in paths]
    found = zip(splits, where, strict=True)
    return ["/".join(filter(None, parts)) for parts in found], notes


def _require_open(given: Given, folders: Sequence[str]) -> None:
    """Refuse to take folders for splits that are classes, and whose files may be named as splits.

    Raises:
        ManifestError: They are classes.
    """
    as_classes = _listed(replace(given, layout="auto"), folders)
    if as_classes and any(as_classes.labels):
        raise ManifestError(
            f"Expected folders that are named as splits in {str(given.data)!r}. Received: "
            f"{mention(sorted(set(as_classes.labels) - {''}))}.",
            hint="Leave --layout out: these are classes then, and names of all files may say "
            "splits.",
        )


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
