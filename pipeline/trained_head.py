"""What a run's head needs to predict: the fitted head, its backbone by digest, and the engine.

Called by ``classifier``. Keras is imported only when an engine asks for the network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline import backbone, engines, heads, views
from pipeline import weights as weight_files
from pipeline.backbone import Backbone, FrozenBackbone
from pipeline.config import ExtractOptions, default_of, unknown_name
from pipeline.errors import ConfigError, RunError, StaleFeaturesError, WeightsUnavailableError
from pipeline.keras_file import SUFFIX
from pipeline.run import Run
from pipeline.store import Store

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

# What the name of a network from a file begins with, in an identity.
_FROM_FILE: Final = "keras-file:"
# In a run of finetune: its record, the head on the changed network, and the folder of its weights.
_FINETUNED: Final = "finetune"
_BACKBONE: Final = "backbone/"


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head of a run, with what it was trained on.

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


def load_head(path: Path, asked: str | None, *, weights: str | None, engine: str) -> TrainedHead:
    """Load a head of a run, and find its backbone; see ``Classifier.load`` for what is raised.

    Args:
        path: The run directory.
        asked: Name of the head; None for the run's best.
        weights: Where the backbone's weights are, if not in the run's store.
        engine: What is asked to run the backbone.
    """
    run = Run.open(path)
    name = _head_name(run, asked)
    inputs = _inputs(run)
    identity, is_finetuned = inputs["identity"], _is_finetuned(run, name)
    # Fine-tuning scores its head on the images as they are.
    average = () if is_finetuned else inputs.get("average") or ()
    chosen = _engine(identity, engine)
    head = heads.load(run.path / "heads" / name)
    network = _network(Path(inputs["store"]), identity, average, weights)
    if is_finetuned:
        network = _finetuned(run, network)
    _require_fit(run, name, head, network.dim)
    return TrainedHead(
        name=name,
        head=head,
        classes=tuple(run.record["classes"]),
        network=network,
        identity=identity,
        engine=chosen,
        average=tuple(average),
        reject_below=inputs.get("reject_below") or 0.0,
    )


def _head_name(run: Run, asked: str | None) -> str:
    """Return the name of a head that the run has kept."""
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


def _inputs(run: Run) -> Mapping[str, Any]:
    """Return what a run was made from, if this release makes its features the same way.

    Raises:
        RunError: Something is missing.
        ConfigError: The backbone or a view is unknown.
        StaleFeaturesError: The features were made in another way.
    """
    inputs: Mapping[str, Any] = run.record["inputs"]
    try:
        identity, _ = inputs["identity"], Path(inputs["store"])
        here = _identity_here(identity)
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(
            f"Expected {str(run.path)!r} to name its store and the identity of its features. "
            f"Received: {type(error).__name__}: {error}.",
            hint="Train again with train-head.",
        ) from error
    _require_equal(identity, here, "in this release")
    views.check(list(dict.fromkeys(inputs.get("average") or ())))
    return inputs


def _identity_here(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the identity of features made now with what an identity asks for."""
    name = identity["backbone"]
    is_file = name.startswith(_FROM_FILE)
    spec = Backbone(identity["preprocessing"], name=name) if is_file else backbone.find(name)
    return backbone.identity(
        spec,
        weights_sha256=identity["weights_sha256"],
        image_size=identity["image_size"],
        pooling=identity["pooling"],
        precision=identity["precision"],
        engine=identity.get("engine", ""),
    )


