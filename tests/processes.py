"""Processes of Python that have already imported TensorFlow, for tests of whole commands.

Importing it takes five seconds of a processor, more than most commands that are tested. So one
process imports it once, by the package's own way, and a process for each command is forked from
it. Whether importing itself is right (quiet, lazy, on another backend) is tested in new processes.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parent
SERVER = multiprocessing.get_context("forkserver")


class WarmPython:
    """``python ARGUMENTS`` (``-m MODULE``, ``-c CODE`` or a script), as ``subprocess.Popen`` is."""

    def __init__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.args = list(map(str, arguments))
        self._folder = Path(tempfile.mkdtemp(prefix="warm-"))
        weakref.finalize(self, shutil.rmtree, self._folder)
        start_server()
        files = [str(self._folder / name) for name in ("stdout", "stderr")]
        place = str(cwd or Path.cwd())
        given = (self.args, place, {**os.environ, **(environment or {})}, files)
        self._process = SERVER.Process(target=become, args=given)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """What it ended with, minus its signal where there was one; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait; return what it wrote to stdout and stderr."""
        self.wait(timeout)
        out, err = ((self._folder / name).read_text() for name in ("stdout", "stderr"))
        return out, err


def run_python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` as ``WarmPython`` does; wait for it."""
    process = WarmPython(*arguments, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def start_server() -> None:
    """Start the process that others are forked from, unless there is one."""
    with pytest.MonkeyPatch.context() as patch:
        # As a new process has it: what this one imported has set it.
        patch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        SERVER.set_forkserver_preload(["processes_preloaded"])
        multiprocessing.forkserver.ensure_running()


def become(
    arguments: list[str], cwd: str, environment: dict[str, str], files: list[str | int]
) -> None:
    """Be that process of Python, in the forked process; files are paths or open pipes."""
    from pipeline.cli import main as command_line

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    command_line.STARTED = time.monotonic()  # type: ignore[misc]
    for number, place in zip((1, 2), files, strict=True):
        opened = os.open(place, os.O_WRONLY | os.O_CREAT) if isinstance(place, str) else place
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)  # noqa: SIM115
    kind, *rest = arguments
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
