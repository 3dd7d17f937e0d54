"""The boundary cache: activations at the last frozen block, computed once for all epochs.

Called by ``finetune_command``. Like features, activations lie in shards that are immutable,
complete if present and named by the digest of their bytes, keyed by image content; their folder is
named by how they were made.
"""

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline import machine
from pipeline.config import canonical_json
from pipeline.encoder import Encoder
from pipeline.errors import CorruptShardError, PipelineError, RunError
from pipeline.files import remove_leftovers, rename_durably, sha256_file, temporary_sibling
from pipeline.finetune_data import Photos, parts_of, read_ahead, unique_rows
from pipeline.reporting import Reporter
from pipeline.shards import Keys

# A killed run loses no more than this much work, in bytes of activations.
SHARD_BYTES: Final = 64 << 20
# Share of the free disk that a cache may take.
_DISK_SHARE: Final = 0.9
_SUFFIX: Final = ".h5"
_HINT: Final = "Delete that file and run this again; only its images are computed again."


class BoundaryCache:
    """Activations of a manifest's rows; a ``Source`` once it is filled and opened.

    Attributes:
        folder: Where the shards are.
        row_bytes: Bytes of one image's activations.

    Example:
        cache = BoundaryCache(folder, identity, keys, shape=(7, 7, 512), precision="float32")
        cache.fill(photos, encoder, reporter)
        cache.open()
        activations = cache.batch(np.arange(32), None)
    """

    def __init__(
        self,
        parent: Path,
        identity: Mapping[str, Any],
        keys: Keys,
        *,
        shape: tuple[int, ...],
        precision: str,
    ) -> None:
        """Describe a cache; nothing is read yet.

        Args:
            parent: Folder of caches.
            identity: How the activations are made.
            keys: Content keys of the rows, ``(n,)``.
            shape: Shape of one image's activations.
            precision: ``float32`` or ``float16``.
        """
        text = canonical_json({**identity, "shape": list(shape), "precision": precision})
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        self.folder = parent / self._identity[:16]
        self.row_bytes = math.prod(shape) * np.dtype(precision).itemsize
        self._keys = keys
        self._shape = shape
        self._dtype = np.dtype(precision).newbyteorder("<")
        self._places: dict[bytes, tuple[int, int]] = {}
        self._files: list[h5py.File] = []
        self._loaded: list[NDArray[Any]] = []

    def missing(self) -> NDArray[np.intp]:
        """Return one row of every image whose activations are not there.

        Raises:
            CorruptShardError: A shard is not what was written.
        """
        stored = {key for path in self._paths() for key in self._checked_keys(path)}
        rows = unique_rows(self._keys)
        return np.array([row for row in rows if bytes(self._keys[row]) not in stored], np.intp)

    def require_room(self, count: int, reporter: Reporter) -> None:
        """Say how much disk ``count`` images need; refuse where there is no room.

        Raises:
            RunError: With the ways out.
        """
        needed = count * self.row_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        text = f"{_readable(needed)} of disk for the frozen activations of {count:,} images"
        if needed > _DISK_SHARE * free:
            raise RunError(
                f"Expected room for {text} in {str(self.folder.parent)!r}. "
                f"Received: {_readable(free)} free.",
                hint="Halve it with --cache-precision float16, put --run on another disk, or "
                "unfreeze from a later part, whose activations are smaller.",
            )
        reporter.say(f"Taking {text} ({_readable(self.row_bytes)} an image)")

    def fill(self, photos: Photos, encoder: Encoder, reporter: Reporter) -> int:
        """Compute what is missing; returns how many images that were.

        Args:
            photos: The images of the rows.
            encoder: Images to flattened activations.
            reporter: Where progress goes.

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
                for batch, pixels in read_ahead(lambda some: photos.batch(some, None), batches):
                    blocks.append(self._converted(encoder(pixels)))
                    for _ in batch:
                        bar.advance()
                self._write(self._keys[part], np.concatenate(blocks))
        return len(rows)

    def open(self) -> None:
        """Make the activations readable, in memory where they fit.

        Raises:
            CorruptShardError: A shard is not what was written.
        """
        needed = len(unique_rows(self._keys)) * self.row_bytes
        is_small = needed <= machine.free_memory() // 2
        for number, path in enumerate(self._paths()):
            for row, key in enumerate(self._checked_keys(path)):
                self._places.setdefault(key, (number, row))
            self._files.append(h5py.File(path, "r"))
            if is_small:
                self._loaded.append(self._files[-1]["activations"][:])

    def close(self) -> None:
        """Let go of files and memory."""
        for file in self._files:
            file.close()
        self._files, self._loaded, self._places = [], [], {}

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> NDArray[np.float32]:
        """Return activations, float32 ``(n, *shape)``; an epoch changes nothing."""
        out = np.empty((len(rows), *self._shape), np.float32)
        for place, row in enumerate(rows):
            shard, line = self._places[bytes(self._keys[row])]
            if self._loaded:
                out[place] = self._loaded[shard][line]
            else:
                out[place] = self._files[shard]["activations"][line]
        return out

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"*{_SUFFIX}") if path.name[0] != ".")

    def _converted(self, flat: NDArray[np.float32]) -> NDArray[Any]:
        """Return activations in the cache's precision and shape."""
        with np.errstate(over="ignore"):
            values = flat.astype(self._dtype).reshape(-1, *self._shape)
        if not np.isfinite(values).all():
            raise PipelineError(
                f"Expected finite activations in {self._dtype.name}. "
                f"Received: values up to {np.abs(flat).max():.3g}.",
                hint="Use --cache-precision float32, or other weights.",
            )
        return values

    def _write(self, keys: Keys, values: NDArray[Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with temporary_sibling(self.folder / f"shard{_SUFFIX}") as temporary:
            with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
                file.attrs["identity"] = self._identity
                file.create_dataset("keys", data=keys)
                file.create_dataset("activations", data=values)
            rename_durably(temporary, self.folder / (sha256_file(temporary) + _SUFFIX))

    def _checked_keys(self, path: Path) -> Iterator[bytes]:
        """Yield the keys of a shard after its digest and its identity were checked."""
        try:
            if sha256_file(path) != path.stem:
                raise _corrupt(path, "its bytes are not those that were written")
            with h5py.File(path, "r") as file:
                if file.attrs["identity"] != self._identity:
                    raise _corrupt(path, "it belongs to another cut or backbone")
                yield from (bytes(key) for key in file["keys"][:])
        except (OSError, KeyError) as error:
            raise _corrupt(path, str(error)) from error


def _corrupt(path: Path, problem: str) -> CorruptShardError:
    return CorruptShardError(
        f"The shard {str(path)!r} cannot be trusted: {problem}.", shard=path.stem, hint=_HINT
    )


def _readable(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
