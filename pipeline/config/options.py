"""Option records: every option's name, default, bounds and help text, written once.

The command line makes its flags from these records, a configuration file is checked against
them, and ``docs/options.md`` is printed from them. Precedence: built-in default, then the file
(one table per command, ``[heads.NAME]`` for a head's parameters), then the flag.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pipeline.config import fields, spreading
from pipeline.config.fields import Option, argument_of, checked
from pipeline.errors import ConfigError, unknown_name

Record = TypeVar("Record")

DEFAULT_SPLIT: Final = "70/15/15"


def _report() -> bool:
    return fields.switch("write RUN/report.html too, as pipeline report does")


def _mlflow() -> str | None:
    return fields.path(
        None, "log the run into the MLflow store of this folder, a new one too", "DIR"
    )


def _preset(what: str) -> str | None:
    text = f"'tutorial': {what} exactly as in the tutorial that this grew from"
    return fields.choice(None, ("tutorial",), text, old_names={"seed": "tutorial"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """Options of every command."""

    config: str | None = fields.path(None, "read options from this TOML file", "FILE")
    json: bool = fields.switch("print one JSON object on stdout and nothing else there")
    quiet: bool = fields.switch("print no progress and no notes")
    debug: bool = fields.switch("show the traceback of an error")
    strict: bool = fields.switch("exit with status 1 if anything was skipped")
    force: bool = fields.switch("replace an existing output")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of ``sample``."""

    out: str = fields.path(
        "", "folder to write, one sub-folder per class", "OUT", positional=True, required=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTwoOptions:
    """Options of whatever trains heads on stored features."""

    store: str | None = fields.path(
        None, "feature store made by extract: a folder or an address", "DIR", required=True
    )
    run: str | None = fields.path(
        None, "run directory to write or add to (default: runs/<base name of STORE>)", "DIR"
    )
    split: str | None = fields.text(
        None,
        "shares of train/val/test where the data declares no splits "
        f"(default: {DEFAULT_SPLIT}); given, splits that the data lacks are taken from train, "
        "instead of taking the only held-out one for test; 'leak-free', or leak-free:A/B/C, finds "
        "near duplicates and keeps them in one split",
        "A/B/C|leak-free",
    )
    group: str | None = fields.text(
        None,
        "manifest column of what belongs together (patient, plant, scene): images of one group "
        "stay in one split, and on one side of cross-validation",
        "COLUMN",
    )
    split_seed: int = fields.integer(0, "seed of the split", 0)
    seed: int = fields.integer(0, "seed of initial weights, shuffling and dropout", 0)
    manifest: str | None = fields.path(
        None, "use this manifest instead of STORE/manifest.csv", "FILE"
    )
    min_per_class: int = fields.integer(3, "fewest different images per class", 1)
    rare: str = fields.choice(
        "raise", ("drop", "raise"), "what to do with a class below --min-per-class"
    )
    augment: tuple[str, ...] = fields.texts(
        (), "stored view to train on beside the images as they are; repeat for several", "VIEW"
    )
    average: tuple[str, ...] = fields.texts(
        (), "stored view to average probabilities over, when scoring; repeat for several", "VIEW"
    )
    refit: bool = fields.switch("fit once more on train and val before scoring test")
    reject_below: float = fields.number(
        0.0, "give no answer below this probability; coverage and accuracy are reported", 0.0, 1.0
    )
    wait: bool = fields.switch("wait for another process that trains into the same run")
    report: bool = _report()
    tensorboard: bool = fields.switch("log losses and scores of heads in RUN/tensorboard too")
    projector: bool = fields.switch(
        "as --tensorboard, with the features of up to 2,000 images for its embedding projector"
    )
    mlflow: str | None = _mlflow()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainHeadOptions(StageTwoOptions):
    """Options of ``train-head``."""

    head: tuple[str, ...] = fields.texts(
        ("dense", "logreg", "majority"), "head to train; repeat the flag for several", "NAME"
    )
    preset: str | None = _preset("the dense head")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions(StageTwoOptions):
    """Options of ``sweep``."""

    head: tuple[str, ...] = fields.texts(
        ("linear", "logreg", "ridge"), "head to sweep; repeat the flag for several", "NAME"
    )
    grid: str = fields.choice(
        "default",
        ("default", "kornblith"),
        "settings to try: 'kornblith' is 45 L2 strengths of logistic regression; [grids.NAME] in "
        "the configuration file replaces a head's own",
    )
    executor: str = spreading.executor(
        "what tries settings: this process, or the nodes of a Ray cluster, a head each"
    )
    address: str | None = spreading.address()
    folds: int = fields.integer(
        5, "folds of cross-validation, where --split leaves no val (85/0/15)", 2
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """Options of ``compare``."""

    runs: tuple[str, ...] = fields.paths(
        (), "run directories", "RUN", positional=True, required=True
    )
    seeds: int = fields.integer(
        1, "train every head with this many seeds and splits, and show mean and spread", 1
    )
    curve: bool = fields.switch("show accuracy against the number of training images")
    store: str | None = fields.path(None, "store of the runs, if it has moved since", "DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    """Options of ``finetune``."""

    source: str = fields.path(
        "", "run of train-head to start from", "RUN", positional=True, required=True
    )
    run: str | None = fields.path(
        None, "run directory to write or go on with (default: RUN-finetune)", "DIR"
    )
    head: str | None = fields.text(
        None, "dense, linear or logreg head to start from (default: the best of these)", "NAME"
    )
    preset: str | None = _preset("fine-tuning")
    unfreeze_from: str | None = fields.text(
        None,
        "first part to train: a stage such as conv5, a block, a layer's name, or all "
        "(default: what works at the last resolution)",
        "NAME",
    )
    epochs: int = fields.integer(10, "largest number of passes over train", 1)
    learning_rate: float = fields.number(3e-4, "learning rate after warm-up", 1e-9, 1.0)
    batch_size: int = fields.integer(32, "images per step", 1)
    optimizer: str = fields.choice("adamw", ("adamw", "adam"), "adam is without weight decay")
    layer_decay: float = fields.number(
        1.0,
        "learning rate of a block over that of the block above it; 1 is one rate for all",
        1e-9,
        1.0,
    )
    augment: bool = fields.switch("train on random flips, crops and colours")
    views: tuple[str, ...] = fields.texts(
        (),
        "view to train on in turn with the image as it is (flip, crop1 to crop8), with frozen "
        "activations cached; repeat the flag for several",
        "NAME",
    )
    precision: str = fields.choice(
        "float32", ("float32", "bfloat16", "float16"), "arithmetic of training; lower ones on GPUs"
    )
    cache_precision: str = fields.choice(
        "float32", ("float32", "float16"), "number format of the cache of frozen activations"
    )
    class_weight: str | None = fields.choice(
        None, ("balanced",), "weigh classes by their frequency"
    )
    patience: int = fields.integer(10, "epochs without a better log loss on val before stopping", 1)
    weights: str | None = fields.path(
        None, "weights file, if the run's store no longer has them", "PATH"
    )
    store: str | None = fields.path(None, "store of the run, if it has moved since", "DIR")
    data: str | None = fields.path(
        None, "folder of the run's images, if they have moved since extract", "DIR"
    )
    seed: int = fields.integer(0, "seed of order, augmentation and dropout", 0)
    wait: bool = fields.switch("wait for another process that trains into the same run")
    report: bool = _report()
    mlflow: str | None = _mlflow()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Options of ``report``."""

    run: str = fields.path("", "run directory", "RUN", positional=True, required=True)
    head: str | None = fields.text(None, "head to look at (default: the run's best)", "NAME")
    map: str = fields.choice(
        "pca", ("pca", "umap"), "how features become a map; umap needs an extra and takes longer"
    )
    store: str | None = fields.path(None, "store of the run, if it has moved since", "DIR")
    data: str | None = fields.path(
        None, "folder of the run's images, if they have moved since extract", "DIR"
    )


def options_of(record: type) -> dict[str, Option]:
    """Return the options of a record by field name, in order."""
    return {item.name: item.metadata["option"] for item in dataclasses.fields(record)}


def default_of(record: type, name: str) -> Any:
    """Return the built-in default of one option."""
    return next(item.default for item in dataclasses.fields(record) if item.name == name)


def build(record: type[Record], values: Mapping[str, object], *, where: str = "") -> Record:
    """Make a record from values by field name, checking names, types and bounds.

    Args:
        record: The class of the record.
        values: What was given; a path may begin with ``~``.
        where: The file and table that the values stand in; empty for flags.

    Example:
        >>> build(ExtractOptions, {"data": "photos", "image_size": 64}).image_size
        64

    Raises:
        ConfigError: A name is unknown, or a value has the wrong type or is out of bounds.
    """
    options = options_of(record)
    for name in values:
        if name not in options:
            raise unknown_name("option", name, options, where=where)
    return record(
        **{name: checked(name, options[name], value, where) for name, value in values.items()}
    )


def require_given(options: object, *, command: str, example: str) -> None:
    """Refuse a record that lacks what its command cannot do without.

    Args:
        options: The record.
        command: Name of the command.
        example: What to type instead.

    Raises:
        ConfigError: Names the first argument that is missing.
    """
    for name, option in options_of(type(options)).items():
        if option.required and not getattr(options, name):
            raise ConfigError(
                f"{command}: expected {argument_of(name, option)}.", hint=f"For example: {example}"
            )
