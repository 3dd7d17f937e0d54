"""What folders, and cells of a table, call a split.

One rule for all sources of names, so that a name means the same in each of them.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

# Held out; which of the two depends on what else there is.
_EITHER: Final = "val or test"
_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "dev": "val",
        "devel": "val",
        "development": "val",
        "eval": _EITHER,
        "evaluation": _EITHER,
        "test": "test",
        "testing": "test",
        "testset": "test",
        "train": "train",
        "training": "train",
        "trainset": "train",
        "trainval": "train",
        "trn": "train",
        "tst": "test",
        "val": "val",
        "valid": "val",
        "validate": "val",
        "validation": "val",
        "valset": "val",
    }
)
# Words beside that of the split which say nothing: ``train_images``, ``Test Set``, ``val2017``.
_FILLERS: Final = frozenset((
    "cross", "data", "dataset", "file", "files", "folder", "image", "images", "img", "imgs",
    "part", "photo", "photos", "pic", "pics", "picture", "pictures", "sample", "samples",
    "set", "split",
))  # fmt: skip
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD: Final = re.compile(r"[^\W\d_]+")


def splits_of(names: Iterable[str], *, alone: bool = False) -> dict[str, str]:
    """Return the split that each of some names stands for; empty where it stands for none.

    A name stands for a split if one of its words does and the others say nothing (``train_set``,
    ``val2017``), or are those of a name beside it that stands for another split (``seg_train``
    beside ``seg_test``). So ``train_station`` is no split.

    Args:
        names: All names of one place: of folders that lie together, or in a column.
        alone: Whether a word for a split is enough, whatever the others are.

    Example:
        >>> splits_of(["Training", "dev", "cats"])
        {'Training': 'train', 'dev': 'val', 'cats': ''}
    """
    parsed = {name: _parse(name) for name in names}
    by_rest = defaultdict(set)
    for split, rest in parsed.values():
        if split:
            by_rest[rest].add(split)
    found = {
        name: split if alone or not rest or len(by_rest[rest]) > 1 else ""
        for name, (split, rest) in parsed.items()
    }
    either = "val" if "test" in found.values() else "test"
    return {name: either if split == _EITHER else split for name, split in found.items()}


def _parse(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the split that a name holds a word for, and its other words that say something."""
    words = [
        word.casefold()
        for word in _WORD.findall(_CAMEL.sub(" ", unicodedata.normalize("NFKC", name)))
    ]
    splits = {_WORDS[word] for word in words if word in _WORDS}
    rest = tuple(word for word in words if word not in _WORDS and word not in _FILLERS)
    if splits == {"train", "val"}:  # ``train_val`` beside ``test``
        return "train", rest
    return (splits.pop(), rest) if len(splits) == 1 else ("", rest)
