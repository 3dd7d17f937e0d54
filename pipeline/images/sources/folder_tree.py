"""What lies below a folder, without what operating systems and this package leave there.

Which folders are classes and which are splits is not told here.
"""

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.errors import ManifestError
from pipeline.files import remote
from pipeline.files.location import Remote, is_below
from pipeline.files.state import FileState

# Names are compared in lower case; those that begin with a dot are ignored too.
IGNORED_FILES: Final = frozenset((
    "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r", "iconcache.db", "picasa.ini",
    "thumbs.db",
))  # fmt: skip
IGNORED_FOLDERS: Final = frozenset((
    "#recycle", "#snapshot", "$recycle.bin", "@__thumb", "@eadir", "@recently-snapshot",
    "@recycle", "@tmp", "__macosx", "__pycache__", "found.000", "lost+found",
    "system volume information",
))  # fmt: skip
# Windows keeps it beside a download; copied elsewhere it becomes a file.
_ZONE: Final = "zone.identifier"
# Suffixes, and names without one, of what is surely no image. Others may be: names of images need
# no suffix, and the bytes decide.
_NO_IMAGES: Final = frozenset((
    "7z", "bat", "bz2", "cfg", "ckpt", "cmd", "css", "csv", "db", "doc", "docx",
    "exe", "feather", "gz", "h5", "hdf5", "htm", "html", "idx", "ini", "ipynb", "js",
    "json", "jsonl", "keras", "lnk", "log", "mat", "md", "npy", "npz", "odp", "ods",
    "odt", "onnx", "parquet", "pb", "pdf", "pickle", "pkl", "ppt", "pptx", "ps1",
    "pt", "pth", "py", "pyc", "rar", "rst", "rtf", "sh", "sql", "sqlite", "tar",
    "tex", "tfrecord", "tgz", "toml", "tsv", "txt", "url", "xls", "xlsx", "xml",
    "xz", "yaml", "yml", "zip", "zst",
    "authors", "changelog", "copying", "licence", "license", "makefile", "md5sums", "readme",
    "sha1sums", "sha256sums",
))  # fmt: skip
# What this package writes: a file that tells it, what else is there then, and what it is.
_OWN: Final[Mapping[str, tuple[frozenset[str], str]]] = MappingProxyType(
    {
        "model.json": (frozenset(("encoder", "head")), "an exported model"),
        "run.json": (frozenset(("heads", "manifest.csv")), "a run"),
        "saved_model.pb": (frozenset(("variables",)), "an exported model"),
        "store.json": (frozenset(("encoder", "shards")), "a feature store"),
    }
)


@dataclass(frozen=True, slots=True)
class Tree:
    """What lies below a folder, as POSIX paths relative to it; ``""`` is the folder itself.

    Attributes:
        paths: Files, sorted.
        loose: Folders, each before those in it, with the number of files directly in each that
            may be images.
        own: Folders below that this package wrote, which were not entered, and what they are.
        images: Folders with the number of such files at any depth.
    """

    paths: list[str] = field(default_factory=list)
    loose: dict[str, int] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Tree":
        """List a folder without opening any file.

        Raises:
            ManifestError: A folder cannot be listed, or links of folders form a loop.
        """
        tree = cls()
        _walk(folder, tree)
        tree._complete()
        return tree

    @classmethod
    def of_paths(cls, paths: Iterable[str]) -> "Tree":
        """Return the tree of files that are listed elsewhere, by their POSIX paths."""
        folders: dict[str, _Listed] = {"": _Listed()}
        for path in paths:
            above = parent(path)
            _make(folders, above)
            folders[above].files.append(path[len(above) :].lstrip("/"))
        tree = cls()
        _add(folders, tree)
        tree._complete()
        return tree

    def _complete(self) -> None:
        """Sort the paths, and count the images at any depth."""
        self.paths.sort()
        self.images.update(self.loose)
        for name in reversed(self.loose):
            if name:
                self.images[parent(name)] += self.images[name]

    def inside(self, folder: str) -> list[str]:
        """Return the folders directly in a folder that hold an image at any depth, sorted."""
        return sorted(name for name in self._directly_in(folder) if self.images[name])

    def without_images(self, folder: str) -> list[str]:
        """Return those that hold none, but for those with outputs of this package, sorted."""
        return sorted(
            name
            for name in self._directly_in(folder)
            if not self.images[name] and not any(own.startswith(f"{name}/") for own in self.own)
        )

    def _directly_in(self, folder: str) -> list[str]:
        return [name for name in self.loose if name and parent(name) == folder]


