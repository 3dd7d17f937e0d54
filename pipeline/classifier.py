"""The classifier: encoder, head, temperature and class names, from image files to labels.

Made from a run, without pickle; decodes and encodes as stage 1 did. Called by ``predict_command``
and by users of the library, as ``pipeline.Classifier``.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import backbone, engines, heads, machine, views
from pipeline.backbone import Backbone, FrozenBackbone
from pipeline.calibration import probabilities
from pipeline.config import ExtractOptions, PredictOptions, default_of, unknown_name
from pipeline.doctor import Clock
from pipeline.encoder import Encoder, Features
from pipeline.encoding_queue import EncodingQueue, Row
from pipeline.errors import (
    ConfigError,
    DecodeError,
    PipelineError,
    RunError,
    StaleFeaturesError,
    WeightsUnavailableError,
)
from pipeline.extract import ReadFile, _in_threads, _read_bytes
from pipeline.keras_file import SUFFIX
from pipeline.reporting import Bar, Silence
from pipeline.run import Run
from pipeline.store import Store
from pipeline.views import PLAIN
from pipeline.weights import KEYWORDS

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

NO_ANSWER: Final = ""

# What the name of a network from a file begins with, in an identity.
_FROM_FILE: Final = "keras-file:"
_SILENCE: Final = Silence()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one image shows.

    Attributes:
        path: The image file, as it was given.
        label: The most probable class; ``NO_ANSWER`` below the run's ``--reject-below``.
        probability: Probability of the most probable class.
        top: The most probable classes with their probabilities, highest first.
    """

    path: str
    label: str
    probability: float
    top: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Predictions:
    """What became of some files; each is in one of the lists, in the order given.

    Attributes:
        predictions: The good images.
        errors: The others, each with its ``path`` and the ``reason``.
    """

    predictions: list[Prediction]
    errors: list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """Classify image files with a head of a run; made by ``load``.

    Attributes:
        encoder: The backbone on its engine.
        head: The fitted head, with its temperature.
        name: Name of the head.
        classes: Class names of the run; the head's class numbers are places in it.
        image_size: Side of the encoder's input in pixels.
        average: Views to average probabilities over, beside the image as it is.
        reject_below: Probability below which no answer is given.
        workers: Decoding threads.

    Example:
        found = Classifier.load("runs/photos").predict(["a.jpg", "b.jpg"], top=3)
        found.predictions[0].label
    """

    encoder: Encoder
    head: "Head"
    name: str
    classes: Sequence[str]
    image_size: int
    average: Sequence[str] = ()
    reject_below: float = 0.0
    workers: int = field(default_factory=machine.processors)

    @classmethod
    def load(
        cls,
        run: str | Path,
        head: str | None = None,
        *,
        weights: str | None = default_of(PredictOptions, "weights"),
        engine: str = default_of(PredictOptions, "engine"),
        batch_size: int = default_of(PredictOptions, "batch_size"),
        workers: int | None = default_of(PredictOptions, "workers"),
    ) -> Self:
        """Load a head of a run and the backbone that its features came from.

        No code is taken from the run or the store, and Keras is not imported where the store
        keeps the network in the engine's own form.

        Args:
            run: The run directory.
            head: Name of the head; the run's best by default.
            weights: Where the backbone's weights are, if the run's store lacks them: as for
                ``extract``, or the ``.keras`` file of a network that is in no table. Their digest
                must be the run's, wherever they come from.
            engine: What runs the backbone.
            batch_size: Images per call of the backbone.
            workers: Decoding threads; as many as processors by default.

        Raises:
            RunError: There is no run, it has no heads, or the head cannot be used.
            ConfigError: The head or the engine is unknown, or another engine made the features.
            StoreError: The run or its store is of another version.
            StaleFeaturesError: The weights or the store are others than those of the run.
            WeightsUnavailableError: The weights are nowhere.
            EngineUnavailableError: The engine is not installed.
        """
        opened = Run.open(Path(run))
        name = _head_name(opened, head)
        inputs = _inputs(opened)
        identity, average = inputs["identity"], inputs.get("average") or ()
        engine = _engine(identity, engine)
        fitted = heads.load(opened.path / "heads" / name)
        network = _network(Path(inputs["store"]), identity, average, weights)
        _require_fit(opened, name, fitted, network.dim)
        return cls(
            encoder=engines.create(
                engine, network, batch_size=batch_size, precision=identity["precision"]
            ),
            head=fitted,
            name=name,
            classes=tuple(opened.record["classes"]),
            image_size=identity["image_size"],
            average=tuple(average),
            reject_below=inputs.get("reject_below") or 0.0,
            workers=workers or machine.processors(),
        )

    @property
    def views(self) -> tuple[str, ...]:
        """What the encoder is given of an image: the image as it is, then other views."""
        return (PLAIN, *self.average)

    def predict(
        self, paths: Sequence[str | Path], top: int = 1, *, bar: Bar = _SILENCE
    ) -> Predictions:
        """Classify image files; decoding and encoding overlap, and memory stays bounded.

        Args:
            paths: The files.
            top: Classes to list for each image; all of them if there are fewer.
            bar: Progress, one step a file.

        Raises:
            ConfigError: ``top`` is less than one.
            PipelineError: The network gives features that are not finite.
        """
        if top < 1:
            raise ConfigError(f"--top: expected 1 or more. Received: {top}.")
        names = [str(path) for path in paths]
        scoring = _Scoring(self, names, top)
        errors: list[dict[str, str]] = []
        with EncodingQueue(self.encoder, deliver=scoring.deliver, clock=Clock()) as queue:
            read = _in_threads(self._read, names, self.workers)
            for index, (name, future) in enumerate(read):
                if not future.done():
                    queue.drain()
                    wait([future])
                file = future.result()
                if file.reason:
                    errors.append({"path": name, "reason": file.reason})
                else:
                    for view in self.views:
                        queue.add(Row(index, file.key, view, file.pixels[view]))
                bar.advance(skipped=len(errors))
        return Predictions(scoring.predictions, errors)

    def _read(self, path: str) -> ReadFile:
        try:
            data, _ = _read_bytes(Path(path))
            key = hashlib.sha256(data).hexdigest()
            pixels = views.pixels(data, key, self.views, self.image_size)
            return ReadFile(key, pixels=pixels)
        except DecodeError as error:
            return ReadFile(reason=str(error))


