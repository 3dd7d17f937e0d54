"""The table that ``predict --csv`` writes: its columns, and a row for every file."""

from collections.abc import Iterator, Sequence
from typing import Final

from pipeline.images.manifest import OK
from pipeline.serving.classifier import Prediction, Predictions

# Columns of each class that is listed.
_PLACE: Final = ("label", "probability")


def rows(files: Sequence[str], found: Predictions) -> Iterator[list[str]]:
    """Yield the rows: the header, then one for each file, in the order given.

    ``path,label,probability``, then ``label_2,probability_2`` and so on, then ``status``: ``ok``,
    or the reason why there is nothing in the other columns.
    """
    width = len(found.predictions[0].top)
    header = [f"{name}_{place}" for place in range(1, width + 1) for name in _PLACE]
    header[: len(_PLACE)] = _PLACE
    good = {item.path: item for item in found.predictions}
    bad = {item["path"]: item["reason"] for item in found.errors}
    yield ["path", *header, "status"]
    for name in files:
        if name in good:
            yield [name, *_cells(good[name]), OK]
        else:
            yield [name, *[""] * len(header), bad[name]]


def _cells(item: Prediction) -> list[str]:
    """Return labels and probabilities, highest first; the first label may be withheld."""
    row = [item.label, f"{item.probability:.6f}"]
    for name, value in item.top[1:]:
        row += [name, f"{value:.6f}"]
    return row
