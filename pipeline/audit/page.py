"""The page of an audit: what it found, with pictures, in one file that opens by double click."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Final

from pipeline.audit import scale
from pipeline.audit.answer import answer, conflicting
from pipeline.audit.findings import Findings, Group, Issue, LabelError, Outlier
from pipeline.audit.listing import Listing
from pipeline.pages import charts, frame
from pipeline.pages.facts import command_of, skipped_files, versions_of
from pipeline.pages.thumbnails import pictures
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system.provenance import provenance

_FOLDER: Final = Path(__file__).parent / "templates"
# Of all pictures: side in pixels, and bytes of all together.
_SIDE: Final = 176
_BUDGET: Final = 8_000_000
# Of each section, what there is room for: groups and their images, errors, files.
_GROUPS: Final = 48
_MEMBERS: Final = 6
_ERRORS: Final = 240
_OUTLIERS: Final = 48
_FAULTS: Final = 12
# Classes that are listed from either end.
_CLASSES: Final = 30
# Files, and bytes of what is said of them, up to which the page can hand out a manifest.
_ROWS: Final = 20_000
_ROW_BYTES: Final = 4_000_000


@dataclass(frozen=True)
class Audited:
    """What an audit looked at, and what it found.

    Attributes:
        findings: What it found.
        listing: The images.
        store: Their store.
        run: The run whose labels and splits were taken; None without.
        csv: The table to edit.
        relabelled: The labels in it that differ from those of the listing, by path.
    """

    findings: Findings
    listing: Listing
    store: Store
    run: Run | None
    csv: Path
    relabelled: Mapping[str, str]

    @property
    def best(self) -> str | None:
        """The head that the run chose; None without a run."""
        return self.run.record.best if self.run else None


def write(path: Path, audited: Audited) -> None:
    """Write the page."""
    frame.write(path, frame.render(_FOLDER, "audit.html", _context(audited)))


@dataclass(frozen=True)
class Card:
    """A group of copies, and the numbers of those of its files that are shown."""

    group: Group
    members: Sequence[int]

    @classmethod
    def of(cls, group: Group) -> "Card":
        """Choose the files: those of different labels and splits first."""
        first_of: dict[tuple[str, str], int] = {}
        for number, kind in enumerate(zip(group.labels, group.splits, strict=True)):
            first_of.setdefault(kind, number)
        order = dict.fromkeys([*first_of.values(), *range(len(group.paths))])
        return cls(group, sorted(list(order)[:_MEMBERS]))


@dataclass(frozen=True)
class Shown:
    """Of each section, what there is room for."""

    leaks: Sequence[Card]
    conflicts: Sequence[Card]
    others: Sequence[Card]
    errors: Sequence[LabelError]
    outliers: Sequence[Outlier]
    faults: Mapping[str, Sequence[Issue]]

    @classmethod
    def of(cls, findings: Findings) -> "Shown":
        """Choose."""
        conflicts = conflicting(findings)
        others = _others(findings, conflicts)
        faults = groupby(findings.issues, key=lambda issue: issue.issue)
        return cls(
            leaks=[Card.of(leak) for leak in findings.leaks[:_GROUPS]],
            conflicts=[Card.of(group) for group in conflicts[:_GROUPS]],
            others=[Card.of(group) for group in others[:_GROUPS]],
            errors=findings.label_errors.errors[:_ERRORS],
            outliers=findings.outliers[:_OUTLIERS],
            faults={name: list(issues)[:_FAULTS] for name, issues in faults},
        )

    def paths(self) -> list[str]:
        """Return the files that are shown, each once."""
        return list(dict.fromkeys(self._paths()))

    def _paths(self) -> Iterator[str]:
        for card in chain(self.leaks, self.conflicts, self.others):
            yield from (card.group.paths[number] for number in card.members)
        for error in self.errors:
            yield error.path
        for outlier in self.outliers:
            yield outlier.path
        for issue in chain.from_iterable(self.faults.values()):
            yield issue.path


def _others(findings: Findings, conflicts: Sequence[Group]) -> list[Group]:
    """Return the groups that are not among those under several labels; chains come last."""
    known = {tuple(group.paths) for group in conflicts}
    others = [group for group in findings.near_duplicates if tuple(group.paths) not in known]
    return sorted(others, key=lambda group: group.is_chain)


def _context(audited: Audited) -> dict[str, Any]:
    """Return what the template shows."""
    findings, manifest = audited.findings, audited.listing.manifest
    shown = Shown.of(findings)
    row_of = {path: row for row, path in enumerate(manifest.paths)}
    rows = [row_of[path] for path in shown.paths()]
    made = pictures(manifest, rows, side=_SIDE, budget=_BUDGET)
    numbers = {manifest.paths[row]: place for place, row in enumerate(made.uris)}
    names = sorted({name for error in shown.errors for name in (error.given, error.proposed)})
    table = _table(audited)
    return {
        "findings": findings,
        "notes": {name: _sentence(note) for name, note in findings.notes.items()},
        "answer": answer(findings, audited.best, str(audited.csv)),
        "shown": shown,
        "totals": _totals(findings),
        "pictures": numbers,
        "numbers": {name: place for place, name in enumerate(names)},
        "row_of": row_of,
        "labels": audited.relabelled,
        "has_table": table is not None,
        "csv": str(audited.csv),
        "scale": scale.drawn(findings.threshold, findings.near_duplicates),
        "classes": _classes(findings),
        "missing": made.missing,
        "skipped": skipped_files(audited.listing.skipped),
        "making": _making(audited),
        "charts": charts.embed({}),
        "data": {"pictures": list(made.uris.values()), "classes": names, "table": table},
    }


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _totals(findings: Findings) -> dict[str, Any]:
    """Return how many there are of what is shown in part."""
    conflicts = conflicting(findings)
    return {
        "conflicts": len(conflicts),
        "others": len(_others(findings, conflicts)),
        "leaks": dict(Counter(leak.splits[0] for leak in findings.leaks)),
        "faults": Counter(issue.issue for issue in findings.issues),
    }


def _classes(findings: Findings) -> dict[str, Any]:
    """Return ``rows`` of ``name``, ``count`` and ``share`` of the largest class; ``left_out``."""
    counts = sorted(findings.classes.items(), key=lambda item: (-item[1], item[0]))
    left_out = max(0, len(counts) - 2 * _CLASSES)
    listed = counts[:_CLASSES] + counts[max(_CLASSES, len(counts) - _CLASSES) :]
    rows = [{"name": name, "count": count, "share": count / counts[0][1]} for name, count in listed]
    return {"rows": rows, "left_out": left_out}


def _table(audited: Audited) -> dict[str, Any] | None:
    """Return the rows of the table to edit, a list for each column; None where they are too many.

    Labels are numbers in ``labels``.
    """
    manifest = audited.listing.manifest
    if len(manifest) > _ROWS:
        return None
    labels = [
        audited.relabelled.get(path, label)
        for path, label in zip(manifest.paths, manifest.labels, strict=True)
    ]
    names = sorted(set(labels))
    number = {name: place for place, name in enumerate(names)}
    table = {
        "labels": names,
        "path": list(manifest.paths),
        "label": [number[label] for label in labels],
        "split": list(manifest.splits),
        "key": [key.decode() for key in manifest.keys.tolist()],
        "group": list(manifest.groups),
    }
    return table if len(json.dumps(table)) <= _ROW_BYTES else None


def _making(audited: Audited) -> dict[str, Any]:
    """Return what reproduces an audit."""
    now = provenance()
    made = [audited.store.record.provenance.other]
    if audited.run is not None:
        made.append(audited.run.record.provenance)
    commands = [command_of(record) for record in (*made, now)]
    return {
        "commands": [command for command in commands if command],
        "identity": audited.store.identity.as_json(),
        "versions": versions_of(now),
    }
