"""The ``export`` command: a head of a run with its backbone as one model, checked and written.

Called by ``commands``.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline import assembly, backbone, engines, heads, runtime, stitch
from pipeline._version import __version__
from pipeline.backbone import FrozenBackbone
from pipeline.config import CommonOptions, ExportOptions, unknown_name
from pipeline.errors import (
    ConfigError,
    EngineUnavailableError,
    RunError,
    StaleFeaturesError,
    WeightsUnavailableError,
)
from pipeline.export import FORMATS, SCHEMA_VERSION, Format, Package, require_free, size_of, staged
from pipeline.images import DECODER
from pipeline.keras_file import SUFFIX
from pipeline.reporting import Reporter
from pipeline.run import Run
from pipeline.stitch import Sample
from pipeline.store import Store

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

# What the name of a network from a file begins with, in an identity.
_FROM_FILE: Final = "keras-file:"


@dataclass(frozen=True, slots=True)
class Source:
    """A run's head with what it was made from.

    Attributes:
        run: The run.
        store: The store of its features.
        name: Name of the head.
        head: The fitted head.
        backbone: The backbone that made the features.
    """

    run: Run
    store: Store
    name: str
    head: "Head"
    backbone: FrozenBackbone


def export(options: ExportOptions, common: CommonOptions, reporter: Reporter) -> dict[str, Any]:
    """Write a head with its backbone as one model, after the stitch check.

    Args:
        options: What to write where.
        common: ``force`` replaces an earlier export.
        reporter: Where notes go.

    Returns:
        ``out``, ``format``, ``head``, ``classes``, ``bytes`` and ``stitch`` with ``n``,
        ``max_difference`` and ``same_argmax``.

    Raises:
        ConfigError: An option cannot be used, or OUT exists.
        HeadNotTrainableError: The format needs a network, and the head is none.
        EngineUnavailableError: The format needs TensorFlow or an extra.
        RunError: Run and head do not fit, or there is no image to check on.
        StaleFeaturesError: Images, features or weights are not those of the run.
        PipelineError: The model disagrees with the cached path.
    """
    form, out = _checked(options, force=common.force), Path(options.out)
    source = open_source(options)
    package = _package(source)
    _note_what_is_left_out(package, form, reporter)
    found = _sample(source, reporter)
    model = package.assembled() if form.is_network else None
    whole = stitch.runner(model) if form.is_network else package.predict()
    compare = partial(stitch.compare, found, package.head, num_classes=package.num_classes)
    before = compare(whole, what="The assembled model")
    with staged(out, form, force=common.force) as temporary:
        form.write(package, model, temporary)
        after = compare(form.load(temporary), what=f"The {options.format} model")
        size = size_of(temporary)
    worst = max(before.max_difference, after.max_difference)
    return {
        "out": str(out),
        "format": options.format,
        "head": source.name,
        "classes": package.metadata["classes"],
        "bytes": size,
        "stitch": {**asdict(after), "max_difference": worst},
    }


def open_source(options: ExportOptions) -> Source:
    """Open a run, its store, one of its heads, and the backbone.

    Raises:
        RunError: There is no run, or the head cannot be used.
        HeadNotTrainableError: The format needs a network, and the head is none.
        StoreError: The store is gone or damaged.
        StaleFeaturesError: The store holds other features than those of the run.
        WeightsUnavailableError: The weights are nowhere.
    """
    run = Run.open(Path(options.run))
    name = _head_name(run, options.head)
    head = heads.load(run.path / "heads" / name)
    if FORMATS[options.format].is_network:
        assembly.require_network(head.name)
    inputs = run.record["inputs"]
    _require_exportable(run, inputs["identity"])
    path = Path(inputs["store"])
    # Before the shards are looked at, which would be called damaged under another identity.
    Store.unchecked(path).require_identity(inputs["identity"])
    store = Store.open(path)
    _require_fit(run, name, head, store.dim)
    return Source(run, store, name, head, load_backbone(store, options.weights))


def load_backbone(store: Store, given: str | None) -> FrozenBackbone:
    """Load the backbone of a store's features.

    Args:
        store: The store, whose copy of the weights comes first.
        given: Where to take them from if the store has none; the ``.keras`` file of a network that
            is in no table, which is always needed.

    Raises:
        WeightsUnavailableError: The weights are neither in the store nor given.
        StaleFeaturesError: Those given are others.
    """
    identity, preprocessing = store.identity, None
    name, expected = identity["backbone"], identity["weights_sha256"]
    kept = store.encoder_path(expected)
    if name.startswith(_FROM_FILE):
        name, preprocessing = _network_file(given, store), identity["preprocessing"]
    elif not kept.exists() and given is None:
        raise WeightsUnavailableError(
            f"Expected the weights {expected} of {name} at {str(kept)!r}. Received: no such file.",
            hint="Give them with --weights PATH.",
        )
    loaded = backbone.load(
        name,
        # Only looked at where neither a network's file nor the store brings the values.
        weights=given if given and not preprocessing else "imagenet",
        seed=store.record["provenance"].get("seed", 0),
        image_size=identity["image_size"],
        pooling=identity["pooling"],
        saved=kept if kept.exists() and not preprocessing else None,
        preprocessing=preprocessing,
    )
    if loaded.weights_sha256 != expected:
        raise StaleFeaturesError(
            f"The store {str(store.path)!r} holds features of weights_sha256 = {expected!r}. "
            f"Received: {loaded.weights_sha256!r} from --weights {given}.",
            hint="Give the weights that extract had.",
        )
    return loaded


def _checked(options: ExportOptions, *, force: bool) -> Format:
    """Return the format, after everything that can be refused without loading anything."""
    for argument, value in (("RUN", options.run), ("OUT", options.out)):
        if not value:
            raise ConfigError(
                f"export: expected {argument}.",
                hint="For example: pipeline export runs/sample sample.keras",
            )
    form, out = FORMATS[options.format], Path(options.out)
    if form.suffix and out.suffix != form.suffix:
        raise ConfigError(
            f"--format {options.format}: expected OUT to end in {form.suffix}. "
            f"Received: {options.out!r}."
        )
    require_free(out, form, force=force)
    backend = runtime.backend_name()
    if form.needs_tensorflow and backend != "tensorflow":
        raise EngineUnavailableError(
            f"--format {options.format}: expected Keras on TensorFlow. "
            f"Received: KERAS_BACKEND={backend}.",
            hint="Unset KERAS_BACKEND, or use --format keras or folder.",
        )
    if options.format == "onnx":
        engines.require("onnx")
    return form


def _head_name(run: Run, asked: str | None) -> str:
    records = run.record["heads"]
    name = asked or run.record["best"]
    if name is None:
        raise RunError(
            f"Expected a run with heads at {str(run.path)!r}. Received: none is trained yet.",
            hint="Train some with pipeline train-head.",
        )
    if name not in records:
        raise unknown_name("head", name, records, where=str(run.path))
    if records[name]["not_saved"]:
        raise RunError(
            f"Expected a head that was saved. Received: {name}: {records[name]['not_saved']}",
            hint="Choose another --head.",
        )
    return str(name)


def _require_exportable(run: Run, identity: dict[str, Any]) -> None:
    """Refuse features that no exported model makes."""
    for field, expected in (("precision", "float32"), ("decoder", DECODER)):
        if identity.get(field) != expected:
            raise RunError(
                f"export: expected a run on features of {field} = {expected!r}, which exported "
                f"models compute. Received: {str(run.path)!r} with {identity.get(field)!r}.",
                hint="Extract with it into another --store, and train again.",
            )


def _require_fit(run: Run, name: str, head: "Head", dim: int) -> None:
    """Refuse a head whose classes, features or temperature cannot be those of the run."""
    classes, num_classes = np.asarray(head.classes_), len(run.record["classes"])
    known = sorted(set(range(num_classes)).intersection(classes.ravel().tolist()))
    temperature: Any = head.temperature_
    if classes.dtype.kind not in "iu" or not known or classes.tolist() != known:
        expected, received = f"classes of 0 to {num_classes - 1}", str(classes.tolist())
    elif head.n_features_in_ != dim:
        expected, received = f"{dim} features", str(head.n_features_in_)
    elif not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        expected, received = "a temperature above 0", repr(temperature)
    else:
        return
    raise RunError(
        f"Expected the head {name!r} of {str(run.path)!r} to have {expected}. "
        f"Received: {received}.",
        hint="Train it again with train-head --force.",
    )


def _network_file(given: str | None, store: Store) -> str:
    """Return the file of a network that is in no table, which --weights must name."""
    if given is None or not given.endswith(SUFFIX):
        raise WeightsUnavailableError(
            f"Expected the {SUFFIX} file of the network that made the features of "
            f"{str(store.path)!r}. Received: {f'--weights {given}' if given else 'no --weights'}.",
            hint=f"Give the file with --weights PATH{SUFFIX}.",
        )
    return given


def _package(source: Source) -> Package:
    inputs, identity = source.run.record["inputs"], source.store.identity
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "pipeline": __version__,
        "classes": source.run.record["classes"],
        "identity": identity,
        "head": source.name,
        "temperature": float(source.head.temperature_),
        "average": inputs.get("average") or [],
        "reject_below": inputs.get("reject_below") or 0.0,
    }
    is_file = identity["backbone"].startswith(_FROM_FILE)
    return Package(
        source.backbone, source.head, metadata, Path(source.backbone.name) if is_file else None
    )


def _sample(source: Source, reporter: Reporter) -> Sample:
    """Read images of the run and check every part before the model as a whole."""
    found = stitch.sample(source.run, source.store)
    if found.unreadable:
        reporter.say(
            f"{len(found.unreadable):,} images of the run cannot be read, beginning with "
            f"{str(found.unreadable[0])!r}; others took their place, if there were any"
        )
    reporter.say(f"Comparing the model with stored features on {len(found.paths)} images")
    stitch.check_features(found, stitch.runner(source.backbone.model), source.store)
    stitch.check_head(source.run, source.store, source.name, source.head)
    return found


def _note_what_is_left_out(package: Package, form: Format, reporter: Reporter) -> None:
    """Say what a model of one image in, probabilities out, does not do."""
    views, threshold = package.metadata["average"], package.metadata["reject_below"]
    if views and form.is_network:
        reporter.say(
            f"The run averages probabilities over {', '.join(views)}; the model does not: its "
            "probabilities are those of the image as it is"
        )
    if threshold and form.is_network:
        reporter.say(
            f"The run gives no answer below {threshold:g}; the model leaves that to its caller"
        )
