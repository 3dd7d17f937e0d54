"""Stage 1: from a listing of images to stored features; resumable at any point.

Reader → encoder → writer, overlapped: threads read, hash and decode; the calling thread encodes;
another writes shards. Every hand-over is bounded, so memory does not grow with the data set.
Called by ``commands``, which brings the store and the encoder.
"""

import hashlib
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.encoder import Encoder
from pipeline.errors import DecodeError, ManifestError, PipelineError, StaleFeaturesError
from pipeline.manifest import KEY_DTYPE, OK, Manifest, mark_conflicts
from pipeline.reporting import Bar
from pipeline.scan_cache import ScanCache
from pipeline.shard_writer import ShardWriter
from pipeline.shards import Shard
from pipeline.store import Store

# Stored features that are encoded again must agree this well, relative to the largest value:
# engines differ by 1e-5, a JPEG library of another make by 1e-2 and more.
DRIFT_TOLERANCE: Final = 1e-3
DRIFT_IMAGES: Final = 2

# A failure of the moment, not of the image: tried again next time.
_NO_MEMORY: Final = "too large: no memory"

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ReadFile:
    """What a file turned out to hold.

    Attributes:
        key: SHA-256 of its bytes; empty if it could not be read.
        status: The state of the file as read; None if it changed meanwhile.
        pixels: uint8 ``(S, S, 3)``; None if its features are at hand or it is bad.
        reason: Why it is bad; empty if it is not.
    """

    key: str = ""
    status: os.stat_result | None = None
    pixels: NDArray[np.uint8] | None = None
    reason: str = ""


