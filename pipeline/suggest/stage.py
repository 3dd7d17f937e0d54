"""The ``suggest`` command: says which unlabelled images to label next, from stored features."""

import time
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.config.options import CommonOptions
from pipeline.config.suggesting import SuggestOptions
from pipeline.errors import ConfigError
from pipeline.files import outputs, places
from pipeline.files.location import local, locate, name_of
from pipeline.runs import folder
from pipeline.runs.backbone import require_features_of
from pipeline.runs.run import Run
from pipeline.store.store import MANIFEST, Store
from pipeline.suggest import choosing, judging
from pipeline.suggest.candidates import Candidates, read_candidates
from pipeline.suggest.judging import Judgement
from pipeline.suggest.suggestions import Suggestion, Suggestions, write_table
from pipeline.system.progress import Reporter, say_notes
from pipeline.system.wording import counted

CSV = "suggest.csv"


def suggest(
    options: SuggestOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, object]:
    """Choose images and write ``suggest.csv``; see docs/json.md for the keys of the result."""
    _require_few(options.n)
    path = Path(options.out or Path("suggestions") / name_of(options.store) / CSV)
    if options.run is None:
        judging.require_head(options.head or judging.DEFAULT)
    Store.unchecked(locate(options.store))
    _require_no_source(options, path)
    outputs.require_new_file("--out", path, reporter, force=common.force)
    run = Run.open(Path(options.run)) if options.run else None
    store = Store.open(locate(options.store))
    if run is not None:
        require_features_of(store, run)
    manifest = local("--manifest", options.manifest) if options.manifest else None
    known = read_candidates(store, manifest, run, reporter)
    found = find(known, options, store, run, reporter)
    say_notes(reporter, found.notes)
    write_table(path, known.listing, found)
    return {
        **found.as_json(),
        "csv": str(path),
        "seconds": round(time.monotonic() - started, 3),
    }


def _require_few(count: int) -> None:
    if count > choosing.MOST:
        raise ConfigError(
            f"--n: expected at most {choosing.MOST:,} images to suggest. Received: {count:,}.",
            hint="Label in rounds: what was labelled before makes the next ones better.",
        )


def _require_no_source(options: SuggestOptions, path: Path) -> None:
    """Refuse to write over a manifest that was read, also with ``--force``: labels are in it."""
    own = locate(options.store) / MANIFEST
    for source in (own, *([locate(options.manifest)] if options.manifest else [])):
        if path.resolve() == places.resolved(source):
            raise ConfigError(
                f"--out: expected another file than the manifest. Received: {str(path)!r}.",
                hint="Choose another name.",
            )


def find(
    known: Candidates, options: SuggestOptions, store: Store, run: Run | None, reporter: Reporter
) -> Suggestions:
    """Ask a head, where there is one, and choose."""
    judgement = _judgement(known, options, store, run, reporter)
    count = min(options.n, len(known.unlabelled))
    counts = Counter(known.names[number] for number in known.y.tolist())
    return Suggestions(
        store=options.store,
        run=options.run,
        head=judgement.head if judgement else None,
        accuracy=judgement.accuracy if judgement else None,
        images=len(known.images),
        labelled=len(known.labelled),
        unlabelled=len(known.unlabelled),
        held_out=known.held_out,
        classes=dict(sorted(counts.items())),
        suggestions=_chosen(known, judgement, count, reporter),
        # Chosen images are hard ones: in val and test they would say less of other images.
        split="train" if len(known.labelled) else "",
        notes=_notes(known, judgement, options.n),
        next_run=str(folder.unused(Path("runs") / name_of(options.store))),
    )


def _judgement(
    known: Candidates, options: SuggestOptions, store: Store, run: Run | None, reporter: Reporter
) -> Judgement | None:
    """Return what a head says of the candidates; None where there is nothing to fit one on."""
    if run is not None:
        return judging.of_run(known, store, run, options.head)
    if len(known.names) < 2:
        return None
    name = options.head or judging.DEFAULT
    count, most = len(known.labelled), judging.LARGEST
    part = f" {most:,} of" * (count > most)
    among = ", as many of every class as there are" * (count > most)
    reporter.say(f"Fitting {name} on{part} {counted(count, 'labelled image')}{among}")
    return judging.of_labelled(known, name)


def _chosen(
    known: Candidates, judgement: Judgement | None, count: int, reporter: Reporter
) -> list[Suggestion]:
    units, candidates, labelled = known.images.units, known.unlabelled, known.labelled
    if judgement is None:
        with reporter.bar(count, "img") as bar:
            chosen = choosing.choose_typical(units, candidates, labelled, count, bar.advance)
        return [
            Suggestion(path=known.images.path(image), proposed=None, probability=None,
                       uncertainty=None)
            for image in chosen.tolist()
        ]  # fmt: skip
    uncertainty = choosing.uncertainties(judgement.probabilities)
    with reporter.bar(count, "img") as bar:
        chosen = choosing.choose(units, candidates, uncertainty, count, bar.advance)
    best = judgement.probabilities.argmax(axis=1)
    return [
        Suggestion(
            path=known.images.path(int(candidates[place])),
            proposed=judgement.names[best[place]],
            probability=float(judgement.probabilities[place, best[place]]),
            uncertainty=float(uncertainty[place]),
        )
        for place in np.searchsorted(candidates, chosen).tolist()
    ]


def _notes(known: Candidates, judgement: Judgement | None, asked: int) -> list[str]:
    notes = []
    if judgement is None:
        labels = "no image has a label" if not known.names else "all labels are of one class"
        notes.append(
            f"{labels}, so no head can be unsure: suggested are the most typical images of clusters"
        )
    if asked > len(known.unlabelled):
        notes.append(
            f"{asked:,} were asked for; there are {len(known.unlabelled):,} without a label, and "
            "all are listed"
        )
    if known.held_out:
        notes.append(
            f"{counted(known.held_out, 'image')} without a label declared val or test: never "
            "suggested, as scores on chosen images are not those of others"
        )
    return notes
