"""A packed file, or a folder of them, such as tar shards: read in place.

With a .cls or a .json beside each image they are WebDataset shards; else they hold folders, and
are read as the folder that was packed. Rows are in stored order, so that reading goes forward.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pipeline.errors import ManifestError, mention
from pipeline.files.location import Location, Remote
from pipeline.files.state import FileState
from pipeline.images import packed, place
from pipeline.images.manifest import Manifest, listing_of
from pipeline.images.packed.kinds import ChangedPackError, Pack
from pipeline.images.sources import file_splits, outer_folders, samples
from pipeline.images.sources.folder import scan_tree
from pipeline.images.sources.folder_tree import Tree, is_ignored, may_be_image
from pipeline.images.sources.given import Given

_HINT: Final = "Give packed files with class folders in them, or with a .cls beside each image."


@dataclass(frozen=True, slots=True)
class _File:
    """One packed file.

    Attributes:
        path: Relative to the place of the data; empty if it is the data.
        where: Its place.
        pack: Its members. One at an address is not read by it: its copy may have given way to
            those of the files after it.
        state: Its state.
    """

    path: str
    where: Location
    pack: Pack
    state: FileState

    @property
    def names(self) -> Sequence[str]:
        """See ``Pack``."""
        return self.pack.names

    def texts(self, suffixes: Collection[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of small members; see ``Pack``."""
        if isinstance(self.where, Remote):
            return place.texts(self.where, self.state, suffixes, limit=limit)
        return self.pack.texts(suffixes, limit=limit)

    def place(self, member: str) -> str:
        """Return the path of a member, relative to the place of the data."""
        return f"{self.path}/{member}" if self.path else member


def recognizes(given: Given) -> bool:
    """Tell whether the data is a packed file, or a folder of them without images beside them."""
    if given.tree is None:
        return bool(packed.among([given.data.name]))
    return not given.tree.images.get("", 0) and bool(packed.among(given.tree.paths))


def scan_source(given: Given) -> Manifest:
    """List the members; see ``sources.scan``."""
    try:
        return _scan(given)
    except ChangedPackError as error:
        raise ManifestError(
            f"A packed file in {str(given.data)!r} changed while it was listed.",
            hint="Run this again once it is written.",
        ) from error


def _scan(given: Given) -> Manifest:
    files, notes = _files(given)
    if any(samples.are_in(file.pack) for file in files):
        given.require_no_unlabelled("tar shards")
        listing = _scan_samples(given, files)
    else:
        listing = _scan_folders(given, files)
    return replace(listing, notes=(*notes, *listing.notes))


def _files(given: Given) -> tuple[list[_File], list[str]]:
    """Return the packed files, and what to say of them.

    Raises:
        ManifestError: None can be used.
    """
    paths = packed.among(given.tree.paths) if given.tree else [""]
    found, damaged, notes = [], [], []
    for path in paths:
        where = given.data / path if path else given.data
        try:
            file = _File(path, where, *place.opened(where))
        except ManifestError as error:
            if not path:
                raise
            damaged.append(f"{path!r} ({error})")
            continue
        found.append(file)
        notes += [f"{path or str(given.data)!r}: {note}" for note in file.pack.notes]
    if not found:
        raise ManifestError(f"No packed file could be read: {mention(damaged, quoted=False)}.")
    others = sorted(set(given.tree.paths).difference(paths)) if given.tree else []
    if damaged:
        notes.append(f"Left out, {len(damaged):,}: {mention(damaged, quoted=False)}")
    others = [*map(repr, others), *given.left_out]
    if others:
        notes.append(f"Left out, beside packed files: {mention(others, quoted=False)}")
    return found, [*_inner(found), *notes, *_forward(given, found)]


def _inner(files: Sequence[_File]) -> list[str]:
    """Note packed files within packed files, which are not entered."""
    inner = [file.place(name) for file in files for name in packed.among(file.pack.names)]
    if not inner:
        return []
    return [f"Packed files within packed files are not entered, {len(inner):,}: {mention(inner)}"]


