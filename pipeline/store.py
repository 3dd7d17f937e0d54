"""The feature store: a directory of shards with one identity, keyed by image content.

Stage 1 adds rows through ``ShardWriter``; everything else reads rows by key through
``Store.read``. ``features.h5`` is a view for users, rebuilt from the shards; nothing here reads
it. The layout is in ``docs/store.md``.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import shards
from pipeline.config import canonical_json
from pipeline.errors import (
    ManifestError,
    MissingFeaturesError,
    StaleFeaturesError,
    StoreError,
)
from pipeline.files import exclusive, read_record, remove_leftovers, sha256_file, write_json
from pipeline.key_index import KeyIndex
from pipeline.manifest import Manifest, mention
from pipeline.manifest import read as read_manifest
from pipeline.manifest import write as write_manifest
from pipeline.scan_cache import ScanCache
from pipeline.shards import Features, Keys, Shard
from pipeline.view import write_view

SCHEMA_VERSION: Final = 1
SHARD_ROWS: Final = 8192
# Small shards are cheap to read until there are many of them.
MAX_SMALL_SHARDS: Final = 16

_RECORD = "store.json"
_MANIFEST = "manifest.csv"
_VIEW = "features.h5"
_SHARDS = "shards"
_SCAN = "scan.sqlite"
_ENCODER = "encoder"
_LOCK = ".lock"


class Store:
    """One feature store on disk.

    Example:
        store = Store.open(Path("stores/photos"))
        features = store.read(keys)
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.index = KeyIndex.over(())

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Tell whether a directory is a store."""
        return (path / _RECORD).is_file()

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a store and check its shards.

        Raises:
            StoreError: There is no store, it is of another version, or a shard is bad.
        """
        store = cls.unchecked(path)
        with store.scan_cache() as cache:
            store.reindex(cache)
        return store

    @classmethod
    def unchecked(cls, path: Path) -> "Store":
        """Open a store without looking at its shards; its index is empty."""
        record = read_record(path / _RECORD, kind="feature store", version=SCHEMA_VERSION)
        if record is None:
            raise StoreError(
                f"There is no feature store at {str(path)!r}.",
                hint="Make one with pipeline extract DATA --store DIR.",
            )
        return cls(path, record)

    @classmethod
    def create(cls, path: Path, *, identity: Mapping[str, Any], dim: int, root: Path) -> "Store":
        """Make an empty store.

        Raises:
            StoreError: The directory holds something else.
        """
        path.mkdir(parents=True, exist_ok=True)
        _require_empty(path)
        record = {
            "schema_version": SCHEMA_VERSION,
            "identity": dict(identity),
            "dim": dim,
            "root": str(root),
            "manifests": {},
            "weights": {},
            "provenance": {},
        }
        store = cls(path, record)
        store.save_record()
        return store

    @property
    def identity(self) -> dict[str, Any]:
        """How the features were made."""
        return dict(self.record["identity"])

    @property
    def dim(self) -> int:
        """Length of a feature row."""
        return int(self.record["dim"])

    @property
    def manifest_path(self) -> Path:
        """Where the generated manifest is."""
        return self.path / _MANIFEST

    @property
    def view_path(self) -> Path:
        """Where the view for users is."""
        return self.path / _VIEW

    def __len__(self) -> int:
        return len(self.index.keys)

    def scan_cache(self) -> ScanCache:
        """Open the cache of what earlier runs learned about files."""
        return ScanCache(self.path / _SCAN)

    def adopt(self, record: dict[str, Any]) -> "Store":
        """Return this store with another record."""
        self.record = record
        return self

    def save_record(self) -> None:
        """Write ``store.json``."""
        write_json(self.path / _RECORD, self.record)

    def require_identity(self, identity: Mapping[str, Any]) -> None:
        """Refuse features that were made in another way.

        Raises:
            StaleFeaturesError: Names the first field that differs, with both values.
        """
        for field in (*identity, *self.identity):
            stored, asked = self.identity.get(field), identity.get(field)
            if stored != asked:
                raise StaleFeaturesError(
                    f"The store {str(self.path)!r} holds features of {field} = {stored!r}. "
                    f"Received: {field} = {asked!r}.",
                    hint="Choose another --store, go back to the stored value, or replace the "
                    "store with --force.",
                )

    # -- reading ---------------------------------------------------------------------------

    def reindex(self, cache: ScanCache) -> None:
        """Look at the shards again, hashing those that changed since their last good check.

        Raises:
            CorruptShardError: A shard is not what was written.
        """
        self.index = KeyIndex.over(self._opened(path, cache) for path in self.shard_paths())

    def read(self, keys: Keys) -> Features:
        """Return the features of keys, in their order.

        Args:
            keys: ``S64``, shape ``(n,)``; may repeat.

        Returns:
            float32, shape ``(n, dim)``.

        Raises:
            MissingFeaturesError: The store lacks some of the keys.
            CorruptShardError: A shard is gone, or holds values that are not finite.
        """
        places = self.index.find(keys)
        absent = keys[places < 0]
        if len(absent):
            raise MissingFeaturesError(
                f"The store {str(self.path)!r} has no features for {len(absent):,} of "
                f"{len(keys):,} images.",
                keys=[key.decode() for key in absent],
                hint="Run extract again; only those are encoded.",
            )
        out = np.empty((len(keys), self.dim), dtype=np.float32)
        shard_of = self.index.shard_of[places]
        for number in np.unique(shard_of):
            wanted = np.flatnonzero(shard_of == number)
            rows = self.index.row_of[places[wanted]]
            shards.read_into(self.index.shards[number], rows, out, wanted)
        return out

    def read_manifest(self, path: Path | None = None) -> Manifest:
        """Read the generated manifest, or another one by its path.

        Raises:
            ManifestError: There is none, or it cannot be used.
        """
        chosen = path or self.manifest_path
        if path is None and not chosen.exists():
            raise ManifestError(
                f"The store {str(self.path)!r} has no manifest yet: its extract did not finish.",
                hint="Run extract again; it goes on where it stopped.",
            )
        known = self.record["manifests"].get(self._manifest_name(chosen), {})
        return read_manifest(chosen, root=Path(known.get("root", self.record["root"])))

    def needed_keys(self) -> Keys:
        """Return the keys in any manifest that this store has written.

        Raises:
            ManifestError: One of them is gone, so nobody knows what it needs.
        """
        paths = [self.path / name for name in self.record["manifests"]]
        keys = [self.read_manifest(path).keys for path in paths]
        return np.unique(np.concatenate(keys)) if keys else self.index.keys

    # -- writing ---------------------------------------------------------------------------

    def require_own_manifest(self, path: Path) -> None:
        """Refuse to overwrite a manifest that this store did not write, or that was edited.

        Raises:
            ManifestError: With the way to keep the edits.
        """
        if not path.exists():
            return
        known = self.record["manifests"].get(self._manifest_name(path), {})
        if sha256_file(path) not in known.get("sha256", ()):
            raise ManifestError(
                f"The manifest {str(path)!r} was edited or made by something else, and extract "
                "would overwrite it.",
                hint="Keep the edits in a copy (train-head --manifest COPY) and remove this file, "
                "or overwrite it with --force.",
            )

    def save_manifest(self, path: Path, manifest: Manifest) -> None:
        """Write a generated manifest and remember that it is ours."""
        name = self._manifest_name(path)
        known = self.record["manifests"].get(name, {}).get("sha256", [])
        staged = path.with_name(f".{path.name}.next")
        write_manifest(staged, manifest)
        # The record comes first: killed between the two, the old file is still known as ours.
        self.record["manifests"][name] = {
            "root": str(manifest.root),
            "sha256": [sha256_file(staged), *known[:1]],
        }
        self.record["root"] = str(manifest.root)
        self.save_record()
        staged.replace(path)

    def compact(
        self, cache: ScanCache, *, keep: Keys | None = None, everything: bool = False
    ) -> int:
        """Merge small shards into large ones.

        Args:
            cache: Where the checks of shards are remembered.
            keep: Keys to keep, the others are dropped; None keeps all.
            everything: Merge however few small shards there are.

        Returns:
            How many keys were dropped.
        """
        wanted = np.ones(len(self), dtype=bool) if keep is None else np.isin(self.index.keys, keep)
        counts = np.bincount(self.index.shard_of[wanted], minlength=len(self.index.shards))
        sizes = np.array([len(shard) for shard in self.index.shards], dtype=np.intp)
        shrunk, small = counts < sizes, sizes < SHARD_ROWS
        if shrunk.any() or small.sum() > (1 if everything else MAX_SMALL_SHARDS):
            self._rewrite(np.flatnonzero(shrunk | small), wanted)
            self.reindex(cache)
        return int(len(wanted) - wanted.sum())

    def refresh_view(self) -> None:
        """Rebuild ``features.h5`` from the shards at hand."""
        write_view(self.view_path, self.index, self.dim)

    def add_shard(self, keys: Keys, features: Features) -> Shard:
        """Write rows as a new shard; ``reindex`` makes them readable."""
        folder = self.path / _SHARDS
        return shards.write(folder, keys, features, identity=self._identity_digest())

    def remove_features(self) -> None:
        """Delete all features and the encoder, for a store that is replaced by ``--force``."""
        for folder in (_SHARDS, _ENCODER):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        # The record goes last: until then this is a store, though one that lacks features.
        for name in (_VIEW, _MANIFEST, _SCAN, _RECORD):
            (self.path / name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete what a killed run left under temporary names."""
        for folder in (self.path, self.path / _SHARDS, self.path / _ENCODER):
            remove_leftovers(folder)

    def encoder_path(self, weights_sha256: str) -> Path:
        """Return where the weights of that digest are kept."""
        return self.path / _ENCODER / f"{weights_sha256}.h5"

    def _rewrite(self, numbers: NDArray[np.intp], wanted: NDArray[np.bool_]) -> None:
        """Replace some shards by large ones that hold their wanted rows."""
        chosen = wanted & np.isin(self.index.shard_of, numbers)
        keys = self.index.keys[chosen]
        written = set()
        for start in range(0, len(keys), SHARD_ROWS):
            part = keys[start : start + SHARD_ROWS]
            written.add(self.add_shard(part, self.read(part)).name)
        for number in numbers:
            if self.index.shards[number].name not in written:
                self.index.shards[number].path.unlink(missing_ok=True)

    def shard_paths(self) -> list[Path]:
        """Return the shard files at hand."""
        folder = self.path / _SHARDS
        return sorted(path for path in folder.glob(f"*{shards.SUFFIX}") if path.name[0] != ".")

    def open_shard(self, path: Path, *, is_checked: Callable[[Path], bool]) -> Shard:
        """Read a shard's keys, hashing it unless ``is_checked`` vouches for it.

        Raises:
            CorruptShardError: It is not what was written.
        """
        identity = self._identity_digest()
        return shards.open_shard(path, identity=identity, dim=self.dim, is_checked=is_checked)

    def read_shard(self, shard: Shard) -> Features:
        """Read all rows of one shard, float32 ``(n, dim)``.

        Raises:
            CorruptShardError: It holds values that are not finite.
        """
        out = np.empty((len(shard), self.dim), dtype=np.float32)
        rows = np.arange(len(shard))
        shards.read_into(shard, rows, out, rows)
        return out

    def _opened(self, path: Path, cache: ScanCache) -> Shard:
        shard = self.open_shard(
            path, is_checked=lambda path: cache.is_checked(path.stem, path.stat())
        )
        cache.remember_check(path.stem, path.stat())
        return shard

    def _identity_digest(self) -> str:
        return hashlib.sha256(canonical_json(self.identity).encode()).hexdigest()

    def _manifest_name(self, path: Path) -> str:
        """Return how a manifest is known: by name within the store, else by its full path."""
        full = path.resolve()
        inside = full.parent == self.path.resolve()
        return full.name if inside else str(full)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep other writers out of a store, existing or to be made, while the context lasts.

    Raises:
        StoreError: Another process is writing.
    """
    busy = f"Another extract or prune is writing into {str(path)!r}."
    with exclusive(path / _LOCK, busy):
        try:
            yield
        finally:
            # A store that could not be made leaves nothing behind.
            if not Store.exists(path):
                (path / _LOCK).unlink()
                if not any(path.iterdir()):
                    path.rmdir()


def _require_empty(path: Path) -> None:
    foreign = sorted(item.name for item in path.iterdir() if item.name != _LOCK)
    if foreign:
        raise StoreError(
            f"Expected a feature store or an empty folder at {str(path)!r}. "
            f"Received: a folder with {mention(foreign)}.",
            hint="Choose another --store.",
        )
