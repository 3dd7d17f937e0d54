"""The budget of memory: what runs at once, in which order, and that nothing is ever lost of it."""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.images import memory_budget
from pipeline.images.memory_budget import MemoryBudget


class Load:
    """Counts what is drawn at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.most_threads = self.threads = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self, amount: int) -> Iterator[None]:
        with self._lock:
            self.now, self.threads = self.now + amount, self.threads + 1
            self.most = max(self.most, self.now)
            self.most_threads = max(self.most_threads, self.threads)
        try:
            yield
        finally:
            with self._lock:
                self.now, self.threads = self.now - amount, self.threads - 1


def work(budget: MemoryBudget, amounts: list[int], seconds: float = 0.003) -> Load:
    load = Load()

    def one(amount: int) -> None:
        with budget.draw(amount), load.counted(amount):
            time.sleep(seconds)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, amounts))
    return load


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def drawn_in_thread(budget: MemoryBudget, amount: int) -> tuple[threading.Event, threading.Event]:
    """Draw in a thread of its own; returns what is set when it has, and what ends it."""
    has, done = threading.Event(), threading.Event()

    def run() -> None:
        with budget.draw(amount):
            has.set()
            assert done.wait(20)

    threading.Thread(target=run, daemon=True).start()
    return has, done


def test_no_more_is_drawn_at_once_than_the_budget() -> None:
    load = work(MemoryBudget(100), [30, 40, 10, 60, 5, 25] * 8)
    assert 60 < load.most <= 100


def test_what_fits_runs_at_once() -> None:
    assert work(MemoryBudget(100), [10] * 24, seconds=0.05).most_threads == 8


@pytest.mark.parametrize("amount", [51, 100, 10_000])
def test_two_large_ones_never_run_at_once(amount: int) -> None:
    load = work(MemoryBudget(100), [amount] * 6)
    assert load.most_threads == 1


def test_more_than_the_whole_budget_runs_alone_rather_than_never() -> None:
    load = work(MemoryBudget(100), [1000, 1, 1, 1, 1000, 1, 1, 1] * 4)
    assert load.most == 1000


def test_nobody_overtakes() -> None:
    budget = MemoryBudget(100)
    first, end_first = drawn_in_thread(budget, 60)
    assert first.wait(20)
    large, end_large = drawn_in_thread(budget, 90)
    until(lambda: len(budget._line) == 2)
    small, end_small = drawn_in_thread(budget, 5)
    assert not small.wait(0.1), "a small one would keep the large one waiting for ever"
    assert not large.is_set()
    end_first.set()
    assert large.wait(20)
    assert small.wait(20)
    end_large.set()
    end_small.set()


def test_what_is_raised_inside_gives_the_share_back() -> None:
    budget = MemoryBudget(100)
    for error in (ValueError, KeyboardInterrupt, SystemExit, MemoryError):
        with pytest.raises(error), budget.draw(1000):
            raise error
        assert work(budget, [100] * 2).most == 100


class Interrupting:
    """Raises at one call of a trace function, counted from the start."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: object, event: str, argument: object) -> "Interrupting":
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self


def is_interrupted(budget: MemoryBudget, tracer: Interrupting) -> bool:
    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        with budget.draw(100):
            pass
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(previous)
    return False


@pytest.mark.slow
def test_an_interrupt_at_any_line_loses_nothing() -> None:
    budget = MemoryBudget(100)
    # What other tests left in memory is not looked through again and again.
    gc.collect()
    gc.freeze()
    interrupted = 0
    for at in range(1, 200):
        tracer = Interrupting(at)
        # In a thread of its own: an error that a trace raises in a generator can stay the one that
        # is "being handled" there (CPython 3.11), and later errors would get it as their context.
        with ThreadPoolExecutor(1) as thread:
            interrupted += thread.submit(is_interrupted, budget, tracer).result()
        gc.collect()
        assert work(budget, [100], seconds=0).most == 100
        if tracer.left > 0:
            break
    gc.unfreeze()
    assert 5 < interrupted < 199


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not() -> None:
    budget = MemoryBudget(100)
    os.register_at_fork(after_in_child=budget.forget)
    has, done = drawn_in_thread(budget, 100)
    assert has.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with budget.draw(100):
            os._exit(0)
    _, status = os.waitpid(child, 0)
    done.set()
    assert status == 0


def test_the_budget_is_a_quarter_of_free_memory_and_at_least_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for free, expected in ((8 << 30, 2 << 30), (100 << 20, memory_budget.LEAST)):
        budget = MemoryBudget()
        monkeypatch.setattr(memory_budget.machine, "free_memory", lambda free=free: free)
        with budget.draw(1):
            pass
        monkeypatch.setattr(memory_budget.machine, "free_memory", lambda: 0)
        with budget.draw(1):
            pass
        assert budget._limit == expected
