"""What fine-tuning starts from: a run, one of its heads, its store and its images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import probe
from pipeline.backbones.forms import KERAS
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.identity import Identity
from pipeline.config.options import FinetuneOptions
from pipeline.dataset.examples import Examples
from pipeline.errors import ConfigError, HeadNotTrainableError
from pipeline.heads import layers
from pipeline.runs import backbone as run_backbone
from pipeline.runs.fitted_head import fitted_head, head_name
from pipeline.runs.record import best
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system.keras_setup import Tensor
from pipeline.system.progress import SILENCE, Reporter

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


# The best of these on val is the default.
STARTING_HEADS: Final = ("dense", "linear", "logreg")

_HINT: Final = (
    "Put the images back, say where they are with --data DIR, or extract again and train again."
)


@dataclass(frozen=True, slots=True)
class Origin:
    """A run of stage 2 with what it was made from.

    Attributes:
        run: The run.
        store: The store of its features.
        name: The head to start from, and to compare with.
        head: The fitted head.
        examples: The run's rows.
        network: The backbone of its features; built when it is first needed, which raises
            WeightsUnavailableError where its weights are nowhere, and StaleFeaturesError where
            those given are others.
    """

    run: Run
    store: Store
    name: str
    head: "Head"
    examples: Examples
    network: FrozenBackbone

    def rows(self, split: str) -> NDArray[np.intp]:
        """Return the row numbers of a split."""
        place = self.examples.rows(split)
        return np.arange(place.start, place.stop)


def open_origin(options: FinetuneOptions, reporter: Reporter = SILENCE) -> Origin:
    """Open the run to start from, its store and one of its heads.

    Args:
        options: What to start from.
        reporter: Where it is said that the backbone is loaded.

    Raises:
        ConfigError: The run's val or answers cannot be compared, the head is unknown, or the
            network is none of Keras.
        HeadNotTrainableError: The head is no network.
        RunError: The store is gone.
        StoreError: The store is damaged, or of other features.
    """
    run = Run.open(Path(options.source)).at(store=options.store, data=options.data)
    inputs = run_backbone.inputs_of(run)
    _require_keras(run, inputs.identity)
    _require_own_network(run, inputs.identity)
    for name, why in (("refit", "its val was trained on"), ("average", "its answers are means")):
        if getattr(inputs, name):
            raise ConfigError(
                f"finetune: expected a run without --{name}. Received: {options.source!r}, made "
                f"with it: {why}, so that nothing fair can be compared.",
                hint=f"Train again with train-head, without --{name}, into another --run.",
            )
    if not run.record.split.val:
        raise ConfigError(
            f"finetune: expected a run with images in val to choose on. "
            f"Received: {options.source!r} with {run.record.split.as_json()}.",
            hint="Train with train-head, whose --split gives val a share.",
        )
    # The preset has a head of its own, and is compared with any.
    name = head_name(run, None) if options.preset else _head_name(run, options.head)
    store = run_backbone.open_store(run)
    head, network = fitted_head(run, name, store.dim), _backbone(run, store, options, reporter)
    return Origin(run, store, name, head, _examples(run), network)


def _require_keras(run: Run, identity: Identity) -> None:
    """Refuse a network whose layers cannot be trained here.

    Raises:
        ConfigError: It is in another form than Keras'.
    """
    if identity.form is not KERAS:
        raise ConfigError(
            f"finetune: expected a run on features of a {KERAS.name} network, whose layers can be "
            f"trained. Received: {str(run.path)!r}, on features of a network in "
            f"{identity.form.name}.",
            hint="Extract with a backbone of the table, or with a .keras file, into another "
            "--store, and train again; train-head and sweep train heads on features of any "
            "network.",
        )


def _require_own_network(run: Run, identity: Identity) -> None:
    """Refuse features of another network than the one that would be trained.

    Raises:
        ConfigError: They are in int8, whose rounding is no matter of tolerances.
    """
    if identity.quantized is not None:
        raise ConfigError(
            "finetune: expected a run on features of the network in floating point, whose layers "
            f"are trained. Received: {str(run.path)!r}, on features in {identity.precision}.",
            hint="Extract with --precision float32 into another --store, and train again.",
        )


def _head_name(run: Run, asked: str | None) -> str:
    records = run.record.heads
    if asked is not None:
        name = head_name(run, asked)
        layers.require_network(name)
        return name
    able = {name: records[name] for name in STARTING_HEADS if name in records}
    if not able:
        raise HeadNotTrainableError(
            f"Expected a head of {', '.join(STARTING_HEADS)} in {str(run.path)!r}. "
            f"Received: {', '.join(records) or 'none'}.",
            hint="Train one with train-head --head logreg, or name another network with --head.",
        )
    return best(able)


def _examples(run: Run) -> Examples:
    rows = run.manifest()
    names = tuple(run.record.classes)
    return Examples(
        rows.paths, rows.labels, rows.splits, rows.keys, names, (), {}, groups=rows.groups
    )


def _backbone(
    run: Run, store: Store, options: FinetuneOptions, reporter: Reporter
) -> FrozenBackbone:
    """Return the backbone of a run's features, by the digest of its weights; built when needed."""
    identity, source = store.identity, run_backbone.WeightsSource.of_run(run)

    def build() -> Tensor:
        reporter.say(f"Loading {identity.backbone}")
        return run_backbone.load(identity, options.weights, source=source, store=store).model

    return FrozenBackbone(
        build,
        name=identity.backbone,
        image_size=identity.image_size,
        pooling=identity.pooling,
        dim=store.dim,
        weights_sha256=identity.weights_sha256,
        probe=probe.find(store.path, identity, store.dim),
    )
