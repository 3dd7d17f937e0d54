"""Workers of Ray whose network takes its time, so that there is a middle to interrupt."""

import time

from pipeline.engines import queue

SECONDS = 0.2


def slow_down() -> None:
    """Let every batch wait; Ray calls this when a worker starts."""
    start = queue.EncodingQueue._start

    def slowly(self: queue.EncodingQueue) -> None:
        time.sleep(SECONDS)
        start(self)

    queue.EncodingQueue._start = slowly  # type: ignore[method-assign]
