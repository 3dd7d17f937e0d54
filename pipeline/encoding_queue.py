"""The queue before the encoder: rows become batches, a bounded number of which are under way."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np

from pipeline.doctor import Clock
from pipeline.encoder import Encoder, Features
from pipeline.images import Pixels

# One batch is being encoded while the next waits for it, stacked and handed over.
_UNDER_WAY: Final = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One image in one view, to be encoded.

    Attributes:
        index: Its row in the listing.
        key: Its content key.
        view: The view.
        pixels: uint8 ``(S, S, 3)``.
    """

    index: int
    key: str
    view: str
    pixels: Pixels


class EncodingQueue:
    """Batch rows, encode them in order and deliver their features.

    Leaving the context encodes what is left; leaving it by an error delivers at least what is
    under way, so that no work is lost.

    Example:
        with EncodingQueue(encoder, deliver=write, clock=clock) as queue:
            queue.add(row)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        deliver: Callable[[Sequence[Row], Features], None],
        clock: Clock,
    ) -> None:
        self._encoder = encoder
        self._deliver = deliver
        self._clock = clock
        self._rows: list[Row] = []
        self._under_way: deque[tuple[list[Row], Callable[[], Features]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None and self._rows:
                self._start()
        except BaseException:
            self._save()
            raise
        if error is None:
            self.drain()
        else:
            self._save()

    def add(self, row: Row) -> None:
        """Take a row; a full batch starts at once."""
        self._rows.append(row)
        if len(self._rows) == self._encoder.batch_size:
            self._start()

    def drain(self) -> None:
        """Deliver everything that is under way; called when the next image is not there yet.

        The encoder then has nothing to do in any case, and its idle time shows.
        """
        while self._under_way:
            self._collect()

    def _save(self) -> None:
        """Deliver what is under way; the error already on its way out is the one to report."""
        with suppress(Exception):
            self.drain()

    def _start(self) -> None:
        rows, self._rows = self._rows, []
        batch = np.stack([row.pixels for row in rows])
        self._clock.encoder_has_work(True)
        with self._clock.waiting("encode"):
            self._under_way.append((rows, self._encoder.submit(batch)))
        while len(self._under_way) >= _UNDER_WAY:
            self._collect()

    def _collect(self) -> None:
        rows, result = self._under_way.popleft()
        with self._clock.waiting("encode"):
            features = result()
        self._clock.encoder_has_work(bool(self._under_way))
        with self._clock.waiting("write"):
            self._deliver(rows, features)
