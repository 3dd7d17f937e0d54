"""The boundary cache: activations at the last frozen block, computed once for all epochs.

Like features, activations are keyed by image content, in shards that are immutable and complete if
present (``store.activations``). Images and each of their views have a cache of their own.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.encoder import Encoder
from pipeline.errors import MissingFeaturesError, PipelineError, RunError
from pipeline.files.arrays import AnyArray
from pipeline.files.atomic import remove_leftovers
from pipeline.finetune.batches import parts_of, read_ahead, unique_rows
from pipeline.finetune.photos import Photos
from pipeline.finetune.turns import Turns
from pipeline.images.views import PLAIN
from pipeline.store import activations
from pipeline.store.key_index import KeyIndex
from pipeline.store.scan_cache import ScanCache
from pipeline.store.shard import Keys, Shard
from pipeline.system import machine
from pipeline.system.progress import Reporter

# A killed run loses no more than this much work, in bytes of activations.
SHARD_BYTES: Final = 64 << 20
# Share of the free disk that a cache may take.
_DISK_SHARE: Final = 0.9
_IN_MEMORY: Final = partial(ScanCache, None)


class BoundaryCache:
    """Activations of a manifest's rows; a ``BatchSource`` once it is filled and opened.

    Attributes:
        folder: Where the shards are.
        row_bytes: Bytes of one image's activations.
        shape: Shape of one image's activations.

    Example:
        cache = BoundaryCache(folder, identity, keys, shape=(7, 7, 512), precision="float32")
        cache.fill(photos, encoder, reporter)
        cache.open()
        activations = cache.batch(np.arange(32), None)
    """

    def __init__(
        self,
        parent: Path,
        identity: Mapping[str, object],
        keys: Keys,
        *,
        shape: tuple[int, ...],
        precision: str,
        rows: NDArray[np.intp] | None = None,
        scan_cache: Callable[[], ScanCache] = _IN_MEMORY,
    ) -> None:
        """Describe a cache; nothing is read yet.

        Args:
            parent: Folder of caches.
            identity: How the activations are made.
            keys: Content keys of the rows, ``(n,)``.
            shape: Shape of one image's activations.
            precision: ``float32`` or ``float16``.
            rows: Rows whose activations are needed; None for all.
            scan_cache: Opens what remembers the good checks of shards from run to run.
        """
        self._identity = {**identity, "shape": list(shape), "precision": precision}
        self.folder = activations.folder_of(parent, self._identity)
        self.row_bytes = math.prod(shape) * np.dtype(precision).itemsize
        self._keys = keys
        self._wanted = np.arange(len(keys)) if rows is None else rows
        self.shape = shape
        self._dtype = np.dtype(precision).newbyteorder("<")
        self._scan_cache = scan_cache
        self._checked: dict[Path, Keys] = {}
        self._index = KeyIndex.over(())
        self._places = np.full(len(keys), -1, np.intp)
        self._loaded: dict[int, AnyArray] = {}

    def missing(self) -> NDArray[np.intp]:
        """Return one row of every image whose activations are not there.

        Raises:
            CorruptShardError: A shard is not what was written.
        """
        rows = self._wanted[unique_rows(self._keys[self._wanted])]
        return rows[self._indexed().find(self._keys[rows]) < 0]

    def require_room(self, count: int, reporter: Reporter, *, what: str = "images") -> None:
        """Say how much disk activations need; refuse where there is no room.

        Args:
            count: How many images, or views of them, are to be computed.
            reporter: Where that is said.
            what: What they are called.

        Raises:
            RunError: With the ways out.
        """
        needed = count * self.row_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        text = f"{_readable(needed)} of disk for the frozen activations of {count:,} {what}"
        if needed > _DISK_SHARE * free:
            raise RunError(
                f"Expected room for {text} in {str(self.folder.parent)!r}. "
                f"Received: {_readable(free)} free.",
                hint="Halve it with --cache-precision float16, use fewer --views, put the store on "
                "another disk, or unfreeze from a later part, whose activations are smaller.",
            )
        reporter.say(f"Taking {text} ({_readable(self.row_bytes)} per image)")

    def fill(
        self, photos: Photos, encoder: Encoder, reporter: Reporter, *, view: str = PLAIN
    ) -> int:
        """Compute what is missing; returns how many images that were.

        Args:
            photos: The images of the rows.
            encoder: Images to flattened activations.
            reporter: Where progress goes.
            view: Which view of the images this cache is of.

        Raises:
            PipelineError: A value is not finite, or too large for float16.
            StaleFeaturesError: An image changed.
        """
        remove_leftovers(self.folder)
        rows = self.missing()
        size = max(1, SHARD_BYTES // self.row_bytes)
        with reporter.bar(len(rows), "img") as bar:
            for part in parts_of(rows, size):
                blocks = []
                batches = parts_of(part, encoder.batch_size)
                for batch, pixels in read_ahead(lambda some: photos.view(some, view), batches):
                    blocks.append(self._converted(encoder(pixels)))
                    for _ in batch:
                        bar.advance()
                self._write(self._keys[part], np.concatenate(blocks))
        return len(rows)

    def open(self) -> None:
        """Make the activations readable; those that this run needs lie in memory where they fit.

        Files are opened anew for each batch otherwise: there may be more of them than a process
        may have open.

        Raises:
            CorruptShardError: A shard is not what was written.
            MissingFeaturesError: The cache is not filled.
            OSError: The system does not let a shard be read.
        """
        self.close()
        self._index = self._indexed()
        self._places = self._index.find(self._keys)
        used = np.unique(self._index.shard_of[self._known(self._wanted)])
        paths = {number: self._index.shards[number].path for number in used.tolist()}
        if sum(path.stat().st_size for path in paths.values()) <= machine.free_memory() // 2:
            self._loaded = {number: activations.read(path) for number, path in paths.items()}

    def close(self) -> None:
        """Let go of memory; no file is open between two calls."""
        self._index = KeyIndex.over(())
        self._places = np.full(len(self._keys), -1, np.intp)
        self._loaded = {}

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> NDArray[np.float32]:
        """Return activations, float32 ``(n, *shape)``; an epoch changes nothing.

        Raises:
            MissingFeaturesError: Activations of a row are not there, or not open.
            StoreError: A shard is gone.
            OSError: The system does not let a shard be read.
        """
        out = np.empty((len(rows), *self.shape), np.float32)
        places = self._known(rows)
        shard_of = self._index.shard_of[places]
        for number in np.unique(shard_of).tolist():
            mine = np.flatnonzero(shard_of == number)
            out[mine] = self._read(number, self._index.row_of[places[mine]])
        return out

    def _read(self, number: int, lines: NDArray[np.intp]) -> AnyArray:
        """Return some lines of a shard, from memory where it is there."""
        if number in self._loaded:
            return self._loaded[number][lines]
        return activations.read(self._index.shards[number].path, lines)

    def _known(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return where in the index each row is; refuse rows that are not there."""
        places = self._places[rows]
        absent = self._keys[rows[places < 0]]
        if len(absent):
            raise MissingFeaturesError(
                f"Expected activations of {len(rows):,} images in {str(self.folder)!r}. "
                f"Received: {len(absent):,} of them are not there.",
                keys=[key.decode() for key in absent],
                hint="Fill the cache and open it first.",
            )
        return places

    def _write(self, keys: Keys, values: AnyArray) -> None:
        """Write a shard; the digest that names it counts as its first good check."""
        path = activations.write(self.folder, self._identity, keys, values)
        with self._scan_cache() as cache:
            cache.remember_check(path.stem, path.stat())

    def _indexed(self) -> KeyIndex:
        """Return where the key of every row at hand is."""
        paths = activations.paths(self.folder)
        with self._scan_cache() as cache:
            return KeyIndex.over(Shard(path, self._keys_of(path, cache)) for path in paths)

    def _keys_of(self, path: Path, cache: ScanCache) -> Keys:
        """Return the keys of a shard, hashed if it changed since its last good check."""
        if path not in self._checked:
            # Taken before the bytes are read: what changes them later counts as a change.
            status = path.stat()
            is_checked = cache.is_checked(path.stem, status)
            keys = activations.checked_keys(path, is_checked=lambda path: is_checked)
            if not is_checked:
                cache.remember_check(path.stem, status)
                # Others write to it too, and hashing what follows may take minutes.
                cache.commit()
            self._checked[path] = keys
        return self._checked[path]

    def _converted(self, flat: NDArray[np.float32]) -> AnyArray:
        """Return activations in the cache's precision and shape."""
        with np.errstate(over="ignore"):
            values = flat.astype(self._dtype).reshape(-1, *self.shape)
        if not np.isfinite(values).all():
            raise PipelineError(
                f"Expected finite activations in {self._dtype.name}. "
                f"Received: values up to {np.abs(flat).max():.3g}.",
                hint="Use --cache-precision float32, or other weights.",
            )
        return values


