"""How stages tell a person what goes on: a protocol, and its silent implementation.

The command line implements it with text and bars on stderr; library callers need not.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Protocol


class Bar(Protocol):
    """Progress of one loop."""

    def advance(self, **shown: object) -> None:
        """Count one step, and show named values beside the bar."""
        ...


class Reporter(Protocol):
    """Where notes and progress go."""

    def say(self, text: str) -> None:
        """Show one line."""
        ...

    def bar(self, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Show progress through ``total`` steps while the context lasts."""
        ...


class Silence:
    """A reporter and bar that show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""

    def bar(self, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Show nothing."""
        return nullcontext(self)

    def advance(self, **shown: object) -> None:
        """Show nothing."""


SILENCE: Final = Silence()


def say_notes(reporter: Reporter, notes: Iterable[str]) -> list[str]:
    """Show what was assumed, a line each, and return it."""
    said = list(notes)
    for note in said:
        reporter.say(f"Note: {note}")
    return said


@contextmanager
def saying_warnings(reporter: Reporter) -> Iterator[None]:
    """Say the warnings of other packages, each once and in one line, while the context lasts."""
    said: set[str] = set()

    def say(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = f"{category.__name__}: {' '.join(str(message).split())}"
        if text not in said:
            said.add(text)
            reporter.say(text)

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield
