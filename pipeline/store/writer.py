"""The writer of stage 1: collects feature rows and writes shards in the background.

Bounded: one shard fills while at most one other is being written.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

import numpy as np

from pipeline.images.manifest import KEY_DTYPE
from pipeline.store.shard import SHARD_ROWS, Features, Keys, Shard
from pipeline.store.shard_set import ShardSet

# A killed run loses no more than this much work; small shards are merged later.
FLUSH_SECONDS: Final = 30.0

Block = tuple[Keys, Features]


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
        self._blocks: deque[Block] = deque()
        self._began = time.monotonic()

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

        Rows are added with their keys at once: an interrupt between two lines loses some or none,
        and never moves one beside another's key.

        Args:
            keys: n content keys.
            features: float32, shape ``(n, dim)``; copied.

        Raises:
            OSError: An earlier shard could not be written.
        """
        start = 0
        while start < len(keys):
            if self._count() == self._rows or self._is_due():
                self._flush()
            # What does not fit begins the next shard, so that all but the last are full.
            stop = start + self._rows - self._count()
            block = np.array([key.encode() for key in keys[start:stop]], dtype=KEY_DTYPE)
            self._blocks.append((block, np.array(features[start:stop], dtype=np.float32)))
            start = stop

    def _count(self) -> int:
        return sum(len(keys) for keys, _ in self._blocks)

    def _is_due(self) -> bool:
        return time.monotonic() - self._began >= self._seconds

    def _begin(self) -> deque[Block]:
        """Begin another shard; return what was collected for the one before."""
        collected, self._blocks = self._blocks, deque()
        self._began = time.monotonic()
        return collected

    def _flush(self) -> None:
        """Hand what was collected to the background thread, after the one before it is done."""
        self._wait()
        # Let go of before it is handed over, so that nothing is written twice.
        blocks = self._begin()
        if blocks:
            self._writing = self._thread.submit(self._write, blocks)

    def _write(self, blocks: deque[Block]) -> Shard:
        began = time.monotonic()
        keys = np.concatenate([keys for keys, _ in blocks])
        # Each block is dropped once it is written, so that two shards are never held in full.
        shard = self._target.add_blocks(keys, (blocks.popleft()[1] for _ in range(len(blocks))))
        self.busy_seconds += time.monotonic() - began
        return shard

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            self._on_shard(writing.result())
