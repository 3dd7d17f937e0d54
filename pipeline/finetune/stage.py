"""The ``finetune`` command: the network of a run with its head, trained from the top at a low rate.

Puts the head on the backbone, checks that both begin at stage 2's answers, trains, and records the
outcome as a run of its own, beside the stage-2 head.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from pipeline import heads
from pipeline.backbones import BACKBONES, weights
from pipeline.config.fields import flag_of
from pipeline.config.options import CommonOptions, FinetuneOptions, default_of
from pipeline.engines.probing import ModelEncoder
from pipeline.errors import ConfigError, RunError
from pipeline.files import outputs, places
from pipeline.files.regular import sha256_file
from pipeline.finetune.batches import BatchSource, class_weights
from pipeline.finetune.checks import (
    check_gradients,
    check_network,
    check_start,
    measure_head_room,
    say_estimate,
)
from pipeline.finetune.cut import cut_at, find_cut, last_stage
from pipeline.finetune.origin import Origin, open_origin
from pipeline.finetune.outcome import Outcome, record_outcome
from pipeline.finetune.photos import Photos
from pipeline.finetune.recipe import FineTuningRecipe, TrainingRows
from pipeline.finetune.source import open_source
from pipeline.finetune.steps import compile_forward
from pipeline.finetune.surgery import (
    TUTORIAL_FROZEN,
    Surgery,
    digest_of,
    operate,
    set_precision,
    tutorial_head,
)
from pipeline.finetune.training import FineTuning
from pipeline.finetune.turns import Turns
from pipeline.heads import layers as head_layers
from pipeline.images import views
from pipeline.runs import checkpoint, tensorboard
from pipeline.runs.leaderboard import result_of
from pipeline.runs.lock import reserved
from pipeline.runs.places import apart_from_places
from pipeline.runs.run import FINETUNED, Run
from pipeline.system import keras_setup
from pipeline.system.keras_setup import KerasModel
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

# The tutorial's fine-tuning; what it does not name (layers, BatchNorm) is in ``surgery``.
TUTORIAL_PRESET: Final[Mapping[str, Any]] = MappingProxyType(
    {"epochs": 10, "batch_size": 32, "learning_rate": 1e-3, "optimizer": "adam"}
)
# Records keep the old name of the preset: a run or a checkpoint of an earlier release is equal to
# what is asked for now, and one that is made now is equal for an earlier release.
_RECORDED_PRESET: Final = "seed"
# The tutorial counts layers instead of naming a part; its runs record this.
_RECORDED_BY_TUTORIAL: Final = "conv5"
# Options that make another result.
_COUNTED: Final = ("unfreeze_from", "epochs", "learning_rate", "batch_size", "optimizer",
                   "layer_decay", "precision", "cache_precision", "class_weight",
                   "patience")  # fmt: skip
_FIXED_BY_TUTORIAL: Final = ("head", "unfreeze_from", "epochs", "learning_rate", "batch_size",
                         "optimizer", "layer_decay", "augment", "views", "precision",
                         "cache_precision", "class_weight", "patience")  # fmt: skip
# Those that are parameters of a dense head too.
_HEAD_PARAMETERS: Final = ("batch_size", "class_weight", "epochs", "learning_rate", "seed")
_TENSORBOARD: Final = "tensorboard"


def finetune(
    options: FinetuneOptions, common: CommonOptions, reporter: Reporter
) -> dict[str, object]:
    """Run stage 3, or go on with it; see docs/json.md for the keys of the result.

    Args:
        options: What to train from what.
        common: ``force`` replaces an existing run.
        reporter: Where notes and progress go.

    Raises:
        ConfigError: An option cannot be used.
        HeadNotTrainableError: The head is no network.
        RunError: A run does not fit, or the disk has no room for frozen activations.
        StoreError: The store is gone, damaged, or of other features.
        ManifestError: Images are gone.
        StaleFeaturesError: An image changed, or the network disagrees with stage 2.
        PipelineError: The network as a whole disagrees with the head on stored features.
    """
    options = _checked(options)
    origin = open_origin(options, reporter)
    options = _resolved(options, origin)
    path, inputs = _path_of(options), _inputs(options, origin)
    _require_other(path, origin)
    with reserved(path, "finetune", wait=options.wait, reporter=reporter):
        return _finetune(options, origin, path, inputs, reporter, force=common.force)


def _finetune(
    options: FinetuneOptions,
    origin: Origin,
    path: Path,
    inputs: Mapping[str, object],
    reporter: Reporter,
    *,
    force: bool,
) -> dict[str, object]:
    run = _begun_run(path, inputs, force=force)
    if run is not None:
        _as_in_origin(run, origin).restore_manifest(origin.examples)
    if run is not None and run.record.finetuned().verdict is not None:
        reporter.say(f"finetune: already in {run.path}, kept")
        _remove_checkpoint(run)
        return _result(run)
    rows = origin.run.manifest()
    turns = Turns.drawn(options.views, seed=options.seed, rows=len(rows))
    seed, identity = options.seed if options.augment else None, origin.store.identity
    with Photos(
        rows, identity.image_size, identity.resize, augment_seed=seed, turns=turns
    ) as photos:
        photos.require()
        for note in photos.notes():
            reporter.say(note)
        original = origin.network.arrays()
        surgery = _surgery(options, origin, reporter)
        check_gradients(surgery)
        check_network(options, origin, surgery, reporter)
        with open_source(options, origin, surgery, photos, turns, reporter) as (source, model):
            training = _training(options, origin, path, inputs, surgery, source, model)
            difference = None if options.preset else check_start(options, origin, training)
            # Not before: what cannot begin leaves nothing behind, and replaces nothing.
            run = run or _create_run(path, inputs, origin)
            if options.preset is None:
                _say_head_room(run, origin, reporter)
            trained = (model, source)
            # Answers are those of images, which half precision in the cache would change.
            is_rounded = options.cache_precision == "float16"
            answering = (surgery.whole, photos) if is_rounded else trained
            outcome = _train(options, origin, surgery, training, trained, answering, reporter)
    outcome = replace(outcome, start_difference=difference)
    record_outcome(run, FINETUNED, outcome, origin, original, surgery)
    _remove_checkpoint(run)
    return _result(run)


def _remove_checkpoint(run: Run) -> None:
    (run.path / FINETUNED / checkpoint.FILE).unlink(missing_ok=True)


def _checked(options: FinetuneOptions) -> FinetuneOptions:
    """Refuse what can be refused without loading anything; put a preset's values in."""
    keras_setup.require_backend()
    views.check(options.views)
    outputs.require_folder("--run", _path_of(options))
    if options.weights is not None:
        weights.require_source(options.weights)
    if options.views and options.augment:
        raise ConfigError(
            "--views: expected none with --augment, which draws another image in every epoch, so "
            f"that nothing can be cached. Received: {', '.join(options.views)}.",
            hint="Leave out one of the two.",
        )
    if options.precision != "float32" and keras_setup.gpu_name() is None:
        raise ConfigError(
            f"--precision: expected float32, in which fine-tuning computes on a processor. "
            f"Received: {options.precision!r}.",
            hint="Leave it out, or use a machine with a GPU.",
        )
    if options.preset is None:
        return options
    changed = [
        flag_of(name)
        for name in _FIXED_BY_TUTORIAL
        if getattr(options, name) != default_of(FinetuneOptions, name)
    ]
    if changed:
        raise ConfigError(
            f"--preset {options.preset} fixes how to train. Received: {', '.join(changed)}.",
            hint="Leave out one of the two.",
        )
    return replace(options, **TUTORIAL_PRESET)


