"""The writer of stage 1: collects feature rows and writes shards in the background.

Bounded: one buffer fills while at most one other is being written.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

import numpy as np

from pipeline.manifest import KEY_DTYPE
from pipeline.shard_set import SHARD_ROWS, ShardSet
from pipeline.shards import Features, Keys, Shard

# A killed run loses no more than this much work; small shards are merged later.
FLUSH_SECONDS: Final = 30.0


class ShardWriter:
    """Write rows into a set of shards, as a context; an error in it keeps what was added.

    Attributes:
        busy_seconds: How long shards were being written.

    Example:
        with ShardWriter(store.plain, on_shard=remember) as writer:
            writer.add(keys, features)
    """

    def __init__(
        self,
        target: ShardSet,
        *,
        rows: int = SHARD_ROWS,
        seconds: float = FLUSH_SECONDS,
        on_shard: Callable[[Shard], None],
    ) -> None:
        self.busy_seconds = 0.0
        self._target = target
        self._rows = rows
        self._seconds = seconds
        self._on_shard = on_shard
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._writing: Future[Shard] | None = None
        self._count = 0
        self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._flush()
            self._wait()
        finally:
            self._thread.shutdown()

    def add(self, keys: list[str], features: Features) -> None:
        """Take rows; they are on disk after the next shard is written.

        Args:
            keys: n content keys.
            features: float32, shape ``(n, dim)``; copied.

        Raises:
            OSError: An earlier shard could not be written.
        """
        for start in range(0, len(keys), self._rows):
            self._add_block(keys[start : start + self._rows], features[start : start + self._rows])

    def _add_block(self, keys: list[str], features: Features) -> None:
        if self._count + len(keys) > self._rows or self._is_due():
            self._flush()
        stop = self._count + len(keys)
        self._keys[self._count : stop] = [key.encode() for key in keys]
        self._features[self._count : stop] = features
        self._count = stop

    def _is_due(self) -> bool:
        return time.monotonic() - self._began >= self._seconds

    def _begin(self) -> None:
        self._keys = np.empty(self._rows, dtype=KEY_DTYPE)
        self._features = np.empty((self._rows, self._target.dim), dtype=np.float32)
        self._count = 0
        self._began = time.monotonic()

    def _flush(self) -> None:
        """Hand the buffer to the background thread, after the one before it is done."""
        self._wait()
        if self._count:
            keys, features = self._keys[: self._count], self._features[: self._count]
            self._writing = self._thread.submit(self._write, keys, features)
        self._begin()

    def _write(self, keys: Keys, features: Features) -> Shard:
        began = time.monotonic()
        shard = self._target.add_shard(keys, features)
        self.busy_seconds += time.monotonic() - began
        return shard

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            self._on_shard(writing.result())