def _forward(given: Given, files: Sequence[_File]) -> list[str]:
    """Note files that are compressed as a whole."""
    # Not the name of the file that is read: of one at an address it is that of a copy.
    forward = [file.path or given.data.name for file in files if file.pack.is_forward]
    if not forward:
        return []
    return [
        f"Compressed as a whole, so that every look begins at the front, {len(forward):,}: "
        f"{mention(forward)}; extract reads them in one pass, finetune and thumbnails are slow: "
        "uncompressed they are read at any place (gunzip FILE)"
    ]


# -- WebDataset ----------------------------------------------------------------------------


def _scan_samples(given: Given, files: Sequence[_File]) -> Manifest:
    """List samples with their labels.

    Raises:
        ManifestError: There is no image, or the labels may be several things.
    """
    splits, named, files = _named(given, files)
    called = [(file.path or given.data.name, file) for file in files]
    found = samples.collect(called, given.image_column, given.label_column)
    if not found.names:
        said = [f"{what}: {mention(names)}" for what, names in found.left_out.items()]
        raise ManifestError(
            f"Expected samples of one image each in {str(given.data)!r}. Received none; "
            f"{mention(said, quoted=False) or 'no image'}.",
            hint=_HINT,
        )
    inside = any("/" in name for name in found.names)
    around = None
    if not found.source:
        around = outer_folders.prefixes(given, [file.path for file in files], inside=inside)
    by_folder = not found.source and (inside or around is not None)
    notes = [*(named if around is None else around[1]), *_sample_notes(found, by_folder)]
    names, paths, said, states, row = [], [], [], [], 0
    for file, split, count in zip(files, splits, found.counts, strict=True):
        prefix = file.place("")
        names.append(found.names[row : row + count])
        paths += [prefix + name for name in names[-1]]
        said += [split] * count
        states += [file.state] * count
        row += count
    if by_folder:
        prefixes: list[str | None] = [*splits] if files[0].path else [None]
        listing = _listed(given, files, prefixes if around is None else around[0], names)
        return replace(listing, notes=(*notes, *listing.notes))
    if not any(said) and given.layout != "classes":
        said = file_splits.of_folders(found.names)
        notes += file_splits.said(said, "folders in packed files", "image")
    if not any(said) and given.layout == "splits":
        raise ManifestError(
            f"Expected samples in folders that are named as splits in {str(given.data)!r}. "
            "Received none.",
            hint="Name them train, val and test, or leave --layout out.",
        )
    return listing_of(_root(given.data), (), tuple(notes)).with_rows(
        paths, found.labels, said, states
    )


def _sample_notes(found: samples.Found, by_folder: bool) -> list[str]:
    """Return what to say of samples."""
    note = f"Labels are from {found.source!r} in the .json of each sample"
    if found.source == samples.CLS:
        note = "Labels are from the .cls of each sample"
    if not found.source:
        says = "No .cls or .json of a sample says a label"
        if found.keys:
            says = f"The .json of samples say nothing of labels, only {mention(sorted(found.keys))}"
        note = f"{says}: {'folders give labels' if by_folder else 'images have no label'}"
    if found.source and all(label.isdigit() for label in set(found.labels) - {""}):
        note += "; they are numbers, and are taken for the names of classes"
    said = [note]
    without = sum(not label for label in found.labels)
    if without and found.source:
        said.append(f"Samples without a label, which are never trained or scored on: {without:,}")
    said += [
        f"Left out, {what}, {len(names):,}: {mention(names)}"
        for what, names in sorted(found.left_out.items())
    ]
    if found.kinds:
        listed = [f".{kind} ({count:,})" for kind, count in sorted(found.kinds.items())]
        said.append(f"Members of other kinds are not read: {mention(listed, quoted=False)}")
    return said


# -- folders that were packed --------------------------------------------------------------


