"""Where the store and the images of a run are: beside it, where they were, or where a user says.

The store and the images are no part of a run, and may move with it or without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.errors import RunError
from pipeline.files import places
from pipeline.files.location import Location, Remote, locate
from pipeline.images.place import is_relative_to, may_hold_images
from pipeline.runs.record import Nearby, RunRecord
from pipeline.store.store import Store

# Inputs that say where something lies. What it is, other inputs say: the identity of the features,
# the digest of the rows, that of the head to start from.
PLACES: Final = ("store", "finetuned_run")


def apart_from_places(inputs: Mapping[str, object]) -> dict[str, object]:
    """Return what results depend on; not where it lies."""
    return {name: value for name, value in inputs.items() if name not in PLACES}


def noted(record: RunRecord, folder: Path, *, store: Location, root: Location) -> RunRecord:
    """Return a run's record that says where the store and the images are.

    Args:
        record: The run's record.
        folder: The run.
        store: The store of its features.
        root: What the paths of its images are relative to.
    """
    return replace(
        record,
        inputs={**record.inputs, "store": places.absolute(store)},
        root=places.absolute(root),
        nearby=Nearby(
            store=places.nearby(store, folder),
            root=places.nearby(root, folder),
        ),
    )


def stores(record: RunRecord, folder: Path) -> Sequence[Location]:
    """Return where the store of a run may be, the likeliest first."""
    recorded = locate(str(record.inputs.get("store", "")))
    if isinstance(recorded, Remote):
        return [recorded]
    nearby = record.nearby.store if record.nearby else None
    return places.candidates(str(record.inputs.get("store", "")), nearby, folder)


def store_of(record: RunRecord, folder: Path) -> Location:
    """Return where the store of a run is: one of its features, else any, else the likeliest."""
    found = stores(record, folder)
    if len(found) == 1:  # no storage is asked whose answer changes nothing
        return found[0]
    fits = partial(_has_identity, identity=record.inputs.get("identity"))
    return places.choose(found, fits, Store.exists)


def root_of(record: RunRecord, folder: Path, first: str) -> Location:
    """Return where the images of a run are, or were last.

    Args:
        record: The run's record.
        folder: The run.
        first: The path of one image.
    """
    nearby = record.nearby.root if record.nearby else None
    return places.of_images(record.root, nearby, folder, partial(is_relative_to, path=first))


def given_root(place: str | None) -> Location | None:
    """Return the root of images that the user names by ``--data``.

    Raises:
        RunError: There is no such folder or packed file.
        StorageError: A storage refuses, or cannot be reached.
    """
    root = None if place is None else locate(place)
    if root is None or may_hold_images(root):
        return root
    raise RunError(
        f"--data: expected the folder of the images of the run, or a packed file. Received: "
        f"{place!r}, which is not one.",
        hint="Correct the path, or leave the option out.",
    )


def given_store(place: str | None) -> Location | None:
    """Return the store that the user names by ``--store``.

    Raises:
        RunError: There is none.
    """
    store = None if place is None else locate(place)
    if store is None or Store.exists(store):
        return store
    raise RunError(
        f"--store: expected the store of the run. Received: {place!r}, which is not one.",
        hint="Correct the path, or leave the option out.",
    )


def _has_identity(place: Location, *, identity: object) -> bool:
    return Store.exists(place) and Store.unchecked(place).identity.as_json() == identity
