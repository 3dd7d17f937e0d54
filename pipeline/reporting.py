"""How stages tell a person what goes on: a protocol, and its silent implementation.

The command line implements it with text and bars on stderr; library callers need not.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


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
