"""Notes and progress on stderr: a bar in a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from pipeline.cli.text import duration
from pipeline.system.progress import Bar, Silence

# Between two lines of one loop in a log; a shorter loop has none.
LOG_SECONDS: Final = 30.0

# Its stderr is no terminal, and shows bars.
_NOTEBOOK: Final = "ipykernel"


class TerminalReporter:
    """Notes and progress on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def say(self, text: str) -> None:
        """Print one line."""
        if not self._quiet:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)

    def bar(self, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Show a bar with rate and time left; in a log, a line every ``LOG_SECONDS`` at most."""
        if self._quiet or not total:
            return nullcontext(Silence())
        if sys.stderr.isatty() or _NOTEBOOK in sys.modules:
            return _bar(total, unit)
        return nullcontext(_LogBar(total, unit, self))


class _LogBar:
    """Progress for a file: whole lines, and few of them."""

    def __init__(self, total: int, unit: str, reporter: TerminalReporter) -> None:
        self._total, self._unit, self._reporter = total, unit, reporter
        self._count = 0
        self._began = self._told = time.monotonic()

    def advance(self, **shown: object) -> None:
        """Count one step; say how far it is where that was not said lately."""
        self._count += 1
        now = time.monotonic()
        if now - self._told < LOG_SECONDS or self._count >= self._total:
            return
        self._told = now
        rate = self._count / (now - self._began)
        shown_rate = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        values = "".join(f", {name} {value}" for name, value in shown.items())
        self._reporter.say(
            f"{self._count:,} of {self._total:,} {self._unit} "
            f"({100 * self._count / self._total:.0f} %), {shown_rate} {self._unit}/s, "
            f"{duration((self._total - self._count) / rate)} left{values}"
        )


class _TqdmBar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, **shown: object) -> None:
        """Move by one."""
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update()


@contextmanager
def _bar(total: int, unit: str) -> Iterator[Bar]:
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        yield _TqdmBar(bar)
