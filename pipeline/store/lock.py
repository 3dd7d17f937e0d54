"""The folder of a store: one writer at a time, and nothing in it but the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StoreError, mention
from pipeline.files.atomic import exclusive, foreign, remove_leftovers
from pipeline.store.record import RECORD

LOCK = ".lock"


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other writers out of a store, existing or to be made, while the context lasts.

    Args:
        path: The store.
        wait: Whether to wait for another process that is writing.

    Raises:
        StoreError: Another process is writing, and ``wait`` is off.
    """
    busy = f"Another extract or prune is writing into {str(path)!r}."
    with exclusive(path / LOCK, busy, wait=wait):
        try:
            yield
        finally:
            # A store that could not be made leaves nothing behind.
            if not (path / RECORD).is_file():
                remove_leftovers(path)
                (path / LOCK).unlink()
                if not any(path.iterdir()):
                    path.rmdir()


def require_empty(path: Path) -> None:
    """Refuse a place for a store that holds something else.

    Raises:
        StoreError: Names the first of it.
    """
    others = foreign(path, {LOCK})
    if others:
        raise StoreError(
            f"Expected a feature store or an empty folder at {str(path)!r}. "
            f"Received: a folder with {mention(others)}.",
            hint="Choose another --store.",
        )


def require_nothing_else(path: Path, own: set[str]) -> None:
    """Refuse to replace a store that holds what is not its own.

    Raises:
        StoreError: Names the first of it.
    """
    others = foreign(path, {LOCK, *own})
    if others:
        raise StoreError(
            f"Expected nothing but a feature store at {str(path)!r}, which is to be "
            f"replaced. Received: also {mention(others)}.",
            hint="Move that elsewhere, or choose another --store.",
        )
