"""Runs in an MLflow store on this disk: parameters, metrics, report and files, for ``mlflow ui``.

MLflow refuses its older kind of store, a folder of text files, since 3.7; so the store is a folder
with a database of SQLite, and files beside it. Nothing is sent anywhere.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeAlias

from pipeline._version import __version__
from pipeline.errors import EngineUnavailableError, RunError
from pipeline.files.records import canonical_json
from pipeline.runs.folder import FILES, REPORT
from pipeline.runs.record import HeadRecord
from pipeline.runs.run import FINETUNED, Run
from pipeline.runs.tensorboard import series
from pipeline.system.keras_setup import quiet_loggers

PIP_LINE: Final = "pip install 'embedding-pipeline[mlflow]'"
DATABASE: Final = "mlflow.db"

LIBRARIES: Final = ("mlflow", "sqlalchemy", "alembic")
_EXPERIMENT: Final = "pipeline"
_ARTIFACTS: Final = "artifacts"
# It takes parameters and metrics in parts of these sizes, and a parameter of so many characters.
_PARAMS, _METRICS, _LONGEST = 100, 1000, 6000
# A run is logged once in each state: the digest of its record, and whether there is a report.
_STATE: Final = "pipeline.state"

# Scores of a head begin with these.
_SPLITS: Final = ("train_", "val_", "test_")

# What MLflow makes has no types.
Client: TypeAlias = Any
# A run, by the command that made it, is logged; returns its number there.
Log: TypeAlias = Callable[[Run, str], str]


def address(folder: Path) -> str:
    """Return what ``mlflow ui --backend-store-uri`` is given."""
    return f"sqlite:///{folder / DATABASE}"


def exists(folder: Path) -> bool:
    """Tell whether there is a store."""
    return (folder / DATABASE).exists()


def require_installed() -> None:
    """Refuse to begin without what a store needs.

    Raises:
        EngineUnavailableError: MLflow, or what it needs for a database, is not installed.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise EngineUnavailableError(
            f"--mlflow: expected the library {missing[0]!r}. Received: none.",
            hint=f"Install it: {PIP_LINE}",
        )


def opened(folder: Path) -> Log:
    """Open a store or make a new one, and return what logs a run into it.

    Args:
        folder: Where it is.

    Raises:
        RunError: The store cannot be opened.
    """
    # Read when MLflow is imported: it reports what is used to its makers.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    folder.mkdir(parents=True, exist_ok=True)
    with _quietly(folder):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=address(folder.absolute()))
        found = client.get_experiment_by_name(_EXPERIMENT)
        if found is not None:
            return partial(_log, client, found.experiment_id, folder)
        place = (folder / _ARTIFACTS).absolute().as_uri()
        number = client.create_experiment(_EXPERIMENT, artifact_location=place)
        return partial(_log, client, number, folder)


def _log(client: Client, experiment: str, folder: Path, run: Run, command: str) -> str:
    """Log a run; one that is there as it is now is left. Return its number."""
    # Without the digests of files that are written again, as they were, by every command.
    said = canonical_json(replace(run.record, files=None).as_json())
    has_report = "report" * (run.path / REPORT).exists()
    state = f"{hashlib.sha256(said.encode()).hexdigest()} {has_report}".strip()
    is_same = f"tags.`{_STATE}` = '{state}' and attributes.status = 'FINISHED'"
    tags = {
        "pipeline.command": command,
        "pipeline.run": str(run.path.absolute()),
        "pipeline.version": __version__,
        _STATE: state,
    }
    with _quietly(folder):
        for known in client.search_runs([experiment], filter_string=is_same, max_results=1):
            return str(known.info.run_id)
        made = client.create_run(experiment, run_name=run.path.absolute().name, tags=tags)
        number: str = made.info.run_id
        _log_numbers(client, number, run)
        _log_files(client, number, run)
        client.set_terminated(number)
    return number


def _log_numbers(client: Client, number: str, run: Run) -> None:
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    now = get_current_time_millis()
    params = [Param(name, value[:_LONGEST]) for name, value in _params(run)]
    metrics = [Metric(name, value, now, step) for name, value, step in _metrics(run)]
    for start in range(0, len(params), _PARAMS):
        client.log_batch(number, params=params[start : start + _PARAMS])
    for start in range(0, len(metrics), _METRICS):
        client.log_batch(number, metrics=metrics[start : start + _METRICS])


def _params(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what a run was made from, the parameters of its heads, and what these chose."""
    record = run.record
    yield "best", str(record.best)
    for name, value in record.inputs.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        yield from ((f"{name}.{key}".strip("."), _text(item)) for key, item in inner)
    for head, said in record.heads.items():
        yield from ((f"{head}.{name}", _text(value)) for name, value in said.params.items())
        for name, value in said.selected.items():
            yield f"{head}.selected.{name}", _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _metrics(run: Run) -> Iterator[tuple[str, float, int]]:
    """Yield (name, value, step): the scores of the best head, then all numbers of every head."""
    record = run.record
    if record.best is not None:
        of_best = _numbers(record.heads[record.best])
        yield from (item for item in of_best if item[0].startswith(_SPLITS))
    for name, head in record.heads.items():
        yield from ((f"{name}/{tag}", value, step) for tag, value, step in _numbers(head))
    for row in record.finetuned().epochs or ():
        step = int(str(row["epoch"]))
        for tag, value in row.items():
            if tag != "epoch" and isinstance(value, int | float):
                yield f"{FINETUNED}/epochs/{tag}", float(value), step


def _numbers(head: HeadRecord) -> Iterator[tuple[str, float, int]]:
    for step, said in series(head):
        for tag, value in said.items():
            if not isinstance(value, str):
                yield tag, float(value), step


def _log_files(client: Client, number: str, run: Run) -> None:
    for name in FILES:
        if (run.path / name).exists():
            client.log_artifact(number, str(run.path / name))
    for name in ("heads", FINETUNED):
        if (run.path / name).exists():
            client.log_artifacts(number, str(run.path / name), artifact_path=name)


@contextmanager
def _quietly(folder: Path) -> Iterator[None]:
    """Keep notes of MLflow and of its database from stderr; make an error of ours of theirs.

    Raises:
        RunError: The store cannot be used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from alembic.util import CommandError
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            # Not before: being imported, it sets the level of its loggers.
            with quiet_loggers("alembic", "mlflow"):
                yield
        except (CommandError, MlflowException, SQLAlchemyError) as error:
            raise RunError(
                f"Expected an MLflow store at {str(folder)!r}. Received: {_first_line(error)}.",
                hint="Choose another folder for --mlflow, or install the MLflow that made it.",
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
