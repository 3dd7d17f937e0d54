"""The splits of packed files, tables too: told from what they are called, or from folders inside.

All of them are named as splits, or none; where that is left open, it is refused, not guessed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pipeline.errors import ManifestError, mention
from pipeline.images import packed
from pipeline.images.sources.folder_tree import is_ignored, may_be_image
from pipeline.images.sources.given import Given
from pipeline.images.split_names import splits_of
from pipeline.system.wording import counted

_NUMBER: Final = re.compile(r"\d+")
_SPLITS: Final = ("train", "val", "test")
# As Hugging Face numbers files, with a digest behind it in earlier releases.
_NUMBERING: Final = re.compile(r"-\d+-of-\d+(?:-[0-9a-f]{16})?$")


def stem(path: str) -> str:
    """Return the path of a packed file without the suffix."""
    return path[: len(path) - len(packed.kind_of(path) or "")]


def are_numbered(stems: Sequence[str]) -> bool:
    """Tell whether names are those of shards: one name with numbers that follow on each other."""
    names = [stem.rpartition("/")[2] for stem in stems]
    if len(names) == 1:
        return True
    numbers = {int(found[0]) for name in names if (found := _NUMBER.findall(name))}
    bare = {_NUMBER.sub("", name) for name in names}
    is_one_name = len(bare) == 1 or all(splits_of(bare, alone=True).values())
    return is_one_name and bool(numbers) and max(numbers) - min(numbers) < len(names)


def of_files(
    given: Given, paths: Sequence[str], members: Sequence[Sequence[str]]
) -> tuple[list[str | None], list[str]]:
    """Return the split of each file by its name or the folders above it, and what was assumed.

    Where one file has folders of several splits, and every image of all is in such a folder, these
    folders say it, and files are of none.

    Args:
        given: The data.
        paths: The packed files, relative to the place of the data; one that is empty is the data.
        members: What is in them.

    Returns:
        The splits, empty for none, None of files that are left out; and what to say.

    Raises:
        ManifestError: Some are named as splits and some are not.
    """
    none: list[str | None] = [""] * len(paths)
    if given.layout == "classes" or not paths[0]:
        return none, []
    stems = [_NUMBERING.sub("", stem(path)) for path in paths]
    splits = _named(stems, alone=given.layout == "splits")
    if _folders_say(members):
        note = "Splits are the folders in packed files, not what these are called"
        return none, [note] if any(splits) else []
    without = [path for path, split in zip(paths, splits, strict=True) if not split]
    if len(without) == len(paths):
        if given.layout == "splits":
            raise ManifestError(
                f"Expected files that are named as splits in {str(given.data)!r}. "
                f"Received: {mention(without)}.",
                hint="Name them train, val and test, or leave --layout out.",
            )
        return none, []
    if without and given.layout == "auto":
        others = [path for path, split in zip(paths, splits, strict=True) if split]
        raise ManifestError(
            f"Expected all files in {str(given.data)!r} to be named as splits, or none. "
            f"Received both: {mention(others)}, and not {mention(without)}.",
            hint="Say what they are: --layout splits leaves the others out, --layout classes "
            "takes no name for a split.",
        )
    if given.layout == "auto" and len(set(splits)) == 1:
        note = (
            f"All files are named as {splits[0]}, so that names tell no splits; --layout "
            "splits takes it for one"
        )
        return none, [note]
    notes = said(splits, "names of files", "file")
    if without:
        notes.append(f"Left out, named as no split: {mention(without)}")
    return [split or None for split in splits], notes


def _folders_say(members: Sequence[Sequence[str]]) -> bool:
    """Tell whether splits are in files rather than told by what files are called."""
    # Shards of a million images without folders are looked through for a slash alone.
    if not any("/" in name for names in members for name in names):
        return False
    images = [
        [name for name in names if may_be_image(name) and not is_ignored(name)] for names in members
    ]
    if not any(len(set(of_folders(names))) > 1 for names in images if names):
        return False
    return all(of_folders([name for names in images for name in names]))


def of_folders(names: Sequence[str]) -> list[str]:
    """Return the split of each member by the outermost folders that differ; empty for none."""
    folders = [name.split("/")[:-1] for name in names]
    # What all have in common is what the outermost two of them have.
    first, last = min(folders), max(folders)
    level = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), -1)
    if level < 0:
        return [""] * len(names)
    splits = splits_of({parts[level] for parts in folders})
    return [splits[parts[level]] if all(splits.values()) else "" for parts in folders]


def said(splits: Sequence[str], told_from: str, noun: str) -> list[str]:
    """Return what to say of splits; nothing if there are none."""
    counts = {split: splits.count(split) for split in _SPLITS}
    listed = [f"{split} ({counted(count, noun)})" for split, count in counts.items() if count]
    return [f"Splits are told from the {told_from}: {', '.join(listed)}"] if listed else []


def _named(stems: Sequence[str], *, alone: bool) -> list[str]:
    """Return the split that each name stands for, or the folder above it that is nearest."""
    levels: list[Mapping[str, str]] = []
    for level in range(max(stem.count("/") for stem in stems) + 1):
        names = {parts[-1 - level] for parts in _parts(stems) if len(parts) > level}
        levels.append(splits_of(names, alone=alone))
    return [
        next(
            (found for level, name in enumerate(reversed(parts)) if (found := levels[level][name])),
            "",
        )
        for parts in _parts(stems)
    ]


def _parts(stems: Sequence[str]) -> Iterator[list[str]]:
    return (stem.split("/") for stem in stems)
