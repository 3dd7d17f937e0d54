"""The scan cache: what it trusts, and that losing it loses nothing but speed."""

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.files.state import FileState
from pipeline.store import scan_cache
from pipeline.store.scan_cache import RACY_NS, ScanCache

KEY = "a" * 64


@pytest.fixture
def old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that looks old: nobody can set a change time, so the clock is moved on."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"first")
    later = time.time_ns() + 2 * RACY_NS
    monkeypatch.setattr(time, "time_ns", lambda: later)
    return path


def test_unchanged_file_is_known_after_reopening(old_file: Path, tmp_path: Path) -> None:
    with ScanCache(tmp_path / "scan.sqlite") as cache:
        cache.remember_key(old_file, FileState.of(old_file.stat()), KEY)
    with ScanCache(tmp_path / "scan.sqlite") as cache:
        assert cache.key(old_file, FileState.of(old_file.stat())) == KEY
        assert cache.key(tmp_path / "other.jpg", FileState.of(old_file.stat())) is None


def rewrite(path: Path) -> None:
    path.write_bytes(b"other")


def grow(path: Path) -> None:
    times = path.stat()
    path.write_bytes(b"longer than before")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace_by_a_copy(path: Path) -> None:
    times = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(b"xxxxx")
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    copy.replace(path)


@pytest.mark.parametrize("change", [rewrite, grow, replace_by_a_copy])
def test_changed_file_is_not_known(
    old_file: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    with ScanCache(tmp_path / "scan.sqlite") as cache:
        cache.remember_key(old_file, FileState.of(old_file.stat()), KEY)
        time.sleep(0.02)  # longer than the grain of the clock
        change(old_file)
        assert cache.key(old_file, FileState.of(old_file.stat())) is None


def test_young_file_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"now")
    with ScanCache(None) as cache:
        cache.remember_key(path, FileState.of(path.stat()), KEY)
        assert cache.key(path, FileState.of(path.stat())) is None


def test_failures_count_for_their_decoder_alone() -> None:
    with ScanCache(None) as cache:
        cache.remember_failure(KEY, "pillow 11", "truncated")
        assert cache.failure(KEY, "pillow 11") == "truncated"
        assert cache.failure(KEY, "pillow 12") is None


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\xff" * 3000, b""])
def test_damaged_cache_is_made_anew(old_file: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.sqlite"
    path.write_bytes(content)
    with ScanCache(path) as cache:
        assert cache.key(old_file, FileState.of(old_file.stat())) is None
        cache.remember_key(old_file, FileState.of(old_file.stat()), KEY)
    with ScanCache(path) as cache:
        assert cache.key(old_file, FileState.of(old_file.stat())) == KEY


def test_place_that_cannot_be_written_only_costs_speed(old_file: Path, tmp_path: Path) -> None:
    with ScanCache(tmp_path / "missing/scan.sqlite") as cache:
        cache.remember_key(old_file, FileState.of(old_file.stat()), KEY)
        assert cache.key(old_file, FileState.of(old_file.stat())) == KEY


@pytest.mark.parametrize("is_there", [False, True])
def test_nobody_waits_for_locks_that_cannot_be_had(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would wait half a minute at every opening."""
    if is_there:
        ScanCache(tmp_path / "scan.sqlite").close()

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    waits, connect = [], sqlite3.connect

    def noted(path: Path, timeout: float = 5.0) -> sqlite3.Connection:
        waits.append(timeout)
        return connect(path, timeout=timeout)

    monkeypatch.setattr(sqlite3, "connect", noted)
    ScanCache(tmp_path / "scan.sqlite").close()
    monkeypatch.setattr(fcntl, "flock", flock)
    ScanCache(tmp_path / "scan.sqlite").close()
    assert waits[0] == 30 and waits[-1] == 0


def test_what_is_remembered_is_known_at_once_and_later(old_file: Path, tmp_path: Path) -> None:
    state = FileState.of(old_file.stat())
    files = [(f"{number:03}.jpg", state) for number in range(450)]
    with ScanCache(tmp_path / "scan.sqlite") as cache:
        for number, (path, _) in enumerate(files):
            cache.remember_key(path, state, f"{number:064x}")
            if number in (0, 199, 200, 449):
                assert cache.key(path, state) == f"{number:064x}"
        # Of a file that is read twice the later key counts, also within one statement.
        cache.remember_key(files[7][0], state, "a" * 64)
        cache.remember_key(files[7][0], state, "b" * 64)
    with ScanCache(tmp_path / "scan.sqlite") as cache:
        found = cache.keys(files)
    assert found[7] == "b" * 64
    assert found[8:] == [f"{number:064x}" for number in range(8, 450)]


def test_many_files_are_looked_up_as_one_is(
    old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_cache, "_AT_ONCE", 3)
    state = FileState.of(old_file.stat())
    files = [(f"photos/{number}.jpg", state) for number in range(8)]
    with ScanCache(tmp_path / "scan.sqlite") as cache:
        for number in (0, 3, 4, 7):
            cache.remember_key(files[number][0], state, f"{number:064x}")
        cache.commit()
        cache._database.execute("UPDATE files SET checksum = 0 WHERE path = ?", (b"photos/4.jpg",))
        files.append((files[0][0], state._replace(stamp="another")))
        assert cache.keys(files) == [cache.key(*file) for file in files]
        assert [place for place, key in enumerate(cache.keys(files)) if key] == [0, 3, 7]
