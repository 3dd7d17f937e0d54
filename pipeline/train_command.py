"""The ``train-head`` command: joins a store and a manifest, and trains the heads asked for.

Called by ``commands``.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import heads
from pipeline.compare import compare
from pipeline.config import CommonOptions, TrainHeadOptions, canonical_json, unknown_name
from pipeline.dataset import Examples, SplitRule, prepare
from pipeline.errors import ConfigError
from pipeline.reporting import Reporter
from pipeline.run import Run
from pipeline.store import Store
from pipeline.train_head import SplitFeatures, train_heads

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


def train_head(
    options: TrainHeadOptions,
    common: CommonOptions,
    reporter: Reporter,
    parameters: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Run stage 2; see ``contract`` in the documentation for the keys of the result.

    Args:
        options: What to train on what.
        common: ``force`` replaces an existing run.
        reporter: Where notes and progress go.
        parameters: Parameters by head name, from the configuration file.
    """
    if not options.store:
        raise ConfigError(
            "train-head: expected --store.", hint="For example: --store stores/sample"
        )
    wanted = _heads(options, parameters)
    store = Store.open(Path(options.store))
    manifest = store.read_manifest(Path(options.manifest) if options.manifest else None)
    rule = SplitRule(
        ratios=options.split,
        seed=options.split_seed,
        min_per_class=options.min_per_class,
        rare=options.rare,
    )
    examples = prepare(manifest, rule)
    features = store.read(examples.keys)
    views = {name: store.read(examples.keys, name) for name in (*options.augment, *options.average)}
    path = Path(options.run or Path("runs") / Path(options.store).resolve().name)
    run = _run(path, _inputs(options, store, examples), examples, manifest.root, common.force)
    _note_rows(examples, reporter)
    data = SplitFeatures.of(
        examples,
        features,
        augment=[views[name] for name in options.augment],
        average=[views[name] for name in options.average],
    )
    train_heads(
        run,
        data,
        wanted,
        refit=options.refit,
        reject_below=options.reject_below,
        reporter=reporter,
    )
    return _result(run)


def _heads(
    options: TrainHeadOptions, parameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, "Head"]:
    preset = heads.PRESETS[options.preset] if options.preset else {}
    for name in parameters:
        if name not in heads.HEADS:
            raise unknown_name("head", name, heads.HEADS)
        if name in preset and parameters[name]:
            raise ConfigError(
                f"--preset {options.preset} fixes the parameters of {name}. "
                f"Received: [heads.{name}] with {', '.join(parameters[name])}.",
                hint="Leave out one of the two.",
            )
    return {
        name: heads.create(
            name, {**preset.get(name, {}), **parameters.get(name, {})}, seed=options.seed
        )
        for name in options.head
    }


def _inputs(options: TrainHeadOptions, store: Store, examples: Examples) -> dict[str, Any]:
    """Return everything that results depend on besides the heads' own parameters."""
    rows = hashlib.sha256()
    for row in zip(examples.paths, examples.labels, examples.splits, examples.keys, strict=True):
        rows.update(canonical_json([*row[:3], row[3].decode()]).encode())
    return {
        "store": str(store.path.resolve()),
        "identity": store.identity,
        "split": options.split,
        "split_seed": options.split_seed,
        "min_per_class": options.min_per_class,
        "rare": options.rare,
        "refit": options.refit,
        "augment": list(options.augment) or None,
        "average": list(options.average) or None,
        "reject_below": options.reject_below or None,
        # Last, so that an option that changes the rows is named before their digest.
        "manifest_sha256": rows.hexdigest(),
    }


def _run(path: Path, inputs: Mapping[str, Any], examples: Examples, root: Path, force: bool) -> Run:
    if Run.exists(path) and force:
        Run.remove(path)
    if not Run.exists(path):
        return Run.create(path, inputs=inputs, examples=examples, root=root)
    run = Run.open(path)
    run.require_inputs(inputs)
    return run


def _note_rows(examples: Examples, reporter: Reporter) -> None:
    counts = ", ".join(f"{count:,} {name}" for name, count in examples.counts().items())
    total = len(examples)
    shares = "/".join(f"{100 * count / total:.1f}" for count in examples.counts().values())
    reporter.say(f"{total:,} images of {len(examples.names):,} classes: {counts} ({shares} %)")
    for reason, count in examples.dropped.items():
        reporter.say(f"{count:,} images left out: {reason}")
    for item in examples.moved:
        reporter.say(
            f"{item.label}: moved one image from {item.source} to {item.target}, which had none"
        )


def _result(run: Run) -> dict[str, Any]:
    names = ("train", "val", "test", "fit_seconds", "predict_seconds", "converged", "prior",
             "calibration", "reject", "selected", "notes")  # fmt: skip
    leaderboard = compare([run])
    return {
        "run": str(run.path),
        "heads": {
            head: {name: record[name] for name in names}
            for head, record in run.record["heads"].items()
        },
        "best": run.record["best"],
        "split": run.record["split"],
        "dropped": run.record["dropped"],
        "moved": run.record["moved"],
        "pairs": leaderboard["pairs"],
    }
