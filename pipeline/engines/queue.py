"""The queue before the encoder: rows become batches, a bounded number of which are under way."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np

from pipeline.engines.clock import Clock
from pipeline.engines.encoder import Encoder, Features, Pending
from pipeline.errors import PipelineError
from pipeline.images.decoder import Pixels

# One batch is being encoded while the next waits for it, stacked and handed over.
_UNDER_WAY: Final = 2
# How long an interrupted run waits for what the encoder has begun.
_SAVING_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class EncodingRow:
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


def require_finite(
    rows: Sequence[EncodingRow], features: Features, paths: Sequence[str], *, remedy: str
) -> None:
    """Refuse features that are infinite or not-a-number, which only unusable weights make.

    Args:
        rows: What was encoded.
        features: float32 ``(n, dim)`` of these rows.
        paths: Names of all images, by ``index`` of a row.
        remedy: What to do about it.

    Raises:
        PipelineError: Names the first image.
    """
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        path = paths[rows[int(np.argmin(finite))].index]
        raise PipelineError(
            f"Expected finite features. Received: infinity or not-a-number for {path!r}.",
            hint=f"The weights are unusable for images; {remedy}.",
        )


class EncodingQueue:
    """Batch rows, encode them in order and deliver their features.

    Leaving the context encodes what is left; leaving it by an error delivers what the encoder has
    finished or is about to. Rows are delivered with the features that were computed of them, or not
    at all, wherever an interrupt comes.

    Example:
        with EncodingQueue(encoder, deliver=write, clock=clock) as queue:
            queue.add(row)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        deliver: Callable[[Sequence[EncodingRow], Features], None],
        clock: Clock,
    ) -> None:
        self._encoder = encoder
        self._deliver = deliver
        self._clock = clock
        self._rows: list[EncodingRow] = []
        self._under_way: deque[tuple[list[EncodingRow], Pending]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if self._rows:
                    self._start()
                self.drain()
        except BaseException:
            self._save()
            raise
        if error is not None:
            self._save()

    def add(self, row: EncodingRow) -> None:
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
        """Deliver what is done soon; the error already on its way out is the one to report."""
        deadline = time.monotonic() + _SAVING_SECONDS
        while self._under_way:
            with suppress(Exception):
                self._collect(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        rows, self._rows = self._rows, []
        batch = np.stack([row.pixels for row in rows])
        self._clock.encoder_has_work(True)
        with self._clock.waiting("encode"):
            self._under_way.append((rows, self._encoder.submit(batch)))
        while len(self._under_way) >= _UNDER_WAY:
            self._collect()

    def _collect(self, timeout: float | None = None) -> None:
        """Deliver the oldest batch; one that failed, or is late, is let go."""
        rows, result = self._under_way[0]
        try:
            with self._clock.waiting("encode"):
                features = result(timeout)
        except Exception:
            self._under_way.popleft()
            raise
        self._under_way.popleft()
        self._clock.encoder_has_work(bool(self._under_way))
        if len(features) != len(rows):
            raise PipelineError(
                f"Expected features of {len(rows)} images from the encoder. "
                f"Received: {len(features)}.",
                hint="Use another --engine.",
            )
        with self._clock.waiting("write"):
            self._deliver(rows, features)