def _require_equal(identity: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    """Refuse features that were made in another way.

    Raises:
        StaleFeaturesError: Names the first field that differs, with both values.
    """
    for name in (*identity, *other):
        if identity.get(name) != other.get(name):
            raise StaleFeaturesError(
                f"The run is on features of {name} = {identity.get(name)!r}. "
                f"Received: {name} = {other.get(name)!r} {where}.",
                hint="Use what made them: release, store and weights (--weights PATH).",
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


def _network(
    path: Path, identity: Mapping[str, Any], average: Sequence[str], weights: str | None
) -> FrozenBackbone:
    """Return the run's backbone; Keras builds it only if the engine asks for it.

    Args:
        path: The run's store.
        identity: Of the run's features.
        average: Views that the run averages over.
        weights: Where the weights are, if not in the store.
    """
    store = _store(path, identity, average, is_needed=weights is None)
    if store is None:
        return _loaded(path, None, identity, weights)
    return FrozenBackbone(
        lambda: _loaded(path, store, identity, weights).model,
        name=identity["backbone"],
        image_size=identity["image_size"],
        pooling=identity["pooling"],
        dim=store.dim,
        weights_sha256=identity["weights_sha256"],
        converted=store.encoder_folder,
    )


def _store(
    path: Path, identity: Mapping[str, Any], average: Sequence[str], *, is_needed: bool
) -> Store | None:
    """Open the run's store; None where it is gone or another, and not needed.

    Raises:
        WeightsUnavailableError: It is gone.
        StaleFeaturesError: It holds features that were made in another way.
    """
    if Store.exists(path):
        store = Store.unchecked(path)
        schemes = {name: views.VIEWS[name].scheme for name in average}
        stored = {name: store.record["views"].get(name) for name in average}
        try:
            where = f"in its store {str(path)!r}"
            _require_equal({**identity, **schemes}, {**store.identity, **stored}, where)
        except StaleFeaturesError:
            if is_needed:
                raise
        else:
            return store
    elif is_needed:
        raise WeightsUnavailableError(
            f"Expected the run's store at {str(path)!r}, which keeps the backbone's weights "
            f"{identity['weights_sha256']}. Received: no store there.",
            hint="Put it back, or give the weights with --weights PATH.",
        )
    return None


def _loaded(
    path: Path, store: Store | None, identity: Mapping[str, Any], weights: str | None
) -> FrozenBackbone:
    """Load the backbone by its weights' digest: from the store, else what is given, else Keras'.

    Raises:
        WeightsUnavailableError: The weights are nowhere.
        StaleFeaturesError: They are others than those of the run.
    """
    expected, name, preprocessing = identity["weights_sha256"], identity["backbone"], None
    # Not by truth: a store whose shards nobody looked at has length zero.
    made = store.record["provenance"] if store is not None else {}
    kept = store.encoder_path(expected) if store is not None else path
    saved = kept if kept.is_file() else None
    source = weights or made.get("weights")
    if name.startswith(_FROM_FILE):
        name, preprocessing = _network_file(identity, weights), identity["preprocessing"]
        source, saved = default_of(ExtractOptions, "weights"), None
    elif saved is None and weights is None and source not in weight_files.KEYWORDS:
        raise WeightsUnavailableError(
            f"Expected the weights {expected} of {name} at {str(kept)!r}. Received: no such file.",
            hint="Give them with --weights PATH.",
        )
    loaded = backbone.load(
        name,
        weights=str(source),
        seed=made.get("seed", default_of(ExtractOptions, "seed")),
        image_size=identity["image_size"],
        pooling=identity["pooling"],
        saved=saved,
        preprocessing=preprocessing,
    )
    received = {**identity, "weights_sha256": loaded.weights_sha256}
    _require_equal(identity, received, f"from --weights {weights or source}")
    return loaded


def _network_file(identity: Mapping[str, Any], given: str | None) -> str:
    """Return the file of a network that is in no table; its architecture must be the run's."""
    if given is None or not given.endswith(SUFFIX):
        raise WeightsUnavailableError(
            f"Expected the {SUFFIX} file of the network that made the run's features. "
            f"Received: {f'--weights {given}' if given else 'no --weights'}.",
            hint=f"Give it with --weights PATH{SUFFIX}.",
        )
    spec = backbone.find(given, identity["preprocessing"])
    _require_equal(identity, {**identity, "backbone": spec.name}, f"from --weights {given}")
    return given


def _is_finetuned(run: Run, name: str) -> bool:
    """Tell whether a head is for a network that fine-tuning changed."""
    return name == _FINETUNED and _FINETUNED in run.record


def _finetuned(run: Run, original: FrozenBackbone) -> FrozenBackbone:
    """Return a backbone with the variables that fine-tuning changed.

    Raises, when the engine asks for the network:
        WeightsUnavailableError: They are gone, damaged, or of another network.
        StaleFeaturesError: They do not make the network that the run's head is for.
    """
    record, folder = run.record[_FINETUNED], run.path / _FINETUNED
    expected = record["backbone_sha256"]

    def build() -> Any:
        changed = weight_files.load(folder / f"{record['weights_sha256']}.h5")
        arrays = original.arrays() | {
            path.removeprefix(_BACKBONE): values
            for path, values in changed.items()
            if path.startswith(_BACKBONE)
        }
        received = {"backbone_sha256": weight_files.digest(arrays)}
        _require_equal({"backbone_sha256": expected}, received, f"in {str(folder)!r}")
        backbone.assign(original.network, arrays)
        return original.model

    return FrozenBackbone(
        build,
        name=original.name,
        image_size=original.image_size,
        pooling=original.pooling,
        dim=original.dim,
        weights_sha256=expected,
        converted=folder / expected,
    )


def _require_fit(run: Run, name: str, head: "Head", dim: int) -> None:
    """Refuse a head whose classes, temperature or arrays cannot be those of the run.

    Raises:
        RunError: Says what was expected and what it is.
    """
    misfit = _misfit(head, len(run.record["classes"]), dim)
    if misfit is not None:
        raise RunError(
            f"Expected the head {name!r} of {str(run.path)!r} to have {misfit[0]}. "
            f"Received: {misfit[1]}.",
            hint="Train it again with train-head --force.",
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
