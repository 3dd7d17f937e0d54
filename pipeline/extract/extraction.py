"""Stage 1: from a listing of images to stored features; resumable at any point.

Reader → encoder → writer, overlapped: threads read, hash and decode; the calling thread encodes;
another writes shards. Every hand-over is bounded, so memory does not grow with the data set.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from pipeline.engines.clock import Clock
from pipeline.engines.encoder import Encoder, Features
from pipeline.engines.queue import EncodingQueue, EncodingRow, require_finite
from pipeline.errors import DecodeError, ManifestError
from pipeline.images import decoder, reading
from pipeline.images.manifest import KEY_DTYPE, OK, Manifest, mark_conflicts, none_usable
from pipeline.images.reading import ReadFile, in_threads
from pipeline.images.views import PLAIN
from pipeline.store.scan_cache import ScanCache
from pipeline.store.shard import Shard
from pipeline.store.shard_set import ShardSet, remember_check
from pipeline.store.store import Store
from pipeline.store.writer import ShardWriter
from pipeline.system.progress import Bar

# A failure of the moment, not of the image: tried again next time.
_NO_MEMORY: Final = "too large: no memory"


# Files whose keys are looked up in the store together.
_LOOKED_UP: Final = 4096


class Extraction:
    """One extraction of a listing into a store.

    Attributes:
        encoded: Images whose features were made.
        reused: Images whose features were at hand, copies of another image included.
        skipped: Images that are bad.
        rows: Feature rows made, by view.
        clock: Where the time went, from the first read to the last shard in place.

    Example:
        extraction = Extraction(listing, store, cache)
        extraction.look_up()
        if extraction.needs_encoder(workers=4):
            extraction.encode(encoder, workers=4, bar=bar)
        manifest = extraction.manifest()
    """

    def __init__(
        self,
        listing: Manifest,
        store: Store,
        cache: ScanCache,
        *,
        targets: Mapping[str, ShardSet] | None = None,
        on_error: str = "skip",
        max_errors: int | None = None,
    ) -> None:
        """Set up; nothing is read yet.

        Args:
            listing: The images.
            store: Where features go; its identity says how images are decoded.
            cache: What earlier runs learned about files.
            targets: Sets to fill by view; the plain one alone by default.
            on_error: ``skip`` or ``raise`` on a bad image.
            max_errors: Most bad images before giving up.
        """
        self.encoded = self.reused = self.skipped = 0
        self.clock = Clock()
        self._targets = dict(targets or {PLAIN: store.plain})
        self.rows = dict.fromkeys(self._targets, 0)
        self._listing = listing
        self._store = store
        self._cache = cache
        self._on_error = on_error
        self._max_errors = max_errors
        self._decoder = decoder.environment()
        self._keys = np.zeros(len(listing), dtype=KEY_DTYPE)
        self._statuses = [""] * len(listing)
        self._new_keys: dict[str, set[bytes]] = {view: set() for view in self._targets}

    @property
    def pending(self) -> list[int]:
        """Rows about which nothing is known yet."""
        return [index for index, status in enumerate(self._statuses) if not status]

    @property
    def errors(self) -> list[dict[str, str]]:
        """The bad images, each with its path and the reason."""
        return [
            {"path": path, "reason": status}
            for path, status in zip(self._listing.paths, self._statuses, strict=True)
            if status not in ("", OK)
        ]

    def num_threads(self, chosen: int | None) -> int:
        """Return how many threads are to read, unless a number is chosen."""
        return reading.num_threads(self._listing, chosen)

    def look_up(self) -> None:
        """Settle every file that is unchanged since an earlier run, without opening it."""
        pending = self.pending
        for start in range(0, len(pending), _LOOKED_UP):
            found = self._known_keys(pending[start : start + _LOOKED_UP])
            keys = np.array([key for _, key in found], dtype=KEY_DTYPE)
            stored = np.ones(len(found), dtype=bool)
            for target in self._targets.values():
                stored &= target.index.find(keys) >= 0
            for (index, key), is_stored in zip(found, stored, strict=True):
                self._settle(index, key, is_stored=bool(is_stored))

    def needs_encoder(self, workers: int) -> bool:
        """Settle what was only moved or copied; stop at the first image without features."""
        return any(not self._take(index, file) for index, file in self._read_all(workers))

    def count_new(self, workers: int) -> int:
        """Read and hash every pending file without decoding it; return how many are new."""
        for index, file in self._read_all(workers, decode=False):
            if not self._take(index, file):
                self._accept(index, file)
        return self.encoded

    def encode(self, encoder: Encoder, *, workers: int, bar: Bar) -> None:
        """Encode every pending image and store its features.

        Raises:
            DecodeError: An image is bad and ``on_error`` is ``raise``.
            ManifestError: More images are bad than ``max_errors``.
            OSError: A shard could not be written.
        """
        began = time.monotonic()
        with ExitStack() as stack:
            writers = {
                view: stack.enter_context(ShardWriter(target, on_shard=self._remember_shard))
                for view, target in self._targets.items()
            }
            queue = stack.enter_context(
                EncodingQueue(encoder, deliver=partial(self._deliver, writers), clock=self.clock)
            )
            files = closing(self._read_all(workers, when_late=queue.drain))
            for index, file in stack.enter_context(files):
                if not self._take(index, file):
                    for row in self._accept(index, file):
                        queue.add(row)
                bar.advance(reused=self.reused, skipped=self.skipped)
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

    def manifest(self) -> Manifest:
        """Return the listing with keys and statuses.

        Raises:
            ManifestError: Every image is bad.
        """
        if self.skipped == len(self._listing):
            raise none_usable(self.errors, hint="Give a folder of images.")
        return mark_conflicts(
            replace(self._listing, keys=self._keys.copy(), statuses=tuple(self._statuses))
        )

    # -- one file --------------------------------------------------------------------------

    def _take(self, index: int, file: ReadFile) -> bool:
        """Settle a file that was read; False when its features must be made."""
        if file.key and file.state is not None:
            name = reading.name_of(self._listing, index)
            self._cache.remember_key(name, file.state, file.key)
        if not file.reason:
            return self._settle(index, file.key)
        if file.key and not file.reason.startswith(_NO_MEMORY):
            self._cache.remember_failure(file.key, self._decoder, file.reason)
        self._skip(index, file.key, file.reason)
        return True

    def _known_keys(self, rows: Sequence[int]) -> list[tuple[int, str]]:
        """Return the rows whose file is unchanged since its key was told, with their keys."""
        there = reading.find_all(self._listing, rows)
        keys = self._cache.keys([(name, state) for _, name, state in there])
        return [(row, key) for (row, _, _), key in zip(there, keys, strict=True) if key is not None]

    def _settle(self, index: int, key: str, *, is_stored: bool = False) -> bool:
        """Count a file whose features, or whose fault, are known; False if neither is."""
        reason = self._cache.failure(key, self._decoder)
        if reason is not None:
            self._skip(index, key, reason)
            return True
        if not is_stored and self._missing(key):
            return False
        self.reused += 1
        self._put(index, key, OK)
        return True

    def _accept(self, index: int, file: ReadFile) -> list[EncodingRow]:
        """Settle a file whose features are now made; return what is to be encoded."""
        views = self._missing(file.key)
        for view in views:
            self._new_keys[view].add(bytes.fromhex(file.key))
            self.rows[view] += 1
        self.encoded += 1
        self._put(index, file.key, OK)
        return [
            EncodingRow(index, file.key, view, file.pixels[view]) for view in views if file.pixels
        ]

    def _skip(self, index: int, key: str, reason: str) -> None:
        self.skipped += 1
        self._put(index, key, reason)
        path = self._listing.paths[index]
        if self._on_error == "raise":
            raise DecodeError(
                f"{path!r}: {reason}.", hint="Remove the file, or go on with --on-error skip."
            )
        if self._max_errors is not None and self.skipped > self._max_errors:
            raise ManifestError(
                f"Expected at most {self._max_errors} bad images. Received: one more, {path!r}: "
                f"{reason}.",
                hint="Repair or remove bad files, or raise --max-errors; what was done is kept.",
            )

    def _put(self, index: int, key: str, status: str) -> None:
        self._keys[index] = key.encode()
        self._statuses[index] = status

    def _missing(self, key: str) -> list[str]:
        """Return the views of an image that have no features yet."""
        return [
            view
            for view, target in self._targets.items()
            if not self._is_new(view, key) and key not in target
        ]

    def _is_new(self, view: str, key: str) -> bool:
        # Kept as bytes, which take half the memory of the text.
        return bytes.fromhex(key) in self._new_keys[view]

    # -- reading and encoding --------------------------------------------------------------

    def _read_all(
        self,
        workers: int,
        *,
        decode: bool = True,
        when_late: Callable[[], None] = lambda: None,
    ) -> Generator[tuple[int, ReadFile]]:
        """Read the pending files in threads, in order; decodes only what has no features."""
        wanted = self._missing if decode else lambda key: []

        def read(index: int) -> tuple[ReadFile, float, float]:
            began, computed = time.monotonic(), time.thread_time()
            file = self._read(index, wanted=wanted)
            return file, time.monotonic() - began, time.thread_time() - computed

        for index, future in in_threads(read, self.pending, workers):
            if not future.done():
                when_late()
                with self.clock.waiting("decode"):
                    wait([future])
            file, busy, computing = future.result()
            self.clock.reading += busy
            self.clock.computing += computing
            yield index, file

    def _read(self, index: int, *, wanted: Callable[[str], Sequence[str]]) -> ReadFile:
        get = partial(reading.read, self._listing, index)
        identity = self._store.identity
        return reading.decoded(get, wanted, identity.image_size, identity.resize)

    def _deliver(
        self, writers: Mapping[str, ShardWriter], rows: Sequence[EncodingRow], features: Features
    ) -> None:
        require_finite(rows, features, self._listing.paths, remedy="use others with --weights")
        for view, writer in writers.items():
            places = [place for place, row in enumerate(rows) if row.view == view]
            if places:
                writer.add([rows[place].key for place in places], features[places])

    def _remember_shard(self, shard: Shard) -> None:
        """Note, once a shard is in place, that its digest is right, and what led to it."""
        remember_check(self._cache, shard)
        self._cache.commit()
