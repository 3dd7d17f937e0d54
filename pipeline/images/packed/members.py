"""The names of the members of a packed file, in a sixth of the memory that a dict takes."""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import numpy as np

from pipeline.errors import mention

_ODD_STARTS: Final = ("", "/", ".")
# Characters of a path, as far as systems take them.
_LONGEST: Final = 4096
# What is said of names that are no paths here, and how much of each is shown.
NO_PATHS: Final = "names that point elsewhere or are too long"
SHOWN: Final = 100


class Members:
    """Names by number, in stored order, in which one is found at once; a name may stand twice."""

    def __init__(self, names: Sequence[str]) -> None:
        """Index names, none of which holds a zero."""
        self._text = "\0".join(names).encode("utf-8", "surrogateescape")
        zeros = np.flatnonzero(np.frombuffer(self._text, dtype=np.uint8) == 0)
        self._ends = array("q", [*zeros.tolist(), len(self._text)] if len(names) else [])
        hashes = np.fromiter(map(hash, names), dtype=np.int64, count=len(names))
        order = np.argsort(hashes, kind="stable")
        self._hashes = array("q", hashes[order].tobytes())
        self._order = array("q", order.astype(np.int64).tobytes())
        self.repeated = self._repeated()

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.find(name))

    @property
    def names(self) -> list[str]:
        """Every name once, where it stands first."""
        return list(dict.fromkeys(self.all)) if self.repeated else self.all

    @property
    def all(self) -> list[str]:
        """The name of every member."""
        return self._text.decode("utf-8", "surrogateescape").split("\0") if len(self) else []

    def find(self, name: str) -> list[int]:
        """Return the numbers of the members of a name, in stored order."""
        wanted, place = hash(name), bisect_left(self._hashes, hash(name))
        found = []
        while place < len(self._hashes) and self._hashes[place] == wanted:
            if self._name(self._order[place]) == name:
                found.append(self._order[place])
            place += 1
        return found

    def note(self) -> list[str]:
        """Return what to say of names that stand twice."""
        if not self.repeated:
            return []
        return [
            f"names that several members have, {len(self.repeated):,}: {mention(self.repeated)}; "
            "they count once, and are bad where their bytes differ"
        ]

    def _name(self, number: int) -> str:
        start = self._ends[number - 1] + 1 if number else 0
        return self._text[start : self._ends[number]].decode("utf-8", "surrogateescape")

    def _repeated(self) -> list[str]:
        """Return the names that stand more than once, sorted."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        again = np.flatnonzero(hashes[1:] == hashes[:-1])
        names = {self._name(self._order[place]) for place in again.tolist()}
        return sorted(name for name in names if len(self.find(name)) > 1)


def usable(name: str) -> str | None:
    """Return the one spelling of a member's name; None of one that names no place below.

    Without ``.`` and doubled slashes, so that a path in a manifest is always the same. One that no
    system could take would need memory by the square of its length where folders are told.
    """
    if len(name) > _LONGEST:
        return None
    if name[:1] not in _ODD_STARTS and "/." not in name and "//" not in name:
        return name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or not parts else "/".join(parts)
