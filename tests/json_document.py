"""``docs/json.md`` as tests read it: its tables, and results compared with them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs/json.md"

_PLAIN = {
    "any": lambda value: True,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}
_LIST_OF = "list of "
_ABSENT = "absent"
_ANY_NAME = "NAME"
_LINK = re.compile(r"\[[^\]]+\]\(#([^)]+)\)")
UNITS = {"", "bytes", "classes", "epochs", "files", "heads", "images", "images per second", "nats",
         "numbers", "pairs", "pixels", "probability", "rows", "runs", "seconds", "seeds",
         "share"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One key: where it is documented, and the types that it may have; a link is ``#section``."""

    section: str
    path: str
    kinds: tuple[str, ...]
    unit: str
    meaning: str


@dataclass
class Section:
    """The keys of one result, or of a part of several, and the sections whose keys it has too."""

    rows: list[Row] = field(default_factory=list)
    included: list[str] = field(default_factory=list)


Rows = Mapping[str, Row]


class Document:
    """The page, and what was seen of it in results.

    Attributes:
        sections: By anchor.
        seen: The types that each key was seen with.
    """

    def __init__(self, text: str) -> None:
        self.sections: dict[str, Section] = {}
        self.seen: defaultdict[Row, set[str]] = defaultdict(set)
        for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
            title, _, body = part.partition("\n")
            anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            section = Section([_row(anchor, line) for line in re.findall(r"^\| `.*", body, re.M)])
            for paragraph in re.findall(r"^Every key of .*?\n\n", f"{body}\n\n", re.M | re.S):
                section.included += _LINK.findall(paragraph)
            if section.rows or section.included:
                assert anchor not in self.sections, f"two sections {anchor}"
                self.sections[anchor] = section

    def rows_of(self, section: str) -> dict[str, Row]:
        """Return the keys of a section, those of included sections too, by path."""
        found: dict[str, Row] = {}
        for name in self.sections[section].included:
            found |= self.rows_of(name)
        return found | {row.path: row for row in self.sections[section].rows}

    def misfits(self, result: Any, section: str) -> list[str]:
        """Return what a result has otherwise than its section says; note what was seen."""
        return [f"{section}: {found}" for found in self._of_object(result, self.rows_of(section))]

    def unseen(self, sections: set[str]) -> list[str]:
        """Return the keys, with the types, that no result had so far."""
        return [
            f"{name}: {row.path} was never {kind}"
            for name in sorted(sections)
            for row in self.sections[name].rows
            for kind in row.kinds
            if kind not in self.seen[row]
        ]

    def _of_object(self, value: Mapping[str, Any], rows: Rows, within: str = "") -> Iterator[str]:
        known = {
            "".join(takewhile(lambda letter: letter not in ".[", path.removeprefix(within)))
            for path in rows
            if path.startswith(within)
        }
        for key, item in value.items():
            name = key if key in known else _ANY_NAME
            if name in known:
                yield from self._of_value(item, rows, within + name)
            else:
                yield f"{within}{key} is not documented"
        for name in known - value.keys() - {_ANY_NAME}:
            if _ABSENT not in rows[within + name].kinds:
                yield f"{within}{name} is absent"
            self.seen[rows[within + name]].add(_ABSENT)

    def _of_value(self, value: Any, rows: Rows, path: str) -> Iterator[str]:
        # Items are objects where no row says otherwise.
        kinds = rows[path].kinds if path in rows else ("object",)
        kind = next((kind for kind in kinds if _is_of(value, kind)), None)
        if kind is None:
            yield f"{path} is {value!r:.80}, which is not {' or '.join(kinds)}"
            return
        if path in rows:
            self.seen[rows[path]].add(kind)
        if kind == "object":
            yield from self._of_object(value, rows, f"{path}.")
        elif kind == "list":
            for item in value:
                yield from self._of_value(item, rows, f"{path}[]")
        elif (linked := kind.removeprefix(_LIST_OF)).startswith("#"):
            for item in value if kind.startswith(_LIST_OF) else [value]:
                part = self._of_object(item, self.rows_of(linked[1:]))
                yield from (f"{path}: {found}" for found in part)


def _row(section: str, line: str) -> Row:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == 4, line
    kinds = tuple(_LINK.sub(r"#\1", kind) for kind in cells[1].split(" or "))
    return Row(section, cells[0].strip("`"), kinds, cells[2], cells[3])


def is_known(kind: str, document: Document) -> bool:
    """Tell whether a type is one, with a section where it is a link."""
    plain = kind.removeprefix(_LIST_OF)
    return plain in {*_PLAIN, _ABSENT} or plain.removeprefix("#") in document.sections


def _is_of(value: Any, kind: str) -> bool:
    if kind.startswith(_LIST_OF):
        inner = kind.removeprefix(_LIST_OF)
        return isinstance(value, list) and all(_is_of(item, inner) for item in value)
    return _PLAIN["object" if kind.startswith("#") else kind](value) if kind != _ABSENT else False
