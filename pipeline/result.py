"""A command as a function of Python: the options that it takes, and the result that it returns."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence

from pipeline.cli.command import Call, Tables
from pipeline.cli.commands import find, perform
from pipeline.cli.progress import TerminalReporter
from pipeline.cli.text import as_html, as_lines
from pipeline.config.options import CommonOptions, default_of, options_of

Function = Callable[..., "Result"]


class Result(dict[str, object]):
    """What a command found: a dictionary with the keys of its ``--json``.

    ``print(result)`` shows what the command line prints; a notebook shows it with real tables.

    Attributes:
        command: Name of the command.
    """

    def __init__(self, command: str, content: Mapping[str, object]) -> None:
        super().__init__(content)
        self.command = command

    def __str__(self) -> str:
        return "\n".join(as_lines(find(self.command).text(self)))

    def _repr_html_(self) -> str:
        """Return what a notebook shows; whatever comes from data is escaped."""
        return as_html(find(self.command).text(self))


def of_command(command: str) -> Callable[[Function], Function]:
    """Give a function the signature of a command: its own arguments, then the other options."""

    def decorate(function: Function) -> Function:
        record = find(command).options
        own = inspect.signature(function).parameters
        named = [item for item in own.values() if item.kind is not item.VAR_KEYWORD]
        others = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default_of(record, name)
            )
            for name in options_of(record)
            if name not in own and name not in _RENAMED.get(command, ())
        ]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*named, *others], return_annotation=Result
        )
        return function

    return decorate


# Options that a function calls by another name, or takes in another form.
_RENAMED: Mapping[str, Sequence[str]] = {
    "train-head": ("head",),
    "sweep": ("head",),
    "finetune": ("source",),
}


def performed(
    command: str,
    given: Mapping[str, object],
    *,
    quiet: bool,
    force: bool,
    tables: Tables | None = None,
) -> Result:
    """Run a command with what was given to it, and return what it found.

    Args:
        command: Its name.
        given: Values of its options by field name.
        quiet: Whether to show neither notes nor progress.
        force: Whether to replace an existing output.
        tables: The tables of a configuration file that it looks at.

    Raises:
        PipelineError: See the command.
    """
    common = CommonOptions(quiet=quiet, force=force)
    call = Call(common, TerminalReporter(quiet=quiet), tables or {}, time.monotonic())
    return Result(command, perform(command, given, call))


def given_of(**values: object) -> dict[str, object]:
    """Return what is not None: the others keep the defaults of the command."""
    return {name: value for name, value in values.items() if value is not None}
