"""How records name other places on disk, so that what moves together still finds itself.

A record holds a place twice: absolute, and relative to the folder of the record. The relative one
is looked at first: a project that was moved, renamed or copied is whole in itself. The absolute one
finds what stayed where it was when the record's folder alone was moved.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.files.location import Location, Remote, locate

Place = TypeVar("Place", bound=Location)


def absolute(place: Location) -> str:
    """Return a place as records name it, whatever the working directory of their reader."""
    if isinstance(place, Remote):
        return str(place)
    return os.path.abspath(place)  # noqa: PTH100 - unlike resolve, it keeps links


def nearby(place: Location, folder: Location) -> str | None:
    """Return a place relative to the folder of a record; None where either is an address."""
    if isinstance(place, Remote) or isinstance(folder, Remote):
        return None
    return relative(place, folder)


def resolved(place: Location) -> Location:
    """Return the one name of a place, with links followed."""
    return place if isinstance(place, Remote) else place.resolve()


def relative(place: Path, folder: Path) -> str:
    """Return a place relative to the folder of a record, POSIX.

    Links on the way there are followed, a link at the place itself is kept: it moves with what is
    beside it.
    """
    full = Path(absolute(place))
    return os.path.relpath(full.parent.resolve() / full.name, folder.resolve())


def candidates(recorded: str, nearby: str | None, folder: Path) -> list[Path]:
    """Return where a recorded place may be, the likeliest first.

    Args:
        recorded: As it was written down absolute; by older releases as it was typed, from where
            a store or run lies in ``stores`` or ``runs`` unless told otherwise.
        nearby: Relative to the folder; None in records of older releases.
        folder: The folder of the record.
    """
    found = [] if nearby is None else [Path(os.path.normpath(folder.resolve() / nearby))]
    found.append(Path(recorded))
    if not Path(recorded).is_absolute():
        found.append(folder.resolve().parent.parent / recorded)
    return list(dict.fromkeys(found))


def of_images(
    recorded: str, nearby: str | None, folder: Path, has_images: Callable[[Path], bool]
) -> Location:
    """Return where images are: the first place that has them, else that is there, else the first.

    Args:
        recorded: As for ``candidates``, or an address.
        nearby: As for ``candidates``.
        folder: The folder of the record.
        has_images: Tells whether the images of the record are at a place.
    """
    place = locate(recorded)
    if isinstance(place, Remote):
        return place
    return choose(candidates(recorded, nearby, folder), has_images, Path.exists)


def choose(places: Sequence[Place], *tests: Callable[[Place], bool]) -> Place:
    """Return the first place that passes the first test that any passes, else the first place."""
    for test in tests:
        for place in places:
            if test(place):
                return place
    return places[0]
