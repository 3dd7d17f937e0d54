"""The scan cache: what earlier runs learned about files, so that a rerun opens none of them.

A small SQLite file in the store, safe to delete: (path, size, times, inode) → key of the bytes;
key → why it could not be decoded; shard → state at its last good check. Called by ``store``,
stage 1 and ``finetune_cache``, always from one thread.
"""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pipeline.files import has_locks

# A file changed within the clock's grain after it was read would look unchanged; git's index
# has the same race and the same rule: what is this young is read again next time.
RACY_NS: Final = 2_000_000_000

_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE files (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, key TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE failures (key TEXT PRIMARY KEY, decoder TEXT NOT NULL, reason TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE shards (name TEXT PRIMARY KEY, stamp TEXT NOT NULL) WITHOUT ROWID;
"""


def stamp(status: os.stat_result) -> str:
    """Return what must be equal for a file to count as unchanged."""
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


class ScanCache:
    """The cache of one store; without a file, or where it cannot be written, it lives in memory.

    Example:
        with ScanCache(store / "scan.sqlite") as cache:
            key = cache.key(path, os.stat(path))
    """

    def __init__(self, path: Path | None) -> None:
        self._database = _open(path)
        self._has_failures = bool(self._database.execute("SELECT 1 FROM failures").fetchone())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what was learned and close the file."""
        self.commit()
        self._database.close()

    def commit(self) -> None:
        """Write what was learned so far; a full disk loses nothing but speed."""
        with suppress(sqlite3.OperationalError):
            self._database.commit()

    def key(self, path: str | Path, status: os.stat_result) -> str | None:
        """Return the key of a file's bytes if the file is unchanged since it was hashed."""
        return self._one(
            "SELECT key FROM files WHERE path = ? AND stamp = ?", os.fsencode(path), stamp(status)
        )

    def remember_key(self, path: Path, status: os.stat_result, key: str) -> None:
        """Remember a file's key, unless the file is too young to be trusted."""
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) >= RACY_NS:
            self._put("files", os.fsencode(path), stamp(status), key)

    def failure(self, key: str, decoder: str) -> str | None:
        """Return why an image could not be decoded by this very decoder, if it could not."""
        if not self._has_failures:
            return None
        return self._one("SELECT reason FROM failures WHERE key = ? AND decoder = ?", key, decoder)

    def remember_failure(self, key: str, decoder: str, reason: str) -> None:
        """Remember that an image could not be decoded."""
        self._has_failures = True
        self._put("failures", key, decoder, reason)

    def is_checked(self, shard: str, status: os.stat_result) -> bool:
        """Tell whether a shard is unchanged since its digest was last found right."""
        known = self._one("SELECT stamp FROM shards WHERE name = ?", shard)
        return known == stamp(status)

    def remember_check(self, shard: str, status: os.stat_result) -> None:
        """Remember that a shard's digest is right."""
        self._put("shards", shard, stamp(status))

    def _one(self, query: str, *values: object) -> str | None:
        row = self._database.execute(query, values).fetchone()
        return None if row is None else str(row[0])

    def _put(self, table: str, *values: object) -> None:
        marks = ", ".join("?" * len(values))
        # A read-only store is read as it is: it only stays slower.
        with suppress(sqlite3.OperationalError):
            self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)  # noqa: S608


def _open(path: Path | None) -> sqlite3.Connection:
    """Open or make the cache; one that is damaged or of another version is made anew."""
    if path is None:
        return _with_tables(sqlite3.connect(":memory:"))
    for attempt in (_usable, _remade):
        with suppress(sqlite3.Error, OSError):
            return attempt(path)
    return _with_tables(sqlite3.connect(":memory:"))


def _usable(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise FileNotFoundError(path)
    database = sqlite3.connect(path, timeout=_patience(path))
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        database.close()
        raise
    if version != _VERSION or not {"files", "failures", "shards"} <= tables:
        database.close()
        raise sqlite3.DatabaseError(f"version {version}")
    return database


def _remade(path: Path) -> sqlite3.Connection:
    # The journal of another file, which SQLite would take for this one's, goes first.
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    return _with_tables(sqlite3.connect(path, timeout=_patience(path)))


def _patience(path: Path) -> float:
    """Return how many seconds to wait for another process; none where no file can be locked.

    SQLite takes a file system without locks for one where somebody always holds them.
    """
    if not path.exists():
        path.touch()
    return 30.0 if has_locks(path) else 0.0


def _with_tables(database: sqlite3.Connection) -> sqlite3.Connection:
    try:
        database.executescript(_TABLES)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.Error:
        database.close()
        raise
    return database
