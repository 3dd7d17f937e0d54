"""A fitted head with the backbone and the engine that it predicts with.

Called by ``classifier`` and ``export_command``: of a run, or of an exported folder. Keras is
imported only when an engine asks for the network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import engines
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.config.options import unknown_name
from pipeline.errors import ConfigError, RunError
from pipeline.images import views
from pipeline.runs import backbone as run_backbone
from pipeline.runs import model_folder
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
    identity: Mapping[str, Any]
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
        classes=tuple(run.record["classes"]),
        network=network,
        identity=identity,
        engine=chosen,
        average=run_backbone.averages_of(run, name),
        reject_below=inputs.get("reject_below") or 0.0,
    )


def head_name(run: Run, asked: str | None) -> str:
    """Return the name of a head that a run has kept.

    Args:
        run: The run.
        asked: The name that is asked for; None for the run's best head.

    Raises:
        ConfigError: The run has no such head.
        RunError: It has none at all, or could not save this one.
    """
    records = run.record["heads"]
    name = asked or run.record["best"]
    if not records or name is None:
        raise RunError(
            f"Expected a run with heads at {str(run.path)!r}. Received: none is trained yet.",
            hint="Train some with pipeline train-head.",
        )
    if name not in records:
        raise unknown_name("head", name, records, where=str(run.path))
    if records[name].get("not_saved"):
        raise RunError(
            f"Expected a head that was saved. Received: {name}: {records[name]['not_saved']}",
            hint="Choose another --head.",
        )
    return str(name)


def fitted_head(run: Run, name: str, dim: int) -> "Head":
    """Load a head of a run.

    Args:
        run: The run.
        name: Name of the head.
        dim: Length of the features that it must take.

    Raises:
        RunError: It is damaged, or its classes, temperature or arrays cannot be those of the run.
    """
    head = run.load_head(name)
    command = "finetune" if run_backbone.is_finetuned(run, name) else "train-head"
    hint = f"Train it again with {command} --force."
    _require_fit(head, name, run.path, len(run.record["classes"]), dim, hint)
    return head


def _of_folder(path: Path, asked: str | None, weights: str | None, engine: str) -> TrainedHead:
    """Load the head of an exported folder, which has one and brings its own weights."""
    if weights is not None:
        raise ConfigError(
            f"--weights: expected none, as {str(path)!r} brings its own. Received: {weights!r}.",
            hint="Leave it out.",
        )
    found = model_folder.read(path)
    name, classes = found.metadata["head"], found.metadata["classes"]
    if asked not in (None, name):
        raise unknown_name("head", str(asked), [name], where=str(path))
    identity = found.metadata["identity"]
    run_backbone.require_reproducible(identity)
    views.check(found.metadata["average"])
    _require_fit(found.head, name, path, len(classes), found.backbone.dim, "Export it again.")
    return TrainedHead(
        name=name,
        head=found.head,
        classes=tuple(classes),
        network=found.backbone,
        identity=identity,
        engine=_engine(identity, engine),
        average=tuple(found.metadata["average"]),
        reject_below=found.metadata["reject_below"],
    )


def _engine(identity: Mapping[str, Any], asked: str) -> str:
    """Return the engine to use; below float32 only the one that made the features.

    Raises:
        ConfigError: It is unknown, or another one than the features need.
        EngineUnavailableError: It is not installed.
    """
    if identity["precision"] == "float32":
        return engines.resolve(asked)[0]
    family = str(identity["engine"])
    engines.require(family)
    if asked not in ("auto", family):
        raise ConfigError(
            f"--engine: expected {family}, which made the run's features in "
            f"{identity['precision']}, where engines differ. Received: {asked!r}.",
            hint=f"Use --engine {family}.",
        )
    return family


def _require_fit(
    head: "Head", name: str, where: Path, num_classes: int, dim: int, hint: str
) -> None:
    """Refuse a head whose classes, temperature or arrays cannot be those of its run.

    Args:
        head: The fitted head.
        name: Its name.
        where: The run, or the exported folder.
        num_classes: Number of classes of the run.
        dim: Length of its features.
        hint: How to make it again.

    Raises:
        RunError: Says what was expected and what it is.
    """
    misfit = _misfit(head, num_classes, dim)
    if misfit is not None:
        raise RunError(
            f"Expected the head {name!r} of {str(where)!r} to have {misfit[0]}. "
            f"Received: {misfit[1]}.",
            hint=hint,
        )


def _misfit(head: "Head", num_classes: int, dim: int) -> tuple[str, str] | None:
    """Return what is expected of a head and what it has instead; None where it fits."""
    classes, temperature = np.asarray(head.classes_), head.temperature_
    known = sorted(set(range(num_classes)).intersection(classes.ravel().tolist()))
    if classes.dtype.kind not in "iu" or not known or classes.tolist() != known:
        return f"ascending classes of 0 to {num_classes - 1}", str(classes.tolist())
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        return "a temperature above 0", repr(temperature)
    expected = f"scores of {len(known)} classes from {dim} features"
    try:
        scores = head.scores(np.zeros((1, dim), np.float32))
    except Exception as error:  # whatever NumPy says of arrays that do not fit together
        return expected, " ".join(str(error).split())
    fits = scores.shape == (1, len(known)) and not np.isnan(scores).any()
    return None if fits else (expected, str(scores.tolist()))
