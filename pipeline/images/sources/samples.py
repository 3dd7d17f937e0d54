"""WebDataset samples: members of a packed file with one name up to its first dot.

An image with its label in a ``.cls`` (a name, or the index of a class) or under a key of a
``.json`` beside it.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.errors import ManifestError, mention
from pipeline.images.packed.kinds import Texts
from pipeline.images.sources.folder_tree import is_ignored

CLS: Final = ".cls"
# Keys of a .json under which a label is looked for.
_LABEL_KEYS: Final = frozenset((
    "category", "category_id", "class", "class_id", "class_index", "class_label", "class_name",
    "classname", "cls", "label", "label_id", "label_name", "target",
))  # fmt: skip
# What the name of an image ends in: beside one there may be members of any other kind.
_IMAGES: Final = frozenset((
    "avif", "bmp", "gif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm",
    "ppm", "qoi", "ras", "sgi", "tif", "tiff", "webp",
))  # fmt: skip
# A label that is longer is none.
_MOST_TEXT: Final = 1 << 10
_MOST_JSON: Final = 1 << 20
_MOST_KEYS: Final = 100
_MOST_KNOWN: Final = 10_000
_BESIDE: Final = (".cls", ".json")
_TWO: Final = object()
_OTHER_KEY: Final = (
    "labels of no sample, which is named up to the first dot and has its label in NAME.cls"
)


@dataclass(slots=True)
class Found:
    """Samples of packed files, as columns of equal length in stored order.

    Attributes:
        names: Members that are images.
        labels: Their labels; empty where there is none.
        counts: How many rows are of each packed file.
        source: Where the labels are: ``.cls`` or a key of the .json; empty for nowhere.
        left_out: What is not read, by the reason, each with its file.
        kinds: What members that are not read end in, with their number.
        keys: Some that the .json have.
    """

    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    source: str = ""
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    keys: set[str] = field(default_factory=set)


def are_in(pack: Texts) -> bool:
    """Tell whether a packed file holds samples: an image with a .cls or a .json beside it."""
    beside = {_split(name)[0] for name in pack.names if name.lower().endswith(_BESIDE)}
    return bool(beside) and any(
        kind.rpartition(".")[2] in _IMAGES and key in beside
        for key, kind in map(_split, pack.names)
    )


def collect(packs: Sequence[tuple[str, Texts]], image: str | None, chosen: str | None) -> Found:
    """Return the samples of packed files with their labels.

    Args:
        packs: The files, each with how it is called.
        image: What the user says that names of images end in.
        chosen: Where the user says that labels are: ``cls``, or a key of the .json.

    Raises:
        ManifestError: Several keys may be meant, or there is none such as the user says.
    """
    found = Found()
    if chosen in (None, "cls") and any(_has_cls(pack) for _, pack in packs):
        found.source = CLS
    for called, pack in packs:
        labels = _labels(pack, called, found, chosen)
        before = len(found.names)
        for key, name in _images(pack, called, found, image):
            label = labels.pop(key, "")
            if label is _TWO:
                found.left_out["samples with two labels"].append(f"{called}/{key}")
            else:
                found.names.append(name)
                found.labels.append(str(label))
        found.counts.append(len(found.names) - before)
        if labels:
            without = [f"{called}/{key}" for key in labels]
            found.left_out["samples without an image"] += without
    if chosen is not None and not found.source:
        raise ManifestError(
            "--label-column: expected cls, for labels in .cls, or a key of the .json of samples. "
            f"Received: {chosen!r}; there are {mention(sorted(found.keys)) or 'no keys'}.",
            hint="Correct the name.",
        )
    return found


def _has_cls(pack: Texts) -> bool:
    return any(name.lower().endswith(CLS) and _split(name)[1] == "cls" for name in pack.names)


def _labels(pack: Texts, called: str, found: Found, chosen: str | None) -> dict[str, object]:
    """Return the label of each sample that has one, by its key."""
    labels: dict[str, object] = {}
    said = _in_cls(pack) if found.source == CLS else _in_json(pack, called, found, chosen)
    for key, label in said:
        if label is None:
            found.left_out["labels that are no name and no number"].append(f"{called}/{key}")
        elif labels.setdefault(key, label) is not label:  # labels are interned
            labels[key] = _TWO
    return labels


def _in_cls(pack: Texts) -> Iterator[tuple[str, str | None]]:
    """Yield the key of each sample with what its .cls says, None of what can be no label."""
    known: dict[bytes, str | None] = {}
    for name, data in pack.texts((CLS,), limit=_MOST_JSON):
        key, kind = _split(name)
        if kind != "cls":
            continue
        if data not in known:
            if len(known) > _MOST_KNOWN:
                known.clear()
            known[data] = _label(data.decode("utf-8-sig", "replace"))
        yield key, known[data]


def _in_json(
    pack: Texts, called: str, found: Found, chosen: str | None
) -> Iterator[tuple[str, str | None]]:
    """Yield the key of each sample with what its .json says, None of what can be no label.

    Raises:
        ManifestError: Several keys may be meant.
    """
    for name, data in pack.texts((".json",), limit=_MOST_JSON):
        key, kind = _split(name)
        if kind != "json":
            continue
        try:
            record = json.loads(data)
        except (RecursionError, ValueError):
            record = None
        if not isinstance(record, dict):
            yield key, None
            continue
        if len(found.keys) < _MOST_KEYS:
            found.keys.update(record)
        meant = _LABEL_KEYS.intersection(record) if chosen is None else {chosen} & set(record)
        if len(meant | ({found.source} if found.source else set())) > 1:
            raise ManifestError(
                f"Expected one key that holds the label in the .json of samples. Received: "
                f"{mention(sorted(meant | {found.source}))} in {called + '/' + name!r}.",
                hint=f"Say which, such as --label-column {min(meant)}.",
            )
        for found.source in meant:
            yield key, _scalar(record[found.source])


def _scalar(value: object) -> str | None:
    if isinstance(value, str):
        return _label(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return sys.intern(str(value)) if is_number else None


def _label(text: str) -> str | None:
    text = text.strip()
    # A hundred thousand copies of ten names would take more memory than the paths.
    is_label = 0 < len(text) <= _MOST_TEXT and text.isprintable() and "\ufffd" not in text
    return sys.intern(text) if is_label else None


def _images(
    pack: Texts, called: str, found: Found, chosen: str | None
) -> Iterator[tuple[str, str]]:
    """Return key and name of the one image of each sample, in stored order."""
    images: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    wanted = None if chosen is None else chosen.lower().lstrip(".")
    for name in pack.names:
        key, kind = _split(name)
        if kind == wanted or (
            wanted is None and (kind in _IMAGES or kind.rpartition(".")[2] in _IMAGES)
        ):
            if ("/" in name or name[0] == ".") and is_ignored(name):
                continue
            first = images.setdefault(key, name)
            if first != name:
                several.setdefault(key, [first]).append(name)
        elif kind not in ("cls", "json") and not is_ignored(name):
            if kind.endswith(CLS):
                found.left_out[_OTHER_KEY].append(f"{called}/{name}")
            else:
                found.kinds[kind] += 1
    for key, names in several.items():
        # One named by a kind alone is the sample's; ``seg.png`` beside ``jpg`` belongs to it.
        plain = [name for name in names if "." not in _split(name)[1]]
        if len(plain) == 1:
            images[key] = plain[0]
            beside = [f"{called}/{name}" for name in names if name != plain[0]]
            found.left_out["images beside that of their sample"] += beside
        else:
            del images[key]
            kinds = mention([_split(name)[1] for name in names], quoted=False)
            found.left_out["samples with several images"].append(f"{called}/{key} ({kinds})")
    return iter(images.items())


def _split(name: str) -> tuple[str, str]:
    """Return the key of a member's sample, and its kind in lower case."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())
