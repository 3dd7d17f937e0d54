"""What a node of a Ray cluster does for stage 1: tasks read and decode, actors encode and store.

Ray Data calls both with Arrow tables of one row: a part of the listing, then its pixels, then the
answer. An actor writes shards by itself and answers once they are in place, so that what is
answered stays, whatever becomes of the node. What cannot be done is an answer too: of an exception
the leader would not learn which node it is, and whether it may go on.
"""

import errno
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, Final

import numpy as np

from pipeline import engines
from pipeline.backbones.forms import ONNX
from pipeline.backbones.probe import Probe
from pipeline.engines import probing
from pipeline.engines.base import require_apart
from pipeline.engines.clock import Clock
from pipeline.engines.encoder import Encoder, Features
from pipeline.engines.queue import EncodingQueue, EncodingRow, require_finite
from pipeline.errors import ClusterError, EngineUnavailableError, PipelineError
from pipeline.extract.messages import (
    Answer,
    Decoded,
    Job,
    Making,
    Part,
    Reading,
    Refusal,
    packed,
    unpacked,
)
from pipeline.images import reading
from pipeline.images.decoder import Pixels
from pipeline.images.reading import ReadFile, in_threads
from pipeline.images.views import PLAIN
from pipeline.runs import backbone as run_backbone
from pipeline.store.shard import Keys
from pipeline.store.store import Store
from pipeline.system import machine, nodes

# An Arrow table, which is imported where it is made.
Table = Any

PART: Final = "part"
_PIXELS: Final = "pixels"
ANSWER: Final = "answer"
# Seconds that a node in trouble waits, so that it takes few parts from the others.
_PAUSE: Final = 10.0


def require_sight(job: Job) -> None:
    """Refuse a node that does not see the store or the data.

    Raises:
        ClusterError: Says what it does not see.
    """
    hint = "Let every node see the store and the data under the same paths."
    if not Store.exists(job.store) or Store.unchecked(job.store).identity != job.identity:
        raise ClusterError(
            f"Expected the store {str(job.store)!r} that this run writes into. Received: none, or "
            "another one.",
            hint=hint,
        )
    if reading.find(job.sight, 0) is None:
        raise ClusterError(
            f"Expected the image {reading.name_of(job.sight, 0)!r} of the data. Received: no such "
            "file.",
            hint=hint,
        )


def decode(table: Table, *, job: Job) -> Table:
    """Read the images of a part, and decode those that the store lacks.

    Args:
        table: One row with a ``Part``.
        job: What is to be done.

    Returns:
        One row with a ``Decoded`` and its pixels.
    """
    import pyarrow as pa

    try:
        stored = _stored(job)
        decoded, pixels = _read(unpacked(table[PART][0].as_py()), job, stored)
    except Exception as error:
        decoded, pixels = Decoded(refusal=_refusal(error)), b""
    return pa.table(
        {
            PART: pa.array([packed(decoded)], pa.binary()),
            _PIXELS: pa.array([pixels], pa.large_binary()),
        }
    )


