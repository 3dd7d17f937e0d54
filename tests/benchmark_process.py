"""Run a benchmark whose commands are forked, from a process that has imported what they need.

Usage: python tests/benchmark_process.py SCRIPT ARGUMENTS...
Wherever ResNet50 is asked for, a tiny network takes its place; times and rates mean nothing.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import sklearn.linear_model
import sklearn.metrics  # noqa: F401
import tiny_resnet

import pipeline.train.train_head  # noqa: F401


def started(
    *arguments: object, environment: Mapping[str, str] | None = None, **streams: int
) -> Any:
    """As ``common.started``, but forked from this process."""
    given = [str(argument) for argument in arguments]
    is_read = streams.get("stdout") != subprocess.DEVNULL
    pipes = [
        os.pipe() if is_read else (-1, os.open(os.devnull, os.O_WRONLY)),
        os.pipe() if "stderr" in streams else (-1, os.dup(2)),
    ]
    files = [write for _, write in pipes]
    process = multiprocessing.get_context("fork").Process(
        target=processes.become,
        args=(given, str(Path.cwd()), {**os.environ, **(environment or {})}, files),
    )
    process.start()
    for write in files:
        os.close(write)
    out, err = (None if read < 0 else os.fdopen(read) for read, _ in pipes)

    def communicate() -> tuple[str, str]:
        said = out.read() if out else ""
        process.join()
        found.returncode = process.exitcode
        return said, ""

    found = SimpleNamespace(
        args=given, pid=process.pid, returncode=None, stderr=err, communicate=communicate
    )
    return found


def main() -> None:
    """Run the benchmark that is named."""
    script = Path(sys.argv[1])
    sys.path.insert(0, str(script.parent))
    import common

    common.started = started
    sys.argv = sys.argv[1:]
    with tiny_resnet.in_place_of_resnet50():
        runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
