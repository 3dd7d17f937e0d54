"""The stitch check: an assembled model against the cached path, on images of the data.

The most reported fault of cached features is a head that disagrees with the whole network:
another preprocessing, another order of classes, BatchNorm in training mode. ``export`` runs images
end to end and compares, before and after it writes; ``finetune`` does so before it trains.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.features import SplitFeatures
from pipeline.engines.encoder import drift
from pipeline.errors import (
    DecodeError,
    PipelineError,
    RunError,
    StaleFeaturesError,
    UnreadableImageError,
)
from pipeline.files.location import Location
from pipeline.heads.calibration import probabilities
from pipeline.images import decoder, reading
from pipeline.images.manifest import Manifest
from pipeline.images.reading import Content
from pipeline.runs.run import Run
from pipeline.runs.scored_rows import scored_rows
from pipeline.store.store import Store
from pipeline.system.keras_setup import KerasModel, import_keras

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

IMAGES: Final = 32
# Of probabilities, and of features relative to their largest value, as stage 1 allows engines.
# Engines differ by 1e-5 of the largest feature; another preprocessing by more than 1e-1.
TOLERANCE: Final = 1e-3
# Of the same computation on the same features, on another machine.
HEAD_TOLERANCE: Final = 1e-4
# Test rows on which a head is compared with what its run recorded.
HEAD_ROWS: Final = 1024
# Held-out images first; a run records probabilities of these alone.
SPLITS: Final = ("test", "val", "train")
HELD_OUT: Final = SPLITS[:2]
BATCH: Final = 8

Predict = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class Sample:
    """Images of a run with their stored features.

    Attributes:
        rows: Their rows in the run's manifest, ``(n,)``.
        paths: Where the images are.
        pixels: Decoded now, uint8 ``(n, S, S, 3)``.
        features: From the store, float32 ``(n, dim)``.
        unreadable: Images that are gone, in whose place others were taken.
    """

    rows: NDArray[np.intp]
    paths: Sequence[Location]
    pixels: NDArray[np.uint8]
    features: NDArray[np.float32]
    unreadable: Sequence[Location]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well a model agrees with the cached path.

    Attributes:
        n: Images compared.
        max_difference: Largest difference of a probability.
        same_argmax: Whether the most probable class is the same for all of them.
    """

    n: int
    max_difference: float
    same_argmax: bool


def sample(
    run: Run, store: Store, *, splits: Sequence[str] = SPLITS, count: int = IMAGES
) -> Sample:
    """Read images of a run, split by split, the classes in turn.

    Args:
        run: The run.
        store: The store of its features.
        splits: Where to take images from, held-out ones first.
        count: How many, if there are as many.

    Raises:
        StaleFeaturesError: An image is not what the features were made of; says which.
        RunError: Not one can be read; names the first.
    """
    rows = run.manifest()
    taken, pixels, unreadable = [], [], []
    for index in _in_turn(rows, splits):
        path = rows.file(index)
        try:
            content = reading.read(rows, index)
        except UnreadableImageError:
            unreadable.append(path)
            continue
        pixels.append(_decoded(path, content, rows.keys[index].decode(), store))
        taken.append(index)
        if len(taken) == count:
            break
    if not taken:
        raise RunError(
            f"Expected images of the run {str(run.path)!r} to check the model on. Received: not "
            f"one can be read, beginning with {str(unreadable[0])!r}.",
            hint="Put the images back, or extract from where they are and train again.",
        )
    return Sample(
        rows=np.array(taken),
        paths=[rows.file(index) for index in taken],
        pixels=np.stack(pixels),
        features=store.read(rows.keys[np.array(taken)]),
        unreadable=unreadable,
    )


def check_features(
    found: Sample, encode: Predict, store: Store, tolerance: float = TOLERANCE
) -> None:
    """Compare features made now with those of the store.

    Args:
        found: The images.
        encode: Makes features of images.
        store: Where the features are from.
        tolerance: What they may differ by, as a share of the largest one.

    Raises:
        StaleFeaturesError: They differ; names the image that differs most.
    """
    made = in_batches(encode, found.pixels)
    differences = drift(found.features, made)
    worst = int(_nan_as_infinity(differences).argmax())
    if not differences[worst] <= tolerance:
        raise StaleFeaturesError(
            f"The features differ: {str(found.paths[worst])!r} encoded now differs from its "
            f"features in the store {str(store.place)!r} by {differences[worst]:.1e} of the "
            f"largest value (allowed: {tolerance:.0e}). Nothing was written.",
            hint="Extract into another --store, or replace this one with --force; train again.",
        )


def check_head(run: Run, store: Store, name: str, head: "Head") -> None:
    """Compare a head with what its run recorded of it, on stored features of test.

    Raises:
        RunError: It is not the head that the run scored.
    """
    rows = run.manifest()
    # A refit changes test alone: the probabilities of val stay those of the head before.
    test = scored_rows(rows, run.record.classes, "test")
    recorded = run.probabilities(name)[test.places][:HEAD_ROWS]
    keys = rows.keys[test.rows][:HEAD_ROWS]
    views = [store.read(keys, view) for view in run.inputs.average or ()]
    found = cached_probabilities(head, [store.read(keys), *views], len(run.record.classes))
    fits = found.shape == recorded.shape
    difference = float(np.abs(found - recorded).max(initial=0)) if fits else np.inf
    if not difference <= HEAD_TOLERANCE:
        raise RunError(
            f"The head differs: {str(run.path / 'heads' / name)!r} is not the one that the run "
            f"scored; its probabilities differ from the recorded ones by {difference:.1e} "
            f"(allowed: {HEAD_TOLERANCE:.0e}). Nothing was written.",
            hint="Train it again with train-head --force.",
        )


