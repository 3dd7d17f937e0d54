"""The feature store: sets of shards with one identity, keyed by image content.

Stage 1 adds rows through ``ShardWriter``; everything else reads rows by key through
``Store.read``. ``features.h5`` is a view for users, rebuilt from the shards; nothing here reads
it. The layout is in ``docs/store.md``.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.config import canonical_json
from pipeline.errors import (
    ManifestError,
    StaleFeaturesError,
    StoreError,
)
from pipeline.files import (
    exclusive,
    foreign,
    read_record,
    recover,
    remove_leftovers,
    rename_durably,
    sha256_file,
    temporary_sibling,
    write_json,
)
from pipeline.key_index import KeyIndex
from pipeline.manifest import Manifest, mention
from pipeline.manifest import fill as fill_manifest
from pipeline.manifest import read as read_manifest
from pipeline.scan_cache import ScanCache
from pipeline.shard_set import ShardSet
from pipeline.shards import Features, Keys
from pipeline.view import write_view

SCHEMA_VERSION: Final = 1

_RECORD = "store.json"
MANIFEST: Final = "manifest.csv"
_VIEW = "features.h5"
_SHARDS = "shards"
_VIEWS = "views"
_BOUNDARY = "boundary"
_SCAN = "scan.sqlite"
_ENCODER = "encoder"
_LOCK = ".lock"
# A killed process leaves the second beside the scan cache.
_SCANS: Final = (_SCAN, f"{_SCAN}-journal")
# Where earlier releases staged a manifest.
_STAGED: Final = ".{}.next"
_FOLDERS: Final = (_SHARDS, _VIEWS, _BOUNDARY, _ENCODER)
# In the order of removing: until the record goes, this is a store, though one without features.
_FILES: Final = (_VIEW, MANIFEST, _STAGED.format(MANIFEST), *_SCANS, _RECORD)


class Store:
    """One feature store on disk.

    Example:
        store = Store.open(Path("stores/photos"))
        features = store.read(keys)
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.plain = self._set(_SHARDS, "", "")
        self.views = {name: self._view(name) for name in record.get("views", {})}

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
        """Open a store without looking at its shards; its indices are empty."""
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
        remove_leftovers(path)
        record = {
            "schema_version": SCHEMA_VERSION,
            "identity": dict(identity),
            "dim": dim,
            "root": str(root),
            "manifests": {},
            "views": {},
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
        return self.path / MANIFEST

    @property
    def view_path(self) -> Path:
        """Where the view for users is."""
        return self.path / _VIEW

    @property
    def index(self) -> KeyIndex:
        """Where the features of the images as they are lie."""
        return self.plain.index

    @property
    def sets(self) -> list[ShardSet]:
        """The plain set and the views."""
        return [self.plain, *self.views.values()]

    def __len__(self) -> int:
        return len(self.plain)

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
        for item in self.sets:
            item.reindex(cache)

    def read(self, keys: Keys, view: str | None = None) -> Features:
        """Return the features of keys, in their order; see ``ShardSet.read``.

        Raises:
            StoreError: The store has no such view.
        """
        if view is None:
            return self.plain.read(keys)
        if view not in self.views:
            raise StoreError(
                f"The store {str(self.path)!r} has no view {view!r}. "
                f"It has {', '.join(sorted(self.views)) or 'none'}.",
                hint=f"Add it: run extract again with --views {view}.",
            )
        return self.views[view].read(keys)

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
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        path.with_name(_STAGED.format(path.name)).unlink(missing_ok=True)
        present = sha256_file(path) if path.exists() else None
        with temporary_sibling(path) as staged:
            fill_manifest(staged, manifest)
            # The record comes first: killed between the two, the old file is still known as ours.
            self.record["manifests"][name] = {
                "root": str(manifest.root),
                "sha256": [sha256_file(staged), *([present] if present in known else known[:1])],
            }
            self.record["root"] = str(manifest.root)
            self.save_record()
            rename_durably(staged, path)

    def add_view(self, name: str, scheme: str) -> None:
        """Make room for a view; nothing changes where there is one of that name."""
        if name not in self.views:
            self.record["views"] = {**self.record.get("views", {}), name: scheme}
            self.save_record()
            self.views[name] = self._view(name)

    def view_set(self, name: str) -> ShardSet:
        """Return the set of a view; an empty one that is nowhere yet if there is none."""
        return self.views[name] if name in self.views else self._set(f"{_VIEWS}/{name}", "", name)

    def compact(
        self, cache: ScanCache, *, keep: Keys | None = None, everything: bool = False
    ) -> int:
        """Merge small shards; see ``ShardSet.compact``. Returns how many images were dropped."""
        dropped = [item.compact(cache, keep=keep, everything=everything) for item in self.sets]
        return dropped[0]

    def refresh_view(self) -> None:
        """Rebuild ``features.h5`` from the shards at hand."""
        write_view(
            self.view_path, self.index, {n: v.index for n, v in self.views.items()}, self.dim
        )

    def remove_features(self) -> None:
        """Delete what a backbone made, and itself, for a store that ``--force`` replaces.

        Raises:
            StoreError: The folder holds what is not the store's. Nothing is deleted.
        """
        others = foreign(self.path, {_LOCK, *_FOLDERS, *_FILES})
        if others:
            raise StoreError(
                f"Expected nothing but a feature store at {str(self.path)!r}, which is to be "
                f"replaced. Received: also {mention(others)}.",
                hint="Move that elsewhere, or choose another --store.",
            )
        for folder in _FOLDERS:
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete what a killed run left under temporary names."""
        folders = [item.folder for item in self.sets]
        for folder in (self.path, self.encoder_folder, *folders):
            remove_leftovers(folder)

    @property
    def encoder_folder(self) -> Path:
        """Where the weights in use are kept, and converted copies of the network."""
        return self.path / _ENCODER

    @property
    def boundary_folder(self) -> Path:
        """Where fine-tuning keeps activations of frozen layers."""
        return self.path / _BOUNDARY

    def encoder_path(self, weights_sha256: str) -> Path:
        """Return where the weights of that digest are kept."""
        return self.encoder_folder / f"{weights_sha256}.h5"

    def shard_paths(self) -> list[Path]:
        """Return the shard files at hand, views included."""
        return [path for item in self.sets for path in item.shard_paths()]

    def _view(self, name: str) -> ShardSet:
        scheme = self.record["views"][name]
        return self._set(f"{_VIEWS}/{name}", f"{name}:{scheme}", name)

    def _set(self, folder: str, rule: str, view: str) -> ShardSet:
        identity = hashlib.sha256((canonical_json(self.identity) + rule).encode()).hexdigest()
        where = self.path / folder
        return ShardSet(where, identity=identity, dim=self.dim, store=self.path, view=view)

    def _manifest_name(self, path: Path) -> str:
        """Return how a manifest is known: by name within the store, else by its full path."""
        full = path.resolve()
        inside = full.parent == self.path.resolve()
        return full.name if inside else str(full)


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other writers out of a store, existing or to be made, while the context lasts.

    Args:
        path: The store.
        wait: Whether to wait for another process that is writing.

    Raises:
        StoreError: Another process is writing, and ``wait`` is off.
    """
    busy = f"Another extract or prune is writing into {str(path)!r}."
    with exclusive(path / _LOCK, busy, wait=wait):
        try:
            yield
        finally:
            # A store that could not be made leaves nothing behind.
            if not Store.exists(path):
                remove_leftovers(path)
                (path / _LOCK).unlink()
                if not any(path.iterdir()):
                    path.rmdir()


def _require_empty(path: Path) -> None:
    others = foreign(path, {_LOCK})
    if others:
        raise StoreError(
            f"Expected a feature store or an empty folder at {str(path)!r}. "
            f"Received: a folder with {mention(others)}.",
            hint="Choose another --store.",
        )
