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
    """

    similarity: float
    candidates: float
    median: float | None
    spread: float | None
    chosen: bool
    compared_by: str
    pixels: float | None

    def __str__(self) -> str:
        pixels = f", or {self.candidates:g} where pixels agree" if self.pixels is not None else ""
        return f"similarity {self.similarity:g} or above{pixels}"
