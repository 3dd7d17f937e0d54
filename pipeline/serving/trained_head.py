"""A fitted head with the backbone and the engine that it predicts with.

It comes from a run, or from an exported folder. Keras is imported only when an engine asks for the
network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import engines
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.identity import Identity, require_reproducible
from pipeline.errors import ConfigError, unknown_name
from pipeline.images import views
from pipeline.runs import backbone as run_backbone
from pipeline.runs import model_folder
from pipeline.runs.fitted_head import fitted_head, head_name, require_fit
from pipeline.runs.run import Run

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A fitted head, with what it was trained on.

    Attributes:
        name: Name of the head.
        head: The fitted head.
        classes: Class names of the run.
        network: The backbone that makes its features.
        identity: How its features were made.
        engine: What is to run the backbone.
        average: Views to average probabilities over, beside the image as it is.
        reject_below: Probability below which no answer is given.
    """

    name: str
    head: "Head"
    classes: Sequence[str]
    network: FrozenBackbone
    identity: Identity
    engine: str
    average: Sequence[str]
    reject_below: float


def load(
    path: Path,
    asked: str | None,
    *,
    weights: str | None,
    engine: str,
    store: str | None = None,
) -> TrainedHead:
    """Load a head and find its backbone; see ``Classifier.load`` for what is raised.

    Args:
        path: A run, or a folder of ``export --format folder``.
        asked: Name of the head; None for the run's best.
        weights: Where the backbone's weights are, if not in the run's store.
        engine: What is asked to run the backbone.
        store: Where the run's store is, if not where the run was made from it.
    """
    if not Run.exists(path) and model_folder.exists(path):
        return _of_folder(path, asked, weights, engine)
    run = Run.open(path).at(store=store)
    name = head_name(run, asked)
    inputs = run_backbone.inputs_of(run)
    identity = run_backbone.identity_of(run, name)
    chosen = _engine(identity, engine)
    network = run_backbone.find_for(run, name, weights)
    return TrainedHead(
        name=name,
        head=fitted_head(run, name, network.dim),
        classes=tuple(run.record.classes),
        network=network,
        identity=identity,
        engine=chosen,
        average=run_backbone.averages_of(run, name),
        reject_below=inputs.reject_below or 0.0,
    )


def _of_folder(path: Path, asked: str | None, weights: str | None, engine: str) -> TrainedHead:
    """Load the head of an exported folder, which has one and brings its own weights."""
    if weights is not None:
        raise ConfigError(
            f"--weights: expected none, as {str(path)!r} brings its own. Received: {weights!r}.",
            hint="Leave it out.",
        )
    found = model_folder.read(path)
    name, classes = found.record.head, found.record.classes
    if asked not in (None, name):
        raise unknown_name("head", str(asked), [name], where=str(path))
    identity = found.record.identity
    require_reproducible(identity)
    views.check(found.record.average)
    require_fit(found.head, name, path, len(classes), found.backbone.dim, "Export it again.")
    return TrainedHead(
        name=name,
        head=found.head,
        classes=tuple(classes),
        network=found.backbone,
        identity=identity,
        engine=_engine(identity, engine),
        average=tuple(found.record.average),
        reject_below=found.record.reject_below,
    )


def _engine(identity: Identity, asked: str) -> str:
    """Return the engine to use; below float32 only the one that made the features.

    Raises:
        ConfigError: It is unknown, or another one than the features need.
        EngineUnavailableError: It is not installed.
    """
    if identity.precision == "float32":
        return engines.resolve(asked, identity.form)[0]
    family = str(identity.engine)
    engines.require(family, identity.form)
    if asked not in ("auto", family):
        raise ConfigError(
            f"--engine: expected {family}, which made the run's features in "
            f"{identity.precision}, where engines differ. Received: {asked!r}.",
            hint=f"Use --engine {family}.",
        )
    return family
