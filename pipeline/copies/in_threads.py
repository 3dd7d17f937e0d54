"""Work on blocks of rows in threads, each of which multiplies on its own.

A product of two blocks is too small for a library of linear algebra to share.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from threadpoolctl import threadpool_limits

from pipeline.system import machine

Block = TypeVar("Block")
Found = TypeVar("Found")


@contextmanager
def in_threads(
    function: Callable[[Block, Block], Found], blocks: Iterable[tuple[Block, Block]]
) -> Iterator[Iterator[tuple[tuple[Block, Block], Found]]]:
    """Give an iterator over (block, what the function returns), in order, some computed ahead.

    What is computed is awaited at the end, what was not begun is dropped.
    """
    workers = machine.processors()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        try:
            yield _ahead(pool, function, blocks, 4 * workers)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Block, Block], Found],
    blocks: Iterable[tuple[Block, Block]],
    most: int,
) -> Iterator[tuple[tuple[Block, Block], Found]]:
    waiting: list[tuple[tuple[Block, Block], Future[Found]]] = []
    remaining = iter(blocks)
    while True:
        for block in islice(remaining, most - len(waiting)):
            waiting.append((block, pool.submit(function, *block)))
        if not waiting:
            return
        block, future = waiting.pop(0)
        yield block, future.result()
