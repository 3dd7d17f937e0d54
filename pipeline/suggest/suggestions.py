"""What is suggested: one frozen record, from which JSON and the table to fill in are written.

The table is a whole manifest, with the suggested images first: ``train-head --manifest`` takes it
as it is, whether all of their labels were filled in or some.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files.atomic import write_atomically
from pipeline.files.table import write_csv
from pipeline.images.manifest import Manifest, cells

_FOUND = ("rank", "proposed", "probability", "uncertainty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """An image to label next.

    Attributes:
        path: The file; of several of one content, the first.
        proposed: The label that the head would give; None where no head was asked.
        probability: Its probability; None as well.
        uncertainty: One less the margin to the next label, from 0 to 1; None as well.
    """

    path: str
    proposed: str | None
    probability: float | None
    uncertainty: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestions:
    """What is suggested, and of what.

    Attributes:
        store: The store.
        run: The run whose head was asked; None without.
        head: The head; None where there was nothing to fit one on.
        accuracy: Its share of right answers on the labelled images, out of fold; None where that
            is not known.
        images: Different images with features.
        labelled: Those with a label.
        unlabelled: Those without one that may be suggested.
        held_out: Those without one that are declared val or test.
        classes: Labelled images of each class.
        suggestions: The images to label, the one to begin with first.
        split: The split that the table puts them in; empty for the hash rule.
        notes: What was assumed, one line each.
        next_run: Where a run of the labels may go: a place where nothing is.
    """

    store: str
    run: str | None
    head: str | None
    accuracy: float | None
    images: int
    labelled: int
    unlabelled: int
    held_out: int
    classes: Mapping[str, int]
    suggestions: Sequence[Suggestion]
    split: str
    notes: Sequence[str]
    next_run: str

    def as_json(self) -> dict[str, object]:
        """Return what ``--json`` prints of it; see docs/json.md."""
        return asdict(self)


def write_table(path: Path, manifest: Manifest, found: Suggestions) -> None:
    """Write the manifest with the suggested images first, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: write_csv(temporary, _rows(manifest, found)))


def _rows(manifest: Manifest, found: Suggestions) -> Iterator[Sequence[str]]:
    yield (*manifest.columns, *_FOUND)
    row_of = {path: row for row, path in enumerate(manifest.paths)}
    first = [row_of.pop(item.path) for item in found.suggestions]
    for rank, (row, item) in enumerate(zip(first, found.suggestions, strict=True), start=1):
        split = manifest.splits[row] or found.split
        yield (*cells(manifest, row, split=split), str(rank), item.proposed or "",
               _spelled(item.probability), _spelled(item.uncertainty))  # fmt: skip
    for row in row_of.values():
        yield (*cells(manifest, row), "", "", "", "")


def _spelled(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
