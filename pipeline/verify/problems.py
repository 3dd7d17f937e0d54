"""What a check finds wrong, and how it is mended; for ``verify`` and ``verify_run``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.storage import LOCAL, Storage


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        shard: The file that is bad: of a shard the digest that names it; empty where it is no one
            file.
        problem: What is wrong.
        fix: What to do about it by hand.
        mend: Does what a repair can do, and returns what that was; None where it can do nothing.
    """

    shard: str
    problem: str
    fix: str
    mend: Callable[[], str] | None = None

    def as_json(self) -> dict[str, str]:
        """Return what a result shows."""
        return {"shard": self.shard, "problem": self.problem, "fix": self.fix}


def repaired(problems: Sequence[Problem]) -> list[str]:
    """Mend what can be mended; return what was done, each thing once."""
    done: dict[str, None] = {}
    for problem in problems:
        if problem.mend is not None:
            try:
                done[problem.mend()] = None
            except OSError as error:
                done[f"could not repair {problem.shard or problem.problem}: {error}"] = None
    return list(done)


def without(path: Path, storage: Storage = LOCAL) -> Callable[[], str]:
    """Return the repair that removes a file, or what is in its place.

    Args:
        path: The file.
        storage: Where the store that it is of keeps its files.
    """

    def remove() -> str:
        storage.remove(path)
        return f"removed {storage.named(path)}"

    return remove
