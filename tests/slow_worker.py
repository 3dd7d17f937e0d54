"""Workers of Ray whose network takes its time, so that there is a middle to interrupt.

Where a file says so, one of them finds the disk full, once.
"""

import errno
import time
from collections.abc import Iterable

from pipeline.engines import queue
from pipeline.extract import node
from pipeline.store.shard import Features, Keys, Shard
from pipeline.store.shard_set import ShardSet

SECONDS = 0.2
# Beside the store.
FULL = "disk-is-full"


def slow_down() -> None:
    """Let every batch wait; Ray calls this when a worker starts."""
    start, add_blocks = queue.EncodingQueue._start, ShardSet.add_blocks

    def slowly(self: queue.EncodingQueue) -> None:
        time.sleep(SECONDS)
        start(self)

    def perhaps(self: ShardSet, keys: Keys, blocks: Iterable[Features]) -> Shard:
        try:
            (self.folder.parent.parent / FULL).unlink()
        except FileNotFoundError:
            return add_blocks(self, keys, blocks)
        raise OSError(errno.ENOSPC, "No space left on device")

    queue.EncodingQueue._start = slowly  # type: ignore[method-assign]
    ShardSet.add_blocks = perhaps  # type: ignore[method-assign]
    node._PAUSE = 0.1  # type: ignore[misc]
