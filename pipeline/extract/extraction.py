"""Stage 1 in this process: from a listing of images to stored features; resumable at any point.

Reader → encoder → writer, overlapped: threads read, hash and decode, by processes of their own
where they are many; the calling thread encodes; another writes shards. Every hand-over is bounded,
so memory does not grow with the data set.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from itertools import islice

import numpy as np

from pipeline.engines.clock import Clock
from pipeline.engines.encoder import Encoder, Features
from pipeline.engines.queue import EncodingQueue, EncodingRow, require_finite
from pipeline.extract.ledger import Ledger
from pipeline.images import reading, reading_processes
from pipeline.images.readers import Readers
from pipeline.images.reading import ReadFile
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

    def needs_encoder(self, workers: int, *, most: int | None = None) -> bool:
        """Settle what was only moved or copied; stop at the first image without features.

        Args:
            workers: Threads that read.
            most: How many images to read before others, who may, are asked for the rest.
        """
        files = islice(self._read_all(Readers(workers), self.ledger.missing), most)
        is_new = any(not self.ledger.take(index, file) for index, file in files)
        return is_new or bool(self.ledger.pending)

    def count_new(self, workers: int) -> int:
        """Read and hash every pending file without decoding it; return how many are new."""
        for index, file in self._read_all(Readers(workers), lambda key: []):
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
            readers = stack.enter_context(self._readers(workers))
            files = closing(self._read_all(readers, ledger.missing, when_late=queue.drain))
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
        gets = [reading.reference(self.ledger.listing, index) for index in rows]
        files = Readers(1).decoded(gets, lambda key: [PLAIN], *self._square)
        pixels = [file.pixels[PLAIN] for file in files if file.pixels]
        for start in range(0, len(pixels), encoder.batch_size):
            encoder(np.stack(pixels[start : start + encoder.batch_size]))
        return len(files) / (time.monotonic() - began)

    @property
    def _square(self) -> tuple[int, str]:
        """Side of the encoder's input, and how an image of another shape becomes a square."""
        identity = self._store.identity
        return identity.image_size, identity.resize

    def _readers(self, workers: int) -> AbstractContextManager[Readers]:
        """Return what reads the pending files, as long as its context lasts."""
        size, _ = self._square
        pixels = 3 * size * size * len(self.ledger.targets)
        return reading_processes.readers(workers, images=len(self.ledger.pending), pixels=pixels)

    def _read_all(
        self,
        readers: Readers,
        wanted: Callable[[str], Sequence[str]],
        *,
        when_late: Callable[[], None] = lambda: None,
    ) -> Generator[tuple[int, ReadFile]]:
        """Read the pending files in threads, in order; decodes what is wanted of them."""

        def late(future: Future[list[ReadFile]]) -> None:
            when_late()
            with self.clock.waiting("decode"):
                wait([future])

        listing = self.ledger.listing
        images = ((index, reading.reference(listing, index)) for index in self.ledger.pending)
        with closing(readers.read(images, wanted, *self._square, late=late)) as files:
            for index, file in files:
                self.clock.reading += file.seconds
                self.clock.computing += file.computing
                yield index, file

    def _deliver(
        self, writers: Mapping[str, ShardWriter], rows: Sequence[EncodingRow], features: Features
    ) -> None:
        paths = self.ledger.listing.paths
        require_finite(rows, features, paths, remedy="use others with --weights")
        for view, writer in writers.items():
            places = [place for place, row in enumerate(rows) if row.view == view]
            if places:
                writer.add([rows[place].key for place in places], features[places])
