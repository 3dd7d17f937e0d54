"""The ``audit`` command: looks at stored features, labels and files, and says what is wrong."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pipeline.audit import page
from pipeline.audit.confounders import find_confounders
from pipeline.audit.findings import Findings, Group, HeadScores
from pipeline.audit.groups import equal_files, near_groups
from pipeline.audit.label_errors import find_label_errors, foreseen
from pipeline.audit.leaks import find_leaks, scores_without
from pipeline.audit.listing import Listing, read_listing
from pipeline.audit.outliers import find_outliers
from pipeline.audit.page import Audited
from pipeline.audit.proposals import likely_labels, write_proposals
from pipeline.audit.quality import find_issues
from pipeline.config.auditing import AuditOptions
from pipeline.config.options import CommonOptions
from pipeline.copies.photos import Photos, read_photos
from pipeline.copies.search import search
from pipeline.copies.threshold import Threshold
from pipeline.errors import RunError
from pipeline.files import outputs
from pipeline.files.location import local, locate, name_of
from pipeline.pages import frame
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system.progress import Reporter, say_notes
from pipeline.system.wording import counted

CSV = "audit.csv"
HTML = "audit.html"


def audit(
    options: AuditOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, object]:
    """Audit a store; write ``audit.csv``, and ``audit.html`` where pages can be made.

    See docs/json.md for the keys of the result.
    """
    folder = Path(options.out or Path("audits") / name_of(options.store))
    csv, html = folder / CSV, folder / HTML
    Store.unchecked(locate(options.store))
    outputs.require_new_files("--out", (csv, html), reporter, force=common.force)
    run = Run.open(Path(options.run)) if options.run else None
    store = Store.open(locate(options.store))
    manifest = local("--manifest", options.manifest) if options.manifest else None
    listing = read_listing(store, manifest, run, reporter)
    findings = find(listing, options, run, reporter)
    relabelled = likely_labels(findings) if options.relabel else {}
    write_proposals(csv, listing.manifest, findings, relabelled)
    if "html" in findings.notes:
        html.unlink(missing_ok=True)  # of an earlier audit, which this one replaces
    else:
        page.write(html, Audited(findings, listing, store, run, csv, relabelled))
    return {
        **findings.as_json(),
        "csv": str(csv),
        "html": None if "html" in findings.notes else str(html),
        "relabelled": len(relabelled),
        "seconds": round(time.monotonic() - started, 3),
    }


def find(listing: Listing, options: AuditOptions, run: Run | None, reporter: Reporter) -> Findings:
    """Look for everything; each section that has nothing to say says why."""
    notes = {"html": _no_page()}
    # Before what takes long, as far as it can be known.
    say_notes(reporter, filter(None, (notes["html"], foreseen(listing))))
    photos = read_photos(listing, reporter)
    if photos.missing:
        notes["quality"] = _missing(listing, photos)
    given = options.threshold or None
    found = search(listing, photos, reporter, given=given, known=taken(run))
    leaks, near = find_leaks(listing, found), near_groups(listing, found)
    # Edges are let go of: heads need the memory.
    found = replace(found, units=listing.units)
    if not listing.splits_of:
        notes["leaks"] = "the manifest declares no splits: give a run, by --run"
    scores, notes["scores"] = _scores(run, leaks)
    errors, notes["label_errors"] = find_label_errors(listing, found, reporter)
    confounders, notes["confounders"] = find_confounders(listing, photos)
    if photos.missing:
        notes["confounders"] = notes["confounders"] or notes["quality"]
    counts = Counter(label for label in listing.manifest.labels if label)
    return Findings(
        store=options.store,
        run=options.run,
        images=len(listing.manifest),
        distinct=len(listing),
        unlabelled=sum(not label for label in listing.manifest.labels),
        classes=dict(sorted(counts.items())),
        imbalance=max(counts.values()) / min(counts.values()) if counts else None,
        threshold=found.threshold,
        copies=equal_files(listing),
        near_duplicates=near,
        leaks=leaks,
        scores=scores,
        label_errors=errors,
        outliers=find_outliers(listing, reporter),
        issues=find_issues(listing, photos),
        confounders=confounders,
        notes={name: note for name, note in notes.items() if note},
    )


def taken(run: Run | None) -> Threshold | None:
    """Return what a leak-free run took for the same, so that this audit takes it too."""
    merged = run.record.source.near_duplicates if run is not None else None
    return merged.threshold if merged is not None else None


def _no_page() -> str:
    """Return why no page can be made; empty where one can."""
    name = frame.missing()
    return f"{HTML} needs {name}, which is not installed: {frame.PIP_LINE}" if name else ""


def _missing(listing: Listing, photos: Photos) -> str:
    said = (
        f"{counted(photos.missing, 'image file')} of {len(listing):,} "
        f"{'is' if photos.missing == 1 else 'are'} not at {str(listing.manifest.root)!r}, or "
        "changed since extract: copies are compared by features alone"
    )
    if photos.unseen:
        said += (
            f"; not at hand when features were imported: {photos.unseen:,} (import-features "
            "--data says where images are)"
        )
    if photos.lost:
        said += f"; images at addresses are no longer asked for: {photos.lost.rstrip('.')}"
    return said


def _scores(run: Run | None, leaks: list[Group]) -> tuple[dict[str, HeadScores], str]:
    """Return the scores of the heads of a run without leaked images, or why there are none."""
    if run is None:
        return {}, "give a run, by --run, to see its heads' scores without leaked test images"
    if not run.record.split.test:
        return {}, "the run has no test images"
    try:
        return scores_without(run, leaks), ""
    except RunError as error:
        return {}, str(error)
