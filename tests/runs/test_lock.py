"""Two commands at once into one run: one at a time, and nothing left where nothing was begun."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import Command, Notes, planted_store

from pipeline.config.options import CommonOptions, SweepOptions, TrainHeadOptions
from pipeline.errors import RunError, StoreError
from pipeline.files.atomic import exclusive
from pipeline.runs.lock import reserved
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system.progress import Silence
from pipeline.train import sweep, train_head


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return planted_store(tmp_path / "store", {"ant": 40, "bee": 40})


def flags(*names: str) -> list[str]:
    return [part for name in names for part in ("--head", name)]


def train(command: Command, *more: object, name: str = "train-head") -> tuple[int, dict[str, Any]]:
    return command(name, "--store", "store", "--run", "run", *more)


@contextmanager
def at_the_first_fit(name: str, do: Callable[[], object]) -> Iterator[None]:
    """Do something, in this process, when a command is about to fit its first head."""
    module: Any = {"train-head": train_head, "sweep": sweep}[name]
    original = module.note_rows

    def noting(*arguments: Any) -> None:
        original(*arguments)
        do()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "note_rows", noting)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("second", ["train-head", "sweep"])
@pytest.mark.parametrize("first", ["train-head", "sweep"])
def test_the_second_is_told_which_process_keeps_it_out(
    command: Command, store: Store, first: str, second: str, force: list[str]
) -> None:
    train(command, *flags("majority"), name=first)
    before = Path("run/run.json").read_bytes()
    told: list[str] = []

    def try_the_second() -> None:
        with pytest.raises(StoreError) as caught:
            other(second, force=bool(force))
        told.append(caught.value.message)

    with at_the_first_fit(first, try_the_second):
        status, result = train(command, *flags("ridge"), *force, name=first)
    assert status == 0, result
    assert f"Another {first} trains into 'run' (process {os.getpid()} on" in told[0]
    assert "--wait" in told[0]
    heads = set(Run.open(Path("run")).record.heads)
    assert heads == ({"ridge"} if force else {"majority", "ridge"})
    assert Path("run/run.json").read_bytes() != before


def other(name: str, *, force: bool) -> None:
    """A command into the same run; a lock keeps out others of the same process as well."""
    chosen: Any = {"store": "store", "run": "run", "head": ("centroid",)}
    common = CommonOptions(force=force)
    if name == "sweep":
        sweep.sweep(SweepOptions(**chosen), common, Silence(), {})
    else:
        train_head.train_head(TrainHeadOptions(**chosen), common, Silence(), {})


@pytest.mark.slow
def test_with_wait_the_second_adds_its_head_after_the_first(command: Command, store: Store) -> None:
    started: list[subprocess.Popen[str]] = []

    def start() -> None:
        started.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pipeline",
                    "train-head",
                    "--store",
                    "store",
                    "--run",
                    "run",
                    *flags("centroid"),
                    "--wait",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        assert started[0].stderr is not None
        line = started[0].stderr.readline()
        assert "Another train-head trains into 'run'" in line and "Waiting for it to end" in line

    with at_the_first_fit("train-head", start):
        status, result = train(command, *flags("ridge"))
    assert status == 0, result
    _, said = started[0].communicate(timeout=120)
    assert started[0].returncode == 0, said
    assert set(Run.open(Path("run")).record.heads) == {"ridge", "centroid"}


def test_many_at_once_into_a_run_that_is_not_there(tmp_path: Path) -> None:
    """Each makes the folder and deletes it again, under the feet of those that wait."""
    path, begun, errors = tmp_path / "runs" / "run", [], []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                with reserved(path, "test", wait=True, reporter=Silence()):
                    begun.append(number)
                    assert begun.count(number) and path.is_dir()
                    inside.append(number)
                    assert inside == [number], "one at a time"
                    inside.remove(number)
        except BaseException as error:
            errors.append(error)

    inside: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(begun) == 120
    assert not path.exists()


def test_what_cannot_begin_leaves_no_folder_not_even_the_one_above(
    command: Command, store: Store
) -> None:
    status, _ = command("train-head", "--store", "none", "--run", "deep/er/run")
    assert status == 2
    status, result = command("train-head", "--store", "store", "--run", "deep/er/run", "--split",
                             "80/0/20", "--head", "majority")  # fmt: skip
    assert status == 2, result
    assert not Path("deep").exists()


@pytest.mark.parametrize("name", ["train-head", "sweep"])
def test_a_fit_that_fails_leaves_no_run(command: Command, store: Store, name: str) -> None:
    failing = "sklearn.discriminant_analysis.LinearDiscriminantAnalysis"
    Path("c.toml").write_text(f'[heads."{failing}"]\nsolver = "svd"\nshrinkage = "auto"\n')
    status, result = train(command, *flags(failing), "--config", "c.toml", name=name)
    assert status == 2 and "shrinkage not supported" in result["error"]["message"]
    assert not Path("run").exists()


def test_force_keeps_the_old_run_until_the_first_head_is_fitted(
    command: Command, store: Store
) -> None:
    train(command, *flags("majority"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    def stop() -> None:
        raise KeyboardInterrupt

    with at_the_first_fit("train-head", stop):
        assert command_or_interrupt(command, "--force", *flags("ridge"))
    after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert {p: b for p, b in after.items() if p.name != ".lock"} == {
        p: b for p, b in before.items() if p.name != ".lock"
    }


def command_or_interrupt(command: Command, *more: object) -> bool:
    from pipeline.cli.main import main

    arguments = ["train-head", "--store", "store", "--run", "run", *map(str, more), "--quiet"]
    return main(arguments) == 130


def test_a_head_that_cannot_be_written_leaves_no_run(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import heads

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heads, "save", full)
    status, _ = train(command, *flags("majority"))
    assert status == 2
    assert not Path("run").exists()


def test_what_is_there_stays(command: Command, store: Store) -> None:
    """A folder of something else gets no lock; a run with heads is left alone."""
    Path("photos").mkdir()
    Path("photos/a.jpg").touch()
    with (
        pytest.raises(RunError, match="something else"),
        reserved(Path("photos"), "test", wait=False, reporter=Silence()),
    ):
        pass
    assert os.listdir("photos") == ["a.jpg"]
    Path("file").touch()
    with (
        pytest.raises(RunError, match="something else"),
        reserved(Path("file"), "test", wait=False, reporter=Silence()),
    ):
        pass
    train(command, *flags("majority"))
    with (
        pytest.raises(ValueError, match="of mine"),
        reserved(Path("run"), "test", wait=False, reporter=Silence()),
    ):
        raise ValueError("of mine")
    assert list(Run.open(Path("run")).record.heads) == ["majority"]


def test_a_lock_that_was_deleted_under_way_holds_nobody(tmp_path: Path) -> None:
    """Whoever opened the old file finds that the path leads to another one, and takes that."""
    lock = tmp_path / "folder" / ".lock"
    order: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(exclusive(lock, "busy"))

        def second() -> None:
            with exclusive(lock, "busy", wait=True):
                order.append("second")
                with pytest.raises(StoreError, match="busy"), exclusive(lock, "busy"):
                    pass

        thread = threading.Thread(target=second)
        thread.start()
        while not order and not _is_waited_for(lock):
            pass
        shutil.rmtree(lock.parent)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def _is_waited_for(lock: Path) -> bool:
    inode = str(lock.stat().st_ino)
    return any(
        "->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()
    )


def test_nothing_is_said_where_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    notes = Notes()
    with reserved(tmp_path / "run", "test", wait=True, reporter=notes):
        pass
    assert notes.lines == []