class _Scoring:
    """Turn features, as they are delivered, into predictions.

    Attributes:
        predictions: Those made so far, in the order of the rows.
    """

    def __init__(self, classifier: Classifier, paths: Sequence[str], top: int) -> None:
        self.predictions: list[Prediction] = []
        self._classifier = classifier
        self._paths = paths
        self._top = top
        # Of an image of which some views are still to come.
        self._indices: list[int] = []
        self._scores = np.empty((0, len(classifier.classes)))

    def deliver(self, rows: Sequence[Row], features: Features) -> None:
        """Take the features of some rows; the views of an image are neighbours."""
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            path = self._paths[rows[int(np.argmin(finite))].index]
            raise PipelineError(
                f"Expected finite features. Received: infinity or not-a-number for {path!r}.",
                hint="The weights are unusable for images; train on others.",
            )
        # Pixels are let go: an image whose last view is in the next batch keeps its index alone.
        self._indices += [row.index for row in rows]
        self._scores = np.concatenate([self._scores, self._scored(features)])
        width = len(self._classifier.views)
        done = len(self._indices) // width * width
        by_view = [self._scores[view:done:width] for view in range(width)]
        found = probabilities(by_view, self._classifier.head.temperature_)
        for index, row in zip(self._indices[:done:width], found, strict=True):
            self.predictions.append(self._prediction(self._paths[index], row))
        del self._indices[:done]
        self._scores = self._scores[done:]

    def _scored(self, features: Features) -> NDArray[np.float64]:
        """Return scores of all classes; one that train lacked cannot be."""
        head = self._classifier.head
        scores = np.full((len(features), len(self._classifier.classes)), -np.inf)
        scores[:, head.classes_] = head.scores(features)
        return scores

    def _prediction(self, path: str, found: NDArray[np.float64]) -> Prediction:
        # Stable, so that of equal classes the first is taken, as argmax does.
        order = np.argsort(-found, kind="stable")[: self._top]
        top = [(self._classifier.classes[place], float(found[place])) for place in order]
        label, probability = top[0]
        answers = probability >= self._classifier.reject_below
        return Prediction(path, label if answers else NO_ANSWER, probability, top)


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
    made = store.record["provenance"] if store is not None else {}
    kept = store.encoder_path(expected) if store is not None else path
    saved = kept if kept.is_file() else None
    source = weights or made.get("weights")
    if name.startswith(_FROM_FILE):
        name, preprocessing = _network_file(identity, weights), identity["preprocessing"]
        source, saved = default_of(ExtractOptions, "weights"), None
    elif saved is None and weights is None and source not in KEYWORDS:
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
