"""Places for results, refused before the work that they are to hold.

A place is looked at and tried by a temporary file; nothing stays, and no folder is made.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError
from pipeline.files.atomic import recover, temporary_sibling
from pipeline.system.progress import Reporter

_ANOTHER: Final = "Choose another place."
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def require_file(option: str, path: Path, reporter: Reporter) -> None:
    """Refuse a place where no file can be written; say which folder is to be made for it.

    Args:
        option: What names the place, such as ``--csv``.
        path: The file, which may exist.
        reporter: Where it is said.

    Raises:
        ConfigError: It is a folder, or nothing can be written there.
    """
    with _refusing(option, path):
        _require_of_this_machine(option, path)
        if path.is_dir():
            raise _misplaced(option, path, "a file", "a folder")
        _require_room(option, path)
        if not path.parent.exists():
            reporter.say(f"{option}: the folder {str(path.parent)!r} is to be made")


def require_new_file(option: str, path: Path, reporter: Reporter, *, force: bool) -> None:
    """Refuse a file that cannot be written, or is there and is not to be replaced.

    Raises:
        ConfigError: Something is there and ``force`` is not set, or see ``require_file``.
    """
    require_file(option, path, reporter)
    _require_replaceable(option, path, force=force)


def require_new_files(
    option: str, paths: Sequence[Path], reporter: Reporter, *, force: bool
) -> None:
    """Refuse files of one folder that cannot be written, or are there and are not to be replaced.

    Raises:
        ConfigError: See ``require_new_file``.
    """
    require_file(option, paths[0], reporter)
    for path in paths:
        _require_replaceable(option, path, force=force)


def _require_replaceable(option: str, path: Path, *, force: bool) -> None:
    if path.exists() and not (force and path.is_file()):
        raise ConfigError(
            f"{option}: expected nothing at {str(path)!r}, or with --force a file. "
            "Received: a file that is there.",
            hint="Replace it with --force, or choose another name.",
        )


def require_folder(option: str, path: Path) -> None:
    """Refuse a place where no folder can be made, or that is a file.

    A folder that exists is not tried: it may be read-only, and hold all that is asked for.

    Raises:
        ConfigError: It is a file, or nothing can be written there.
    """
    with _refusing(option, path):
        _require_of_this_machine(option, path)
        if path.is_dir():
            return
        if path.exists() or path.is_symlink():
            received = "a file" if path.exists() else "a broken link"
            raise _misplaced(option, path, "a folder", received)
        _require_room(option, path)


def _require_of_this_machine(option: str, path: Path) -> None:
    """Refuse what was an address, of whose slashes a path keeps one."""
    if path.parts and _SCHEME.fullmatch(path.parts[0]) and not path.parent.exists():
        raise ConfigError(
            f"{option}: expected a path of this machine. Received an address: {str(path)!r}.",
            hint="Only a store may be at an address; copy other results there yourself.",
        )


def _require_room(option: str, path: Path) -> None:
    """Try to write into the nearest folder that exists."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise _unwritable(option, path, f"{str(folder)!r} is a file")
    for name in path.absolute().relative_to(folder).parts:
        (folder / name).exists()  # a name may be too long
    recover(folder / path.name)
    # Also as root, who is told that everything is writable, and on a full disk.
    with temporary_sibling(folder / path.name):
        pass


@contextmanager
def _refusing(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # also of looking at a name too long for the file system
        raise _unwritable(option, path, error.strerror) from error


def _unwritable(option: str, path: Path, cause: str | None) -> ConfigError:
    return ConfigError(
        f"{option}: expected a place that can be written to. Received: {str(path)!r}: {cause}.",
        hint=_ANOTHER,
    )


def _misplaced(option: str, path: Path, expected: str, received: str) -> ConfigError:
    return ConfigError(
        f"{option}: expected {expected} at {str(path)!r}. Received: {received} that is there.",
        hint=_ANOTHER,
    )
