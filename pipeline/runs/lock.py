"""One process at a time trains into a run, and what was not begun leaves nothing behind.

The lock is taken before anything of the run is looked at, deleted or made; the system drops it when
the process dies.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files.atomic import exclusive
from pipeline.runs import folder as run_folder
from pipeline.runs.run import FINETUNED, Run
from pipeline.system.progress import Reporter


@contextmanager
def reserved(path: Path, command: str, *, wait: bool, reporter: Reporter) -> Iterator[None]:
    """Keep other processes out of a run, existing or to be made, while the context lasts.

    Args:
        path: The run.
        command: What is to train into it, for those that are kept out.
        wait: Whether to wait for another process that trains into it.
        reporter: Where it is said that there is something to wait for.

    Raises:
        RunError: The folder holds something else.
        StoreError: Another process trains into it, and ``wait`` is off.
    """
    lock = path / run_folder.LOCK
    if not lock.exists():
        _require_own(path)
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    with exclusive(lock, _busy(path, command, wait=wait), wait=wait, reporter=reporter):
        # For those that are kept out; a lock needs no content.
        with suppress(OSError):
            lock.write_text(f"{command}, process {os.getpid()} on {socket.gethostname()}\n")
        before = _state(path)
        try:
            _require_own(path)
            run_folder.clear_leftovers(path)
            yield
        finally:
            if _state(path) != before:
                _remove_empty(path)
            if not Run.exists(path):
                run_folder.clear_leftovers(path)
                with suppress(OSError):
                    lock.unlink()
                    path.rmdir()
            for folder in missing if not path.exists() else ():
                with suppress(OSError):
                    folder.rmdir()


def _require_own(path: Path) -> None:
    if not Run.exists(path):
        run_folder.require_free(path)


def _busy(path: Path, command: str, *, wait: bool) -> str:
    """Say who keeps this process out, as far as the lock tells."""
    try:
        signed = (path / run_folder.LOCK).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        signed = ""
    name, _, process = signed.partition(", ")
    who = f" ({process})" if process else ""
    hint = "" if wait else " With --wait this command waits for it."
    return f"Another {name or command} trains into {str(path)!r}{who}.{hint}"


def _state(path: Path) -> os.stat_result | None:
    """Return what changes when a run's record is written."""
    return Run.record_path(path).stat() if Run.exists(path) else None


def _remove_empty(path: Path) -> None:
    """Delete a run that was made and holds nothing."""
    with suppress(PipelineError):
        run = Run.open(path)
        is_begun = run.record.finetune is not None or FINETUNED in os.listdir(path)
        if not run.record.heads and not is_begun:
            Run.remove(path)
