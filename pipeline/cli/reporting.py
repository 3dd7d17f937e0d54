"""The report that commands which train write on request, by the command ``report``'s own code."""

from collections.abc import Callable, Mapping

from pipeline.cli.text import Result
from pipeline.config.options import ReportOptions
from pipeline.system.progress import Reporter


def with_report(
    asked: bool, train: Callable[[], Mapping[str, object]], reporter: Reporter
) -> Result:
    """Train, and write the report of the run if it is asked for.

    Args:
        asked: Whether it is.
        train: Returns the result, with its ``run``.
        reporter: Where notes go.

    Returns:
        The result; with a report, also where it is.

    Raises:
        EngineUnavailableError: It is asked for and cannot be made; nothing was trained.
    """
    if not asked:
        return train()
    from pipeline.pages.frame import require_installed
    from pipeline.report.page import report

    require_installed()
    result = train()
    made = report(ReportOptions(run=str(result["run"])), reporter)
    return {**result, "report": made["report"]}
