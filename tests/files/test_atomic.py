"""Files: what killed processes leave is cleared, what others use is not; locks, and none."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest
from fakes import Notes

from pipeline.errors import StoreError
from pipeline.files.atomic import (
    exclusive,
    foreign,
    recover,
    remove_leftovers,
    set_aside,
    shared,
    temporary_folder,
    temporary_sibling,
    write_atomically,
    write_text,
)


def left_by_a_kill(path: Path) -> Path:
    """Make what a process leaves that is killed while it writes ``path``."""
    with temporary_sibling(path) as temporary:
        name = temporary.name
    leftover = path.with_name(name)
    leftover.write_text("half")
    return leftover


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_in_use_stays_and_what_was_left_goes(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    leftover, other = left_by_a_kill(path), left_by_a_kill(tmp_path / "other.csv")
    with temporary_sibling(path) as temporary:
        temporary.write_text("being written")
        recover(path)
        assert names(tmp_path) == sorted([temporary.name, other.name])
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [temporary.name]
    assert not leftover.exists() and not names(tmp_path)


def test_a_file_in_its_place_can_be_locked_as_hdf5_does(tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    with temporary_sibling(path) as temporary:
        temporary.replace(path)
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


@pytest.mark.parametrize("name", ["model-2", "model-abcdefgh", "modelled", "model.keras"])
def test_leftovers_of_a_longer_name_are_not_taken_for_those_of_a_shorter(
    name: str, tmp_path: Path
) -> None:
    """What was set aside there may be all that is left of somebody's model."""
    other = tmp_path / name
    other.mkdir()
    with temporary_folder(other) as folder:
        set_aside(other, folder)
        killed = tmp_path / f"{folder.name}"
        killed.rename(tmp_path / "kept")
    (tmp_path / "kept").rename(killed)
    recover(tmp_path / "model")
    with temporary_folder(tmp_path / "model"):
        pass
    assert names(tmp_path) == [killed.name]
    recover(other)
    assert names(tmp_path) == [name]


def test_the_longest_names(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".csv")
    leftover = left_by_a_kill(path)
    write_text(path, "whole")
    recover(path)
    assert names(tmp_path) == [path.name] and not leftover.exists()


def test_odd_things_with_temporary_names_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".tmp-pipe")
    (tmp_path / ".tmp-folder").mkdir()
    (tmp_path / ".tmp-link").symlink_to(tmp_path)
    before = names(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before == foreign(tmp_path, ())
    left_by_a_kill(tmp_path / "store.json")
    assert foreign(tmp_path, {".tmp-pipe", ".tmp-folder"}) == [".tmp-link"]


def test_an_error_without_a_name_gets_one(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*found\.csv'"):
        write_atomically(tmp_path / "found.csv", write)
    assert not names(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(StoreError, match=f"store/.lock.*cannot be locked: {os.strerror(number)}"
                      ) as caught,
        exclusive(tmp_path / "store/.lock", "busy"),
    ):  # fmt: skip
        pytest.fail("it is not locked")
    assert "local disk" in caught.value.hint
    assert not names(tmp_path / "store")
    # Files that need no lock are written; what may be in use is left where it is.
    leftover = left_by_a_kill(tmp_path / "a.csv")
    write_text(tmp_path / "a.csv", "whole")
    recover(tmp_path / "a.csv")
    assert leftover.exists()


def test_files_are_locked_as_nfs_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shares a lock on what is open for reading, and gives one alone on what is for writing."""
    lock, kinds = fcntl.flock, []

    def flock(descriptor: int, kind: int) -> None:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_WRONLY if kind & fcntl.LOCK_SH else os.O_RDONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        kinds.append(kind & ~fcntl.LOCK_NB)
        lock(descriptor, kind)

    left_by_a_kill(tmp_path / "a.csv")
    monkeypatch.setattr(fcntl, "flock", flock)
    with shared(tmp_path / ".lock", "busy", reporter=Notes()):
        pass
    with exclusive(tmp_path / ".lock", "busy"):
        remove_leftovers(tmp_path)
    assert kinds == [fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_EX]
    assert names(tmp_path) == [".lock"]


def test_a_lock_that_was_deleted_while_others_waited(tmp_path: Path) -> None:
    """Whoever waited holds the file that is there, and nobody beside it."""
    path, notes = tmp_path / ".lock", Notes()
    is_held, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        with exclusive(path, "busy", wait=True, reporter=notes):
            is_held.set()
            may_end.wait(10)

    with exclusive(path, "busy"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        while not notes.lines:
            pass
        path.unlink()
    assert is_held.wait(10)
    with pytest.raises(StoreError, match="busy"), exclusive(path, "busy"):
        pytest.fail("two hold it")
    may_end.set()
    waiting.join()