def parent(path: str) -> str:
    """Return the folder that a path lies in; ``""`` for the top."""
    return path.rpartition("/")[0]


def is_ignored(path: str) -> bool:
    """Tell whether a file, or a folder that it lies in, is one of an operating system."""
    *folders, name = path.split("/")
    return not _counts(name) or any(
        folder.startswith(".") or folder.lower() in IGNORED_FOLDERS for folder in folders
    )


def may_be_image(path: str) -> bool:
    """Tell whether a file's name leaves open that it is an image."""
    return path.rpartition("/")[2].lower().rpartition(".")[2] not in _NO_IMAGES


@dataclass(slots=True)
class _Listed:
    """What is directly in a folder: names of folders, in the order found, and of files."""

    folders: dict[str, None] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def _make(folders: dict[str, _Listed], path: str) -> None:
    """Add a folder and those that it lies in."""
    missing = []
    while path not in folders:
        missing.append(path)
        path = parent(path)
    for name in reversed(missing):
        folders[name] = _Listed()
        folders[parent(name)].folders[name.rpartition("/")[2]] = None


def _add(folders: Mapping[str, _Listed], tree: Tree) -> None:
    """Add all listed folders to a tree; not by recursion, as names may be very deep."""
    pending = [""]
    while pending:
        folder = pending.pop()
        listed = folders[folder]
        prefix = f"{folder}/" if folder else ""
        own = _own((*listed.files, *listed.folders)) if prefix else ""
        if own:
            tree.own[folder] = own
            continue
        files = [name for name in listed.files if _counts(name)]
        tree.loose[folder] = sum(map(may_be_image, files))
        tree.paths.extend(prefix + name for name in files)
        pending += [
            prefix + name
            for name in sorted(listed.folders, reverse=True)
            if not name.startswith(".") and name.lower() not in IGNORED_FOLDERS
        ]


def _counts(name: str) -> bool:
    """Tell whether a file is one of the user's."""
    lowered = name.lower()
    return not (name.startswith(".") or lowered in IGNORED_FILES or lowered.endswith(_ZONE))


def _walk(top: Path, tree: Tree) -> None:
    """Add all that is below a folder to a tree."""
    pending: list[tuple[Path, str, tuple[tuple[int, int], ...]]] = [(top, "", ())]
    while pending:
        folder, prefix, ancestors = pending.pop()
        entries = _entries(folder)
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            raise _link_loop(folder)
        own = _own([entry.name for entry in entries]) if prefix else ""
        if own:
            tree.own[prefix[:-1]] = own
            continue
        images = 0
        for entry in entries:
            if _is_folder(entry):
                if entry.name.lower() not in IGNORED_FOLDERS:
                    inner = (folder / entry.name, f"{prefix}{entry.name}/", (*ancestors, identity))
                    pending.append(inner)
            elif _counts(entry.name):
                tree.paths.append(prefix + entry.name)
                images += may_be_image(entry.name)
        tree.loose[prefix[:-1]] = images


def _own(names: Sequence[str]) -> str:
    """Return what a folder is, by what is in it, if this package wrote it; else nothing."""
    for mark in [name for name in names if name in _OWN]:
        companions, kind = _OWN[mark]
        if not companions.isdisjoint(names):
            return kind
    return ""


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ManifestError(
            f"The folder {str(folder)!r} cannot be listed: {error.strerror}.",
            hint="Check its permissions.",
        ) from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link_loop(Path(entry.path)) from error
        return False


def _link_loop(path: Path) -> ManifestError:
    return ManifestError(
        f"{str(path)!r} is part of a loop of symbolic links.",
        hint="Remove the link that points back, then run this again.",
    )


def objects_below(folder: Remote) -> tuple[dict[str, FileState], list[str]]:
    """Return the objects below an address with their states, and the names of others.

    Names of objects may be any text; those of a manifest are paths.
    """
    states = remote.listing(folder)
    odd = [name for name in states if not is_below(name)]
    for name in odd:
        del states[name]
    return states, odd
