"""The classifier: encoder, head, temperature and class names, from image files to labels.

Made from a run, without pickle; decodes and encodes as stage 1 did. Programs know it as
``pipeline.Classifier``.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import engines
from pipeline.config.fields import expanded
from pipeline.config.options import default_of
from pipeline.config.serving import EvaluateOptions, PredictOptions
from pipeline.engines import probing
from pipeline.engines.clock import Clock
from pipeline.engines.encoder import Encoder, Features
from pipeline.engines.queue import EncodingQueue, EncodingRow, require_finite
from pipeline.errors import ConfigError, DecodeError
from pipeline.files import places
from pipeline.files.location import locate
from pipeline.heads.calibration import probabilities
from pipeline.images import reading, reading_processes
from pipeline.images.reading import ReadFile
from pipeline.images.views import PLAIN
from pipeline.serving import trained_head
from pipeline.serving.inputs import ImageInput, listed
from pipeline.system import machine
from pipeline.system.progress import SILENCE, Bar, Reporter

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

NO_ANSWER: Final = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one image shows.

    Attributes:
        path: The image file, as it was given; of pixels and bytes, their place, such as ``[0]``.
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


@dataclass(frozen=True, slots=True)
class LoadedFrom:
    """The arguments of ``Classifier.load``, with which another process loads the same."""

    run: str
    head: str | None
    weights: str | None
    engine: str
    batch_size: int
    workers: int | None
    store: str | None

    def from_anywhere(self) -> Self:
        """Return the same for a process that may be in another folder."""
        is_file = self.weights is not None and Path(self.weights).exists()
        return replace(
            self,
            run=str(Path(self.run).absolute()),
            weights=str(Path(str(self.weights)).absolute()) if is_file else self.weights,
            store=None if self.store is None else places.absolute(locate(self.store)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """Classify images with a head of a run; made by ``load``.

    Any number of threads may use one. A process that was forked after it was loaded gets an error;
    it can be pickled, and the process that unpickles it loads the run again.

    Attributes:
        encoder: The backbone on its engine.
        head: The fitted head, with its temperature.
        name: Name of the head.
        classes: Class names of the run; the head's class numbers are places in it.
        image_size: Side of the encoder's input in pixels.
        resize: How an image of another shape becomes a square: ``squash``, ``crop`` or ``pad``.
        average: Views to average probabilities over, beside the image as it is.
        reject_below: Probability below which no answer is given.
        workers: Reading threads.
        loaded_from: What it was loaded from.
        notes: What changed of decoder or network since training, without consequence.

    Example:
        classifier = Classifier.load("runs/photos")
        classifier.predict("a.jpg").predictions[0].label
        classifier.predict(["a.jpg", "b.jpg"], top=3)
    """

    encoder: Encoder
    head: "Head"
    name: str
    classes: Sequence[str]
    image_size: int
    resize: str
    average: Sequence[str] = ()
    reject_below: float = 0.0
    workers: int = field(default_factory=machine.processors)
    loaded_from: LoadedFrom | None = None
    notes: Sequence[str] = ()

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        if self.loaded_from is None:
            raise TypeError(
                "Expected a Classifier that load made: only the run that it came from is pickled."
            )
        return _loaded_again, (type(self), asdict(self.loaded_from))

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
        store: str | None = default_of(PredictOptions, "store"),
    ) -> Self:
        """Load a head of a run and the backbone that its features came from.

        Nothing in a run, a store or a folder is executed, and Keras is not imported where the store
        keeps the network in the engine's own form.

        Args:
            run: The run directory, or a folder of ``export --format folder``.
            head: Name of the head; the run's best by default.
            weights: Where the backbone's weights are, if the run's store lacks them, as for
                ``extract``. Their digest must be the run's.
            engine: What runs the backbone.
            batch_size: Images per call of the backbone.
            workers: Reading threads; by default as many as processors, or 16 times as many where
                images are at addresses.
            store: Where the run's store is, if it is no longer where the run was made from it.

        Raises:
            RunError: There is no run, it has no heads, or the head cannot be used.
            ConfigError: The head or the engine is unknown, or another engine made the features.
            StoreError: The run or its store is of another version.
            StaleFeaturesError: The weights or the store are others than those of the run, or
                decoder or network make other features than they did.
            WeightsUnavailableError: The weights are nowhere.
            EngineUnavailableError: The engine is not installed.
        """
        run = expanded(run)
        weights, store = (None if path is None else expanded(path) for path in (weights, store))
        origin = LoadedFrom(run, head, weights, engine, batch_size, workers, store)
        found = trained_head.load(Path(run), head, weights=weights, engine=engine, store=store)
        encoder = engines.create(
            found.engine,
            found.network,
            batch_size=batch_size,
            precision=found.identity.precision,
        )
        return cls(
            loaded_from=origin.from_anywhere(),
            notes=probing.check(encoder, found.network.probe),
            encoder=encoder,
            head=found.head,
            name=found.name,
            classes=found.classes,
            image_size=found.identity.image_size,
            resize=found.identity.resize,
            average=found.average,
            reject_below=found.reject_below,
            workers=workers or machine.processors(),
        )

    @classmethod
    def of(cls, options: PredictOptions | EvaluateOptions, reporter: Reporter) -> Self:
        """Load what the options of a command ask for, and say its notes; see ``load``."""
        found = cls.load(
            options.run,
            options.head,
            weights=options.weights,
            engine=options.engine,
            batch_size=options.batch_size,
            workers=options.workers,
            store=options.store,
        )
        for note in found.notes:
            reporter.say(note)
        return found

    @property
    def views(self) -> tuple[str, ...]:
        """What the encoder is given of an image: the image as it is, then other views."""
        return (PLAIN, *self.average)

    def predict(self, images: object, top: int = 1, *, bar: Bar = SILENCE) -> Predictions:
        """Classify images; decoding and encoding overlap, and memory stays bounded.

        Args:
            images: One image or several: paths, bytes of image files, PIL images, or uint8 arrays
                of shape ``(H, W, 3)`` or ``(H, W)``.
            top: Classes to list for each image; all of them if there are fewer.
            bar: Progress, one step an image.

        Raises:
            ImageTypeError: Something else was given; nothing is classified.
            ConfigError: ``top`` is less than one.
            PipelineError: The network gives features that are not finite, or the process was
                forked after this was loaded.
        """
        if top < 1:
            raise ConfigError(f"--top: expected 1 or more. Received: {top}.")
        inputs = listed(images)
        predictions: list[Prediction] = []

        def keep(place: int, key: str, found: NDArray[np.float64]) -> None:
            predictions.append(self._prediction(inputs[place].name, found, top))

        return Predictions(predictions, self.classify(inputs, keep, bar=bar))

    def predict_proba(self, images: object) -> NDArray[np.float64]:
        """Return probabilities, float64 ``(n, classes)``, in the order of ``classes``.

        Args:
            images: As for ``predict``.

        Raises:
            DecodeError: An image is bad; nothing stands in for it.
            ImageTypeError: Something else was given.
            PipelineError: The network gives features that are not finite, or the process was
                forked after this was loaded.
        """
        inputs = listed(images)
        out = np.full((len(inputs), len(self.classes)), np.nan)

        def keep(place: int, key: str, found: NDArray[np.float64]) -> None:
            out[place] = found

        bad = self.classify(inputs, keep)
        if bad:
            raise DecodeError(
                f"Expected images that can be decoded. Received {len(bad):,} that cannot; the "
                f"first, {bad[0]['path']!r}: {bad[0]['reason']}.",
                hint="Leave them out, or use predict, which lists them.",
            )
        return out

    def classify(
        self, inputs: Sequence[ImageInput], keep: "Keep", *, bar: Bar = SILENCE
    ) -> list[dict[str, str]]:
        """Hand on the probabilities of each good image, in order; return the bad ones.

        Args:
            inputs: The images.
            keep: Takes the place of an image, the key of its bytes, and float64 ``(classes,)``.
            bar: Progress, one step per image.

        Returns:
            The bad images, each with its ``path`` and the ``reason``.

        Raises:
            PipelineError: See ``predict``.
        """
        names = [image.name for image in inputs]
        scoring = _Scoring(self, names, keep)
        errors: list[dict[str, str]] = []
        workers, pixels = self._num_threads(inputs), 3 * self.image_size**2 * len(self.views)
        with (
            EncodingQueue(self.encoder, deliver=scoring.deliver, clock=Clock()) as queue,
            reading_processes.readers(workers, images=len(inputs), pixels=pixels) as readers,
        ):

            def late(future: Future[list[ReadFile]]) -> None:
                queue.drain()
                wait([future])

            images = enumerate(image.read for image in inputs)
            read = readers.read(
                images, lambda key: self.views, self.image_size, self.resize, late=late
            )
            with closing(read) as files:
                for index, file in files:
                    if file.reason:
                        errors.append({"path": names[index], "reason": file.reason})
                    else:
                        for view in self.views:
                            queue.add(EncodingRow(index, file.key, view, file.pixels[view]))
                    bar.advance(skipped=len(errors))
        return errors

    def _num_threads(self, inputs: Sequence[ImageInput]) -> int:
        """Return how many threads are to read; more of what is waited for, unless chosen."""
        is_chosen = self.loaded_from is None or self.loaded_from.workers is not None
        if is_chosen or not any(image.is_remote for image in inputs):
            return self.workers
        return reading.num_waiting_threads()

    def _prediction(self, name: str, found: NDArray[np.float64], top: int) -> Prediction:
        # Stable, so that of equal classes the first is taken, as argmax does.
        order = np.argsort(-found, kind="stable")[:top]
        listed = [(self.classes[place], float(found[place])) for place in order]
        label, probability = listed[0]
        answers = probability >= self.reject_below
        return Prediction(name, label if answers else NO_ANSWER, probability, listed)


Keep = Callable[[int, str, NDArray[np.float64]], None]


def _loaded_again(kind: type[Classifier], arguments: dict[str, Any]) -> Classifier:
    return kind.load(**arguments)


class _Scoring:
    """Turn features, as they are delivered, into probabilities, handed on in order of the rows."""

    def __init__(self, classifier: Classifier, paths: Sequence[str], keep: Keep) -> None:
        self._classifier = classifier
        self._paths = paths
        self._keep = keep
        # Place and key of an image of which some views are still to come.
        self._images: list[tuple[int, str]] = []
        self._scores = np.empty((0, len(classifier.classes)))

    def deliver(self, rows: Sequence[EncodingRow], features: Features) -> None:
        """Take the features of some rows; the views of an image are neighbours."""
        require_finite(rows, features, self._paths, remedy="train on others")
        # Pixels are let go: an image whose last view is in the next batch keeps this alone.
        self._images += [(row.index, row.key) for row in rows]
        self._scores = np.concatenate([self._scores, self._scored(features)])
        width = len(self._classifier.views)
        done = len(self._images) // width * width
        by_view = [self._scores[view:done:width] for view in range(width)]
        found = probabilities(by_view, self._classifier.head.temperature_)
        for (index, key), row in zip(self._images[:done:width], found, strict=True):
            self._keep(index, key, row)
        del self._images[:done]
        self._scores = self._scores[done:]

    def _scored(self, features: Features) -> NDArray[np.float64]:
        """Return scores of all classes; one that train lacked cannot be."""
        head = self._classifier.head
        scores = np.full((len(features), len(self._classifier.classes)), -np.inf)
        scores[:, head.classes_] = head.scores(features)
        return scores
