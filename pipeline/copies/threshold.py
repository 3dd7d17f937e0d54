"""From which similarity images are nearly the same, as results and records say it."""

from dataclasses import dataclass, field
from typing import Final

from pipeline.files.typed_record import Record, lenient

# Ways to search.
EXACT: Final = "exact"
APPROXIMATE: Final = "approximate"


@dataclass(frozen=True, kw_only=True)
class Threshold(Record):
    """From which similarity images are nearly the same.

    Attributes:
        similarity: Cosine from which a pair is.
        candidates: Cosine from which the pixels of a pair were compared.
        median: The median cosine of an image and its nearest other one; None where not looked at.
        spread: Robust standard deviation of the logarithm of that distance.
        chosen: Whether the data said it, rather than a person.
        compared_by: ``features``, or ``features and pixels``.
        pixels: Correlation of pixels from which a candidate is; None where they were not compared.
        search: ``exact``, or ``approximate``.
        recall: Share of all such pairs that an approximate search finds, measured on some images;
            None where too few of these have any, and of an exact search, which finds all.
    """

    similarity: float
    candidates: float
    median: float | None
    spread: float | None
    chosen: bool
    compared_by: str
    pixels: float | None
    search: str = field(metadata=lenient(EXACT))
    recall: float | None = field(metadata=lenient(None))

    def __str__(self) -> str:
        pixels = f", or {self.candidates:g} where pixels agree" if self.pixels is not None else ""
        rule = "chosen from this data" if self.chosen else "as given by --threshold"
        return f"similarity {self.similarity:g} or above{pixels}, {rule}{self._found()}"

    def _found(self) -> str:
        """Return what an approximate search is known to find; nothing of an exact one."""
        if self.search == EXACT:
            return ""
        if self.recall is None:
            return "; the search is approximate, what share of such pairs it finds is not measured"
        return (
            f"; the search is approximate, it finds about {100 * self.recall:.1f} % of such pairs"
        )
