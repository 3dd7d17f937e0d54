"""The ``extract`` command: brings a listing, a store and an encoder together for stage 1.

Called by ``commands``. Loads the network only when an image needs it, or when only the network
can tell the weights' digest.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline import backbone, engines, machine, views, weights
from pipeline import manifest as manifests
from pipeline.backbone import FrozenBackbone
from pipeline.config import CommonOptions, ExtractOptions
from pipeline.doctor import Setting, diagnose
from pipeline.encoder import Encoder
from pipeline.errors import ConfigError, StaleFeaturesError
from pipeline.extract import Extraction
from pipeline.manifest import CONFLICT, Manifest
from pipeline.provenance import provenance
from pipeline.reporting import Reporter
from pipeline.scan_cache import ScanCache
from pipeline.store import Store, lock
from pipeline.views import PLAIN

# Batches timed for the estimate of --dry-run, after one that warms up.
_TIMED_BATCHES: Final = 2


@dataclass(slots=True)
class Network:
    """The backbone and its engine, each loaded when first needed.

    Attributes:
        is_loaded: Whether Keras has built the network.
    """

    options: ExtractOptions
    reporter: Reporter
    is_loaded: bool = False
    _choice: tuple[str, str] | None = None
    _backbone: FrozenBackbone | None = None
    _encoder: Encoder | None = None

    @property
    def engine(self) -> str:
        """The engine that ``auto`` stands for, or the one asked for."""
        return self._resolved()[0]

    @property
    def encoder_if_loaded(self) -> Encoder | None:
        """The encoder, if anything needed it."""
        return self._encoder

    def attach(self, store: Store) -> None:
        """Use what a store, whose identity is the one asked for, keeps of the network."""
        if self._backbone is None:
            digest = store.identity["weights_sha256"]
            self._backbone = FrozenBackbone(
                lambda: self._load_again(store).model,
                name=self.options.backbone,
                image_size=self.options.image_size,
                pooling=self.options.pooling,
                dim=store.dim,
                weights_sha256=digest,
            )
        self._backbone.converted = store.encoder_folder

    def backbone(self) -> FrozenBackbone:
        """Return the network; loads it, unless a store knows it."""
        if self._backbone is None:
            self._backbone = self._load(None)
        return self._backbone

    def encoder(self) -> Encoder:
        """Return the network on its engine, compiled."""
        if self._encoder is None:
            options = self.options
            self._encoder = engines.create(
                self.engine,
                self.backbone(),
                batch_size=options.batch_size,
                precision=options.precision,
            )
            self.reporter.say(
                f"Encoding with {self.engine} ({self._resolved()[1]}) in {options.precision} on "
                f"{self._encoder.device}"
            )
        return self._encoder

    def _load(self, saved: Path | None) -> FrozenBackbone:
        options = self.options
        self.reporter.say(f"Loading {options.backbone} (weights: {_weights_text(options)})")
        self.is_loaded = True
        return backbone.load(
            options.backbone,
            weights=options.weights,
            seed=options.seed,
            image_size=options.image_size,
            pooling=options.pooling,
            saved=saved if saved and saved.exists() else None,
            preprocessing=options.preprocessing,
        )

    def _load_again(self, store: Store) -> FrozenBackbone:
        """Load the network of a store, from the weights that it keeps or from their source."""
        expected = store.identity["weights_sha256"]
        loaded = self._load(store.encoder_path(expected))
        if loaded.weights_sha256 != expected:
            raise StaleFeaturesError(
                f"The store {str(store.path)!r} holds features of weights_sha256 = {expected!r}. "
                f"Received: {loaded.weights_sha256!r} from --weights {self.options.weights}.",
                hint="Choose another --store, or replace the store with --force.",
            )
        return loaded

    def _resolved(self) -> tuple[str, str]:
        if self._choice is None:
            self._choice = engines.resolve(self.options.engine)
        return self._choice


def extract(
    options: ExtractOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, Any]:
    """Run stage 1; see ``contract`` in the documentation for the keys of the result.

    Args:
        options: What to extract.
        common: ``force`` replaces a store of another identity, or an edited manifest.
        reporter: Where notes and progress go.
        started: ``time.monotonic()`` at the start of the process.
    """
    if not options.data:
        raise ConfigError("extract: expected DATA.", hint="For example: pipeline extract photos")
    path = Path(options.store or default_store(options.data))
    engines.require(options.engine)
    views.check(options.views)
    spec = backbone.find(options.backbone, options.preprocessing)
    token = backbone.source_token(spec, weights=options.weights, seed=options.seed)
    listing = manifests.scan(Path(options.data))
    reporter.say(f"{len(listing):,} files in {options.data}")
    _note_one_class(listing, reporter)
    network = Network(options, reporter)
    if options.dry_run:
        return _dry_run(options, path, token, listing, network)
    with lock(path):
        store = _opened(path, token, network, listing, force=common.force)
        target = Path(options.manifest) if options.manifest else store.manifest_path
        if not common.force:
            store.require_own_manifest(target)
        network.attach(store)
        _keep_encoder(store, network)
        with store.scan_cache() as cache:
            _add_views(options, store)
            extraction = _extraction(options, listing, store, cache)
            startup = _encode(extraction, network, options, reporter, started)
            manifest = extraction.manifest()
            store.compact(cache)
        store.refresh_view()
        _note_provenance(store, options, network, extraction)
        store.save_manifest(target, manifest)
    return _result(options, store, network, extraction, manifest, target, startup, started)


def default_store(data: str) -> str:
    """Return where features of a data set go unless told otherwise."""
    return str(Path("stores") / Path(data).resolve().name)


def _opened(path: Path, token: str, network: Network, listing: Manifest, *, force: bool) -> Store:
    """Open the store, or make it; refuse one whose features were made another way."""
    if not Store.exists(path):
        return _created(path, token, network, listing)
    store = Store.unchecked(path)
    if force and store.identity != _identity(token, network, store):
        network.backbone()  # nothing is deleted for weights that cannot be had
        store.remove_features()
        return _created(path, token, network, listing)
    store.require_identity(_identity(token, network, store))
    store.record["weights"][token] = store.identity["weights_sha256"]
    store.remove_leftovers()
    return Store.open(path).adopt(store.record)


def _created(path: Path, token: str, network: Network, listing: Manifest) -> Store:
    loaded = network.backbone()
    identity = _identity_of(network, loaded.weights_sha256)
    store = Store.create(path, identity=identity, dim=loaded.dim, root=listing.root)
    store.record["weights"][token] = loaded.weights_sha256
    store.save_record()
    return store


def _identity(token: str, network: Network, store: Store) -> dict[str, Any]:
    """Return the identity asked for; the network is loaded only if the store cannot tell it.

    Fields that need no weights are compared first, so that a wrong size is refused at once.
    """
    known = store.record["weights"].get(token)
    cheap = _identity_of(network, store.identity["weights_sha256"])
    if known is not None or cheap != store.identity:
        return _identity_of(network, known or store.identity["weights_sha256"])
    return _identity_of(network, network.backbone().weights_sha256)


def _identity_of(network: Network, digest: str) -> dict[str, Any]:
    options = network.options
    return backbone.identity(
        backbone.find(options.backbone, options.preprocessing),
        weights_sha256=digest,
        image_size=options.image_size,
        pooling=options.pooling,
        precision=options.precision,
        # Asking for the engine may import Keras; in float32 no engine is part of the identity.
        engine="" if options.precision == "float32" else network.engine,
    )


def _add_views(options: ExtractOptions, store: Store) -> None:
    """Make room for the views asked for; refuse those that were made by another rule."""
    for name in options.views:
        scheme = views.VIEWS[name].scheme
        stored = store.record.get("views", {}).get(name, scheme)
        if stored != scheme:
            raise StaleFeaturesError(
                f"The view {name!r} of the store {str(store.path)!r} was made by the rule "
                f"{stored!r}. Received: {scheme!r}.",
                hint="Choose another --store, or replace the store with --force.",
            )
        store.add_view(name, scheme)


def _extraction(
    options: ExtractOptions, listing: Manifest, store: Store, cache: ScanCache
) -> Extraction:
    extraction = Extraction(
        listing,
        store,
        cache,
        image_size=options.image_size,
        targets={PLAIN: store.plain, **{name: store.view_set(name) for name in options.views}},
        on_error=options.on_error,
        max_errors=options.max_errors,
    )
    if not options.rehash:
        extraction.look_up()
    return extraction


def _encode(
    extraction: Extraction,
    network: Network,
    options: ExtractOptions,
    reporter: Reporter,
    started: float,
) -> float:
    """Encode what is missing; return the seconds from the start to the first read."""
    workers = options.workers or machine.processors()
    fresh = network.is_loaded and extraction.reused == 0
    if not fresh and not extraction.needs_encoder(workers):
        return time.monotonic() - started
    encoder = network.encoder()
    extraction.check_drift(encoder)
    startup = time.monotonic() - started
    with reporter.bar(len(extraction.pending), "img") as bar:
        extraction.encode(encoder, workers=workers, bar=bar)
    return startup


def _keep_encoder(store: Store, network: Network) -> None:
    """Keep the weights in use in the store, so that later stages find them by digest."""
    path = store.encoder_path(store.identity["weights_sha256"])
    if not path.exists():
        weights.save(path, network.backbone().arrays())


def _note_provenance(
    store: Store, options: ExtractOptions, network: Network, extraction: Extraction
) -> None:
    encoder = network.encoder_if_loaded
    if encoder is None:
        return
    store.record["provenance"] = {
        **provenance(),
        "weights": options.weights,
        "seed": options.seed,
        "engine": encoder.engine,
        "device": encoder.device,
        "images_per_second": _rate(extraction)
        or store.record["provenance"].get("images_per_second"),
    }


def _dry_run(
    options: ExtractOptions, path: Path, token: str, listing: Manifest, network: Network
) -> dict[str, Any]:
    """Count what is new and estimate time and disk; write nothing."""
    exists = Store.exists(path)
    store = Store.unchecked(path) if exists else _planned(path, network, listing)
    if exists:
        store.require_identity(_identity(token, network, store))
        store = Store.open(path)
    with store.scan_cache() if exists else ScanCache(None) as cache:
        extraction = _extraction(options, listing, store, cache)
        pending = extraction.pending
        new = extraction.count_new(options.workers or machine.processors())
        rate, source = _expected_rate(store, extraction, network, pending) if new else (None, "")
        rows = sum(extraction.rows.values())
    return {
        "dry_run": True,
        "images": len(listing),
        "new": new,
        "reused": extraction.reused,
        "skipped": extraction.skipped,
        "estimated_seconds": round(rows / rate, 3) if rate else 0.0,
        "estimated_bytes": rows * (4 * store.dim + 64),
        "estimated_from": source,
        "store": str(path),
    }


def _planned(path: Path, network: Network, listing: Manifest) -> Store:
    """Return a store that exists in memory alone."""
    options = network.options
    dim = backbone.find(options.backbone, options.preprocessing).dim or network.backbone().dim
    record = {"identity": {}, "dim": dim, "provenance": {}, "root": str(listing.root)}
    return Store(path, record)


def _expected_rate(
    store: Store, extraction: Extraction, network: Network, rows: list[int]
) -> tuple[float, str]:
    """Return rows per second: as the store remembers, or timed on a few images."""
    known = store.record["provenance"].get("images_per_second")
    if known:
        return float(known), "the last extract into this store"
    encoder = network.encoder()
    count = min(len(rows), _TIMED_BATCHES * encoder.batch_size)
    return extraction.rate(encoder, rows[:count]), f"{count} images timed now"


def _result(
    options: ExtractOptions,
    store: Store,
    network: Network,
    extraction: Extraction,
    manifest: Manifest,
    target: Path,
    startup: float,
    started: float,
) -> dict[str, Any]:
    encoder = network.encoder_if_loaded
    return {
        "images": len(manifest),
        "encoded": extraction.encoded,
        "reused": extraction.reused,
        "skipped": extraction.skipped,
        "conflicting": sum(status == CONFLICT for status in manifest.statuses),
        "errors": extraction.errors,
        "seconds": round(time.monotonic() - started, 3),
        "startup_seconds": round(startup, 3),
        "images_per_second": _rate(extraction),
        "engine": encoder.engine if encoder else store.record["provenance"].get("engine"),
        "precision": options.precision,
        "device": encoder.device if encoder else store.record["provenance"].get("device"),
        "dim": store.dim,
        "views": {name: extraction.rows[name] for name in options.views},
        "bottleneck": _bottleneck(options, encoder, extraction),
        "weights": options.weights,
        "store": str(store.path),
        "manifest": str(target),
    }


def _rate(extraction: Extraction) -> float | None:
    if not extraction.encoded or not extraction.clock.seconds:
        return None
    return round(extraction.encoded / extraction.clock.seconds, 2)


def _bottleneck(
    options: ExtractOptions, encoder: Encoder | None, extraction: Extraction
) -> dict[str, Any] | None:
    if encoder is None:
        return None
    on_gpu = encoder.device.startswith("GPU")
    faster = "tf32" if on_gpu else "bfloat16"
    has_faster = options.precision == "float32" and (on_gpu or machine.computes_in(faster))
    setting = Setting(
        workers=options.workers or machine.processors(),
        processors=machine.processors(),
        engine=encoder.engine,
        best_engine="keras" if on_gpu else engines.FASTEST_FIRST[0],
        on_gpu=on_gpu,
        precision=options.precision,
        faster_precision=faster if has_faster else None,
    )
    return diagnose(extraction.clock, setting)


def _weights_text(options: ExtractOptions) -> str:
    if options.preprocessing:
        return "its own"
    if options.weights == "random":
        return f"random, seed {options.seed}: an untrained network, for trying things out"
    return options.weights


def _note_one_class(listing: Manifest, reporter: Reporter) -> None:
    classes = set(listing.labels) - {""}
    if len(classes) < 2:
        found = f"one class ({', '.join(classes)})" if classes else "no labels"
        reporter.say(f"Note: {found}: features can be extracted, but train-head needs two classes")
