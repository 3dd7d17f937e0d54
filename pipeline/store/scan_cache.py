"""The scan cache: what earlier runs learned about files, so that a rerun opens none of them.

A small SQLite file in the store, safe to delete: (path, size, times, inode) → key of the bytes;
key → why it could not be decoded; shard → state at its last good check. One thread uses it.

Every row has a checksum, so that a byte that changed on the disk makes no other key; a file that
SQLite finds damaged, whenever that is, is made anew.
"""

import os
import sqlite3
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pipeline.files.atomic import has_locks
from pipeline.files.regular import require_regular
from pipeline.files.state import FileState

# A file changed within the clock's grain after it was read would look unchanged; git's index
# has the same race and the same rule: what is this young is read again next time.
RACY_NS: Final = 2_000_000_000

# Values in one query; older SQLite takes 999.
_AT_ONCE: Final = 900
_ROWS_AT_ONCE: Final = 200
_VERSION: Final = 2
_TABLES: Final = """
CREATE TABLE files (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, key TEXT NOT NULL,
    checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE failures (key TEXT PRIMARY KEY, decoder TEXT NOT NULL, reason TEXT NOT NULL,
    checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE shards (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, checksum INTEGER NOT NULL)
    WITHOUT ROWID;
"""
# From the version before, whose rows have no checksum.
_UPGRADE: Final = """
BEGIN;
ALTER TABLE files ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE failures ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE shards ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
UPDATE files SET checksum = checksum_of(path, stamp, key);
UPDATE failures SET checksum = checksum_of(key, decoder, reason);
UPDATE shards SET checksum = checksum_of(name, stamp);
PRAGMA user_version = 2;
COMMIT;
"""
# What damage to the file can raise: besides errors of SQLite, sizes that are read from it.
_ERRORS: Final = (sqlite3.Error, MemoryError, OverflowError, ValueError)
# What says nothing about the file: it is held by another process, or cannot be written.
_ELSEWHERE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)


