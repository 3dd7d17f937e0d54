"""The check that features are those of their images: some rows of every shard are encoded again.

Checksums tell that a file is as it was written; this tells that what was written was right.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import engines
from pipeline.backbones.identity import Identity, require_encoder
from pipeline.engines import probing
from pipeline.engines.encoder import DRIFT_TOLERANCE, Encoder, drift
from pipeline.errors import DecodeError
from pipeline.files.location import Location
from pipeline.images import reading, views
from pipeline.images.decoder import Pixels
from pipeline.images.manifest import OK, Manifest
from pipeline.images.reading import in_threads
from pipeline.runs import backbone as run_backbone
from pipeline.store.shard import Features, Shard
from pipeline.store.shard_set import ShardSet
from pipeline.store.store import Store
from pipeline.system import machine
from pipeline.system.progress import Reporter
from pipeline.verify.problems import Problem, without

_BATCH: Final = 32
_SEED: Final = 0

# Rows of manifests, by the key of their images.
_Images = Mapping[bytes, tuple[Manifest, int]]


@dataclass(frozen=True, slots=True)
class Reencoded:
    """What encoding again found.

    Attributes:
        rows: Rows that were compared.
        unavailable: Rows that were chosen and whose images are gone or changed.
        problems: Shards with rows that are not of their images.
        is_whole: Whether every row of the store was compared and is right.
    """

    rows: int
    unavailable: int
    problems: Sequence[Problem]
    is_whole: bool


def reencode(place: Location, count: int, weights: str | None, reporter: Reporter) -> Reencoded:
    """Encode rows of every shard again and compare them with what is stored.

    Args:
        place: The store.
        count: Rows a shard, drawn at random; all of a smaller one.
        weights: Where the weights are, if the store lacks them; the file of a network in no table.
        reporter: Where notes and progress go.

    Raises:
        RunError: The features were imported: nothing here makes them.
        StoreError: There is no store, or a shard is damaged.
        StaleFeaturesError: Decoder or network make other features than they did, of any image.
        WeightsUnavailableError: The weights are nowhere.
    """
    require_encoder(Store.unchecked(place).identity)
    store = Store.open(place)
    images = _images(store)
    encoder = _encoder(store, weights, reporter)
    reporter.say(f"Encoding up to {count:,} rows per shard again with {encoder.engine}")
    sets = {views.PLAIN: store.plain, **store.views}
    compared, unavailable, problems = 0, 0, []
    total = sum(min(count, len(shard)) for item in sets.values() for shard in item.index.shards)
    with reporter.bar(total, "img") as bar:
        for view, shard_set in sets.items():
            for shard in shard_set.index.shards:
                rows = _drawn(len(shard), count)
                wrong = right = 0
                for differences in _differences(
                    store, shard_set, shard, rows, view, images, encoder
                ):
                    wrong += int((differences > DRIFT_TOLERANCE).sum())
                    right += int((differences <= DRIFT_TOLERANCE).sum())
                    for _ in differences:
                        bar.advance()
                compared += wrong + right
                unavailable += len(rows) - wrong - right
                problems += [_problem(shard, wrong, wrong + right)] if wrong else []
    stored = sum(len(shard) for item in sets.values() for shard in item.index.shards)
    return Reencoded(compared, unavailable, problems, compared == stored and not problems)


def _drawn(rows: int, count: int) -> NDArray[np.intp]:
    order = np.random.default_rng(_SEED).permutation(rows)
    return np.sort(order[:count])


def _images(store: Store) -> _Images:
    images: dict[bytes, tuple[Manifest, int]] = {}
    for name in {store.manifest_path.name, *store.record.manifests}:
        path = store.path / name
        if not store.has_manifest(path):
            continue
        manifest = store.read_manifest(path)
        for index, (key, status) in enumerate(zip(manifest.keys, manifest.statuses, strict=True)):
            if status == OK:
                images[bytes(key)] = (manifest, index)
    return images


def _encoder(store: Store, weights: str | None, reporter: Reporter) -> Encoder:
    provenance, identity = store.record.provenance, store.identity
    source = run_backbone.WeightsSource(provenance.weights, provenance.seed)
    backbone = run_backbone.of_store(store, weights, source)
    asked = "auto" if identity.precision == "float32" else str(identity.engine)
    engine, _ = engines.resolve(asked, identity.form)
    encoder = engines.create(engine, backbone, batch_size=_BATCH, precision=identity.precision)
    for note in probing.check(encoder, backbone.probe):
        reporter.say(note)
    return encoder


def _differences(
    store: Store,
    shard_set: ShardSet,
    shard: Shard,
    rows: NDArray[np.intp],
    view: str,
    images: _Images,
    encoder: Encoder,
) -> Iterator[NDArray[np.floating]]:
    """Yield, batch by batch, how far rows are off, as a share of the largest value of each."""
    identity = store.identity
    kept = shard_set.read_shard(shard)

    def read(row: int) -> Pixels | None:
        return _pixels(bytes(shard.keys[row]), images, view, identity)

    batch: list[tuple[int, Pixels]] = []
    for row, future in in_threads(read, rows.tolist(), machine.processors()):
        pixels = future.result()
        if pixels is not None:
            batch.append((row, pixels))
        if len(batch) == _BATCH:
            yield _compared(kept, batch, encoder)
            batch = []
    if batch:
        yield _compared(kept, batch, encoder)


def _compared(
    kept: Features, batch: Iterable[tuple[int, Pixels]], encoder: Encoder
) -> NDArray[np.floating]:
    rows, pixels = zip(*batch, strict=True)
    return drift(kept[list(rows)], encoder(np.stack(pixels)))


def _pixels(key: bytes, images: _Images, view: str, identity: Identity) -> Pixels | None:
    """Return what the encoder is given of an image; None where it is gone or another by now."""
    if key not in images:
        return None
    try:
        content = reading.read(*images[key])
        if content.key.encode() != key:
            return None
        size, resize = identity.image_size, identity.resize
        return views.pixels(content.data, key.decode(), [view], size, resize)[view]
    except DecodeError:
        return None


def _problem(shard: Shard, wrong: int, compared: int) -> Problem:
    return Problem(
        shard.name,
        f"{wrong:,} of {compared:,} rows of {str(shard.storage.named(shard.path))!r} that were "
        "encoded again are not the features of their images.",
        "Run this again with --repair, then extract; only the images of that shard are encoded.",
        without(shard.path, shard.storage),
    )
