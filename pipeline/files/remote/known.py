"""What is known of objects for a while, so that the same thing is not asked ten thousand times.

Of a packed file, its state for a minute; of the images of a listing, theirs as long as it is made.
"""

import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from pipeline.errors import StorageError
from pipeline.files.location import Remote
from pipeline.files.remote import objects
from pipeline.files.state import UNPROVEN, FileState

SECONDS: Final = 60.0
# Requests that are under way together.
_AT_ONCE: Final = 32
# From so many objects of one folder on, the folder is listed: a page has a thousand of them.
_LISTED_FROM: Final = 20
_SUFFIXES: Final = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")
_DIGITS: Final = 32
_NAME: Final = re.compile(rf"[0-9a-f]{{{_DIGITS}}}(\.[A-Za-z0-9]{{1,8}}){{0,2}}")


class Known(NamedTuple):
    """What is known of an object.

    Attributes:
        asked: When, by the monotonic clock.
        state: Its state; None where there is no object.
        name: What a copy of it is called: of other states there are others. Where no state proves
            anything, the name is of this process.
    """

    asked: float
    state: FileState | None
    name: str


_known: dict[str, Known] = {}
_listed: dict[str, FileState | None] = {}


def forget() -> None:
    """Ask anew from here on."""
    _known.clear()
    _listed.clear()


def forget_listed() -> None:
    """Drop what ``look_up`` was told."""
    _listed.clear()


def look(place: Remote) -> Known:
    """Return what is known of an object, asked for at most a minute ago.

    Raises:
        ConfigError, StorageError: See ``objects.state``.
    """
    known = _known.get(place.url)
    if known is None or time.monotonic() - known.asked > SECONDS:
        known = take_down(place, objects.state(place), known)
    return known


def take_down(place: Remote, state: FileState | None, before: Known | None = None) -> Known:
    """Remember the state of an object; one that proves nothing keeps the name that it had."""
    now = time.monotonic()
    if before is not None and before.state == state:
        name = before.name
    else:
        proof = state.stamp if state is not None and state.is_proof else f"{os.getpid()} at {now}"
        name = name_of(place, proof)
    _known[place.url] = known = Known(now, state, name)
    return known


def current(place: Remote) -> FileState | None:
    """Return the state of a packed file, asked for at most a minute ago; None where there is none.

    Raises:
        ConfigError, StorageError: See ``objects.state``.
    """
    return look(place).state


def state_of(place: Remote) -> FileState | None:
    """Return the state of an object: as ``look_up`` was told, else as it is now.

    Raises:
        ConfigError, StorageError: See ``objects.state``.
    """
    if place.url in _listed:
        return _listed[place.url]
    return objects.state(place)


def look_up(places: Sequence[Remote]) -> None:
    """Ask for the states of many objects together, by folder where that takes fewer requests.

    One that the storage does not tell counts as there: whoever reads it learns what is wrong.

    Raises:
        ConfigError: What speaks to such a storage is not installed.
        StorageError: A storage is out of reach altogether.
    """
    folders: dict[str, list[Remote]] = defaultdict(list)
    for place in places:
        if place.url not in _listed:
            folders[place.parent.url].append(place)
    single: list[Remote] = []
    for folder, inside in folders.items():
        if len(inside) < _LISTED_FROM or not objects.can_list(inside[0]):
            single += inside
            continue
        found = _inside(Remote(folder))
        for place in inside:
            _listed[place.url] = found.get(place.name)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for place, state in zip(single, pool.map(_asked, single), strict=True):
            _listed[place.url] = state


def name_of(place: Remote, stamp: str) -> str:
    """Return what the copy of an object in a state is called; it ends as the object's name does."""
    digest = hashlib.sha256(f"{place.url}\0{stamp}".encode("utf-8", "surrogateescape"))
    suffixes = _SUFFIXES.search(place.name)
    return f"{digest.hexdigest()[:_DIGITS]}{suffixes[0] if suffixes else ''}"


def is_name(name: str) -> bool:
    """Tell whether a copy of an object may be called so."""
    return _NAME.fullmatch(name) is not None


def _inside(folder: Remote) -> Mapping[str, FileState]:
    try:
        return objects.directly_in(folder)
    except StorageError as error:
        if error.is_lost:
            raise
        return defaultdict(lambda: UNPROVEN)


def _asked(place: Remote) -> FileState | None:
    try:
        return objects.state(place)
    except StorageError as error:
        if error.is_lost:
            raise
        return UNPROVEN
