"""What every command that trains heads begins with: rows, features, and the run they go into.

What cannot be trained on is refused here, before anything is written.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pipeline import heads
from pipeline.config.options import StageTwoOptions
from pipeline.dataset.examples import Examples, SplitRule, prepare, rows_in_use
from pipeline.dataset.features import SplitFeatures, features_of, rule_of
from pipeline.dataset.room import Room
from pipeline.errors import ConfigError, ManifestError, mention, unknown_name
from pipeline.files import outputs, places
from pipeline.files.location import Location, local, locate, name_of
from pipeline.files.records import canonical_json
from pipeline.images.manifest import Manifest
from pipeline.runs import folder
from pipeline.runs.record import MergedCopies, RunInputs, RunSource
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system import keras_setup
from pipeline.system.progress import SILENCE, Reporter, say_notes
from pipeline.system.wording import counted

if TYPE_CHECKING:  # scikit-learn takes two seconds to import, SciPy half of one
    from pipeline.copies.kept import NearDuplicates
    from pipeline.heads.head import Head


_NONE: Final[Mapping[str, int]] = MappingProxyType({})

HeadParameters = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows, their features, and what results depend on besides the heads.

    Attributes:
        examples: The rows with their splits.
        data: Their features.
        inputs: What results depend on, as a run records it.
        root: What the rows' paths are relative to.
        source: Where rows and weights came from, as a run records it.
    """

    examples: Examples
    data: SplitFeatures
    inputs: RunInputs
    root: Location
    source: RunSource


def run_path(options: StageTwoOptions, suffix: str = "") -> Path:
    """Return where a run goes; unless told otherwise, it is named after the store."""
    return Path(options.run or Path("runs") / f"{name_of(options.store or '')}{suffix}")


def check_first(options: StageTwoOptions, names: tuple[str, ...], path: Path) -> None:
    """Refuse what can be refused before anything is imported or read.

    Args:
        options: What to train on what.
        names: Names of the heads.
        path: Where the run goes.

    Raises:
        ConfigError: A head is unknown, or the run has no place.
        ManifestError: The manifest is no file.
        StoreError: There is no store.
    """
    for name in names:
        if not heads.is_known(name):
            raise unknown_name("head", name, heads.HEADS)
    Store.unchecked(locate(options.store or ""))
    outputs.require_folder("--run", path)
    if options.manifest and not local("--manifest", options.manifest).is_file():
        raise ManifestError(
            f"--manifest: expected a CSV file. Received: {options.manifest!r}, "
            f"{'a folder' if Path(options.manifest).is_dir() else 'which does not exist'}.",
            hint="Correct the path.",
        )


def prepare_data(
    options: StageTwoOptions,
    wanted: "Mapping[str, Head]",
    reporter: Reporter = SILENCE,
    *,
    settings: Mapping[str, int] = _NONE,
    folds: int = 0,
) -> TrainingData:
    """Join a store and a manifest, and read the features, or leave them on disk.

    What has no room in memory is refused before anything that takes long.

    Args:
        options: What to train on what.
        wanted: The heads that are left to fit, by name.
        reporter: Where progress is shown.
        settings: See ``Room``.
        folds: See ``Room``.

    Raises:
        ConfigError: Shares are none, or memory has no room; see ``Room.for_features``.
        ManifestError: The rows cannot be used.
        StoreError: The store is missing, damaged, or lacks features.
    """
    store = Store.open(locate(options.store or ""))
    chosen = Path(options.manifest) if options.manifest else None
    manifest = store.read_manifest(chosen, group=options.group)
    rule = rule_of(options)
    examples = prepare(manifest, rule)
    room = Room(wanted, examples, store.dim, options, settings, folds)
    fits = room.for_features()
    room.say_what_takes_long(reporter)
    copies = _near_duplicates(store, manifest, rule, reporter) if rule.leak_free else None
    if copies:
        examples = prepare(manifest, rule, copies.groups)
        examples = replace(examples, notes=(*examples.notes, str(copies)))
    if not fits:
        reporter.say(f"Features of {len(examples):,} images stay on disk, and are read in a stream")
    return TrainingData(
        examples=examples,
        data=features_of(store, examples, options, in_memory=fits, reporter=reporter),
        inputs=_inputs(options, store, examples),
        root=manifest.root,
        source=RunSource(
            manifest=options.manifest,
            declared_splits=examples.is_declared,
            notes=list(examples.notes),
            weights=store.record.provenance.weights,
            weights_seed=store.record.provenance.seed,
            near_duplicates=_merged(copies) if copies else None,
        ),
    )


def _near_duplicates(
    store: Store, manifest: Manifest, rule: SplitRule, reporter: Reporter
) -> "NearDuplicates":
    from pipeline.copies.kept import near_duplicates  # SciPy takes long to import

    return near_duplicates(store, rows_in_use(manifest, rule), reporter)


