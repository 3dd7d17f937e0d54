"""Where images come from: a folder or a table, listed without opening an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError, ManifestError, mention
from pipeline.images.manifest import Manifest
from pipeline.images.sources.csv_file import scan_csv
from pipeline.images.sources.folder import scan_folder
from pipeline.images.sources.folder_tree import Tree

_TABLES: Final = (".csv", ".tsv", ".txt")


def scan(data: Path, *, layout: str = "auto", unlabelled: Sequence[str] = ()) -> Manifest:
    """List the images of a data set, without opening any; keys and statuses are empty.

    Args:
        data: A folder with one sub-folder per class (label = first level, searched recursively);
            or split folders (``train``, ``val``, ``test``) above the class folders; or a CSV
            with columns ``path,label[,split][,group]``, paths relative to the CSV.
        layout: What the folders are: ``classes``, ``splits``, or ``auto``, by their names.
        unlabelled: Names of folders, beside those of classes or splits, whose images have no label.

    Returns:
        The listing; its notes say what was assumed and what was left out.

    Raises:
        ManifestError: The folder is missing or empty, has a loop of symbolic links, holds a mixture
            of split folders and others, or no folder that ``unlabelled`` names; or the CSV lacks a
            column, has a row that is none, or gives one path two labels, splits or
            groups.
        ConfigError: A layout or unlabelled folders are given for a table.
    """
    if data.is_dir():
        return scan_folder(data, layout, unlabelled)
    if not data.exists():
        raise ManifestError(
            f"There is no data at {str(data)!r}.",
            hint="Give a folder with one sub-folder per class, or a CSV with columns path,label.",
        )
    if data.suffix.lower() not in _TABLES:
        raise ManifestError(
            f"Expected a folder or a .csv file. Received: the file {str(data)!r}.",
            hint="Give the folder that holds the class folders.",
        )
    if layout != "auto":
        raise ConfigError(
            f"--layout: expected none for a table, whose column split says it all. "
            f"Received: {layout!r} for {str(data)!r}.",
            hint="Leave it out.",
        )
    if unlabelled:
        raise ConfigError(
            f"--unlabelled: expected none for a table. Received: {mention(unlabelled)} "
            f"for {str(data)!r}.",
            hint="Leave it out, and leave the label of such images empty.",
        )
    return scan_csv(data)


def walk(folder: Path) -> list[str]:
    """Return the files below a folder, sorted POSIX paths relative to it; labels mean nothing.

    Raises:
        ManifestError: The folder has no files, cannot be listed, or has a loop of symbolic links.
    """
    paths = Tree.of(folder).paths
    if not paths:
        raise ManifestError(
            f"There are no files in {str(folder)!r}.",
            hint="Give image files, or folders of images.",
        )
    return paths