def _resolved(options: FinetuneOptions, origin: Origin) -> FinetuneOptions:
    """Put in the last stage of the backbone, where nothing says what to train.

    Raises:
        ConfigError: The network of a file has no stages.
    """
    if options.unfreeze_from is not None:
        return options
    if options.preset is not None:
        return replace(options, unfreeze_from=_RECORDED_BY_TUTORIAL)
    name = origin.store.identity.backbone
    # Of a network in the table it is known without building it.
    known = BACKBONES[name].last_stage if name in BACKBONES else ""
    return replace(options, unfreeze_from=known or last_stage(origin.network.network))


def _path_of(options: FinetuneOptions) -> Path:
    return Path(options.run or f"{options.source.rstrip('/')}-{FINETUNED}")


def _inputs(options: FinetuneOptions, origin: Origin) -> dict[str, object]:
    """Return everything that the result depends on, as a run records it."""
    head = heads.record_path(origin.run.path / "heads" / origin.name)
    return {
        **origin.run.record.inputs,
        "store": places.absolute(origin.store.place),
        "finetuned_run": places.absolute(origin.run.path),
        "starting_head": origin.name,
        # The file holds the digest of the head's arrays: one that was trained again is another.
        "starting_head_sha256": sha256_file(head),
        "preset": None if options.preset is None else _RECORDED_PRESET,
        **{name: getattr(options, name) for name in _COUNTED},
        "random_augmentation": options.augment,
        "views": list(options.views) or None,
        "finetune_seed": options.seed,
    }


def _require_other(path: Path, origin: Origin) -> None:
    """Refuse to train into the run to start from.

    Raises:
        RunError: It is that run.
    """
    if path.resolve() == origin.run.path.resolve():
        raise RunError(
            f"Expected another --run than the one to start from. Received: {str(path)!r}.",
            hint="Leave --run out, or choose another.",
        )


def _begun_run(path: Path, inputs: Mapping[str, object], *, force: bool) -> Run | None:
    """Return the run to go on with; None where one is to be made.

    Raises:
        RunError: It was made with other options, or from another run.
    """
    if force or not Run.exists(path):
        return None
    run = Run.open(path)
    run.require_inputs(inputs)
    return run


def _create_run(path: Path, inputs: Mapping[str, object], origin: Origin) -> Run:
    source, root = origin.run.record.source, origin.run.manifest().root
    run = Run.planned(path, inputs=inputs, examples=origin.examples, root=root, source=source)
    run.begin()
    _as_in_origin(run, origin).save_record()
    return run


