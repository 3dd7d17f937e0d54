"""The table to edit and give back: a manifest with what was found of each file beside it.

``train-head --manifest`` takes it as it is; it passes over the columns that it does not know.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.audit.findings import Findings
from pipeline.files.atomic import write_atomically
from pipeline.files.table import write_csv
from pipeline.images.manifest import Manifest, cells

_FOUND = ("proposed", "score", "found")


def likely_labels(findings: Findings) -> dict[str, str]:
    """Return the proposed label of each file whose own is likely wrong."""
    return {error.path: error.proposed for error in findings.label_errors.errors if error.is_likely}


def write_proposals(
    path: Path, manifest: Manifest, findings: Findings, changed: Mapping[str, str]
) -> None:
    """Write the table, atomically; rows with a finding come first.

    Args:
        path: Where.
        manifest: The files that were audited.
        findings: What was found.
        changed: Labels that differ from those of the manifest, by path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, lambda temporary: write_csv(temporary, _rows(manifest, findings, changed))
    )


def _rows(
    manifest: Manifest, findings: Findings, changed: Mapping[str, str]
) -> Iterator[Sequence[str]]:
    yield (*manifest.columns, *_FOUND)
    errors = {error.path: error for error in findings.label_errors.errors}
    found = _found(findings)
    order = sorted(
        range(len(manifest)),
        key=lambda row: (
            not found[manifest.paths[row]],
            errors[manifest.paths[row]].score if manifest.paths[row] in errors else 2.0,
            row,
        ),
    )
    for row in order:
        path = manifest.paths[row]
        error = errors.get(path)
        yield (
            *cells(manifest, row, label=changed.get(path, manifest.labels[row])),
            error.proposed if error else "",
            f"{error.score:.6f}" if error else "",
            "; ".join(found[path]),
        )


def _found(findings: Findings) -> "defaultdict[str, list[str]]":
    """Return what was found of each file, in words."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for error in findings.label_errors.errors:
        if error.is_likely:
            found[error.path].append("label error")
    for number, group in enumerate(findings.near_duplicates, start=1):
        for path in group.paths:
            found[path].append(f"copies {number}")
    for leak in findings.leaks:
        found[leak.paths[0]].append(f"leak of {leak.paths[1]}")
    for outlier in findings.outliers:
        found[outlier.path].append("outlier")
    for issue in findings.issues:
        found[issue.path].append(issue.issue)
    return found
