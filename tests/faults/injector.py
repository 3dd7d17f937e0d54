"""Faults at every write: kills the process at the n-th change of the disk, or fills the disk there.

Installed in a child process. What changes files under one folder is counted: create, write, fsync,
rename, unlink, mkdir, rmdir, chmod and truncate, as Python and this package call them (HDF5 writes
through Python, too); what SQLite and TensorFlow write by themselves is not seen.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILLED = 137
# What can be interrupted half-way, and what a full disk refuses.
WRITES = ("write",)
NEEDS_ROOM = ("create", "write", "fsync", "mkdir")


@dataclass
class Fault:
    """What is to happen at which change.

    Attributes:
        kind: ``kill`` or ``full``.
        number: Of the change, from 0; -1 never.
        when: ``before``, ``middle`` or ``after``.
    """

    kind: str = "kill"
    number: int = -1
    when: str = "before"


@dataclass
class Injector:
    """Counts the changes under a folder and makes a fault of one of them.

    Attributes:
        root: The folder.
        fault: The fault.
        seen: The changes so far: what, and where.
    """

    root: Path
    fault: Fault
    seen: list[str] = field(default_factory=list)
    _is_full: bool = False
    _lock: Any = field(default_factory=threading.RLock)

    def covers(self, path: Any, folder: int | None = None) -> bool:
        """Tell whether a path, or that of an open file, is under the folder."""
        name = self._name(path, folder)
        return name is not None and name.startswith(str(self.root) + os.sep)

    def change(self, what: str, path: Any, act: Callable[[], Any], half: Any = None,
               folder: int | None = None) -> Any:  # fmt: skip
        """Make one change, or the fault that is due.

        Args:
            what: The kind of change.
            path: Where: a path or a file descriptor.
            act: Makes it.
            half: Makes half of it.
            folder: Descriptor of the folder that the path is relative to.
        """
        if not self.covers(path, folder):
            return act()
        with self._lock:
            number = len(self.seen)
            self.seen.append(f"{what} {self._name(path, folder)[len(str(self.root)) + 1 :]}")
            if number == self.fault.number:
                self._before(half)
            if self._is_full and what in NEEDS_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                # Tests need not wait for the disk.
                return None if what == "fsync" else act()
            finally:
                if number == self.fault.number and self.fault.when == "after":
                    os._exit(KILLED)

    def _before(self, half: Any) -> None:
        if self.fault.when == "middle" and half is not None:
            half()
        if self.fault.kind == "full":
            self._is_full = True
        elif self.fault.when != "after":
            os._exit(KILLED)

    def _name(self, path: Any, folder: int | None) -> str | None:
        if isinstance(path, int):
            try:
                return os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
        name = os.fsdecode(path)
        if folder is not None:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        return os.path.abspath(name)

    # -- what is replaced ------------------------------------------------------------------

    def install(self) -> None:
        """Replace the functions of this process."""
        for name, what in {"unlink": "unlink", "remove": "unlink", "mkdir": "mkdir",
                           "rmdir": "rmdir", "chmod": "chmod"}.items():  # fmt: skip
            self._replace_path_function(name, what)
        for name in ("rename", "replace"):
            self._replace_rename(name)
        for name, what in {"fsync": "fsync", "ftruncate": "truncate"}.items():
            self._replace_descriptor_function(name, what)
        self._replace_writes()
        self._replace_os_open()
        self._replace_open()
        # Otherwise they write without asking Python.
        shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]
        import numpy.lib.format as numpy_format

        for module in (numpy_format, getattr(numpy_format, "_format_impl", None),
                       __import__("sys").modules.get("numpy.lib._format_impl")):  # fmt: skip
            if module is not None and hasattr(module, "isfileobj"):
                module.isfileobj = lambda _: False

    def _replace_path_function(self, name: str, what: str) -> None:
        real = getattr(os, name)

        def changed(path: Any, *rest: Any, dir_fd: int | None = None, **more: Any) -> Any:
            more = more if dir_fd is None else {**more, "dir_fd": dir_fd}
            return self.change(what, path, lambda: real(path, *rest, **more), folder=dir_fd)

        setattr(os, name, changed)
        if real in os.supports_dir_fd:
            os.supports_dir_fd.add(changed)
        if real in os.supports_follow_symlinks:
            os.supports_follow_symlinks.add(changed)

    def _replace_rename(self, name: str) -> None:
        real = getattr(os, name)
        setattr(os, name, lambda source, target, **more: self.change(
            "rename", target, lambda: real(source, target, **more)))  # fmt: skip

    def _replace_descriptor_function(self, name: str, what: str) -> None:
        real = getattr(os, name)
        setattr(os, name, lambda file, *rest: self.change(what, file, lambda: real(file, *rest)))

    def _replace_writes(self) -> None:
        for name in ("write", "pwrite"):
            real = getattr(os, name)

            def write(file: int, data: Any, *place: int, real: Any = real) -> Any:
                half = memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2]
                return self.change("write", file, lambda: real(file, data, *place),
                                   lambda: real(file, half, *place))  # fmt: skip

            setattr(os, name, write)

    def _replace_os_open(self) -> None:
        real = os.open

        def opened(path: Any, flags: int, *rest: Any, dir_fd: int | None = None) -> int:
            act = lambda: real(path, flags, *rest, dir_fd=dir_fd)  # noqa: E731
            is_new = flags & os.O_CREAT and not os.path.exists(path)
            return self.change("create", path, act) if is_new else act()

        os.open = opened  # type: ignore[assignment]

    def _replace_open(self) -> None:
        real, injector = io.open, self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                view, put = memoryview(data).cast("B"), super().write
                half = view[: len(view) // 2]
                return injector.change("write", self.fileno(), lambda: put(view), lambda: put(half))

            def truncate(self, size: int | None = None) -> int:
                return injector.change("truncate", self.fileno(),
                                       lambda: super(Raw, self).truncate(size))  # fmt: skip

        def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None,
                   errors: Any = None, newline: Any = None, closefd: bool = True,
                   opener: Any = None) -> Any:  # fmt: skip
            writes = set(mode) & set("wax+")
            if not writes or isinstance(file, int) or not injector.covers(file):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            form = "".join(letter for letter in mode if letter not in "bt")
            make = lambda: Raw(file, form, closefd, opener)  # noqa: E731
            is_change = "w" in mode or not os.path.exists(file)
            raw = injector.change("create", file, make) if is_change else make()
            if buffering == 0:
                return raw
            both = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return both if "b" in mode else io.TextIOWrapper(both, encoding, errors, newline)

        io.open = builtins.open = opened  # type: ignore[assignment]
