"""The folder of a store: one writer at a time, and nothing in it but the store."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import StoreError, mention
from pipeline.files.atomic import exclusive, remove_leftovers
from pipeline.files.location import Location
from pipeline.store.object_storage import storage_of
from pipeline.store.record import RECORD
from pipeline.store.storage import LOCK, Storage


@contextmanager
def lock(place: Location, *, wait: bool = False) -> Iterator[None]:
    """Keep other writers out of a store, existing or to be made, while the context lasts.

    Of an object storage only those of this machine are kept out: see ``object_storage``.

    Args:
        place: The store.
        wait: Whether to wait for another process that is writing.

    Raises:
        StoreError: Another process is writing, and ``wait`` is off; or nothing can be written.
    """
    busy = f"Another extract or prune is writing into {str(place)!r}."
    storage = storage_of(place)
    path = storage.folder
    with exclusive(path / LOCK, busy, wait=wait):
        try:
            with storage.writing():
                yield
        finally:
            # A store that could not be made leaves nothing behind.
            if not (path / RECORD).is_file():
                remove_leftovers(path)
                (path / LOCK).unlink()
                if not any(path.iterdir()):
                    path.rmdir()


def require_empty(storage: Storage) -> None:
    """Refuse a place for a store that holds something else.

    Raises:
        StoreError: Names the first of it.
    """
    others = storage.others(set())
    if others:
        raise StoreError(
            f"Expected a feature store or an empty folder at {str(storage.place)!r}. "
            f"Received: a folder with {mention(others)}.",
            hint="Choose another --store.",
        )


def require_nothing_else(storage: Storage, own: set[str]) -> None:
    """Refuse to replace a store that holds what is not its own.

    Raises:
        StoreError: Names the first of it.
    """
    others = storage.others(own)
    if others:
        raise StoreError(
            f"Expected nothing but a feature store at {str(storage.place)!r}, which is to be "
            f"replaced. Received: also {mention(others)}.",
            hint="Move that elsewhere, or choose another --store.",
        )
