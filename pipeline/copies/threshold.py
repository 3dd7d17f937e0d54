"""From which similarity images are nearly the same, as results and records say it."""

from dataclasses import dataclass

from pipeline.files.typed_record import Record


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
        recall: Share of all candidates that was found, measured on some images; None where the
            search is exact.
    """

    similarity: float
    candidates: float
    median: float | None
    spread: float | None
    chosen: bool
    compared_by: str
    pixels: float | None
    recall: float | None = None

    def __str__(self) -> str:
        pixels = f", or {self.candidates:g} where pixels agree" if self.pixels is not None else ""
        nearly = f"; about {self.recall:.1%} of them found" if self.recall is not None else ""
        return f"similarity {self.similarity:g} or above{pixels}{nearly}"
