"""The ``verify`` command: whether a store, a run or an exported folder is as it was written.

Nothing is changed unless a repair is asked for; every problem comes with the way to mend it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.upkeep import VerifyOptions
from pipeline.errors import ConfigError
from pipeline.files.location import Location, locate
from pipeline.runs import model_folder
from pipeline.runs.run import Run
from pipeline.store.lock import lock
from pipeline.store.store import Store
from pipeline.system.progress import Reporter
from pipeline.verify.problems import repaired
from pipeline.verify.reencode import reencode
from pipeline.verify.run import verify_folder, verify_run
from pipeline.verify.store import verify as verify_store


def verify(options: VerifyOptions, reporter: Reporter) -> dict[str, object]:
    """Check every byte, and on request what the bytes say; see docs/json.md for the keys.

    Args:
        options: What to check, and whether to mend it.
        reporter: Where notes and progress go.

    Raises:
        ConfigError: Rows of something else than a store are to be encoded again.
        StoreError: There is nothing to check.
    """
    place = locate(options.store)
    path = place if isinstance(place, Path) and not Store.exists(place) else None
    is_run = path is not None and Run.exists(path)
    is_folder = path is not None and model_folder.exists(path)
    if options.reencode and (is_run or is_folder):
        raise ConfigError(
            f"--reencode: expected a store, which holds features. Received: {options.store!r}.",
            hint="Give the store of the run; pipeline info says which that is.",
        )
    if path is not None and is_run:
        return verify_run(path, repair=options.repair)
    if path is not None and is_folder:
        return verify_folder(path)
    result = verify_store(place, repair=options.repair)
    if not options.reencode:
        return result
    if not result["ok"] and not options.repair:
        reporter.say("Nothing is encoded again before the store is repaired (--repair)")
        return {**result, "reencoded": 0}
    return _reencoded(place, options, result, reporter)


def _reencoded(
    place: Location, options: VerifyOptions, result: Mapping[str, Any], reporter: Reporter
) -> dict[str, object]:
    """Add to a result what encoding again found; drop what is wrong where that was asked for."""
    found = reencode(place, options.reencode, options.weights, reporter)
    if found.unavailable:
        reporter.say(
            f"{found.unavailable:,} of the rows drawn have no image any more: not compared"
        )
    done: list[str] = []
    with lock(place):
        if options.repair and found.problems:
            done = repaired(found.problems)
            store = Store.open(place)
            store.refresh_view()
            store.save_record()
        elif found.is_whole:
            Store.unchecked(place).note_proven()
    return {
        **result,
        "ok": result["ok"] and not found.problems,
        "problems": [*result["problems"], *(problem.as_json() for problem in found.problems)],
        "repaired": [*result["repaired"], *done],
        "reencoded": found.rows,
        "unavailable": found.unavailable,
    }
