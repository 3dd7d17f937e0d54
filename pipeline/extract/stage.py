"""The ``extract`` command: stage 1 on a data set, its dry run, and what it reports.

What can be refused is refused before the network is loaded, and a dry run writes nothing.
"""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from pipeline.backbones import quantized_file
from pipeline.config.extracting import ExtractOptions
from pipeline.config.options import CommonOptions
from pipeline.dataset.examples import notes_of
from pipeline.dataset.labels import merged as merge_labels
from pipeline.extract.extraction import Extraction
from pipeline.extract.fill import (
    FilledStore,
    fill,
    identity_of,
    identity_of_options,
    start,
)
from pipeline.extract.lazy_encoder import LazyEncoder
from pipeline.files import outputs
from pipeline.files.location import Location, locate, name_of
from pipeline.images.manifest import CONFLICT, Manifest
from pipeline.images.sources import scan
from pipeline.store import features_file
from pipeline.store.object_storage import storage_of
from pipeline.store.record import StoreRecord
from pipeline.store.scan_cache import ScanCache
from pipeline.store.store import MANIFEST, Store
from pipeline.system import cluster
from pipeline.system.progress import Reporter, say_notes
from pipeline.system.wording import counted

# Batches timed for the estimate of --dry-run, after one that warms up.
_TIMED_BATCHES: Final = 2


def extract(
    options: ExtractOptions, common: CommonOptions, reporter: Reporter, *, started: float
) -> dict[str, object]:
    """Run stage 1; see docs/json.md for the keys of the result.

    Args:
        options: What to extract.
        common: ``force`` replaces a store of another identity, or an edited manifest.
        reporter: Where notes and progress go.
        started: ``time.monotonic()`` at the start of the process.
    """
    cluster.require_executor(
        options.executor, address=options.address, actor_cores=options.actor_cores
    )
    place = locate(options.store or default_store(options.data))
    storage = storage_of(place)
    target = Path(options.manifest) if options.manifest else storage.folder / MANIFEST
    if isinstance(place, Path):
        outputs.require_folder("--store", place)
    elif not options.dry_run:
        storage.require_writable()
    if options.manifest and not options.dry_run:
        outputs.require_file("--manifest", target, reporter)
    network = LazyEncoder.of(options, reporter)
    listing = scan(
        locate(options.data),
        layout=options.layout,
        unlabelled=options.unlabelled,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    if options.merge_labels:
        labels, merged = merge_labels(listing.labels)
        listing = replace(listing, labels=labels, notes=(*listing.notes, *merged))
    reporter.say(f"{counted(len(listing), 'file')} in {options.data}")
    notes = [
        *listing.notes, *notes_of(listing), *_one_class(listing),
        *_classes_from_now_on(place, listing),
    ]  # fmt: skip
    say_notes(reporter, notes)
    if options.dry_run:
        return {**_dry_run(place, listing, network), "notes": notes}
    filled = fill(network, place, listing, target=target, force=common.force, started=started)
    found = features_file.notes_of(len(filled.store.index.shards)) if storage.has_view else []
    notes += say_notes(reporter, found)
    return {**_result(network, filled, target, started), "notes": notes}


def default_store(data: str) -> str:
    """Return where features of a data set go unless told otherwise."""
    return str(Path("stores") / name_of(data))


def _dry_run(place: Location, listing: Manifest, network: LazyEncoder) -> dict[str, object]:
    """Count what is new and estimate time and disk; write nothing."""
    options = network.options
    exists = Store.exists(place)
    store = Store.unchecked(place) if exists else _planned(place, network, listing)
    if exists:
        store.require_identity(identity_of(network, store))
        store = Store.open(place)
    with store.scan_cache() if exists else ScanCache(None) as cache:
        ledger = start(options, listing, store, cache)
        pending, extraction = ledger.pending, Extraction(ledger, store, cache)
        new = extraction.count_new(ledger.num_threads(options.workers))
        asked = (store, extraction, network, pending, listing)
        rate, source = _expected_rate(*asked) if new else (None, "")
        rows = sum(ledger.rows.values())
    return {
        "dry_run": True,
        "images": len(listing),
        "new": new,
        "reused": ledger.reused,
        "skipped": ledger.skipped,
        "estimated_seconds": round(rows / rate, 3) if rate else 0.0,
        "estimated_bytes": rows * (4 * store.dim + 64),
        "estimated_from": source,
        "store": str(place),
    }


def _planned(place: Location, network: LazyEncoder, listing: Manifest) -> Store:
    """Return a store that exists in memory alone."""
    dim = network.spec.dim or network.backbone().dim
    # Its features are those asked for, of weights that nobody has looked at.
    made = identity_of_options(network, "")
    return Store(place, StoreRecord.empty(made, dim=dim, root=listing.root, store=place))


@contextmanager
def _in_int8(store: Store, network: LazyEncoder, listing: Manifest) -> Iterator[None]:
    """Give the network in int8 that a store keeps, or would, as long as the context lasts."""
    if not network.is_quantized:
        yield
        return
    kept = quantized_file.of_store(store.encoder_folder, store.identity.quantized)
    with TemporaryDirectory() as folder:
        if kept is None:
            kept = quantized_file.keep(Path(folder), network.quantized(listing))
        network.backbone().quantized = kept
        yield


def _expected_rate(
    store: Store, extraction: Extraction, network: LazyEncoder, rows: list[int], listing: Manifest
) -> tuple[float, str]:
    """Return rows per second: as the store remembers, or timed on a few images."""
    known = store.record.provenance.images_per_second
    if known:
        return known, "the last extract into this store"
    with _in_int8(store, network, listing):
        encoder = network.encoder()
    count = min(len(rows), _TIMED_BATCHES * encoder.batch_size)
    return extraction.rate(encoder, rows[:count]), f"{counted(count, 'image')} timed now"


def _result(
    network: LazyEncoder, filled: FilledStore, target: Path, started: float
) -> dict[str, object]:
    options, store = network.options, filled.store
    ledger, work = filled.ledger, filled.work
    return {
        "images": len(filled.manifest),
        "encoded": ledger.encoded,
        "reused": ledger.reused,
        "skipped": ledger.skipped,
        "conflicting": sum(status == CONFLICT for status in filled.manifest.statuses),
        "errors": ledger.errors,
        "seconds": round(time.monotonic() - started, 3),
        "startup_seconds": round(work.startup, 3),
        "images_per_second": work.images_per_second,
        "engine": work.engine or store.record.provenance.engine,
        "precision": options.precision,
        "device": work.device or store.record.provenance.device,
        "dim": store.dim,
        "views": {name: ledger.rows[name] for name in options.views},
        "bottleneck": work.bottleneck,
        "nodes": list(work.nodes),
        "weights": options.weights,
        "store": str(store.place),
        "manifest": str(store.named(target)),
    }


def _one_class(listing: Manifest) -> list[str]:
    """Note that there is nothing to tell apart."""
    classes = set(listing.labels) - {""}
    if len(classes) > 1:
        return []
    found = f"one class ({', '.join(classes)})" if classes else "no labels"
    return [f"{found}: features can be extracted, but train-head needs two classes"]


def _classes_from_now_on(place: Location, listing: Manifest) -> list[str]:
    """Note folders that were said to be unlabelled when the store was filled, and are not now."""
    before = Store.unchecked(place).record.unlabelled if Store.exists(place) else None
    labels = set(listing.labels)
    return [
        f"{name!r} was unlabelled last time, and is a class now: with "
        f"--unlabelled {shlex.quote(name)} its images have no label again"
        for name in before or ()
        if name in labels
    ]
