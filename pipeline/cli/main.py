"""The command line: flags from the option records, results to stdout, progress to stderr.

The only module that prints. Nothing heavy is imported until a command runs.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from pipeline._version import __version__
from pipeline.cli import colour
from pipeline.cli.command import Call, Command
from pipeline.cli.commands import COMMANDS, find, perform, records
from pipeline.cli.progress import TerminalReporter
from pipeline.cli.text import Result, as_lines, terminal_width
from pipeline.config import options as config
from pipeline.config.fields import Option, flag_of
from pipeline.config.options import CommonOptions
from pipeline.errors import ConfigError, PipelineError, hint_for, unknown_name
from pipeline.system import interrupts, streams
from pipeline.system.interrupts import status_of

STARTED: Final = time.monotonic()

DONE: Final = 0
SKIPPED: Final = 1
FAILED: Final = 2
INTERRUPTED: Final = 130
TERMINATED: Final = 143
# What a shell says of a program that the closed pipe ends: 128 and the number of SIGPIPE.
CLOSED: Final = 141
_TOP_FLAGS: Final = ("--help", "--version")

_KEPT: Final = "Interrupted; what was finished is kept. Run the same command again to go on."
_NOTHING_KEPT: Final = "Interrupted; nothing was written."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0, 1 under --strict, 2, 130, 143, or 141 where whoever read the output has gone (``| head``).
    """
    streams.take_any_name()
    try:
        status = _answered(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        status = CLOSED
    # Nothing is left for the interpreter's end to write, which would complain.
    return status if streams.flushed() else status or FAILED


def _answered(arguments: Sequence[str]) -> int:
    """Run one command; errors become one line on stderr."""
    wants_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        try:
            status = _run(arguments)
            streams.flush()
        except Exception as error:
            if interrupt := interrupts.raised():
                raise interrupt from error
            raise
    except PipelineError as error:
        if debug:
            raise
        return _fail(type(error).__name__, error.message, error.hint, wants_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        if debug:
            raise
        place = f" ({error.filename})" if error.filename else ""
        message = f"{error.strerror or error}{place}."
        return _fail(type(error).__name__, message, hint_for(error), wants_json)
    except KeyboardInterrupt as interrupt:
        command = next((name for name in arguments if name in COMMANDS), "")
        _complain(_KEPT if command and find(command).keeps else _NOTHING_KEPT)
        return status_of(interrupt)
    return status


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of the command that arguments begin with, or one that lists them all."""
    named = arguments[:1] if arguments and arguments[0] in COMMANDS else ()
    top = _Parser(
        prog="pipeline",
        description="Two-stage transfer learning for image classification: extract features "
        "once with a frozen backbone, then train heads on them in seconds.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"pipeline {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name in named or COMMANDS:
        command = commands.add_parser(
            name,
            help=COMMANDS[name].summary,
            description=COMMANDS[name].summary,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        if named:
            _add_options(command, find(name).options)
            _add_options(command.add_argument_group("everywhere"), CommonOptions)
    return top


class _Parser(argparse.ArgumentParser):
    """Argparse, with errors of this package and the nearest name for an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        if "invalid choice" in message:
            name = message.partition("invalid choice: ")[2].split("'")[1]
            raise unknown_name("command", name, COMMANDS)
        raise ConfigError(f"{message[:1].upper()}{message[1:]}.", hint=f"See {self.prog} --help.")


def _run(arguments: Sequence[str]) -> int:
    _refuse_options_first(arguments)
    try:
        given, unknown = parser(arguments).parse_known_args(arguments)
    except SystemExit:  # after --help or --version
        return DONE
    values = vars(given)
    command = values.pop("command")
    if command is None:
        if unknown:
            raise unknown_name("flag", unknown[0], _TOP_FLAGS)
        parser().print_help()
        return DONE
    row = find(command)
    record = row.options
    _refuse_unknown(_without_late(unknown, record, values), record)
    common_names = config.options_of(CommonOptions)
    common = config.build(
        CommonOptions, {name: values.pop(name) for name in common_names if name in values}
    )
    tables = _tables(common.config) if common.config else {}
    # An empty positional list is argparse's "not given".
    flags = {name: value for name, value in values.items() if value != []}
    reporter = TerminalReporter(quiet=common.quiet)
    result = perform(command, flags, Call(common, reporter, tables, STARTED))
    _show(row, result, as_json=common.json)
    return _status(result, strict=common.strict)


def _tables(path: str) -> dict[str, dict[str, object]]:
    from pipeline.config.toml_file import load_file

    return load_file(Path(path), records())


def _refuse_options_first(arguments: Sequence[str]) -> None:
    command = next((name for name in arguments if name in COMMANDS), "")
    first = arguments[0] if arguments else ""
    if command and first.startswith("-") and first not in ("-h", *_TOP_FLAGS):
        raise ConfigError(
            f"{first.partition('=')[0]!r} stands before the command.",
            hint=f"Options come after it: pipeline {command} {first} ...",
        )


def _without_late(unknown: Sequence[str], record: type, values: dict[str, Any]) -> Sequence[str]:
    """Take positional arguments that come after a flag, and return what is left.

    Argparse takes all of them to be given, or left out, as soon as it meets the first.
    """
    late = [argument for argument in unknown if not argument.startswith("-")]
    for name, option in config.options_of(record).items():
        if option.positional and option.is_list:
            values[name] = [*values.get(name, []), *late]
            late = []
        elif option.positional and late and name not in values:
            values[name] = late.pop(0)
    return [*(argument for argument in unknown if argument.startswith("-")), *late]


def _refuse_unknown(unknown: Sequence[str], record: type) -> None:
    for argument in unknown:
        if argument.startswith("-"):
            flag = argument.partition("=")[0]
            options = {**config.options_of(record), **config.options_of(CommonOptions)}
            for name, option in options.items():
                if option.positional and flag_of(name) == flag:
                    raise ConfigError(
                        f"{flag} is no flag of this command: {option.metavar} goes without one.",
                        hint=f"Leave {flag} out, and give its value alone.",
                    )
            raise unknown_name(
                "flag",
                flag,
                [flag_of(name) for name, option in options.items() if not option.positional],
            )
        raise ConfigError(f"Unexpected argument {argument!r}.", hint="See --help.")


def _add_options(target: Any, record: type) -> None:
    for name, option in config.options_of(record).items():
        if option.positional:
            count = "*" if option.is_list else "?"
            target.add_argument(name, nargs=count, metavar=option.metavar, help=option.help)
        else:
            target.add_argument(flag_of(name), **_flag(name, option, record))


def _flag(name: str, option: Option, record: type) -> dict[str, Any]:
    default = config.default_of(record, name)
    settings: dict[str, Any] = {"help": option.help, "default": argparse.SUPPRESS}
    if option.kind == "switch":
        return {**settings, "action": "store_true"}
    shown = " ".join(default) if isinstance(default, tuple) else default
    if default is not None:
        settings["help"] = f"{option.help} (default: {shown})"
    settings["metavar"] = "|".join(option.choices) or option.metavar
    return {**settings, "action": "append"} if option.is_list else settings


def _show(command: Command, result: Result, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    text, width = command.text(result), terminal_width(sys.stdout)
    for line in as_lines(text, lambda line: colour.bold(line, sys.stdout), width=width):
        print(line)


def _status(result: Result, *, strict: bool) -> int:
    if result.get("ok") is False:
        return FAILED
    skipped = result.get("skipped") or result.get("conflicting") or result.get("dropped")
    return SKIPPED if strict and skipped else DONE


def _fail(kind: str, message: str, hint: str, wants_json: bool) -> int:
    said = " ".join(f"{message} {hint}".split())
    _complain(f"{colour.red('pipeline: error:', sys.stderr)} {said}")
    if wants_json:
        with suppress(OSError):
            print(json.dumps({"error": {"type": kind, "message": message, "hint": hint}}))
    return FAILED


def _complain(line: str) -> None:
    with suppress(OSError):  # nobody is left to read it; the status says the same
        print(line, file=sys.stderr)
