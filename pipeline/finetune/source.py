"""What a network is trained on: cached activations at its boundary where that is sound, or images.

Either trains the same function, and where activations are not cached, the reason is said.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import engines
from pipeline.config.options import FinetuneOptions
from pipeline.engines.encoder import Encoder
from pipeline.errors import EngineUnavailableError
from pipeline.finetune.batches import BatchSource
from pipeline.finetune.cache import BoundaryCache, CachedViews
from pipeline.finetune.origin import Origin
from pipeline.finetune.photos import Photos
from pipeline.finetune.surgery import Surgery
from pipeline.finetune.turns import Turns
from pipeline.images import views
from pipeline.images.views import PLAIN
from pipeline.store import activations
from pipeline.store.store import Store
from pipeline.system.keras_setup import KerasModel
from pipeline.system.progress import Reporter


@contextmanager
def open_source(
    options: FinetuneOptions,
    origin: Origin,
    surgery: Surgery,
    photos: Photos,
    turns: Turns,
    reporter: Reporter,
) -> Iterator[tuple[BatchSource, KerasModel]]:
    """Give what to train on, cached activations or images, and the network that takes it.

    Args:
        options: What the user asked for.
        origin: Where fine-tuning starts.
        surgery: The network, cut.
        photos: The images; they show the same views in turn.
        turns: Which views an epoch shows.
        reporter: Where notes and progress go.

    Raises:
        RunError: The disk has no room for the activations.
        StoreError: An image or a shard changed.
        PipelineError: Activations are not finite, or too large for float16.
    """
    reason = _why_not_cached(options, surgery)
    if reason or surgery.bottom is None:
        reporter.say(f"Training on images, without a cache of frozen activations: {reason}")
        yield photos, surgery.whole
        return
    cached = _cached_views(options, origin, surgery, turns)
    bottom, engine = surgery.bottom, _engine(origin.store, reporter)

    def make_encoder() -> Encoder:
        return engines.create(engine, bottom, batch_size=options.batch_size, precision="float32")

    folder = origin.store.boundary_folder
    with activations.in_use(folder, reporter):
        try:
            with activations.filling(folder, reporter):
                cached.fill(photos, make_encoder, reporter)
            cached.open()
            yield cached, surgery.top
        finally:
            cached.close()


def _why_not_cached(options: FinetuneOptions, surgery: Surgery) -> str:
    """Return why activations are not cached; empty if they are."""
    if options.augment:
        return "augmented images differ in every epoch"
    if options.preset is not None:
        return f"the preset cuts inside a block, before {surgery.cut.layer}"
    if surgery.cut.first <= 1:
        return "nothing is frozen"
    if surgery.bottom is None:
        return f"the cut before {surgery.cut.layer} is inside a block"
    return ""


def _engine(store: Store, reporter: Reporter) -> str:
    """Return stage 1's engine, or the fastest at hand where that is not installed."""
    recorded = store.record.provenance.engine or "auto"
    try:
        engines.require(recorded)
    except EngineUnavailableError as error:
        engine, why = engines.resolve("auto")
        reporter.say(f"{error.message} Taking {engine} ({why})")
        return engine
    return engines.resolve(recorded)[0]


def _cached_views(
    options: FinetuneOptions, origin: Origin, surgery: Surgery, turns: Turns
) -> CachedViews:
    """Return a cache a view: of all images as they are, and of what train shows of its own."""
    how = {activations.FEATURES: origin.store.identity.as_json(), "boundary": surgery.cut.below}
    caches = {}
    for name in turns.names:
        rule = {} if name == PLAIN else {"view": f"{name}:{views.VIEWS[name].scheme}"}
        caches[name] = BoundaryCache(
            origin.store.boundary_folder,
            {**how, **rule},
            origin.examples.keys,
            shape=surgery.boundary_shape,
            precision=options.cache_precision,
            rows=None if name == PLAIN else origin.rows("train"),
            scan_cache=origin.store.scan_cache,
        )
    return CachedViews(caches, turns)
