"""The feature store: sets of shards with one identity, keyed by image content.

Stage 1 adds rows through ``ShardWriter``; everything else reads rows by key through
``Store.read``. ``features.h5`` is a view for users, rebuilt from the shards; nothing here reads
it. The layout is in ``docs/store.md``.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.backbones import probe
from pipeline.backbones.identity import Identity, require_same
from pipeline.errors import StoreError
from pipeline.files import places
from pipeline.files.atomic import (
    recover,
    remove_leftovers,
    rename_durably,
    temporary_sibling,
)
from pipeline.files.location import Location
from pipeline.files.records import canonical_json
from pipeline.files.regular import sha256_file
from pipeline.images.manifest import Manifest
from pipeline.images.manifest import fill as fill_manifest
from pipeline.store import manifests
from pipeline.store import record as store_record
from pipeline.store.features_file import write_view
from pipeline.store.key_index import KeyIndex
from pipeline.store.lock import require_empty, require_nothing_else
from pipeline.store.manifests import Manifests
from pipeline.store.object_storage import storage_of
from pipeline.store.record import RECORD, StoreRecord, WrittenManifest
from pipeline.store.scan_cache import ScanCache
from pipeline.store.shard import Features, Keys
from pipeline.store.shard_set import ShardSet
from pipeline.store.storage import Storage

MANIFEST: Final = manifests.MANIFEST
_VIEW = "features.h5"
_SHARDS = "shards"
_VIEWS = "views"
_BOUNDARY = "boundary"
_SCAN = "scan.sqlite"
_ENCODER = "encoder"
COPIES: Final = "copies"  # searches for near duplicates, see ``copies.kept``
# Where earlier releases staged a manifest.
_STAGED: Final = ".{}.next"
_FOLDERS: Final = (_SHARDS, _VIEWS, _BOUNDARY, _ENCODER, COPIES)
# In the order of removing: until the record goes, this is a store, though one without features.
# A killed process leaves a journal beside the scan cache.
_FILES: Final = (_VIEW, MANIFEST, _STAGED.format(MANIFEST), _SCAN, f"{_SCAN}-journal", probe.FILE,
                 RECORD)  # fmt: skip


class Store:
    """One feature store, in a folder or at an address of an object storage.

    Attributes:
        place: What users call it.
        path: Its folder on this machine; at an address, that of the working copy.
        storage: Where its files are.
        record: What ``store.json`` says.
        plain: The features of the images as they are.
        views: Those of augmented views, by name.

    Example:
        store = Store.open(Path("stores/photos"))
        features = store.read(keys)
    """

    def __init__(
        self, place: Location, record: StoreRecord, storage: Storage | None = None
    ) -> None:
        self.place = place
        self.storage = storage or storage_of(place)
        self.path = self.storage.folder
        self.record = record
        self.plain = self._set(_SHARDS, "", "")
        self.views = {name: self._view(name) for name in record.views}

    @classmethod
    def exists(cls, place: Location) -> bool:
        """Tell whether a directory or an address is a store."""
        storage = storage_of(place)
        return storage.exists(storage.folder / RECORD)

    @classmethod
    def open(cls, place: Location) -> "Store":
        """Open a store and check its shards.

        Raises:
            StoreError: There is no store, it is of another version, or a shard is bad.
        """
        store = cls.unchecked(place)
        with store.scan_cache() as cache:
            store.reindex(cache)
        return store

    @classmethod
    def unchecked(cls, place: Location) -> "Store":
        """Open a store without looking at its shards; its indices are empty."""
        storage = storage_of(place)
        for name in (RECORD, probe.FILE):
            storage.fetch(storage.folder / name)
        return cls(place, store_record.read(storage.folder, place), storage)

    @classmethod
    def create(cls, place: Location, *, identity: Identity, dim: int, root: Location) -> "Store":
        """Make an empty store.

        Raises:
            StoreError: The directory holds something else.
        """
        store = cls(place, StoreRecord.empty(identity, dim=dim, root=root, store=place))
        store.path.mkdir(parents=True, exist_ok=True)
        require_empty(store.storage)
        remove_leftovers(store.path)
        store.save_record()
        return store

    @property
    def identity(self) -> Identity:
        """How the features were made."""
        return self.record.identity

    @property
    def dim(self) -> int:
        """Length of a feature row."""
        return self.record.dim

    @property
    def _manifests(self) -> Manifests:
        return Manifests(self.record, self.storage)

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

    def adopt(self, record: StoreRecord) -> "Store":
        """Return this store with another record."""
        self.record = record
        return self

    def save_record(self) -> None:
        """Write ``store.json``."""
        store_record.write(self.record, self.storage)

    @property
    def is_unproven(self) -> bool:
        """Whether rows are of a release that could store others' after an interrupt."""
        return bool(self.record.unproven)

    def note_proven(self) -> None:
        """Record that every row is that of its image."""
        if self.is_unproven:
            self.record = replace(self.record, unproven=False)
            self.save_record()

    def require_identity(self, identity: Identity) -> None:
        """Refuse features that were made in another way.

        Raises:
            StaleFeaturesError: Names the first field that differs, with both values.
        """
        require_same(identity, self.identity, self.place)

    # -- reading ---------------------------------------------------------------------------

    def reindex(self, cache: ScanCache) -> None:
        """Look at the shards again, hashing those that changed since their last good check.

        Raises:
            CorruptShardError: A shard is not what was written.
        """
        for item in self.sets:
            item.reindex(cache)

    def read(self, keys: Keys, view: str | None = None) -> Features:
        """Return the features of keys, in their order; see ``set_of`` and ``ShardSet.read``."""
        return self.set_of(view).read(keys)

    def set_of(self, view: str | None) -> ShardSet:
        """Return the set of a view; None stands for the images as they are.

        Raises:
            StoreError: The store has no such view.
        """
        if view is None:
            return self.plain
        if view not in self.views:
            raise StoreError(
                f"The store {str(self.place)!r} has no view {view!r}. "
                f"It has {', '.join(sorted(self.views)) or 'none'}.",
                hint=f"Add it: run extract again with --views {view}; imported features have none.",
            )
        return self.views[view]

    def read_manifest(self, path: Path | None = None, *, group: str | None = None) -> Manifest:
        """Read the generated manifest, or another one by its path; see ``manifest.read``.

        Raises:
            ManifestError: There is none, it is that of this store and changed, or it cannot be
                used.
        """
        return self._manifests.read(path, group=group)

    def has_manifest(self, path: Path | None = None) -> bool:
        """Tell whether there is a generated manifest, or another one of the store."""
        return self.storage.exists(path or self.manifest_path)

    def needed_keys(self) -> Keys:
        """Return the keys in any manifest that this store has written.

        Raises:
            ManifestError: One of them is gone, so nobody knows what it needs.
        """
        keys = [self.read_manifest(path).keys for path in self._manifests.paths()]
        return np.unique(np.concatenate(keys)) if keys else self.index.keys

    # -- writing ---------------------------------------------------------------------------

    def require_own_manifest(self, path: Path) -> None:
        """Refuse to overwrite a manifest that this store did not write, or that was edited.

        Raises:
            ManifestError: With the way to keep the edits.
        """
        self._manifests.require_own(path)

    def save_manifest(self, path: Path, manifest: Manifest) -> None:
        """Write a generated manifest and remember that it is ours."""
        name = self._manifests.name_of(path)
        others = dict(self.record.manifests)
        before = others.pop(name, None)
        known = list(before.sha256) if before is not None else []
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        path.with_name(_STAGED.format(path.name)).unlink(missing_ok=True)
        present = sha256_file(path) if path.exists() else None
        with temporary_sibling(path) as staged:
            fill_manifest(staged, manifest)
            # The record comes first: killed between the two, the old file is still known as ours.
            written = WrittenManifest(
                root=places.absolute(manifest.root),
                nearby_root=places.nearby(manifest.root, self.place),
                nearby=places.nearby(path, self.place),
                sha256=[sha256_file(staged), *([present] if present in known else known[:1])],
            )
            manifests = {**others, self._manifests.new_name(path): written}
            self.record = replace(
                self.record.with_root(manifest.root, self.place), manifests=manifests
            )
            self.save_record()
            self.storage.put(staged, path)

    def add_view(self, name: str, scheme: str) -> None:
        """Make room for a view; nothing changes where there is one of that name."""
        if name not in self.views:
            self.record = replace(self.record, views={**self.record.views, name: scheme})
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
        """Rebuild ``features.h5`` from the shards at hand, and remember its digest."""
        if not self.storage.has_view:
            self.storage.remove(self.view_path)
            return
        with temporary_sibling(self.view_path) as temporary:
            views = {name: item.index for name, item in self.views.items()}
            write_view(temporary, self.path, self.index, views, self.dim)
            known = self.record.features_sha256 or []
            # The record comes first: killed between the two, the old file is still known as ours.
            digests = [sha256_file(temporary), *known[:1]]
            self.record = replace(self.record, features_sha256=digests)
            self.save_record()
            rename_durably(temporary, self.view_path)

    def has_view_as_written(self) -> bool:
        """Tell whether ``features.h5`` is what was written, where the record tells."""
        known = self.record.features_sha256
        return known is None or sha256_file(self.view_path) in known

    def remove_features(self) -> None:
        """Delete what a backbone made, and itself, for a store that ``--force`` replaces.

        Raises:
            StoreError: The folder holds what is not the store's. Nothing is deleted.
        """
        require_nothing_else(self.storage, {*_FOLDERS, *_FILES})
        for folder in _FOLDERS:
            self.storage.remove_folder(self.path / folder)
        for name in _FILES:
            self.storage.remove(self.path / name)

    def remove_leftovers(self) -> None:
        """Delete what a killed run left under temporary names."""
        folders = [item.folder for item in self.sets]
        for folder in (self.path, self.path / _ENCODER, self.path / COPIES, *folders):
            remove_leftovers(folder)

    @property
    def encoder_folder(self) -> Path:
        """Where the weights in use are kept, and converted copies of the network."""
        folder = self.path / _ENCODER
        self.storage.fetch_folder(folder)
        return folder

    def share_network(self) -> None:
        """Put what was kept of the network, which other rooms write, where the store is."""
        self.storage.share_folder(self.path / _ENCODER)
        path = self.path / probe.FILE
        if path.exists() and not self.storage.exists(path):
            self.storage.share(path)

    def named(self, path: Path) -> Location:
        """Return what users call a file of the store."""
        return self.storage.named(path)

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
        scheme = self.record.views[name]
        return self._set(f"{_VIEWS}/{name}", f"{name}:{scheme}", name)

    def _set(self, folder: str, rule: str, view: str) -> ShardSet:
        made = canonical_json(self.identity.as_json()) + rule
        identity = hashlib.sha256(made.encode()).hexdigest()
        where = self.path / folder
        return ShardSet(where, identity=identity, dim=self.dim, storage=self.storage, view=view)
