"""The ``sweep`` command: many heads and settings on stored features, the best of each kept.

A head that the run already holds is kept; one that was tried with other settings is refused.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.config.options import CommonOptions, SweepOptions
from pipeline.config.spreading import RAY
from pipeline.dataset.features import SplitFeatures
from pipeline.errors import unknown_name
from pipeline.heads import HEADS, is_known
from pipeline.runs.leaderboard import result_of
from pipeline.runs.lock import reserved
from pipeline.runs.record import HeadRecord
from pipeline.runs.run import FittedHead, Run
from pipeline.runs.scoring import parameters, plain, score_head
from pipeline.system import cluster
from pipeline.system.progress import Bar, Reporter, saying_warnings
from pipeline.system.wording import counted
from pipeline.train import on_ray
from pipeline.train.logs import log_features, log_heads
from pipeline.train.prepare import (
    check_first,
    create_heads,
    left_to_fit,
    note_rows,
    open_run,
    prepare_data,
    run_path,
)
from pipeline.train.search import Setting, SweepResult, Trial, lead, sweep_head
from pipeline.train.sweep_grids import Grid, grid_of, settings_of

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


def sweep(
    options: SweepOptions,
    common: CommonOptions,
    reporter: Reporter,
    tables: Mapping[str, Mapping[str, Any]],
) -> dict[str, object]:
    """Try every setting of every head; the result has the keys of ``train-head`` and more.

    ``trials`` lists what was tried by head, ``lead`` how far the best head leads the next.

    Args:
        options: What to try on what.
        common: ``force`` replaces an existing run.
        reporter: Where notes and progress go.
        tables: ``heads`` (fixed parameters) and ``grids`` (what to try) of the configuration.
    """
    cluster.require_executor(options.executor, address=options.address)
    path = run_path(options, "-sweep")
    check_first(options, options.head, path)
    bases = create_heads(options.head, tables.get("heads", {}), seed=options.seed)
    grids = {name: grid_of(name, options.grid, _known(tables.get("grids", {}))) for name in bases}
    settings = {
        name: _complete(base, settings_of(name, grids[name], base.get_params(deep=False)))
        for name, base in bases.items()
    }
    with reserved(path, "sweep", wait=options.wait, reporter=reporter), saying_warnings(reporter):
        left = left_to_fit(bases, path, force=common.force)
        tried = {name: len(settings[name]) for name in left}
        prepared = prepare_data(options, left, reporter, settings=tried, folds=options.folds)
        run = open_run(prepared, path, force=common.force, reporter=reporter)
        note_rows(prepared.examples, reporter)
        asked = {
            name: {**parameters(base), "sweep": plain(grids[name])} for name, base in bases.items()
        }
        todo = [name for name in bases if not run.has_head(name, asked[name])]
        for name in bases:
            if name not in todo:
                reporter.say(f"{name}: already in {run.path}, kept")
        with reporter.bar(sum(len(settings[name]) for name in todo), "fit") as bar:
            chosen = {name: bases[name] for name in todo}
            for name, swept in _swept(chosen, settings, prepared.data, options, bar):
                _say(swept, reporter)
                run.add_head(name, _scored(swept, prepared.data, options, asked[name]))
                run.say_notes(name, reporter)
                log_heads(run, options)
        # A cluster gives them as they are done.
        run.record = run.record.with_heads(_in_order(run.record.heads, todo))
        found = lead(run.record.heads) or _known_lead(run)
        run.record = replace(run.record.naming("lead"), lead=found)
        run.write_predictions()
        run.save_record()
        log_heads(run, options)
        log_features(run, prepared.data, options, reporter)
        return {**result_of(run), "trials": _trials(run), "lead": found}


def _swept(
    bases: Mapping[str, "Head"],
    settings: Mapping[str, Sequence[Setting]],
    data: SplitFeatures,
    options: SweepOptions,
    bar: Bar,
) -> Iterator[tuple[str, SweepResult]]:
    """Yield what was found of each head, as it is found."""
    if options.executor == RAY and bases:
        found = on_ray.sweep_heads(
            bases, settings, data, folds=options.folds, address=options.address
        )
        for name, swept in found:
            for _ in settings[name]:
                bar.advance(**_shown_best(swept.best))
            yield name, swept
        return
    for name, base in bases.items():
        yield name, sweep_head(
            name, base, settings[name], data, folds=options.folds,
            progress=lambda best: bar.advance(**_shown_best(best)),
        )  # fmt: skip


def _in_order(found: Mapping[str, HeadRecord], asked: Iterable[str]) -> dict[str, HeadRecord]:
    """Return heads with those that were asked for in that order, after the others."""
    last = list(asked)
    first = [name for name in found if name not in last]
    return {name: found[name] for name in (*first, *last)}


def _known_lead(run: Run) -> Mapping[str, object] | None:
    """Return the lead that an older release recorded, in which two heads were compared alone."""
    known: Mapping[str, Any] | None = run.record.lead
    if known is None or "is_real" in known:
        return known
    low, high = interval = known["difference_ci95"]
    is_real = not low <= 0 <= high
    return {**known, "simultaneous_ci95": interval, "comparisons": 1, "is_real": is_real}


def _complete(base: "Head", settings: list[dict[str, object]]) -> list[dict[str, object]]:
    """Add what a setting leaves out of the parameters of a head by dotted name, as its seed."""
    own = base.get_params(deep=False).get("params") or {}
    found = []
    for setting in settings:
        given = setting.get("params")
        if isinstance(given, Mapping):
            found.append({**setting, "params": {**own, **given}})
        else:
            found.append(setting)
    return found


def _known(grids: Mapping[str, Grid]) -> Mapping[str, Grid]:
    for name in grids:
        if not is_known(name):
            raise unknown_name("head", name, HEADS, where="[grids]")
    return grids


def _scored(
    swept: SweepResult, data: SplitFeatures, options: SweepOptions, asked: Mapping[str, object]
) -> FittedHead:
    fitted = score_head(swept.chosen, data, refit=options.refit, reject_below=options.reject_below)
    has_val = bool(len(data.part("val")[1]))
    record = replace(
        fitted.record,
        params=asked,
        selected=plain(swept.best.setting),
        selected_on="val" if has_val else f"{options.folds} folds of train",
        notes=list(dict.fromkeys((*swept.notes, *fitted.record.notes))),
        choice=swept.best.choice(),
        trials=[trial.record() for trial in swept.trials],
    )
    return replace(fitted, record=record)


def _say(swept: SweepResult, reporter: Reporter) -> None:
    best = swept.best
    own = {"grid": getattr(swept.chosen.head, "strength", "grid")}
    setting = ", ".join(
        f"{own.get(name, name)} {_shown(value)}" for name, value in best.setting.items()
    )
    reporter.say(
        f"{best.head}: {counted(len(swept.trials), 'setting')} in {swept.chosen.seconds:.1f} s; "
        f"best {setting or 'as it is'}: accuracy {best.accuracy:.3f}, log loss {best.log_loss:.3f}"
    )


def _shown_best(best: Trial | None) -> dict[str, object]:
    return {} if best is None else {"best": f"{best.head} {best.accuracy:.3f}"}


def _shown(value: object) -> str:
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trials(run: Run) -> dict[str, object]:
    return {name: record.trials or [] for name, record in run.record.heads.items()}