def _as_in_origin(run: Run, origin: Origin) -> Run:
    """Say of a run's rows what the run that it starts from says, which moved and dropped them."""
    said = origin.run.record
    run.record = replace(run.record, moved=said.moved, dropped=said.dropped)
    return run


def _surgery(options: FinetuneOptions, origin: Origin, reporter: Reporter) -> Surgery:
    """Put the head on the backbone and cut it."""
    loaded = origin.network
    if options.preset is not None:
        present = np.unique(origin.examples.y[origin.examples.rows("train")])
        head = tutorial_head(len(present), loaded.dim, options.seed)
        return operate(loaded, head, cut_at(loaded.network, TUTORIAL_FROZEN))
    cut = find_cut(loaded.network, str(options.unfreeze_from))
    count = len(loaded.network.layers)
    reporter.say(
        f"Training from {options.unfreeze_from} on: the last {count - cut.first:,} of "
        f"{counted(count, 'layer')}, and the head"
    )
    surgery = operate(loaded, head_layers.head_network(origin.head), cut)
    set_precision(surgery, options.precision)
    return surgery


def _training(
    options: FinetuneOptions,
    origin: Origin,
    path: Path,
    inputs: Mapping[str, object],
    surgery: Surgery,
    source: BatchSource,
    model: KerasModel,
) -> FineTuning:
    examples = origin.examples
    train, val, y = origin.rows("train"), origin.rows("val"), examples.y
    classes = np.unique(y[train]) if options.preset else np.asarray(origin.head.classes_)
    recipe = FineTuningRecipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        patience=options.patience,
        precision=options.precision,
        optimizer=options.optimizer,
        layer_decay=options.layer_decay,
        is_tutorial=options.preset is not None,
    )
    return FineTuning(
        model,
        surgery,
        recipe,
        TrainingRows(source, y, classes, train, val, class_weights(y[train], options.class_weight)),
        checkpoint=path / FINETUNED / checkpoint.FILE,
        identity=apart_from_places(inputs),
    )


def _train(
    options: FinetuneOptions,
    origin: Origin,
    surgery: Surgery,
    training: FineTuning,
    trained: tuple[KerasModel, BatchSource],
    answering: tuple[KerasModel, BatchSource],
    reporter: Reporter,
) -> Outcome:
    """Estimate, train, and compute the features of every row.

    Args:
        options: What the user asked for.
        origin: Where training starts.
        surgery: The network.
        training: What is to be done.
        trained: A network and its source, for rows of train.
        answering: The same for the other rows, whose answers are recorded.
        reporter: Where notes and progress go.
    """
    fixed = surgery.fixed(trains_statistics=options.preset is not None)
    before = digest_of(fixed)
    if training.resume():
        reporter.say(f"Going on after epoch {training.progress.epoch}")
    seconds = training.estimate()
    if seconds is not None:
        say_estimate(origin, seconds, training.epochs_left, reporter)
    log = partial(tensorboard.keep, _path_of(options) / FINETUNED / _TENSORBOARD)
    training.run(reporter, after_epoch=log)
    if digest_of(fixed) != before:
        raise RunError(
            "Expected frozen weights and BatchNorm's moving statistics to stay as they were. "
            "Received: others after training.",
            hint="Nothing was recorded; report this.",
        )
    set_precision(surgery, "float32")
    features = np.empty((len(origin.examples), surgery.loaded.dim), np.float32)
    for model, splits in ((trained, ("train",)), (answering, ("val", "test"))):
        training.compile_outputs(*model)
        for split in splits:
            rows = origin.rows(split)
            features[rows] = training.features(rows)
    layers = None if options.preset else head_layers.layers_of(origin.head)
    forward = compile_forward(surgery.whole)
    return Outcome(
        features=features,
        classes=training.classes,
        mean=layers.mean if layers else np.zeros(features.shape[1]),
        scale=layers.scale if layers else np.ones(features.shape[1]),
        dropout=layers.dropout if layers else 0.0,
        params={name: getattr(options, name) for name in _HEAD_PARAMETERS},
        progress=training.progress,
        estimated_seconds=seconds,
        start_difference=None,
        reject_below=origin.run.inputs.reject_below or 0.0,
        encoder=ModelEncoder(lambda images: forward(images)[0], surgery.loaded.dim),
    )


def _say_head_room(run: Run, origin: Origin, reporter: Reporter) -> None:
    """Say whether more photos or better features are to gain by; record it in the run once."""
    found = run.record.finetuned().head_room
    if found is None:
        try:
            found = measure_head_room(origin)
        except ConfigError as error:
            reporter.say(f"Note: what is to gain was not measured. {error.message}")
            return
        finetuned = replace(run.record.finetuned(), head_room=found)
        run.record = replace(run.record, finetune=finetuned)
        run.save_record()
    reporter.say(f"{found['text']} ({found['seconds']:.1f} s)")


def _result(run: Run) -> dict[str, object]:
    return {**result_of(run), "finetune": run.record.finetuned().as_json()}