def _merged(copies: "NearDuplicates") -> MergedCopies:
    return MergedCopies(
        threshold=copies.threshold,
        images=copies.images,
        groups=len(copies.groups),
        merged=sum(len(group) for group in copies.groups),
    )


def left_to_fit(wanted: "Mapping[str, Head]", path: Path, *, force: bool) -> "dict[str, Head]":
    """Return the heads that a run does not hold yet; with ``force`` it is replaced."""
    held = Run.open(path).record.heads if Run.exists(path) and not force else {}
    return {name: head for name, head in wanted.items() if name not in held}


def open_run(prepared: TrainingData, path: Path, *, force: bool, reporter: Reporter) -> Run:
    """Open the run to add to, or plan one, which the first head that is added puts on disk.

    So what cannot be trained leaves nothing behind, and with ``force`` replaces nothing.

    Args:
        prepared: What it is made from.
        path: Where it is, or goes.
        force: Whether it is to take the place of another.
        reporter: Where it is said that its store was elsewhere.

    Raises:
        RunError: It was made from something else, or cannot be replaced.
    """
    if force and Run.exists(path):
        folder.require_nothing_else(path)
    if force or not Run.exists(path):
        return Run.planned(
            path,
            inputs=prepared.inputs.as_json(),
            examples=prepared.examples,
            root=prepared.root,
            source=prepared.source,
        )
    run = Run.open(path)
    run.require_inputs(prepared.inputs.as_json())
    before, store = run.store_path, locate(prepared.inputs.store)
    if places.resolved(before) != places.resolved(store):
        reporter.say(f"The store of {str(path)!r} was {str(before)!r}, and is {str(store)!r} now")
    run.note_places(store, prepared.root)
    run.restore_manifest(prepared.examples)
    return run


def create_heads(
    names: tuple[str, ...], parameters: HeadParameters, *, seed: int, preset: str | None = None
) -> dict[str, "Head"]:
    """Make unfitted heads by name.

    Raises:
        ConfigError: A head or a parameter is unknown, or stands in the way of the preset.
        EngineUnavailableError: A head needs Keras, which is set to a backend of no use.
    """
    if heads.ON_KERAS.intersection(names):
        keras_setup.require_backend(keras_setup.HEAD_BACKENDS)
    fixed = heads.PRESETS[preset] if preset else {}
    for name in parameters:
        if not heads.is_known(name):
            raise unknown_name("head", name, heads.HEADS)
        if name in fixed and parameters[name]:
            raise ConfigError(
                f"--preset {preset} fixes the parameters of {name}. "
                f"Received: [heads.{name}] with {', '.join(parameters[name])}.",
                hint="Leave out one of the two.",
            )
    return {
        name: heads.create(name, {**fixed.get(name, {}), **parameters.get(name, {})}, seed=seed)
        for name in names
    }


def note_rows(examples: Examples, reporter: Reporter) -> None:
    """Say how many rows each split has, which are left out or moved, and what was assumed."""
    say_notes(reporter, examples.notes)
    counts = ", ".join(f"{count:,} {name}" for name, count in examples.counts().items())
    total = len(examples)
    shares = "/".join(f"{100 * count / total:.1f}" for count in examples.counts().values())
    reporter.say(
        f"{counted(total, 'image')} of {len(examples.names):,} classes: {counts} ({shares} %)"
    )
    for reason, count in examples.dropped.items():
        reporter.say(f"{counted(count, 'image')} left out: {reason}")
    if examples.moved:
        listed = [f"{item.label!r} ({item.source} to {item.target})" for item in examples.moved]
        reporter.say(
            f"Images moved into splits that had none of their class, {len(listed):,} "
            f"('moved' in run.json): {mention(listed, quoted=False)}"
        )


def _inputs(options: StageTwoOptions, store: Store, examples: Examples) -> RunInputs:
    """Return everything that results depend on besides the heads' own parameters."""
    rows = hashlib.sha256()
    # Splits tell of groups what a run without val does not depend on: its folds keep them whole.
    groups = [[name] for name in examples.groups] or [[]] * len(examples)
    columns = (examples.paths, examples.labels, examples.splits, examples.keys, groups)
    for path, label, split, key, group in zip(*columns, strict=True):
        rows.update(canonical_json([path, label, split, key.decode(), *group]).encode())
    return RunInputs(
        store=places.absolute(store.place),
        identity=store.identity,
        split=options.split,
        split_seed=options.split_seed,
        min_per_class=options.min_per_class,
        rare=options.rare,
        refit=options.refit,
        augment=list(options.augment) or None,
        average=list(options.average) or None,
        reject_below=options.reject_below or None,
        group=options.group,
        manifest_sha256=rows.hexdigest(),
    )
