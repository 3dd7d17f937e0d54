"""The ``suggest`` command: says which unlabelled images to label next, from stored features."""

import time
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.config.options import CommonOptions
from pipeline.config.suggesting import SuggestOptions
from pipeline.errors import RunError
from pipeline.files import outputs
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.suggest import choosing, judging
from pipeline.suggest.judging import Judgement
from pipeline.suggest.pool import Pool, read_pool
from pipeline.suggest.suggestions import Suggestion, Suggestions, write_table
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

CSV = "suggest.csv"


def suggest(
    options: SuggestOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, object]:
    """Choose images and write ``suggest.csv``; see docs/json.md for the keys of the result."""
    path = Path(options.out or Path("suggestions") / Path(options.store).resolve().name / CSV)
    if options.run is None:
        judging.require_head(options.head or judging.DEFAULT)
    Store.unchecked(Path(options.store))
    outputs.require_new_file("--out", path, reporter, force=common.force)
    run = Run.open(Path(options.run)) if options.run else None
    store = Store.open(Path(options.store))
    if run is not None:
        _require_same_features(run, store)
    manifest = Path(options.manifest) if options.manifest else None
    pool = read_pool(store, manifest, run)
    found = find(pool, options, store, run, reporter)
    for note in found.notes:
        reporter.say(f"Note: {note}")
    write_table(path, pool.images.manifest, found)
    return {
        **found.as_json(),
        "csv": str(path),
        "seconds": round(time.monotonic() - started, 3),
    }


def find(
    pool: Pool, options: SuggestOptions, store: Store, run: Run | None, reporter: Reporter
) -> Suggestions:
    """Ask a head, where there is one, and choose."""
    judgement = _judgement(pool, options, store, run, reporter)
    count = min(options.n, len(pool.candidates))
    counts = Counter(pool.names[number] for number in pool.y.tolist())
    return Suggestions(
        store=options.store,
        run=options.run,
        head=judgement.head if judgement else None,
        accuracy=judgement.accuracy if judgement else None,
        images=len(pool.images),
        labelled=len(pool.labelled),
        unlabelled=len(pool.candidates),
        held_out=pool.held_out,
        classes=dict(sorted(counts.items())),
        suggestions=_chosen(pool, judgement, count),
        # Chosen images are hard ones: in val and test they would say less of other images.
        split="train" if len(pool.labelled) else "",
        notes=_notes(pool, judgement, options.n),
    )


def _judgement(
    pool: Pool, options: SuggestOptions, store: Store, run: Run | None, reporter: Reporter
) -> Judgement | None:
    """Return what a head says of the candidates; None where there is nothing to fit one on."""
    if run is not None:
        return judging.of_run(pool, store, run, options.head)
    if len(pool.names) < 2:
        return None
    name = options.head or judging.DEFAULT
    reporter.say(f"Fitting {name} on {counted(len(pool.labelled), 'labelled image')}")
    return judging.of_labelled(pool, name)


def _chosen(pool: Pool, judgement: Judgement | None, count: int) -> list[Suggestion]:
    units, candidates, labelled = pool.images.units, pool.candidates, pool.labelled
    if judgement is None:
        return [
            Suggestion(path=pool.images.path(image), proposed=None, probability=None,
                       uncertainty=None)
            for image in choosing.choose_typical(units, candidates, labelled, count).tolist()
        ]  # fmt: skip
    uncertainty = choosing.uncertainties(judgement.probabilities)
    chosen = choosing.choose(units, candidates, uncertainty, count)
    best = judgement.probabilities.argmax(axis=1)
    return [
        Suggestion(
            path=pool.images.path(int(candidates[place])),
            proposed=judgement.names[best[place]],
            probability=float(judgement.probabilities[place, best[place]]),
            uncertainty=float(uncertainty[place]),
        )
        for place in np.searchsorted(candidates, chosen).tolist()
    ]


def _notes(pool: Pool, judgement: Judgement | None, asked: int) -> list[str]:
    notes = []
    if judgement is None:
        known = "no image has a label" if not pool.names else "all labels are of one class"
        notes.append(
            f"{known}, so no head can be unsure: suggested are the most typical images of clusters"
        )
    if asked > len(pool.candidates):
        notes.append(
            f"{asked:,} were asked for; there are {len(pool.candidates):,} without a label, and "
            "all are listed"
        )
    if pool.held_out:
        notes.append(
            f"{counted(pool.held_out, 'image')} without a label declared val or test: never "
            "suggested, as scores on chosen images are not those of others"
        )
    return notes


def _require_same_features(run: Run, store: Store) -> None:
    if run.inputs.identity != store.identity:
        raise RunError(
            f"Expected a run on the features of {str(store.path)!r}. Received: "
            f"{str(run.path)!r}, whose features were made in another way.",
            hint="Give the store that the run was trained on.",
        )