def check_finetuned(
    found: Sample, encode: Predict, head: "Head", expected: NDArray[np.floating], run: Run
) -> None:
    """Compare a fine-tuned network with what its run recorded; its features are in no store.

    Args:
        found: The images, held out.
        encode: The fine-tuned backbone.
        head: The head that was trained with it.
        expected: What the run recorded of the images, ``(n, classes)``.
        run: The run of finetune.

    Raises:
        StaleFeaturesError: They differ; names the image that differs most.
    """
    received = cached_probabilities(head, [in_batches(encode, found.pixels)], expected.shape[1])
    differences = _nan_as_infinity(np.abs(received - expected).max(axis=1))
    worst = int(differences.argmax())
    if not differences[worst] <= TOLERANCE:
        raise StaleFeaturesError(
            f"The fine-tuned network differs: the probabilities of {str(found.paths[worst])!r} "
            f"are not those that {str(run.path)!r} recorded, by {differences[worst]:.1e} "
            f"(allowed: {TOLERANCE:.0e}). Nothing was written.",
            hint="Run finetune again with --force.",
        )


def compare(
    found: Sample,
    expected: NDArray[np.floating],
    predict: Predict,
    what: str,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Compare a model with the cached path: stored features, head, probabilities.

    Args:
        found: The images.
        expected: What the cached path gives for them, ``(n, classes)``.
        predict: The model, uint8 images to probabilities ``(n, classes)``.
        what: Name of the model in the message.
        tolerance: What probabilities may differ by; above ``TOLERANCE``, for numbers of 16 bits,
            classes that are about as probable may change places.

    Raises:
        PipelineError: A probability differs by more than that, or an argmax differs; names the
            image.
    """
    received = in_batches(predict, found.pixels)
    differences = _nan_as_infinity(np.abs(received - expected).max(axis=1))
    same = received.argmax(axis=1) == expected.argmax(axis=1)
    worst = int((differences + ~same).argmax())
    if differences[worst] > tolerance or not (same.all() or tolerance > TOLERANCE):
        raise PipelineError(
            f"{what} differs from the cached path: the probabilities of "
            f"{str(found.paths[worst])!r} by {differences[worst]:.1e} (allowed: {tolerance:.0e}), "
            f"the most probable class of {int((~same).sum())} of {len(same)} images. The images, "
            "their features and the head are as recorded. Nothing was written.",
            hint="Choose another --head or --format, and report this.",
        )
    return Agreement(len(same), float(differences.max()), bool(same.all()))


def recorded_probabilities(run: Run, name: str, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return what a run recorded of a head for held-out rows of its manifest, ``(n, classes)``."""
    is_scored = np.array(run.manifest().splits) != "train"
    place = np.cumsum(is_scored) - 1
    found: NDArray[np.float32] = run.probabilities(name)[place[rows]]
    return found


def cached_probabilities(
    head: "Head", views: Sequence[NDArray[np.float32]], num_classes: int
) -> NDArray[np.float64]:
    """Return a head's probabilities at its temperature, float64 ``(n, num_classes)``.

    Args:
        head: The fitted head; a class that it does not know has probability 0.
        views: Features ``(n, dim)`` of the images as they are, then of views to average over.
        num_classes: Classes of the run.
    """
    plain, *others = views
    count = len(plain)
    data = SplitFeatures(
        plain, np.zeros(count, np.int64), np.zeros(count, "S64"), {}, num_classes, average=others
    )
    return probabilities(data.scores_of(head, slice(None)), head.temperature_)


def in_batches(function: Predict, pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Apply a function to a few images at a time, ``(n, S, S, 3)`` to ``(n, k)``."""
    parts = range(0, len(pixels), BATCH)
    return np.concatenate([function(pixels[start : start + BATCH]) for start in parts])


def runner(model: KerasModel) -> Predict:
    """Return a Keras model as a function of NumPy arrays, in inference mode."""
    convert = import_keras().ops.convert_to_numpy
    return lambda pixels: np.asarray(convert(model(pixels, training=False)))


def _in_turn(rows: Manifest, splits: Sequence[str]) -> Iterator[int]:
    """Yield rows of distinct images, split by split; within each, classes take turns, by key."""
    seen: set[bytes] = set()
    for split in splits:
        by_label: dict[str, list[int]] = defaultdict(list)
        for index in np.argsort(rows.keys, kind="stable"):
            if rows.splits[index] == split:
                by_label[rows.labels[index]].append(int(index))
        turns: Iterable[tuple[int | None, ...]] = zip_longest(
            *(by_label[label] for label in sorted(by_label))
        )
        for index in chain.from_iterable(turns):
            if index is not None and rows.keys[index] not in seen:
                seen.add(rows.keys[index])
                yield index


def _decoded(path: Location, content: Content, key: str, store: Store) -> decoder.Pixels:
    """Decode an image, which must be the one that the features were made of."""
    if content.key != key:
        raise StaleFeaturesError(
            f"The image differs: {str(path)!r} has the key {key} in the run. "
            f"Received: {content.key}. Nothing was written.",
            hint="Put the image back, or extract again and train again.",
        )
    try:
        return decoder.decode(content.data, store.identity.image_size, store.identity.resize)
    except DecodeError as error:
        raise StaleFeaturesError(
            f"The image {str(path)!r} has stored features and cannot be decoded any more: {error}. "
            "Nothing was written.",
            hint="Install the decoder's libraries that extract had.",
        ) from error


def _nan_as_infinity(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.where(np.isnan(values), np.inf, values)
