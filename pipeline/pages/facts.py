"""What pages say of where something came from: skipped files, commands, versions."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

# Files that are listed by name.
_SKIPPED: Final = 200
# Programs record their own arguments, which are no command of ours.
_COMMANDS: Final = ("audit", "extract", "finetune", "sweep", "train-head")


def skipped_files(files: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return what a page shows of skipped files.

    Args:
        files: Path and reason of each.

    Returns:
        ``rows`` of ``path`` and ``reason``; ``reasons`` with counts, of all; ``left_out``, how many
        rows there is no room for.
    """
    rows = [{"path": path, "reason": reason} for path, reason in files]
    return {
        "rows": rows[:_SKIPPED],
        "reasons": dict(Counter(row["reason"] for row in rows).most_common()),
        "left_out": max(0, len(rows) - _SKIPPED),
    }


def command_of(provenance: Mapping[str, object]) -> str:
    """Return a recorded command as it can be typed; empty where it was a function of Python."""
    argv: Any = provenance.get("argv")
    return shlex.join(["pipeline", *argv]) if argv and argv[0] in _COMMANDS else ""


def versions_of(provenance: Mapping[str, object]) -> dict[str, Any]:
    """Return the recorded versions of the program, of Python, and of the packages it used."""
    packages: Any = provenance.get("packages", {})
    return {
        **{name: provenance.get(name) for name in ("pipeline", "python", "platform")},
        **{name: version for name, version in packages.items() if version},
    }
