"""The ``export`` command: a head of a run with its backbone as one model, checked and written.

Nothing is written where the model disagrees with the stored features on images of the data.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import engines, heads
from pipeline._version import __version__
from pipeline.backbones import weights
from pipeline.backbones.forms import KERAS
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.identity import Identity
from pipeline.config.options import CommonOptions
from pipeline.config.serving import ExportOptions
from pipeline.engines import probing
from pipeline.engines.encoder import Encoder
from pipeline.errors import ConfigError, EngineUnavailableError, RunError, unknown_name
from pipeline.files import outputs
from pipeline.files.atomic import recover
from pipeline.files.regular import sha256_file
from pipeline.heads import layers
from pipeline.images import resizing
from pipeline.runs import backbone as run_backbone
from pipeline.runs import fitted_head, stitch
from pipeline.runs.model_folder import SCHEMA_VERSION, ModelRecord
from pipeline.runs.run import Run
from pipeline.runs.stitch import Agreement, Sample
from pipeline.serving import assembly
from pipeline.serving.formats import (
    FORMATS,
    Format,
    Package,
    described,
    require_free,
    size_of,
    staged,
)
from pipeline.store.store import Store
from pipeline.system import keras_setup
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

_FOLDER: Final = "folder"


@dataclass(frozen=True, slots=True)
class ExportedRun:
    """A run's head with what it was made from.

    Attributes:
        run: The run.
        store: The store of its features.
        name: Name of the head.
        head: The fitted head.
        backbone: The backbone that the head is for.
        network_file: The file of a backbone that is in no table.
    """

    run: Run
    store: Store
    name: str
    head: "Head"
    backbone: FrozenBackbone
    network_file: Path | None

    @property
    def is_finetuned(self) -> bool:
        """Whether fine-tuning changed the backbone together with the head."""
        return run_backbone.is_finetuned(self.run, self.name)


def export(options: ExportOptions, common: CommonOptions, reporter: Reporter) -> dict[str, object]:
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
        HeadNotTrainableError: The format needs a network, and the head is not one.
        EngineUnavailableError: The format needs TensorFlow or an extra.
        RunError: Run and head do not fit, or there is no image to check on.
        StaleFeaturesError: Images, features or weights are not those of the run.
        PipelineError: The model disagrees with the cached path.
    """
    options, there = _checked(options, reporter, force=common.force)
    form, out = _form(options), Path(options.out)
    source = open_source(options)
    package = _package(source)
    if there is not None and {**there, **package.record.as_json()} != there:
        require_free(out, form, force=False)
    _note_what_is_left_out(package, form, reporter)
    encoder = assembly.encoder_of(source.backbone)
    _probe(source.backbone, encoder, package.record.identity, reporter)
    found, expected = _sample(source, encoder, reporter)
    compare = partial(stitch.compare, found, expected)
    if there is not None:
        agreement = _kept(form, out, compare)
        reporter.say(f"export: this model is already in {options.out}, kept")
    else:
        with staged(out, form, force=common.force) as temporary:
            agreement = _written(package, form, temporary, compare)
    return {
        "out": str(out),
        "format": options.format,
        "head": source.name,
        "classes": list(package.record.classes),
        "bytes": size_of(out),
        "stitch": asdict(agreement),
    }


def _written(
    package: Package, form: Format, path: Path, compare: Callable[..., Agreement]
) -> Agreement:
    """Write a model; check it as it was assembled, and as its users will load it."""
    model = package.assembled() if form.is_network else None
    whole = package.running(model) if form.is_network else package.predict()
    before = compare(whole, what="The assembled model")
    form.write(package, model, path)
    after = compare(form.load(path), what=f"The {form.name} model")
    return replace(after, max_difference=max(before.max_difference, after.max_difference))


def _kept(form: Format, out: Path, compare: Callable[..., Agreement]) -> Agreement:
    """Check a model that says it is the one asked for, as a killed process leaves it at the end.

    Raises:
        ConfigError: It cannot be loaded, or disagrees: it is something else that is there.
    """
    try:
        return compare(form.load(out), what=f"The {form.name} model")
    except Exception:  # each library has errors of its own for files that are damaged
        require_free(out, form, force=False)
        raise


def open_source(options: ExportOptions) -> ExportedRun:
    """Open a run, its store, one of its heads, and the backbone.

    Raises:
        RunError: There is no run, its store is gone, or the head cannot be used.
        HeadNotTrainableError: The format needs a network, and the head is not one.
        StoreError: The store is damaged, or of other features than those of the run.
        WeightsUnavailableError: The weights are nowhere.
    """
    run = Run.open(Path(options.run)).at(store=options.store, data=options.data)
    name = fitted_head.head_name(run, options.head)
    run_backbone.inputs_of(run)
    identity = run_backbone.identity_of(run, name)
    _require_exportable(run, identity)
    _require_form(_form(options), identity)
    store = run_backbone.open_store(run)
    head = fitted_head.fitted_head(run, name, store.dim)
    if _form(options).is_network:
        layers.require_network(head.name)
    network = run_backbone.find_for(run, name, options.weights)
    is_file = identity.is_from_file
    file = run_backbone.network_file(identity, options.weights, store) if is_file else None
    return ExportedRun(run, store, name, head, network, file)


