"""What commands that train do on request beside: the page of the run, and its entry in MLflow."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.cli.text import Result
from pipeline.config.options import FinetuneOptions, ReportOptions, StageTwoOptions
from pipeline.system.progress import Reporter


def train_and_report(
    command: str,
    options: StageTwoOptions | FinetuneOptions,
    train: Callable[[], Mapping[str, object]],
    reporter: Reporter,
) -> Result:
    """Train, write the report of the run and log it into MLflow, where these are asked for.

    Args:
        command: Name of the command.
        options: Its ``report`` and ``mlflow``.
        train: Returns the result, with its ``run``.
        reporter: Where notes go.

    Returns:
        The result; also where the ``report`` is, and in ``mlflow`` the store and the run there.

    Raises:
        ConfigError: There is no place for the store.
        EngineUnavailableError: What is asked for is not installed; nothing was trained.
        RunError: The store cannot be used.
    """
    if options.report:
        from pipeline.pages.frame import require_installed

        require_installed()
    if options.mlflow:
        from pipeline.files import outputs
        from pipeline.runs import mlflow
        from pipeline.runs.run import Run

        tracked = Path(options.mlflow)
        outputs.require_folder("--mlflow", tracked)
        mlflow.require_installed()
        # One that is there may be damaged; a new one is made when there is a run to log.
        log = mlflow.opened(tracked) if mlflow.exists(tracked) else None
    result = dict(train())
    if options.report:
        from pipeline.report.page import report

        result["report"] = report(ReportOptions(run=str(result["run"])), reporter)["report"]
    if options.mlflow:
        log = log or mlflow.opened(tracked)
        number = log(Run.open(Path(str(result["run"]))), command)
        result["mlflow"] = {"uri": mlflow.address(tracked), "run_id": number}
    return result
