"""The images below a folder, for who asks for no labels: files, and what packed files hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from pipeline.errors import ConfigError, ManifestError, mention
from pipeline.files.location import Location, Remote
from pipeline.images import packed, place
from pipeline.images.packed.kinds import Pack
from pipeline.images.packed.table_members import TablePack, image_columns
from pipeline.images.sources import samples
from pipeline.images.sources.columns import features_of, image_names
from pipeline.images.sources.folder_tree import Tree, is_ignored, may_be_image, objects_below


@dataclass(frozen=True, slots=True)
class Below:
    """What is below a folder.

    Attributes:
        paths: Files, POSIX paths relative to the folder, sorted; members of packed files are in
            their place, in stored order.
        refused: Those that are packed files of which nothing can be read, each with the reason.
        notes: What was left out of packed files, or is damaged in them, one line each.
    """

    paths: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def walk(folder: Location) -> Below:
    """Return the files below a folder; names of folders mean nothing.

    The folder may be a packed file itself.

    Raises:
        ConfigError: The folder is a table of images, and pyarrow is not installed.
        ManifestError: The folder has no files, cannot be listed, or has a loop of symbolic links;
            or it is a packed file that is damaged or holds no images.
        StorageError: The storage refuses, or cannot be reached.
    """
    if packed.kind_of(folder.name) is not None and _is_file(folder):
        members, notes = _members(folder, folder.name)
        return Below(members, notes=notes)
    tree, notes = _tree_of(folder)
    if not tree.paths:
        raise ManifestError(
            f"There are no files in {str(folder)!r}.",
            hint="Give image files, or folders of images.",
        )
    found = Below(notes=notes)
    for name in tree.paths:
        if packed.kind_of(name) is None:
            found.paths.append(name)
        else:
            _enter(found, folder, name)
    return found


def _tree_of(folder: Location) -> tuple[Tree, list[str]]:
    """Return what is below a folder, and what to say of it."""
    if not isinstance(folder, Remote):
        return Tree.of(folder), []
    states, odd = objects_below(folder)
    notes = [f"Left out of {str(folder)!r}, names that are no paths: {mention(odd)}"]
    return Tree.of_paths(states), notes if odd else []


def _is_file(folder: Location) -> bool:
    return place.exists(folder, "") if isinstance(folder, Remote) else folder.is_file()


def _enter(found: Below, folder: Location, name: str) -> None:
    """Add what a packed file holds, or the file itself with the reason why that is nothing."""
    try:
        members, notes = _members(folder / name, name)
    except (ConfigError, ManifestError) as error:
        found.refused[name] = str(error).rstrip(".")
    except OSError as error:
        found.refused[name] = f"cannot be read: {error.strerror or error}"
    else:
        found.paths.extend(f"{name}/{member}" for member in members)
        found.notes.extend(notes)
        return
    found.paths.append(name)


def _members(file: Location, called: str) -> tuple[list[str], list[str]]:
    """Return the members of a packed file that may be images, and what to say of it.

    Raises:
        ConfigError: It is a table of images, and pyarrow is not installed.
        ManifestError: It is damaged, or holds no images.
        OSError: It cannot be read.
        StorageError: A storage refuses, or cannot be reached.
    """
    pack = place.pack_of(file)
    if packed.among([file.name]):
        names, notes = _files(pack)
    else:
        names, notes = _rows(cast(TablePack, pack))
    if not names:
        received = mention(notes, quoted=False) or "none"
        raise ManifestError(
            f"Expected images in {str(file)!r}. Received: {received}.",
            hint="Give image files, or folders of images.",
        )
    return names, [f"{called!r}: {note}" for note in notes]


def _files(pack: Pack) -> tuple[list[str], list[str]]:
    """Return the members of a packed folder, and what to say of it."""
    inner = packed.among(pack.names)
    notes = [f"packed files in it are not entered, {len(inner):,}: {mention(inner)}"]
    names = [
        name
        for name in pack.names
        if may_be_image(name) and not is_ignored(name) and not name.lower().endswith(samples.CLS)
    ]
    return names, [*pack.notes, *(notes if inner else [])]


def _rows(table: TablePack) -> tuple[list[str], list[str]]:
    """Return the images of a table, by column and row, and what to say of it."""
    columns = image_names(table.schema, features_of(table.schema))
    others = [name for name in image_columns(table.schema) if name not in columns]
    notes = [f"it is cut short: {table.cut}"] if table.cut else []
    if others or len(columns) > 1:
        notes.append(f"images are in {mention(columns)}{_not_in(others)}")
    return [name for column in columns for name in table.names.of(column)], notes


def _not_in(others: Sequence[str]) -> str:
    return f", and {mention(others)} not taken for images" if others else ""