class EncodingActor:
    """A network on one GPU or some processors, which encodes parts and stores their features.

    The network is that of the store, by the digest of its weights; nothing is downloaded or drawn.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._made: dict[str, set[str]] = {view: set() for view in job.views}
        self._setting_up = Lock()
        self._refusal = self._set_up()

    def _set_up(self) -> Refusal | None:
        """Make the network and compare it with the probe; return why that cannot be."""
        try:
            require_sight(self._job)
            self._encoder = encoder_of(self._job)
            for _ in probing.check(self._encoder, self._job.probe):
                pass  # notes on pixels without consequence
            self._store = Store.unchecked(self._job.store)
        except Exception as error:
            return _refusal(error)
        return None

    def __call__(self, table: Table) -> Table:
        """Encode and store a part.

        Args:
            table: One row with a ``Decoded`` and its pixels.

        Returns:
            One row with an ``Answer``.
        """
        import pyarrow as pa

        decoded: Decoded = unpacked(table[PART][0].as_py())
        refusal = decoded.refusal or self._still_refused()
        if refusal is not None:
            answer = Answer(refusal=refusal)
        else:
            size = self._job.identity.image_size
            pixels = np.frombuffer(table[_PIXELS][0].as_buffer(), np.uint8)
            try:
                answer = self._answer(decoded, pixels.reshape(-1, size, size, 3))
            except Exception as error:
                answer = Answer(refusal=_refusal(error))
        return pa.table({ANSWER: pa.array([packed(answer)], pa.binary())})

    def _still_refused(self) -> Refusal | None:
        """Return why there is no network; what may have been of the moment is tried again."""
        with self._setting_up:
            if self._refusal is not None and not self._refusal.is_final:
                self._refusal = self._set_up()
            return self._refusal

    def _answer(self, decoded: Decoded, pixels: Pixels) -> Answer:
        began, clock = time.time(), Clock()
        keys: dict[str, list[str]] = {view: [] for view in self._job.views}
        blocks: dict[str, list[Features]] = {view: [] for view in self._job.views}

        def deliver(rows: Sequence[EncodingRow], features: Features) -> None:
            require_finite(rows, features, decoded.paths, remedy="use others with --weights")
            for view in keys:
                places = [place for place, row in enumerate(rows) if row.view == view]
                keys[view] += [rows[place].key for place in places]
                blocks[view].append(features[places])

        with EncodingQueue(self._encoder, deliver=deliver, clock=clock) as queue:
            for row in self._new_rows(decoded, pixels):
                queue.add(row)
        wrote = time.monotonic()
        shards = [
            (view, self._stored(view, keys[view], blocks[view])) for view in keys if keys[view]
        ]
        return Answer(
            files=decoded.files,
            shards=shards,
            reading=decoded.reading,
            making=Making(
                node=nodes.here(),
                actor=id(self),
                images=len({key for made in keys.values() for key in made}),
                began=began,
                ended=time.time(),
                encoding=clock.encoding,
                writing=time.monotonic() - wrote,
                engine=self._encoder.engine,
                device=self._encoder.device,
            ),
        )

    def _new_rows(self, decoded: Decoded, pixels: Pixels) -> Iterator[EncodingRow]:
        """Yield what is to be encoded: of copies of an image the first."""
        seen = set()
        images = iter(pixels)
        for place, ((_, file), views) in enumerate(zip(decoded.files, decoded.views, strict=True)):
            for view in views:
                image = next(images)
                if (view, file.key) not in seen and file.key not in self._made[view]:
                    seen.add((view, file.key))
                    yield EncodingRow(place, file.key, view, image)

    def _stored(self, view: str, keys: Sequence[str], blocks: Sequence[Features]) -> str:
        """Store features as a shard; return its name once it is in place."""
        target = self._store.plain if view == PLAIN else self._store.view_set(view)
        block = np.array([key.encode() for key in keys])
        name = target.add_blocks(block, blocks).name
        self._made[view].update(keys)
        return name


def probed(job: Job) -> Probe | Refusal:
    """Return what the network makes of the probe images on this node, for a store without."""
    try:
        require_sight(job)
        return probing.make(encoder_of(job), job.identity)
    except Exception as error:
        return _refusal(error)


def encoder_of(job: Job) -> Encoder:
    """Return the network that a store keeps, on its engine, compiled.

    Raises:
        WeightsUnavailableError: The store keeps none.
        EngineUnavailableError: The engine is not installed, or leaves the actor's GPU unused.
        ConfigError: The device does not have the precision.
    """
    if job.cores is not None:
        machine.use_at_most(job.cores)
    identity = job.identity
    # Without a source, weights that the store lacks are an error.
    source = run_backbone.WeightsSource(None, None)
    loaded = run_backbone.of_store(Store.unchecked(job.store), None, source)
    asked = job.engine if identity.precision == "float32" else str(identity.engine)
    engine, reason = engines.resolve(asked, identity.form)
    encoder = engines.create(
        engine, loaded, batch_size=job.batch_size, precision=identity.precision
    )
    if job.cores is None and not encoder.device.startswith("GPU"):
        raise EngineUnavailableError(
            f"Expected a network on the GPU that its actor holds. Received: {engine} ({reason}) on "
            f"{encoder.device}.",
            hint="Install the engine with its CUDA libraries on every node with a GPU (pip install "
            "'tensorflow[and-cuda]'), or encode on processors with --actor-cores N.",
        )
    if identity.form is ONNX:
        require_apart(encoder, identity.image_size)
    return encoder


def _refusal(error: Exception) -> Refusal:
    """Return why this node cannot do it; Ray keeps what workers write to stderr."""
    if not isinstance(error, PipelineError | OSError):
        traceback.print_exception(error)
    refusal = Refusal.of(error, nodes.here())
    if not refusal.is_final:
        time.sleep(_PAUSE)
    return refusal


# What this process knows of the job that it works on.
_known: dict[str, Mapping[str, Keys]] = {}


def _stored(job: Job) -> Mapping[str, Keys]:
    """Return the keys that a store has by view, once this node was found to see what it must."""
    if job.number not in _known:
        import ray

        require_sight(job)
        _known.clear()
        _known[job.number] = {view: ray.get(reference) for view, reference in job.stored.items()}
    return _known[job.number]


def _read(part: Part, job: Job, stored: Mapping[str, Keys]) -> tuple[Decoded, bytes]:
    def missing(key: str) -> list[str]:
        return [view for view in job.views if not _holds(stored[view], key)]

    def read(place: int) -> tuple[ReadFile, float]:
        began = time.monotonic()
        get = reading.reference(part.listing, place)
        file = reading.decoded(get, missing, job.identity.image_size, job.identity.resize)
        return file, time.monotonic() - began

    files, views, pixels, busy, since = [], [], [], 0.0, time.time()
    for place, future in in_threads(read, range(len(part.rows)), job.threads):
        file, seconds = future.result()
        busy += seconds
        files.append((part.rows[place], ReadFile(file.key, file.state, {}, file.reason)))
        views.append(tuple(file.pixels))
        pixels += [np.ascontiguousarray(made).data for made in file.pixels.values()]
    if not all(file.key for _, file in files):
        _require_sight_still(job)
    decoded = Decoded(
        paths=part.listing.paths,
        files=files,
        views=views,
        reading=Reading(nodes.here(), len(files), since, time.time(), busy),
    )
    return decoded, b"".join(pixels)


def _require_sight_still(job: Job) -> None:
    """Tell images that are bad from a file system that went away after this node saw it.

    Raises:
        OSError: The data or the store is not to be seen any more: passing trouble of the node.
    """
    try:
        require_sight(job)
    except ClusterError as error:
        raise OSError(errno.ESTALE, error.message.rstrip(".")) from error


def _holds(keys: Keys, key: str) -> bool:
    """Tell whether ascending keys hold one."""
    wanted = key.encode()
    place = int(np.searchsorted(keys, np.bytes_(wanted)))
    return place < len(keys) and bool(keys[place] == wanted)