class ScanCache:
    """The cache of one store; without a file, or where it cannot be written, it lives in memory.

    Example:
        with ScanCache(store / "scan.sqlite") as cache:
            key = cache.key(path, FileState.of(os.stat(path)))
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._database = _open(path)
        # Rows of ``files`` that are not in it yet.
        self._learned: list[tuple[str | bytes | int, ...]] = []
        self._has_failures = self._one("SELECT 1 FROM failures LIMIT 1") is not None

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
        self._write_learned()
        try:
            self._database.commit()
        except _ERRORS as error:
            self._give_up(error)

    def key(self, path: str | Path, state: FileState) -> str | None:
        """Return the key of a file's bytes if the file is unchanged since it was hashed."""
        self._write_learned()
        asked = (os.fsencode(path), state.stamp)
        row = self._one("SELECT key, checksum FROM files WHERE path = ? AND stamp = ?", *asked)
        return _checked(row, *asked)

    def keys(self, files: Sequence[tuple[str, FileState]]) -> list[str | None]:
        """Return what ``key`` does of each of many files, in half the time."""
        self._write_learned()
        found: list[str | None] = []
        for start in range(0, len(files), _AT_ONCE):
            part = [
                (os.fsencode(path), state.stamp) for path, state in files[start : start + _AT_ONCE]
            ]
            # Members of a packed file have one stamp.
            encoded = {stamp: stamp.encode() for stamp in {stamp for _, stamp in part}}
            rows = self._many(
                "SELECT path, stamp, key, checksum FROM files WHERE path IN",
                [path for path, _ in part],
            )
            known = {row[0]: row for row in rows if isinstance(row[2], str)}
            for path, stamp in part:
                row = known.get(path)
                if row is None or row[1] != stamp:
                    found.append(None)
                    continue
                values = (path, encoded[stamp], row[2].encode("utf-8", "surrogateescape"))
                found.append(row[2] if row[3] == zlib.crc32(b"\0".join(values)) else None)
        return found

    def remember_key(self, path: str | Path, state: FileState, key: str) -> None:
        """Remember a file's key, unless the file is too young to be trusted."""
        if time.time_ns() - state.changed_ns >= RACY_NS:
            values = (os.fsencode(path), state.stamp, key)
            self._learned.append((*values, _checksum(*values)))
            if len(self._learned) >= _ROWS_AT_ONCE:
                self._write_learned()

    def failure(self, key: str, decoder: str) -> str | None:
        """Return why an image could not be decoded by this very decoder, if it could not."""
        if not self._has_failures:
            return None
        query = "SELECT reason, checksum FROM failures WHERE key = ? AND decoder = ?"
        row = self._one(query, key, decoder)
        return _checked(row, key, decoder)

    def remember_failure(self, key: str, decoder: str, reason: str) -> None:
        """Remember that an image could not be decoded."""
        self._has_failures = True
        self._put("failures", key, decoder, reason)

    def is_checked(self, shard: str, status: os.stat_result) -> bool:
        """Tell whether a shard is unchanged since its digest was last found right."""
        state = FileState.of(status).stamp
        row = self._one("SELECT stamp, checksum FROM shards WHERE name = ?", shard)
        return row == (state, _checksum(shard, state))

    def remember_check(self, shard: str, status: os.stat_result) -> None:
        """Remember that a shard's digest is right."""
        self._put("shards", shard, FileState.of(status).stamp)

    def _one(self, query: str, *values: object) -> tuple[object, ...] | None:
        try:
            row: tuple[object, ...] | None = self._database.execute(query, values).fetchone()
        except _ERRORS as error:
            self._give_up(error)
            return None
        return row

    def _many(self, query: str, values: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Return the rows of a query that ends in a list of values."""
        marks = ", ".join("?" * len(values))
        try:
            return self._database.execute(f"{query} ({marks})", values).fetchall()
        except _ERRORS as error:
            self._give_up(error)
            return []

    def _put(self, table: str, *values: str | bytes) -> None:
        self._insert(table, [(*values, _checksum(*values))])

    def _write_learned(self) -> None:
        rows, self._learned = self._learned, []
        if rows:
            self._insert("files", rows)

    def _insert(self, table: str, rows: Sequence[tuple[str | bytes | int, ...]]) -> None:
        """Insert rows in one statement: while SQLite works, other threads take the interpreter."""
        marks = ", ".join([f"({', '.join('?' * len(rows[0]))})"] * len(rows))
        values = [value for row in rows for value in row]
        try:
            self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES {marks}", values)  # noqa: S608
        except _ERRORS as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Go on with an empty cache where the file is damaged; else it only stays slower."""
        if _is_elsewhere(error):
            return
        with suppress(*_ERRORS):
            self._database.close()
        self._database = _remade(self._path)


def _checked(row: tuple[object, ...] | None, *asked: str | bytes) -> str | None:
    """Return the value of a row that was found for what was asked, if its checksum is right."""
    if row is None or not isinstance(row[0], str) or row[1] != _checksum(*asked, row[0]):
        return None
    return row[0]


def _checksum(*values: str | bytes) -> int:
    """Return a checksum of a row, in which every changed byte of a value shows."""
    # Between two values a zero, so that nothing moves from one to the next.
    encoded = [
        value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        for value in values
    ]
    return zlib.crc32(b"\0".join(encoded))


def _is_elsewhere(error: Exception) -> bool:
    """Tell whether an error of SQLite has another cause than damage to the file."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _ELSEWHERE


def _open(path: Path | None) -> sqlite3.Connection:
    """Open or make the cache; one that is damaged or of another version is made anew."""
    if path is not None and path.exists():
        try:
            return _usable(path)
        except (*_ERRORS, OSError) as error:
            if _is_elsewhere(error):
                return _with_tables(sqlite3.connect(":memory:"))
    return _remade(path)


def _usable(path: Path) -> sqlite3.Connection:
    require_regular(path)
    database = sqlite3.connect(path, timeout=_patience(path))
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == _VERSION - 1:
            database.create_function("checksum_of", -1, _checksum, deterministic=True)
            database.executescript(_UPGRADE)
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"version {version}")
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        if not {"files", "failures", "shards"} <= tables:
            raise sqlite3.DatabaseError(f"tables {tables}")
    except _ERRORS:
        database.close()
        raise
    return database


def _remade(path: Path | None) -> sqlite3.Connection:
    """Make an empty cache in place of a file; in memory where there is no place."""
    if path is not None:
        with suppress(*_ERRORS, OSError):
            for name in ("", "-journal", "-wal", "-shm"):
                path.with_name(path.name + name).unlink(missing_ok=True)
            return _with_tables(sqlite3.connect(path, timeout=_patience(path)))
    return _with_tables(sqlite3.connect(":memory:"))


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
