"""Stage 1 in this process: from a listing of images to stored features; resumable at any point.

Reader → encoder → writer, overlapped: threads read, hash and decode; the calling thread encodes;
another writes shards. Every hand-over is bounded, so memory does not grow with the data set.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, closing
from functools import partial

import numpy as np

from pipeline.engines.clock import Clock
from pipeline.engines.encoder import Encoder, Features
from pipeline.engines.queue import EncodingQueue, EncodingRow, require_finite
from pipeline.extract.ledger import Ledger
from pipeline.images import reading
from pipeline.images.reading import ReadFile, in_threads
from pipeline.images.views import PLAIN
from pipeline.store.scan_cache import ScanCache
from pipeline.store.store import Store
from pipeline.store.writer import ShardWriter
from pipeline.system.progress import Bar


class Extraction:
    """The making of what a ledger lacks.

    Attributes:
        ledger: What is known of every image.
        clock: Where the time went, from the first read to the last shard in place.

    Example:
        extraction = Extraction(ledger, store, cache)
        if extraction.needs_encoder(workers=4):
            extraction.encode(encoder, workers=4, bar=bar)
        manifest = ledger.manifest()
    """

    def __init__(self, ledger: Ledger, store: Store, cache: ScanCache) -> None:
        """Set up; nothing is read yet.

        Args:
            ledger: What is known of every image.
            store: Where features go; its identity says how images are decoded.
            cache: What earlier runs learned about files.
        """
        self.ledger = ledger
        self.clock = Clock()
        self._store = store
        self._cache = cache

    def needs_encoder(self, workers: int) -> bool:
        """Settle what was only moved or copied; stop at the first image without features."""
        return any(not self.ledger.take(index, file) for index, file in self._read_all(workers))

    def count_new(self, workers: int) -> int:
        """Read and hash every pending file without decoding it; return how many are new."""
        for index, file in self._read_all(workers, decode=False):
            if not self.ledger.take(index, file):
                self.ledger.accept(index, file.key)
        return self.ledger.encoded

    def encode(self, encoder: Encoder, *, workers: int, bar: Bar) -> None:
        """Encode every pending image and store its features.

        Raises:
            DecodeError: An image is bad and ``on_error`` is ``raise``.
            ManifestError: More images are bad than ``max_errors``.
            OSError: A shard could not be written.
        """
        ledger = self.ledger
        began = time.monotonic()
        with ExitStack() as stack:
            writers = {
                view: stack.enter_context(ShardWriter(target, on_shard=ledger.remember_shard))
                for view, target in ledger.targets.items()
            }
            queue = stack.enter_context(
                EncodingQueue(encoder, deliver=partial(self._deliver, writers), clock=self.clock)
            )
            files = closing(self._read_all(workers, when_late=queue.drain))
            for index, file in stack.enter_context(files):
                if not ledger.take(index, file):
                    for view in ledger.accept(index, file.key):
                        queue.add(EncodingRow(index, file.key, view, file.pixels[view]))
                bar.advance(reused=ledger.reused, skipped=ledger.skipped)
        self.clock.writing = sum(writer.busy_seconds for writer in writers.values())
        self.clock.seconds = time.monotonic() - began
        self._store.reindex(self._cache)

    def rate(self, encoder: Encoder, rows: Sequence[int]) -> float:
        """Return images per second over some rows, storing nothing."""
        began = time.monotonic()
        files = [self._read(index, wanted=lambda key: [PLAIN]) for index in rows]
        pixels = [file.pixels[PLAIN] for file in files if file.pixels]
        for start in range(0, len(pixels), encoder.batch_size):
            encoder(np.stack(pixels[start : start + encoder.batch_size]))
        return len(files) / (time.monotonic() - began)

    def _read_all(
        self,
        workers: int,
        *,
        decode: bool = True,
        when_late: Callable[[], None] = lambda: None,
    ) -> Generator[tuple[int, ReadFile]]:
        """Read the pending files in threads, in order; decodes only what has no features."""
        wanted = self.ledger.missing if decode else lambda key: []

        def read(index: int) -> tuple[ReadFile, float, float]:
            began, computed = time.monotonic(), time.thread_time()
            file = self._read(index, wanted=wanted)
            return file, time.monotonic() - began, time.thread_time() - computed

        for index, future in in_threads(read, self.ledger.pending, workers):
            if not future.done():
                when_late()
                with self.clock.waiting("decode"):
                    wait([future])
            file, busy, computing = future.result()
            self.clock.reading += busy
            self.clock.computing += computing
            yield index, file

    def _read(self, index: int, *, wanted: Callable[[str], Sequence[str]]) -> ReadFile:
        get = partial(reading.read, self.ledger.listing, index)
        identity = self._store.identity
        return reading.decoded(get, wanted, identity.image_size, identity.resize)

    def _deliver(
        self, writers: Mapping[str, ShardWriter], rows: Sequence[EncodingRow], features: Features
    ) -> None:
        paths = self.ledger.listing.paths
        require_finite(rows, features, paths, remedy="use others with --weights")
        for view, writer in writers.items():
            places = [place for place, row in enumerate(rows) if row.view == view]
            if places:
                writer.add([rows[place].key for place in places], features[places])
