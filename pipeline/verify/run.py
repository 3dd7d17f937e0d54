"""The check of every byte of a run or of an exported folder, and the repair of what is bad.

What a repair drops from a run is made again by the next ``train-head``, ``sweep`` or ``finetune``
into it, and nothing else is.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from pipeline.backbones import probe, weights
from pipeline.errors import EngineUnavailableError, PipelineError
from pipeline.files.atomic import exclusive
from pipeline.runs import checkpoint as finetune_checkpoint
from pipeline.runs import model_folder
from pipeline.runs.backbone import finetuned_identity
from pipeline.runs.folder import LOCK, MANIFEST, PREDICTIONS
from pipeline.runs.run import FINETUNED, Run
from pipeline.verify.problems import Problem, repaired, without

_AGAIN: Final = "Train again into the run after verify --repair, or with --force."


def verify_run(path: Path, *, repair: bool = False) -> dict[str, object]:
    """Check a run's rows, heads, probabilities and predictions.

    Args:
        path: The run.
        repair: Whether to drop what is bad.

    Returns:
        What ``verify`` returns of a store, with ``kind`` and ``heads``, how many are good.

    Raises:
        RunError: There is no run.
        StoreError: Its record is bad, or with ``repair`` another process trains into it.
    """
    busy = f"Another process trains into {str(path)!r}."
    with exclusive(path / LOCK, busy) if repair else nullcontext():
        run = Run.open(path)
        return _verify(run, repair=repair)


def verify_folder(path: Path) -> dict[str, object]:
    """Check an exported folder, its head and weights; see ``verify_run`` for what is returned."""
    problems = [
        Problem(file, message, "Export it again.") for file, message in model_folder.check(path)
    ]
    return _result("folder", problems, rows=0, good=0 if problems else 1, repair=False)


def _verify(run: Run, *, repair: bool) -> dict[str, object]:
    problems = list(_of_rows(run))
    rows = 0 if problems else len(run.manifest())
    bad = {name: found for name in run.record.heads if (found := _of_head(run, name))}
    problems += bad.values()
    problems += _of_finetuning(run)
    problems += _of_predictions(run, can_be_made=not problems)
    good = len(run.record.heads) - len(bad)
    return _result("run", problems, rows=rows, good=good, repair=repair)


def _result(
    kind: str, problems: list[Problem], *, rows: int, good: int, repair: bool
) -> dict[str, object]:
    return {
        "kind": kind,
        "ok": not problems,
        "shards": 0,
        "rows": rows,
        "heads": good,
        "problems": [problem.as_json() for problem in problems],
        "repaired": repaired(problems) if repair else [],
    }


def _of_rows(run: Run) -> Iterator[Problem]:
    path = run.path / MANIFEST
    try:
        rows = run.manifest()
        expected = run.record.split.as_json()
        counts = {name: list(rows.splits).count(name) for name in expected}
        if counts == expected:
            return
        problem = f"Expected {str(path)!r} of {expected} rows. Received: {counts}."
    except PipelineError as error:
        problem = error.message
    fix = "Delete it and train again into the run, with the same store and options."
    yield Problem(MANIFEST, problem, fix, without(path))


def _of_head(run: Run, name: str) -> Problem | None:
    where = f"heads/{name}"
    try:
        run.probabilities(name)
        if not run.record.heads[name].not_saved:
            run.load_head(name)
    except EngineUnavailableError as error:
        return Problem(where, error.message, error.hint)
    except PipelineError as error:
        return Problem(where, error.message, _AGAIN, lambda: _without_head(run, name))
    return None


def _of_finetuning(run: Run) -> Iterator[Problem]:
    folder, record = run.path / FINETUNED, run.record.finetuned()
    if FINETUNED in run.record.heads:
        path = folder / f"{record.weights_sha256}.h5"
        try:
            weights.load(path)
        except PipelineError as error:
            where = f"{FINETUNED}/{path.name}"
            yield Problem(where, error.message, _AGAIN, lambda: _without_head(run, FINETUNED))
    yield from _of_probe(run)
    checkpoint = folder / finetune_checkpoint.FILE
    if checkpoint.exists():
        try:
            finetune_checkpoint.check(checkpoint)
        except PipelineError as error:
            fix = "Delete it; finetune then begins anew."
            yield Problem(f"{FINETUNED}/{checkpoint.name}", error.message, fix, without(checkpoint))


def _of_probe(run: Run) -> Iterator[Problem]:
    """Yield what is wrong with the probe of a fine-tuned network, if anything."""
    path = run.path / FINETUNED / probe.FILE
    if FINETUNED not in run.record.heads or not path.exists():
        return
    try:
        identity = finetuned_identity(
            run.inputs.identity, str(run.record.finetuned().backbone_sha256)
        )
        probe.find(path.parent, identity)
    except PipelineError as error:
        fix = "Delete it; changes of decoder or network are then no longer noticed."
        yield Problem(f"{FINETUNED}/{path.name}", error.message, fix, without(path))


def _of_predictions(run: Run, *, can_be_made: bool) -> Iterator[Problem]:
    path = run.path / PREDICTIONS
    if not path.exists() and PREDICTIONS not in (run.record.files or {}):
        return
    try:
        run.require_file(PREDICTIONS)
    except PipelineError as error:
        mend: Callable[[], str] = without(path)
        if can_be_made:

            def mend() -> str:
                run.write_predictions()
                return f"wrote {path} again"

        fix = "Delete it and train again into the run."
        yield Problem(PREDICTIONS, error.message, fix, mend)


def _without_head(run: Run, name: str) -> str:
    run.drop_head(name)
    return f"dropped the head {name} from {run.path}; train it again"
