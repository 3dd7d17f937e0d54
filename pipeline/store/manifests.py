"""The manifests that a store wrote: by name within it, or by full path; read only as written."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.errors import ManifestError
from pipeline.files import places
from pipeline.files.regular import UnfitFileError, sha256_file
from pipeline.images.manifest import Manifest
from pipeline.images.manifest import read as read_manifest
from pipeline.images.place import is_relative_to
from pipeline.store.record import StoreRecord
from pipeline.store.storage import Storage

MANIFEST: Final = "manifest.csv"


@dataclass(frozen=True, slots=True)
class Manifests:
    """The manifests of a store, as its record tells of them.

    Attributes:
        record: The record.
        storage: Where the store keeps its files.
    """

    record: StoreRecord
    storage: Storage

    def read(self, path: Path | None, *, group: str | None = None) -> Manifest:
        """Read the generated manifest, or another one by its path; see ``manifest.read``.

        Raises:
            ManifestError: There is none, it is that of the store and changed, or it cannot be used.
        """
        folder = self.storage.folder
        chosen = path or folder / MANIFEST
        self.fetch(chosen)
        if path is None and not chosen.exists():
            raise ManifestError(
                f"The store {str(self.storage.place)!r} has no manifest yet: its extract did not "
                "finish.",
                hint="Run extract again; it goes on where it stopped.",
            )
        name = self.name_of(chosen)
        is_own = self._is_inside(chosen) and (name in self.record.manifests or name == MANIFEST)
        if is_own and not self._is_as_written(chosen):
            raise ManifestError(
                f"Expected the manifest {str(self.storage.named(chosen))!r} as extract wrote it. "
                "Received: another content: it was edited, or is damaged.",
                hint="Move it elsewhere: give it with --manifest if the edits are yours, and run "
                "extract again, which makes another.",
            )
        known = self.record.manifests.get(name, self.record)
        rows = read_manifest(chosen, root=Path(), group=group)
        first = rows.paths[0] if rows.paths else ""
        has_images = partial(is_relative_to, path=first)
        found = places.of_images(known.root, known.nearby_root, folder, has_images)
        return replace(rows, root=found)

    def paths(self) -> list[Path]:
        """Return where the manifests are, or were last."""
        return [self.place_of(name) for name in self.record.manifests]

    def require_own(self, path: Path) -> None:
        """Refuse to overwrite a manifest that the store did not write, or that was edited.

        Raises:
            ManifestError: With the way to keep the edits.
        """
        # Whole, however like the one on this machine it looks.
        self.storage.fetch(path)
        if path.exists() and not self._is_as_written(path):
            raise ManifestError(
                f"The manifest {str(self.storage.named(path))!r} was edited or made by something "
                "else, and extract would overwrite it.",
                hint="Keep the edits in a copy (train-head --manifest COPY) and remove this file, "
                "or overwrite it with --force.",
            )

    def fetch(self, path: Path) -> None:
        """Have a manifest of the store on this machine, as it was written last."""
        known = self.record.manifests.get(self.name_of(path))
        newest = known.sha256[0] if known is not None and known.sha256 else None
        self.storage.fetch(path, sha256=newest)

    def name_of(self, path: Path) -> str:
        """Return how a manifest is known, which may have moved with the store."""
        full = path.resolve()
        return next(
            (name for name in self.record.manifests if self.place_of(name).resolve() == full),
            self.new_name(path),
        )

    def new_name(self, path: Path) -> str:
        """Return the name of a manifest within the store, else its full path."""
        return path.name if self._is_inside(path) else str(path.resolve())

    def place_of(self, name: str) -> Path:
        """Return where a manifest is that is known by a name, or was last."""
        if not Path(name).is_absolute():
            return self.storage.folder / name
        nearby = self.record.manifests[name].nearby
        candidates = places.candidates(name, nearby, self.storage.folder)
        return places.choose(candidates, Path.is_file)

    def _is_inside(self, path: Path) -> bool:
        return path.parent.resolve() == self.storage.folder.resolve()

    def _is_as_written(self, path: Path) -> bool:
        """Tell whether a manifest is one that the store wrote, byte for byte."""
        known = self.record.manifests.get(self.name_of(path))
        try:
            return known is not None and sha256_file(path) in known.sha256
        except UnfitFileError:
            return False
