"""A data set as folders: one per class, or one per split above those.

Names tell which. Where they leave it open, that is refused, not guessed; what is assumed or left
out is noted.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.errors import ManifestError, mention
from pipeline.files.location import Location, Remote
from pipeline.images import packed
from pipeline.images.manifest import Manifest, listing_of
from pipeline.images.sources.folder_tree import Tree, may_be_image, parent
from pipeline.images.sources.given import Given
from pipeline.images.split_names import splits_of
from pipeline.system.wording import counted

_HINT: Final = "Give a folder with one sub-folder of images per class."
# Names that no class should have: it is pointed out, and never guessed.
_UNLABELLED: Final = re.compile(r"un[-_ ]?label+ed", re.IGNORECASE)


@dataclass(slots=True)
class _Layout:
    """Where the class folders lie.

    Attributes:
        splits: The folders that hold class folders, and the split of each; empty for none.
        notes: What was assumed.
        others: Folders beside those of splits that are not read.
        unlabelled: Folders whose images have no label.
    """

    splits: dict[str, str]
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)


def recognizes(given: Given) -> bool:
    """Tell whether the data is a folder."""
    return given.tree is not None


def scan_source(given: Given) -> Manifest:
    """List the images below a folder; see ``sources.scan``."""
    if given.tree is None:
        raise ManifestError(f"Expected a folder. Received: {str(given.data)!r}.", hint=_HINT)
    return scan_tree(given.tree, given)


def scan_tree(tree: Tree, given: Given) -> Manifest:
    """List the images of a tree with their classes and splits.

    Args:
        tree: What is below the place of the data.
        given: The data.

    Raises:
        ManifestError: See ``sources.scan``.
    """
    data = given.data
    if not tree.paths:
        raise ManifestError(f"There are no files in {str(data)!r}.", hint=_HINT)
    if not tree.images[""]:
        raise ManifestError(
            f"Expected image files in {str(data)!r}. Received: "
            f"{counted(len(tree.paths), 'file')} of other kinds, such as {tree.paths[0]!r}.",
            hint=_HINT,
        )
    found = _layout(tree, data, given.layout, given.unlabelled)
    _require_no_packed(tree, found, data)
    found.unlabelled = _named_unlabelled(tree, found, data, given.unlabelled)
    rows, left_out = _rows(tree, found)
    left_out += [f"{name!r} (names no split)" for name in found.others]
    left_out += [f"{name!r} ({kind})" for name, kind in tree.own.items()]
    left_out += given.left_out
    if left_out:
        found.notes.append(f"Left out: {mention(left_out, quoted=False)}")
    found.notes += [*_unlabelled(tree, found, data), *_nested(tree, found)]
    found.notes += _looks_unlabelled(rows)
    root = data if isinstance(data, Remote) else data.resolve()
    listing = listing_of(root, rows, tuple(found.notes))
    if not given.states:
        return listing
    return replace(listing, states=[given.states[path] for path in listing.paths])


def _layout(tree: Tree, data: Location, layout: str, unlabelled: Sequence[str]) -> _Layout:
    """Tell from names what the folders are.

    Raises:
        ManifestError: Some look like splits and some do not, or ``layout`` says that they are
            splits and none does.
    """
    if layout == "classes":
        return _Layout({"": ""})
    base, everything = _unwrapped(tree, layout, unlabelled)
    tops = [top for top in everything if _name(top) not in unlabelled]
    splits = _splits(tops, alone=layout == "splits")
    named = [top for top in tops if splits[top]]
    others = [top for top in tops if not splits[top]]
    if layout == "splits" and not named:
        raise ManifestError(
            f"Expected folders that are named as splits in {str(data / base)!r}. "
            f"Received: {mention(_names(tops)) or 'no folder with images'}.",
            hint="Name them train, val and test, or leave --layout out.",
        )
    if layout == "auto" and named and others:
        raise ManifestError(
            f"Expected class folders, or split folders above class folders, in "
            f"{str(data / base)!r}. Received both: named as splits are {mention(_names(named))}, "
            f"and not {mention(_names(others))}.",
            hint="Say what they are: --layout splits leaves the others out, --layout classes "
            "takes each for a class.",
        )
    notes = [f"All images are in {base!r}: its folders were used"] if base else []
    if not named or (layout == "auto" and len(everything) == 1):
        return _Layout({base: ""}, notes)
    if any(_name(top).lower() not in splits.values() for top in named):
        listed = [f"{_name(top)!r} as {splits[top]}" for top in named]
        notes.append(f"Folders used as splits: {', '.join(listed)}")
    return _Layout({_inner(tree, top, splits[top]): splits[top] for top in named}, notes, others)


def _unwrapped(tree: Tree, layout: str, unlabelled: Sequence[str]) -> tuple[str, list[str]]:
    """Return the folder that holds class or split folders, and those: a zip may wrap them."""
    base = ""
    while True:
        tops = tree.inside(base)
        if len(tops) != 1 or tree.loose[base] or tree.loose[tops[0]]:
            return base, tops
        if _name(tops[0]) in unlabelled:
            return base, tops
        if layout == "splits" and _splits(tops, alone=True)[tops[0]]:
            return base, tops
        base = tops[0]


def _inner(tree: Tree, folder: str, split: str) -> str:
    """Return the folder that holds a split's classes: ``seg_train/seg_train`` happens."""
    while True:
        tops = tree.inside(folder)
        if len(tops) != 1 or tree.loose[folder] or _splits(tops, alone=True)[tops[0]] != split:
            return folder
        folder = tops[0]


