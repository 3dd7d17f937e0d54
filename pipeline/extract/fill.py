"""What stage 1 does for whoever wants features: store, network, encoding what is missing.

Loads the network only when an image needs it, or when only the network can tell the weights'
digest.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from pipeline import engines
from pipeline.backbones import identity, kept_file, probe, quantized_file, weights
from pipeline.backbones.forms import ONNX
from pipeline.backbones.identity import Identity
from pipeline.config.extracting import ExtractOptions
from pipeline.config.spreading import RAY
from pipeline.engines import probing
from pipeline.engines.encoder import Encoder
from pipeline.errors import ManifestError, StaleFeaturesError, WeightsUnavailableError
from pipeline.extract import first_probe, on_ray
from pipeline.extract.doctor import Setting, diagnose
from pipeline.extract.extraction import Extraction
from pipeline.extract.lazy_encoder import LazyEncoder
from pipeline.extract.ledger import Ledger
from pipeline.extract.work import Work, rate_of
from pipeline.files.location import Location
from pipeline.files.records import canonical_json
from pipeline.images import views
from pipeline.images.manifest import Manifest
from pipeline.images.views import PLAIN
from pipeline.store.lock import lock
from pipeline.store.record import StoreProvenance
from pipeline.store.scan_cache import ScanCache
from pipeline.store.shard import SHARD_ROWS
from pipeline.store.store import Store
from pipeline.system import machine
from pipeline.system.progress import Reporter

# Images that this machine reads to find out whether there is work for a cluster.
_READ_ALONE: Final = 4096
# Of a digest, in the name of a store within a folder of stores.
_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class FilledStore:
    """A store that holds the features of a listing.

    Attributes:
        store: The store.
        ledger: What was found of every image.
        work: What was encoded, and how.
        manifest: The listing with keys and statuses.
    """

    store: Store
    ledger: Ledger
    work: Work
    manifest: Manifest


def fill(
    network: LazyEncoder,
    place: Location,
    listing: Manifest,
    *,
    target: Path | None,
    force: bool,
    started: float,
    wait: bool = False,
) -> FilledStore:
    """Make the features of a listing that a store lacks.

    Args:
        network: The options, and the network that they ask for.
        place: The store; made if there is none.
        listing: The images.
        target: Where the manifest goes; None writes none.
        force: Whether to replace a store of another identity, or an edited manifest.
        started: ``time.monotonic()`` at the start of the process.
        wait: Whether to wait for another process that writes into the store.

    Raises:
        StaleFeaturesError: The store holds features that were made another way.
        ManifestError: The manifest was edited, or every image is bad.
    """
    options = network.options
    if target is None or _is_read_only(place):
        found = _at_hand(network, place, listing, started)
        if found is not None and (target is None or _is_written(found, target)):
            return found
    with lock(place, wait=wait):
        store = _opened(place, network, listing, force=force)
        if target is not None and not force:
            store.require_own_manifest(target)
        _note_unproven(store, network.reporter)
        network.attach(store)
        _keep_encoder(store, network)
        with store.scan_cache() as cache:
            _add_views(options, store)
            ledger = start(options, listing, store, cache)
            encode = _encode_on_ray if options.executor == RAY else _encode
            work = encode(Extraction(ledger, store, cache), store, cache, network, started)
            manifest = ledger.manifest()
            # Nodes write small shards, and an image that two of them met lies in two.
            store.compact(cache, everything=bool(work.nodes))
        store.share_network()
        store.refresh_view()
        _note_provenance(store, network, work)
        if target is not None:
            unlabelled = list(options.unlabelled) or None
            store.adopt(replace(store.record, unlabelled=unlabelled)).save_manifest(
                target, manifest
            )
        else:
            store.save_record()
    return FilledStore(store, ledger, work, manifest)


def store_of(network: LazyEncoder, folder: Location) -> Location:
    """Return the store of what is asked for: a folder that is one, or one within the folder."""
    if Store.exists(folder):
        store = Store.unchecked(folder)
        if store.identity == identity_of(network, store):
            return folder
    options = network.options
    # The token stands for the weights, so that the network need not be loaded.
    asked = canonical_json(identity_of_options(network, network.token).as_json())
    digest = hashlib.sha256(asked.encode()).hexdigest()[:_DIGITS]
    name = Path(options.backbone).stem
    return folder / f"{name}-{options.image_size}-{options.pooling}-{digest}"


def _is_read_only(place: Location) -> bool:
    """Tell whether a folder is; what an object storage lets one write, only writing tells."""
    return isinstance(place, Path) and Store.exists(place) and not os.access(place, os.W_OK)


def _is_written(filled: FilledStore, target: Path) -> bool:
    """Tell whether a manifest already says what would be written."""
    try:
        kept = filled.store.read_manifest(target)
    except (ManifestError, OSError):
        return False
    made = filled.manifest
    return (
        np.array_equal(kept.keys, made.keys)
        and (list(kept.paths), list(kept.labels)) == (list(made.paths), list(made.labels))
        and (list(kept.splits), list(kept.statuses)) == (list(made.splits), list(made.statuses))
        and list(kept.groups) == list(made.groups)
    )


def _at_hand(
    network: LazyEncoder, place: Location, listing: Manifest, started: float
) -> FilledStore | None:
    """Return a store that holds all features asked for, read without a lock; None of another.

    Nothing is written, so that a store may be read-only.
    """
    if not Store.exists(place):
        return None
    store = Store.unchecked(place)
    if store.identity != identity_of(network, store):
        return None
    store = Store.open(place)
    with store.scan_cache() as cache:
        ledger = start(network.options, listing, store, cache)
        workers = ledger.num_threads(network.options.workers)
        if ledger.pending and Extraction(ledger, store, cache).needs_encoder(workers):
            return None
    return FilledStore(store, ledger, Work(time.monotonic() - started), ledger.manifest())


def _opened(place: Location, network: LazyEncoder, listing: Manifest, *, force: bool) -> Store:
    """Open the store, or make it; refuse one whose features were made another way."""
    if not Store.exists(place):
        return _created(place, network, listing)
    store = Store.unchecked(place)
    if force and (store.identity != identity_of(network, store) or _lacks_network(store)):
        network.backbone()  # nothing is deleted for weights that cannot be had
        store.remove_features()
        return _created(place, network, listing)
    store.require_identity(identity_of(network, store))
    store.remove_leftovers()
    record = store.record.with_weights(network.token, store.identity.weights_sha256)
    return Store.open(place).adopt(record)


def _created(place: Location, network: LazyEncoder, listing: Manifest) -> Store:
    loaded = network.backbone()
    content = network.quantized(listing) if network.is_quantized else None
    quantized = None if content is None else quantized_file.digest(content)
    identity = identity_of_options(network, loaded.weights_sha256, quantized)
    store = Store.create(place, identity=identity, dim=loaded.dim, root=listing.root)
    if content is not None:
        quantized_file.keep(store.encoder_folder, content)
    store.adopt(store.record.with_weights(network.token, loaded.weights_sha256)).save_record()
    return store


def _lacks_network(store: Store) -> bool:
    """Tell whether a store of features in int8 lost the network that made them."""
    path = quantized_file.of_store(store.encoder_folder, store.identity.quantized)
    try:
        if path is not None:
            quantized_file.require_as_kept(path)
    except WeightsUnavailableError:
        return True
    return False


def identity_of(network: LazyEncoder, store: Store) -> Identity:
    """Return the identity asked for; the network is loaded only if the store cannot tell it.

    Fields that need no weights are compared first, so that a wrong size is refused at once.
    """
    known, made = store.record.weights.get(network.token), store.identity
    # Of the networks in int8 that can be made, the one that the store keeps is asked for.
    quantized = made.quantized if network.is_quantized else None
    cheap = identity_of_options(network, made.weights_sha256, quantized)
    if known is not None or cheap != made:
        return identity_of_options(network, known or made.weights_sha256, quantized)
    return identity_of_options(network, network.backbone().weights_sha256, quantized)


def identity_of_options(
    network: LazyEncoder, digest: str, quantized: str | None = None
) -> Identity:
    """Return the identity of what options ask for, made with weights of a digest.

    Args:
        network: The options.
        digest: That of the weights.
        quantized: That of the network in int8.
    """
    options = network.options
    return identity.of(
        network.spec,
        weights_sha256=digest,
        image_size=options.image_size,
        resize=options.resize,
        pooling=options.pooling,
        precision=options.precision,
        # Asking for the engine may import Keras; in float32 no engine is part of the identity.
        engine="" if options.precision == "float32" else network.engine,
        quantized=quantized,
    )


def _add_views(options: ExtractOptions, store: Store) -> None:
    """Make room for the views asked for; refuse those that were made by another rule."""
    for name in options.views:
        scheme = views.VIEWS[name].scheme
        stored = store.record.views.get(name, scheme)
        if stored != scheme:
            raise StaleFeaturesError(
                f"The view {name!r} of the store {str(store.place)!r} was made by the rule "
                f"{stored!r}. Received: {scheme!r}.",
                hint="Choose another --store, or replace the store with --force.",
            )
        store.add_view(name, scheme)


def start(options: ExtractOptions, listing: Manifest, store: Store, cache: ScanCache) -> Ledger:
    """Begin an extraction: settle every file that is known without opening it."""
    ledger = Ledger(
        listing,
        store,
        cache,
        targets={PLAIN: store.plain, **{name: store.view_set(name) for name in options.views}},
        on_error=options.on_error,
        max_errors=options.max_errors,
    )
    if not options.rehash:
        ledger.look_up()
    return ledger


def _encode_on_ray(
    extraction: Extraction, store: Store, cache: ScanCache, network: LazyEncoder, started: float
) -> Work:
    """Encode what is missing, on a cluster; a little that was only moved is settled here."""
    options, ledger = network.options, extraction.ledger
    if not extraction.needs_encoder(ledger.num_threads(options.workers), most=_READ_ALONE):
        return Work(time.monotonic() - started)
    return on_ray.encode(ledger, store, cache, options, network.reporter, started=started)


def _encode(
    extraction: Extraction, store: Store, cache: ScanCache, network: LazyEncoder, started: float
) -> Work:
    """Encode what is missing, in this process."""
    options, ledger = network.options, extraction.ledger
    workers = ledger.num_threads(options.workers)
    fresh = network.is_loaded and ledger.reused == 0
    if not fresh and not extraction.needs_encoder(workers):
        return Work(time.monotonic() - started)
    encoder = network.encoder()
    _probe(store, encoder, network.reporter)
    startup = time.monotonic() - started
    with network.reporter.bar(len(ledger.pending), "img") as bar:
        extraction.encode(encoder, workers=workers, bar=bar)
    return Work(
        startup,
        engine=encoder.engine,
        device=encoder.device,
        images_per_second=rate_of(ledger.encoded, extraction.clock.seconds),
        bottleneck=_bottleneck(network, encoder, extraction),
    )


def _probe(store: Store, encoder: Encoder, reporter: Reporter) -> None:
    """Compare an encoder with the store's probe; keep one where there is none.

    Raises:
        StaleFeaturesError: Decoder or network make other features than they did.
    """
    kept = probe.find(store.path, store.identity, store.dim)
    if kept is None:
        first_probe.keep(store, probing.make(encoder, store.identity), reporter)
        return
    for note in probing.check(encoder, kept):
        reporter.say(note)


def _note_unproven(store: Store, reporter: Reporter) -> None:
    if store.is_unproven and len(store):
        reporter.say(
            "This store has rows of an earlier release, which could store those of other images "
            f"after Ctrl-C. Check them: pipeline verify {store.place} --reencode {SHARD_ROWS} "
            "(every row; fewer check some)"
        )


def _keep_encoder(store: Store, network: LazyEncoder) -> None:
    """Keep the weights in use in the store, so that later stages find them by digest.

    Of a network that is in no table the file is kept too, which alone tells its layers; in ONNX it
    is all there is.
    """
    path = store.encoder_path(store.identity.weights_sha256)
    if network.spec.form is not ONNX and not path.exists():
        weights.save(path, network.backbone().arrays())
    if network.spec.file is not None:
        kept_file.keep(store.encoder_folder, network.spec.file)


def _note_provenance(store: Store, network: LazyEncoder, work: Work) -> None:
    if work.engine is None or work.device is None:
        return
    made = StoreProvenance.made_here(
        weights=network.options.weights,
        seed=network.options.seed,
        engine=work.engine,
        device=work.device,
        images_per_second=work.images_per_second or store.record.provenance.images_per_second,
        bottleneck=work.bottleneck or store.record.provenance.bottleneck,
    )
    store.adopt(replace(store.record, provenance=made))


def _bottleneck(
    network: LazyEncoder, encoder: Encoder, extraction: Extraction
) -> Mapping[str, object] | None:
    """Return what bounded an extraction, as ``doctor.diagnose`` says; None of nothing encoded."""
    options = network.options
    on_gpu = encoder.device.startswith("GPU")
    faster = "tf32" if on_gpu else "bfloat16"
    has_faster = options.precision == "float32" and (on_gpu or machine.computes_in(faster))
    setting = Setting(
        workers=extraction.ledger.num_threads(options.workers),
        processors=machine.processors(),
        engine=encoder.engine,
        best_engine=engines.best(network.spec.form, on_gpu=on_gpu),
        on_gpu=on_gpu,
        precision=options.precision,
        faster_precision=faster if has_faster else None,
    )
    return diagnose(extraction.clock, setting)
