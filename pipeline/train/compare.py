"""The ``compare`` command: a leaderboard, and on request other seeds and a learning curve.

Seeds and curve train the run's heads anew from its store, with the very parameters that the run
chose; the run itself is left as it is.
"""

from pathlib import Path

from pipeline.config.options import CompareOptions
from pipeline.errors import RunError
from pipeline.runs.leaderboard import compare as leaderboard
from pipeline.runs.run import Run
from pipeline.system.progress import Reporter, saying_warnings
from pipeline.train.retraining import CURVE_SHARES, Retraining, by_number, by_seed


def compare(options: CompareOptions, reporter: Reporter) -> dict[str, object]:
    """Return the leaderboard; ``seeds`` and ``curve`` hold rows where they were asked for.

    Of several places, those that are no run, or hold no finished head, are left out and said in
    ``left_out``.

    Raises:
        RunError: A run cannot be compared, or its store is gone or has changed.
    """
    runs, left_out = _opened(options)
    result = leaderboard(runs)
    trainings = [Retraining(run) for run in runs] if options.seeds > 1 or options.curve else []
    fits = sum(len(training.heads) for training in trainings)
    steps = fits * ((options.seeds if options.seeds > 1 else 0) + options.curve * len(CURVE_SHARES))
    with saying_warnings(reporter), reporter.bar(steps, "fit") as bar:
        seeds = [
            row for training in trainings for row in by_seed(training, options.seeds, bar.advance)
        ]
        curve = [
            row
            for training in trainings
            if options.curve
            for row in by_number(training, bar.advance)
        ]
    return {
        **result,
        "seeds": seeds,
        "curve": curve,
        "left_out": left_out,
        "skipped": len(left_out),
    }


def _opened(options: CompareOptions) -> tuple[list[Run], list[dict[str, str]]]:
    """Return the runs, each once, and what was given beside them, with the reason.

    Raises:
        RunError: None is left.
    """
    paths = list(dict.fromkeys(options.runs))
    if len(paths) == 1:
        return [Run.open(Path(paths[0])).at(store=options.store)], []
    runs: list[Run] = []
    left_out: list[dict[str, str]] = []
    for path in paths:
        run = Run.open(Path(path)).at(store=options.store) if Run.exists(Path(path)) else None
        if run is not None and run.record.heads:
            runs.append(run)
        else:
            left_out.append({"run": path, "reason": "no finished head" if run else "no run"})
    if not runs:
        reasons = ", ".join(f"{item['run']!r} ({item['reason']})" for item in left_out)
        raise RunError(
            f"Expected a run with finished heads. Received: {reasons}.",
            hint="Make one with pipeline train-head --store STORE --run RUN.",
        )
    return runs, left_out
