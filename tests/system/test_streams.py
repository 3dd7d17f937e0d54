"""Output that nobody reads: a closed pipe, a closed descriptor, a full disk."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pytest

from pipeline.cli import main
from pipeline.cli.command import Call
from pipeline.cli.commands import COMMANDS

PROGRAM = [sys.executable, "-m", "pipeline"]


def run(*arguments: str, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE,
        **more: Any) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        [*PROGRAM, *arguments], stdout=stdout, stderr=stderr, env=environment, check=False, **more
    )


def unread() -> IO[bytes]:
    """Return the end of a pipe whose other end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "wb")


def test_output_that_nobody_reads_ends_quietly() -> None:
    with unread() as pipe:
        done = run("--help", stdout=pipe)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_an_error_keeps_its_status_where_nobody_reads_it() -> None:
    with unread() as pipe:
        assert run("info", "nowhere", stderr=pipe).returncode == 2
        done = run("info", "nowhere", "--json", stdout=pipe)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run("--help", stdout=full)
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
        assert run("info", "nowhere", stderr=full).returncode == 2


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_descriptors_take_no_file(closed: tuple[int, ...], tmp_path: Path) -> None:
    # The program's first new file would get the lowest descriptor that is closed.
    script = (
        "import os, runpy, sys\n"
        "sys.argv = ['pipeline', '--version']\n"
        "try: runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit as end: status = end.code\n"
        "descriptor = os.open('seen', os.O_CREAT | os.O_WRONLY)\n"
        "os.write(descriptor, f'{status} {descriptor > 2}'.encode())\n"
    )
    closing = " ".join(f"{descriptor}>&-" for descriptor in closed)
    command = f'exec "$0" -c "$1" {closing}'
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    subprocess.run(
        ["bash", "-c", command, sys.executable, script], cwd=tmp_path, env=environment, check=True
    )
    assert (tmp_path / "seen").read_text() == "0 True"


class Broken:
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        return


@dataclass
class NoOptions:
    """What a command takes that needs nothing."""


def put_in_place_of(
    command: str, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(COMMANDS[command].module)
    row = replace(module.COMMAND, run=run, options=NoOptions)
    monkeypatch.setattr(module, "COMMAND", row)


def test_notes_that_nobody_reads_end_the_command_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(options: object, call: Call) -> dict[str, Any]:
        call.reporter.say("a note")
        pytest.fail("it must not come so far")

    put_in_place_of("info", say, monkeypatch)
    monkeypatch.setattr(sys, "stderr", Broken())
    assert main.main(["info"]) == 141


@pytest.mark.parametrize(
    ("command", "kept"),
    [("extract", True), ("train-head", True), ("sweep", True), ("finetune", True),
     ("predict", False), ("export", False), ("compare", False), ("report", False), ("info", False),
     ("verify", False)],
)  # fmt: skip
def test_an_interrupt_says_what_is_true_of_the_command(
    command: str, kept: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    put_in_place_of(command, interrupted, monkeypatch)
    assert main.main([command]) == 130
    said = capsys.readouterr().err
    assert ("is kept" in said, "nothing was written" in said) == (kept, not kept)


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, "Free disk space"), (13, "permissions"), (20, "A file stands"), (24, "ulimit"),
     (36, "shorter"), (5, "Check the disk")],
)  # fmt: skip
def test_errors_of_the_system_have_a_fitting_hint(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise OSError(number, os.strerror(number), "a/b")

    put_in_place_of("info", fail, monkeypatch)
    assert main.main(["info"]) == 2
    said = capsys.readouterr().err
    assert words in said and os.strerror(number) in said and "a/b" in said
    assert (number == 28) == ("disk space" in said)