class CachedViews:
    """Boundary caches of images and of their views; a ``BatchSource`` once they are open.

    Example:
        source = CachedViews({"": cache, "flip": flipped}, turns)
        source.fill(photos, make_encoder, reporter)
        source.open()
        activations = source.batch(np.arange(32), epoch=0)
    """

    def __init__(self, caches: Mapping[str, BoundaryCache], turns: Turns) -> None:
        """Describe a source; nothing is read yet.

        Args:
            caches: A cache a view, that of the images as they are among them.
            turns: Which view an epoch shows.
        """
        self._caches = caches
        self._turns = turns

    def fill(self, photos: Photos, make_encoder: Callable[[], Encoder], reporter: Reporter) -> None:
        """Compute what is missing, after it was said how much disk that takes.

        Args:
            photos: The images of the rows.
            make_encoder: Makes what computes flattened activations; called where any is missing.
            reporter: Where notes and progress go.

        Raises:
            RunError: The disk has no room.
            PipelineError: A value is not finite, or too large for float16.
            StoreError: An image or a shard changed.
        """
        count = sum(len(cache.missing()) for cache in self._caches.values())
        if not count:
            return
        what = "images" if len(self._caches) == 1 else "images and views of them"
        self._caches[PLAIN].require_room(count, reporter, what=what)
        encoder = make_encoder()
        for name, cache in self._caches.items():
            cache.fill(photos, encoder, reporter, view=name)

    def open(self) -> None:
        """Make the activations readable; see ``BoundaryCache.open``."""
        for cache in self._caches.values():
            cache.open()

    def close(self) -> None:
        """Let go of files and memory."""
        for cache in self._caches.values():
            cache.close()

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> NDArray[np.float32]:
        """Return activations, float32 ``(n, *shape)``, of the views that an epoch shows."""
        shown = np.array(self._turns.shown(rows, epoch))
        out = np.empty((len(rows), *self._caches[PLAIN].shape), np.float32)
        for name in np.unique(shown).tolist():
            out[shown == name] = self._caches[name].batch(rows[shown == name], epoch)
        return out


def _readable(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
