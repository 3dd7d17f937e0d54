"""What stage 1 knows of each image of a listing: its key, its status, and what is to be made.

Whoever makes features, in this process or on others, asks the ledger and tells it what was found.
It holds no pixels and no network, and opens no image.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from pipeline.errors import DecodeError, ManifestError
from pipeline.images import decoder, reading
from pipeline.images.manifest import CONFLICT, KEY_DTYPE, OK, Manifest, as_read, none_usable
from pipeline.images.reading import ReadFile
from pipeline.images.views import PLAIN
from pipeline.store.scan_cache import ScanCache
from pipeline.store.shard import Keys, Shard
from pipeline.store.shard_set import ShardSet, remember_check
from pipeline.store.store import Store

# A failure of the moment, not of the image: tried again next time.
_NO_MEMORY: Final = "too large: no memory"


# Files whose keys are looked up in the store together.
_LOOKED_UP: Final = 4096


class Ledger:
    """The state of every image of a listing, and what is counted of them.

    Attributes:
        listing: The images.
        targets: Sets to fill by view.
        encoded: Images whose features were made.
        reused: Images whose features were at hand, copies of another image included.
        skipped: Images that are bad.
        rows: Feature rows made, by view.

    Example:
        ledger = Ledger(listing, store, cache)
        ledger.look_up()
        for index in ledger.pending:
            if not ledger.take(index, file):
                views = ledger.accept(index, file.key)
        manifest = ledger.manifest()
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
            store: Where features go.
            cache: What earlier runs learned about files.
            targets: Sets to fill by view; the plain one alone by default.
            on_error: ``skip`` or ``raise`` on a bad image.
            max_errors: Most bad images before giving up.
        """
        self.listing = listing
        self.targets = dict(targets or {PLAIN: store.plain})
        self.encoded = self.reused = self.skipped = 0
        self.rows = dict.fromkeys(self.targets, 0)
        self._cache = cache
        self._on_error = on_error
        self._max_errors = max_errors
        self._decoder = decoder.environment()
        self._keys = np.zeros(len(listing), dtype=KEY_DTYPE)
        self._statuses = [""] * len(listing)
        self._new_keys: dict[str, set[bytes]] = {view: set() for view in self.targets}

    @property
    def pending(self) -> list[int]:
        """Rows about which nothing is known yet."""
        return [index for index, status in enumerate(self._statuses) if not status]

    @property
    def errors(self) -> list[dict[str, str]]:
        """The bad images, each with its path and the reason."""
        return [
            {"path": path, "reason": status}
            for path, status in zip(self.listing.paths, self._statuses, strict=True)
            if status not in ("", OK)
        ]

    def num_threads(self, chosen: int | None) -> int:
        """Return how many threads are to read, unless a number is chosen."""
        return reading.num_threads(self.listing, chosen)

    def manifest(self) -> Manifest:
        """Return the listing with keys and statuses.

        Raises:
            ManifestError: Every image is bad.
        """
        if self.skipped == len(self.listing):
            raise none_usable(self.errors, hint="Give a folder of images.")
        return as_read(self.listing, self._keys.copy(), self._statuses)

    def keys_of(self, status: str) -> Keys:
        """Return the keys of the images of a status, ``S64``, ``(n,)``."""
        return self._keys[[found == status for found in self._statuses]]

    def look_up(self) -> None:
        """Settle every file that is unchanged since an earlier run, without opening it.

        Raises:
            ManifestError: The source tells two labels of a path, and ``on_error`` is ``raise``.
        """
        if self._on_error == "raise" and CONFLICT in self.listing.statuses:
            path = self.listing.paths[list(self.listing.statuses).index(CONFLICT)]
            raise ManifestError(
                f"Expected one label per path. Received: {path!r} with two.",
                hint="Keep one of its rows, or go on with --on-error skip.",
            )
        pending = self.pending
        for start in range(0, len(pending), _LOOKED_UP):
            found = self._known_keys(pending[start : start + _LOOKED_UP])
            keys = np.array([key for _, key in found], dtype=KEY_DTYPE)
            stored = np.ones(len(found), dtype=bool)
            for target in self.targets.values():
                stored &= target.index.find(keys) >= 0
            for (index, key), is_stored in zip(found, stored, strict=True):
                self._settle(index, key, is_stored=bool(is_stored))

    def take(self, index: int, file: ReadFile) -> bool:
        """Settle a file that was read; False when its features must be made."""
        if file.key and file.state is not None:
            name = reading.name_of(self.listing, index)
            self._cache.remember_key(name, file.state, file.key)
        if not file.reason:
            return self._settle(index, file.key)
        if file.key and not file.reason.startswith(_NO_MEMORY):
            self._cache.remember_failure(file.key, self._decoder, file.reason)
        self._skip(index, file.key, file.reason)
        return True

    def accept(self, index: int, key: str) -> list[str]:
        """Settle a file whose features are now made; return the views to make of it."""
        views = self.missing(key)
        for view in views:
            self._new_keys[view].add(bytes.fromhex(key))
            self.rows[view] += 1
        self.encoded += 1
        self._put(index, key, OK)
        return views

    def missing(self, key: str) -> list[str]:
        """Return the views of an image that have no features yet."""
        return [
            view
            for view, target in self.targets.items()
            if not self._is_new(view, key) and key not in target
        ]

    def remember_shard(self, shard: Shard) -> None:
        """Note, once a shard is in place, that its digest is right, and what led to it."""
        remember_check(self._cache, shard)
        self._cache.commit()

    def _known_keys(self, rows: Sequence[int]) -> list[tuple[int, str]]:
        """Return the rows whose file is unchanged since its key was told, with their keys."""
        there = reading.find_all(self.listing, rows)
        keys = self._cache.keys([(name, state) for _, name, state in there])
        return [(row, key) for (row, _, _), key in zip(there, keys, strict=True) if key is not None]

    def _settle(self, index: int, key: str, *, is_stored: bool = False) -> bool:
        """Count a file whose features, or whose fault, are known; False if neither is."""
        reason = self._cache.failure(key, self._decoder)
        if reason is not None:
            self._skip(index, key, reason)
            return True
        if not is_stored and self.missing(key):
            return False
        self.reused += 1
        self._put(index, key, OK)
        return True

    def _skip(self, index: int, key: str, reason: str) -> None:
        self.skipped += 1
        self._put(index, key, reason)
        path = self.listing.paths[index]
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

    def _is_new(self, view: str, key: str) -> bool:
        # Kept as bytes, which take half the memory of the text.
        return bytes.fromhex(key) in self._new_keys[view]