def _checked(
    options: ExportOptions, reporter: Reporter, *, force: bool
) -> tuple[ExportOptions, Mapping[str, object] | None]:
    """Refuse what can be refused without loading anything; put in the format that OUT says.

    Returns:
        The options, and what a model says of itself that is there and may be the one asked for.
    """
    if options.format is None:
        options = replace(options, format=_format_by_name(options.out, reporter))
    form, out = _form(options), Path(options.out)
    if form.suffix and out.suffix != form.suffix:
        raise ConfigError(
            f"--format {options.format}: expected OUT to end in {form.suffix}. "
            f"Received: {options.out!r}.",
            hint="Leave --format out, or give OUT that ending.",
        )
    recover(out)
    there = None if force else described(out, form)
    if there is None:
        require_free(out, form, force=force)
    if form.suffix:
        outputs.require_file("OUT", out, reporter)
    else:
        outputs.require_folder("OUT", out)
    if options.weights is not None:
        weights.require_source(options.weights)
    if options.format == "onnx":
        engines.require("onnx")
    return options, there


def _form(options: ExportOptions) -> Format:
    if options.format not in FORMATS:
        raise unknown_name("format", str(options.format), FORMATS)
    return FORMATS[str(options.format)]


def _format_by_name(out: str, reporter: Reporter) -> str:
    """Return the format that a name stands for; one without a suffix is a folder.

    Raises:
        ConfigError: The suffix is that of no format.
    """
    suffix = Path(out).suffix
    by_suffix = {form.suffix: name for name, form in FORMATS.items() if form.suffix}
    if suffix in by_suffix:
        return by_suffix[suffix]
    if suffix:
        raise ConfigError(
            f"export: expected OUT to end in {' or '.join(by_suffix)}, or a folder without suffix. "
            f"Received: {out!r}.",
            hint="Rename it, or say what it is to be with --format.",
        )
    reporter.say(f"{out!r} has no suffix: exporting a folder, as --format {_FOLDER} does")
    return _FOLDER


def _require_exportable(run: Run, identity: Identity) -> None:
    """Refuse features that no exported model makes."""
    if identity.precision != "float32":
        raise RunError(
            "export: expected a run on features of precision = 'float32', which exported models "
            f"compute. Received: {str(run.path)!r} with {identity.precision!r}.",
            hint="Extract with it into another --store, and train again.",
        )


def _require_form(form: Format, identity: Identity) -> None:
    """Refuse a format that cannot hold the backbone, or cannot be written here.

    Raises:
        ConfigError: The backbone is in another form than the format holds.
        EngineUnavailableError: The format needs Keras on TensorFlow.
    """
    if identity.form not in form.forms:
        able = [name for name, other in FORMATS.items() if identity.form in other.forms]
        raise ConfigError(
            f"--format {form.name}: expected a run on features of a {KERAS.name} network, which "
            f"the model is made of. Received: one on features of a network in "
            f"{identity.form.name}.",
            hint=f"Use --format {' or '.join(able)}.",
        )
    if identity.form is not KERAS:
        return
    keras_setup.require_backend()
    backend = keras_setup.backend_name()
    if form.needs_tensorflow and backend != "tensorflow":
        raise EngineUnavailableError(
            f"--format {form.name}: expected Keras on TensorFlow. "
            f"Received: KERAS_BACKEND={backend}.",
            hint="Unset KERAS_BACKEND, or use --format keras or folder.",
        )


def _package(source: ExportedRun) -> Package:
    network = source.backbone
    identity = run_backbone.identity_of(source.run, source.name)
    record = ModelRecord(
        schema_version=SCHEMA_VERSION,
        pipeline=__version__,
        classes=source.run.record.classes,
        # Of the weights that are exported, which fine-tuning may have changed.
        identity=replace(identity, weights_sha256=network.weights_sha256),
        resize=identity.resize,
        input=resizing.find(identity.resize).described(identity.image_size),
        dim=network.dim,
        head=source.name,
        head_sha256=sha256_file(heads.record_path(source.run.path / "heads" / source.name)),
        temperature=float(source.head.temperature_),
        average=run_backbone.averages_of(source.run, source.name),
        reject_below=source.run.inputs.reject_below or 0.0,
    )
    return Package(network, source.head, record, source.network_file)


def _probe(
    backbone: FrozenBackbone, encoder: Encoder, identity: Identity, reporter: Reporter
) -> None:
    """Compare the backbone with its probe; make one to ship where there is none."""
    for note in probing.check(encoder, backbone.probe):
        reporter.say(note)
    if backbone.probe is None:
        backbone.probe = probing.make(encoder, identity)


def _sample(
    source: ExportedRun, encode: Encoder, reporter: Reporter
) -> tuple[Sample, NDArray[np.floating]]:
    """Read images of the run and what the cached path gives for them; check every part of it."""
    run, store, name, head = source.run, source.store, source.name, source.head
    splits = stitch.HELD_OUT if source.is_finetuned else stitch.SPLITS
    found = stitch.sample(run, store, splits=splits)
    if found.unreadable:
        reporter.say(
            f"{counted(len(found.unreadable), 'image')} of the run cannot be read, beginning with "
            f"{str(found.unreadable[0])!r}; others took their place, if there were any"
        )
    reporter.say(
        f"Comparing the model with the cached path on {counted(len(found.paths), 'image')}"
    )
    if source.is_finetuned:
        expected = stitch.recorded_probabilities(run, name, found.rows)
        stitch.check_finetuned(found, encode, head, expected, run)
        return found, expected
    stitch.check_features(found, encode, store)
    stitch.check_head(run, store, name, head)
    return found, stitch.cached_probabilities(head, [found.features], len(run.record.classes))


def _note_what_is_left_out(package: Package, form: Format, reporter: Reporter) -> None:
    """Say what a model of one image in, probabilities out, does not do."""
    views, threshold = package.record.average, package.record.reject_below
    if views and form.is_network:
        reporter.say(
            f"The run averages probabilities over {', '.join(views)}; the model does not: its "
            "probabilities are those of the image as it is"
        )
    if threshold and form.is_network:
        reporter.say(
            f"The run gives no answer below {threshold:g}; the model leaves that to its caller"
        )