def _splits(folders: list[str], *, alone: bool) -> dict[str, str]:
    """Return the split that each folder's name stands for; empty where it stands for none."""
    splits = splits_of(_names(folders), alone=alone)
    return {folder: splits[_name(folder)] for folder in folders}


def _rows(tree: Tree, layout: _Layout) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return path, label and split of every file that is read, and what is not."""
    levels = _levels(layout)
    empty = [name for level in sorted(levels) for name in tree.without_images(level)]
    closed = tuple(f"{name}/" for name in (*empty, *layout.others))
    bases = [(f"{base}/" if base else "", split) for base, split in layout.splits.items()]
    starts = [(prefix, len(prefix), split) for prefix, split in bases]
    unlabelled = tuple(f"{name}/" for name in layout.unlabelled)
    rows, no_images = [], []
    for path in tree.paths:
        if closed and path.startswith(closed):
            continue
        label = said = ""
        for prefix, start, split in starts:
            if path.startswith(prefix):
                end = path.find("/", start)
                # A hundred thousand copies of ten names would take more memory than the paths.
                label, said = sys.intern(path[start:end]) if end > 0 else "", split
                break
        if unlabelled and path.startswith(unlabelled):
            label = ""
        if label or may_be_image(path):
            rows.append((path, label, said))
        else:
            no_images.append(path)
    inner = {above for path in packed.among(tree.paths) for above in _with_parents(path)}
    reasons = {True: "packed, and not entered: unpack it", False: "no image"}
    return rows, [f"{name!r} ({reasons[name in inner]})" for name in (*empty, *no_images)]


def _with_parents(path: str) -> Iterator[str]:
    """Yield a path, and the folders that it is in."""
    while path:
        yield path
        path = parent(path)


def _require_no_packed(tree: Tree, layout: _Layout, data: Location) -> None:
    """Refuse packed files beside images that are in no class folder: either may be the data.

    Raises:
        ManifestError: There are some.
    """
    levels = _levels(layout)
    beside = [
        path
        for path in packed.among(tree.paths)
        if parent(path) in levels and tree.loose[parent(path)]
    ]
    if not beside:
        return
    folder = parent(beside[0])
    image = next(path for path in tree.paths if parent(path) == folder and may_be_image(path))
    raise ManifestError(
        f"Expected images or packed files in {str(data)!r}. Received: both, the packed files "
        f"{mention(beside)} beside {image!r}.",
        hint="Give one of them, from a folder of its own, or unpack the packed files.",
    )


def _levels(layout: _Layout) -> set[str]:
    """Return the folders in which other folders are classes or splits, or wrap those."""
    levels = {""}
    for base in layout.splits:
        while base:
            levels.add(base)
            base = parent(base)
    return levels


def _named_unlabelled(
    tree: Tree, layout: _Layout, data: Location, names: Sequence[str]
) -> list[str]:
    """Return the folders of some names, beside those of classes or splits.

    Raises:
        ManifestError: There is none of a name.
    """
    levels = sorted({*layout.splits, *(parent(base) for base in layout.splits if base)})
    beside = [folder for level in levels for folder in tree.inside(level)]
    for name in names:
        if name not in _names(beside):
            known = sorted(set(_names(beside)))
            raise ManifestError(
                f"--unlabelled: expected the name of a folder with images, beside those of the "
                f"classes in {str(data)!r}. Received: {name!r}; there are {mention(known)}.",
                hint="Correct the name.",
            )
    return [folder for folder in beside if _name(folder) in names]


def _looks_unlabelled(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Note classes whose name says that they are none."""
    labels = sorted({label for _, label, _ in rows if _UNLABELLED.fullmatch(label)})
    return [
        f"The folder {label!r} is a class as others are: --unlabelled {label} takes its images "
        "for unlabelled"
        for label in labels
    ]


def _unlabelled(tree: Tree, layout: _Layout, data: Location) -> list[str]:
    """Note images without a label; a split that has no others is noted by ``dataset``."""
    loose = [
        level
        for level in sorted(_levels(layout))
        if tree.loose[level] and (not layout.splits.get(level) or tree.inside(level))
    ]
    notes = [
        f"Images in {folder!r} have no label and are never trained or scored on: "
        f"{tree.images[folder]:,}"
        for folder in layout.unlabelled
    ]
    if not loose or not any(tree.inside(base) for base in layout.splits):
        return notes
    count = sum(tree.loose[level] for level in loose)
    where = mention([str(data / level) for level in loose])
    return [
        *notes,
        f"Images in no class folder but in {where} have no label and are never trained or scored "
        f"on: {count:,}",
    ]


def _nested(tree: Tree, layout: _Layout) -> list[str]:
    """Note folders within class folders, whose images are of that class."""
    found = []
    closed = tuple(f"{name}/" for name in layout.unlabelled)
    for folder in tree.loose:
        if closed and folder.startswith(closed):
            continue
        base = next((name for name in layout.splits if _is_within(folder, name)), None)
        if base is not None and tree.loose[folder]:
            inner = folder[len(base) :].strip("/")
            if "/" in inner:
                found.append((folder, inner.partition("/")[0]))
    if not found:
        return []
    listed = [f"{folder!r} (as {label!r})" for folder, label in sorted(found)]
    note = f"Folders within class folders count as that class: {mention(listed, quoted=False)}"
    if any(splits_of(_names([folder for folder, _ in found])).values()):
        note += "; splits are told from folders above the class folders alone"
    return [note]


def _is_within(folder: str, base: str) -> bool:
    return not base or folder.startswith(f"{base}/")


def _name(folder: str) -> str:
    return folder.rpartition("/")[2]


def _names(folders: list[str]) -> list[str]:
    return [_name(folder) for folder in folders]
