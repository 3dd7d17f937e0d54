"""A budget of memory that threads draw from before they decode.

What is decoded at once then takes a bounded number of bytes, however many threads decode and
however large the images are.
"""

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from pipeline.system import machine

# A quarter: the network, its batches and the other programs of the machine need the rest.
_PART: Final = 4
LEAST: Final = 256 << 20
# What a thread waits for is the decoding of an image that takes many times as long.
_PAUSE: Final = 0.01


class OverBudgetError(Exception):
    """Something takes more than a whole budget that is never exceeded."""


def part_of(processes: int) -> int:
    """Return the bytes that each of so many processes may take for what it decodes at once."""
    return max(LEAST, machine.free_memory() // _PART // processes)


def most_processes() -> int:
    """Return how many processes can have the least budget each, of what is free."""
    return max(1, machine.free_memory() // _PART // LEAST)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class _Share:
    """What one thread wants or has.

    Attributes:
        held: Locked from before the thread stands in line until it is done.
        amount: Bytes.
    """

    held: threading.Lock
    amount: int


class MemoryBudget:
    """Bytes that threads draw, in the order in which they asked.

    An amount above the whole budget is granted once nothing else is drawn: it runs alone rather
    than never. Nobody overtakes, so that small amounts never keep a large one waiting for ever.

    There is no count that a thread would have to correct when it is done: a share counts while
    its lock is locked, which the interpreter unlocks whatever ends the ``with`` block, and while
    anyone but the budget knows it, for where even that is interrupted. So nothing is ever lost
    from the budget. For the same reason there is no lock around the line, whose every change is
    one step of the interpreter, and a thread looks whether it is its turn: no wake-up is missed.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Set up.

        Args:
            limit: The budget in bytes; a quarter of the memory that is free at first use, and
                at least ``LEAST``, by default.
        """
        self._limit = limit
        self._is_strict = False
        self.forget()

    def take_at_most(self, limit: int) -> None:
        """Set the budget, in bytes, for good: nothing is granted more, not even alone."""
        self._limit = limit
        self._is_strict = True

    def forget(self) -> None:
        """Take all shares as returned; for a forked process, which has none of the threads."""
        self._line: list[weakref.ref[_Share]] = []

    @contextmanager
    def draw(self, amount: int) -> Iterator[None]:
        """Draw bytes for the duration of a ``with`` block; waits until it is their turn.

        Raises:
            OverBudgetError: They are more than a budget that was set for good.
        """
        if self._is_strict and self._limit is not None and amount > self._limit:
            raise OverBudgetError
        share = _Share(threading.Lock(), amount)
        with share.held:
            self._line.append(weakref.ref(share))
            while not self._is_due(share):
                time.sleep(_PAUSE)
            yield

    def _is_due(self, share: _Share) -> bool:
        """Tell whether all shares ahead and this one fit; true once means true until the end."""
        if self._limit is None:
            self._limit = part_of(1)
        ahead = 0
        for known in tuple(self._line):
            other = known()
            if other is share:
                break
            if other is not None and other.held.locked():
                ahead += other.amount
            else:
                with suppress(ValueError):  # another thread was first
                    self._line.remove(known)
        return ahead == 0 or ahead + share.amount <= self._limit