def _scan_folders(given: Given, files: Sequence[_File]) -> Manifest:
    """List packed files as the folder that they hold together.

    Raises:
        ConfigError: Columns are given.
        ManifestError: See ``sources.scan``.
    """
    given.require_no_columns("packed folders")
    prefixes, notes, files = _prefixes(given, files)
    names = [[name for name in file.pack.names if _is_listed(name)] for file in files]
    inner = _inner(files)
    if inner and not any(names):
        raise ManifestError(
            f"Expected images in {str(given.data)!r}. {inner[0]}.",
            hint="Unpack the outer one, and give what was in it.",
        )
    listing = _listed(given, files, prefixes, names)
    return replace(listing, notes=(*notes, *listing.notes))


def _is_listed(name: str) -> bool:
    # By the member's own name: where it would be if unpacked, it is called otherwise.
    return not (is_ignored(name) or packed.among([name]))


def _listed(
    given: Given,
    files: Sequence[_File],
    prefixes: Sequence[str | None],
    names: Sequence[Sequence[str]],
) -> Manifest:
    """List members, in stored order, as the folder that they would be in if unpacked.

    Args:
        given: The data.
        files: The packed files.
        prefixes: The folder that each stands for; None of a lone one.
        names: The members of each that are listed.

    Raises:
        ManifestError: See ``sources.scan``.
    """
    real: dict[str, tuple[int, str, FileState]] = {}
    for file, prefix, members in zip(files, prefixes, names, strict=True):
        for name in members:
            real[_virtual(file, prefix, name)] = (len(real), file.place(name), file.state)
    listing = scan_tree(Tree.of_paths(real), replace(given, states={}, left_out=()))
    rows = sorted(
        (real[path], label, split)
        for path, label, split in zip(listing.paths, listing.labels, listing.splits, strict=True)
    )
    return listing.with_rows(
        [row[1] for row, _, _ in rows],
        [label for _, label, _ in rows],
        [split for _, _, split in rows],
        [row[2] for row, _, _ in rows],
    )


def _virtual(file: _File, prefix: str | None, name: str) -> str:
    """Return where a member would be if all files were unpacked into one folder."""
    if prefix is None:
        return name
    folder, _, last = name.rpartition("/")
    # Files may have members of one name, which stay apart.
    return "/".join(
        part for part in (prefix, folder, f"{file.path.replace('/', ':')}:{last}") if part
    )


def _prefixes(
    given: Given, files: Sequence[_File]
) -> tuple[list[str | None], list[str], Sequence[_File]]:
    """Return the folder that each file stands for, and what was assumed; None of a lone one."""
    if not files[0].path:
        return [None], [], files
    inside = any(_has_folders(file.pack) for file in files)
    around = outer_folders.prefixes(given, [file.path for file in files], inside=inside)
    if around is not None:
        return [*around[0]], around[1], files
    if inside:
        splits, notes, files = _named(given, files)
        return [*splits], notes, files
    stems = [file_splits.stem(file.path) for file in files]
    if given.layout != "classes" and file_splits.are_numbered(stems):
        splits, notes, files = _named(given, files)
        note = (
            "Images in packed files without folders have no label; if each file is a class, "
            "--layout classes says so"
        )
        return [*splits], [note, *notes], files
    note = f"Packed files without folders are classes, named by the file: {mention(stems)}"
    return [*stems], [note], files


def _has_folders(pack: Pack) -> bool:
    return any("/" in name and may_be_image(name) and not is_ignored(name) for name in pack.names)


def _named(given: Given, files: Sequence[_File]) -> tuple[list[str], list[str], list[_File]]:
    """Return the splits of those files that are read, what was assumed, and these files.

    Raises:
        ManifestError: Some are named as splits and some are not.
    """
    splits, notes = file_splits.of_files(
        given, [file.path for file in files], [file.pack.names for file in files]
    )
    kept = [(split, file) for split, file in zip(splits, files, strict=True) if split is not None]
    return [split for split, _ in kept], notes, [file for _, file in kept]


def _root(data: Location) -> Location:
    return data if isinstance(data, Remote) else Path(data).resolve()