class Extraction:
    """One extraction of a listing into a store.

    Attributes:
        encoded: Images whose features were made.
        reused: Images whose features were at hand, copies of another image included.
        skipped: Images that are bad.
        seconds: From the first read to the last shard in place.

    Example:
        extraction = Extraction(listing, store, cache, image_size=224)
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
        image_size: int,
        on_error: str = "skip",
        max_errors: int | None = None,
    ) -> None:
        self.encoded = self.reused = self.skipped = 0
        self.seconds = 0.0
        self._listing = listing
        self._store = store
        self._cache = cache
        self._image_size = image_size
        self._on_error = on_error
        self._max_errors = max_errors
        self._decoder = images.environment()
        self._keys = np.zeros(len(listing), dtype=KEY_DTYPE)
        self._statuses = [""] * len(listing)
        self._new_keys: set[str] = set()

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

    def look_up(self) -> None:
        """Settle every file that is unchanged since an earlier run, without opening it."""
        for index in self.pending:
            path = self._listing.file(index)
            try:
                key = self._cache.key(path, path.stat())
            except OSError:
                continue
            if key is not None:
                self._settle(index, key)

    def needs_encoder(self, workers: int) -> bool:
        """Settle what was only moved or copied; stop at the first image without features."""
        return any(not self._take(index, file) for index, file in self._read_all(workers))

    def count_new(self, workers: int) -> int:
        """Read and hash every pending file without decoding it; return how many are new."""
        for index, file in self._read_all(workers, decode=False):
            if not self._take(index, file):
                self._accept(index, file.key)
        return len(self._new_keys)

    def encode(self, encoder: Encoder, *, workers: int, bar: Bar) -> None:
        """Encode every pending image and store its features.

        Raises:
            DecodeError: An image is bad and ``on_error`` is ``raise``.
            ManifestError: More images are bad than ``max_errors``.
            OSError: A shard could not be written.
        """
        began = time.monotonic()
        batch: list[tuple[int, ReadFile]] = []
        with ShardWriter(self._store, on_shard=self._remember_shard) as writer:
            for index, file in self._read_all(workers):
                if not self._take(index, file):
                    self._accept(index, file.key)
                    batch.append((index, file))
                if len(batch) == encoder.batch_size:
                    self._encode(batch, encoder, writer)
                    batch.clear()
                bar.advance(reused=self.reused, skipped=self.skipped)
            if batch:
                self._encode(batch, encoder, writer)
        self.seconds = time.monotonic() - began
        self._store.reindex(self._cache)

    def check_drift(self, encoder: Encoder) -> None:
        """Encode a few stored images again and compare.

        Raises:
            StaleFeaturesError: They differ: the decoder's libraries or the engine changed.
        """
        stored = (
            index
            for index, status in enumerate(self._statuses)
            if status == OK and self._keys[index].decode() not in self._new_keys
        )
        for index in islice(stored, DRIFT_IMAGES):
            file = self._read(index, known=lambda key: False)
            if file.pixels is None or file.key.encode() != self._keys[index]:
                continue
            kept = self._store.read(self._keys[index : index + 1])[0]
            made = encoder(file.pixels[np.newaxis])[0]
            difference = float(np.abs(kept - made).max() / max(np.abs(kept).max(), 1e-30))
            if difference > DRIFT_TOLERANCE:
                raise StaleFeaturesError(
                    f"The store {str(self._store.path)!r} is stale: "
                    f"{self._listing.paths[index]!r} encoded again differs from its stored "
                    f"features by {difference:.1e} of the largest value (allowed: "
                    f"{DRIFT_TOLERANCE:.0e}). Received: {self._decoder}, {encoder.engine}; "
                    f"stored with: {self._store.record['provenance']}.",
                    hint="Extract into another --store, or replace this one with --force.",
                )

    def rate(self, encoder: Encoder, rows: Sequence[int]) -> float:
        """Return images per second over some rows, storing nothing."""
        began = time.monotonic()
        files = [self._read(index, known=lambda key: False) for index in rows]
        pixels = [file.pixels for file in files if file.pixels is not None]
        for start in range(0, len(pixels), encoder.batch_size):
            encoder(np.stack(pixels[start : start + encoder.batch_size]))
        return len(files) / (time.monotonic() - began)

    def manifest(self) -> Manifest:
        """Return the listing with keys and statuses.

        Raises:
            ManifestError: Every image is bad.
        """
        if self.skipped == len(self._listing):
            first = self.errors[0]
            raise ManifestError(
                f"None of the {self.skipped:,} files could be used; the first, "
                f"{first['path']!r}: {first['reason']}.",
                hint="Give a folder of images.",
            )
        return mark_conflicts(
            replace(self._listing, keys=self._keys.copy(), statuses=tuple(self._statuses))
        )

    # -- one file --------------------------------------------------------------------------

    def _take(self, index: int, file: ReadFile) -> bool:
        """Settle a file that was read; False when its features must be made."""
        if file.key and file.status is not None:
            self._cache.remember_key(self._listing.file(index), file.status, file.key)
        if not file.reason:
            return self._settle(index, file.key)
        if file.key and not file.reason.startswith(_NO_MEMORY):
            self._cache.remember_failure(file.key, self._decoder, file.reason)
        self._skip(index, file.key, file.reason)
        return True

    def _settle(self, index: int, key: str) -> bool:
        """Count a file whose features, or whose fault, are known; False if neither is."""
        reason = self._cache.failure(key, self._decoder)
        if reason is not None:
            self._skip(index, key, reason)
            return True
        if not self._is_known(key):
            return False
        self.reused += 1
        self._put(index, key, OK)
        return True

    def _accept(self, index: int, key: str) -> None:
        self._new_keys.add(key)
        self._put(index, key, OK)

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
                hint="Mend or remove the bad files, or raise --max-errors; what was done is kept.",
            )

    def _put(self, index: int, key: str, status: str) -> None:
        self._keys[index] = key.encode()
        self._statuses[index] = status

    def _is_known(self, key: str) -> bool:
        return key in self._new_keys or key in self._store.index

    # -- reading and encoding --------------------------------------------------------------

    def _read_all(self, workers: int, *, decode: bool = True) -> Iterator[tuple[int, ReadFile]]:
        """Read the pending files in threads, in order; skips decoding what is known."""
        known = self._is_known if decode else lambda key: True
        return _bounded_map(lambda index: self._read(index, known=known), self.pending, workers)

    def _read(self, index: int, *, known: Callable[[str], bool]) -> ReadFile:
        try:
            data, status = _read_bytes(self._listing.file(index))
        except DecodeError as error:
            return ReadFile(reason=str(error))
        key = hashlib.sha256(data).hexdigest()
        if known(key):
            return ReadFile(key, status)
        try:
            return ReadFile(key, status, images.decode(data, self._image_size))
        except DecodeError as error:
            return ReadFile(key, status, reason=str(error))

    def _encode(
        self, batch: Sequence[tuple[int, ReadFile]], encoder: Encoder, writer: ShardWriter
    ) -> None:
        features = encoder(np.stack([file.pixels for _, file in batch if file.pixels is not None]))
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            path = self._listing.paths[batch[int(np.argmin(finite))][0]]
            raise PipelineError(
                f"Expected finite features. Received: infinity or not-a-number for {path!r}.",
                hint="The weights are unusable for images; use others with --weights.",
            )
        writer.add([file.key for _, file in batch], features)
        self.encoded += len(batch)

    def _remember_shard(self, shard: Shard) -> None:
        """Note, once a shard is in place, that its digest is right, and what led to it."""
        self._cache.remember_check(shard.name, shard.path.stat())
        self._cache.commit()


def default_workers() -> int:
    """Return the processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_bytes(path: Path) -> tuple[bytes, os.stat_result | None]:
    """Return a file's bytes and its state, None where it changed while it was read."""
    try:
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            raise DecodeError("not a regular file")
        if before.st_size > images.MAX_BYTES:
            raise DecodeError(f"too large: {before.st_size:,} bytes")
        data = path.read_bytes()
        after = path.stat()
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror}") from error
    unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(data))
    return data, after if unchanged else None


def _bounded_map(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], workers: int
) -> Iterator[tuple[Argument, Result]]:
    """Yield (argument, result) in order, computed in threads, a bounded number ahead."""
    waiting: deque[tuple[Argument, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="reader") as pool:
        try:
            for argument in arguments:
                waiting.append((argument, pool.submit(function, argument)))
                if len(waiting) > 16 * workers:
                    argument, future = waiting.popleft()
                    yield argument, future.result()
            while waiting:
                argument, future = waiting.popleft()
                yield argument, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
