"""What is checked and said before fine-tuning trains: that it starts at stage 2, and what it costs.

A network that does not give stage 2's answers is refused here, before a run is made or replaced.
"""

import math
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config.options import FinetuneOptions, TrainHeadOptions
from pipeline.dataset.features import features_of
from pipeline.dataset.room import Room
from pipeline.engines import probing
from pipeline.errors import EngineUnavailableError, StaleFeaturesError
from pipeline.finetune.cut import all_layers
from pipeline.finetune.origin import Origin
from pipeline.finetune.steps import compile_forward
from pipeline.finetune.surgery import Surgery
from pipeline.finetune.training import FineTuning
from pipeline.heads.calibration import probabilities
from pipeline.runs import stitch
from pipeline.runs.learning_curve import head_room
from pipeline.system.keras_setup import ONEDNN, import_keras, trains_with_onednn
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

# Probabilities may differ this much from those on stored features: engines differ by 1e-5 of the
# largest feature. Where numbers are kept or computed in 16 bits, by what these lose.
TOLERANCE: Final = stitch.TOLERANCE
HALF_TOLERANCE: Final = 5e-2
# Share of val whose answer may be another than stage 2's in 16 bits, beside ties. ResNet50 with
# random weights gave the same one for 92.5 to 100 % of 240 images (bfloat16 or float16, from conv5
# or all, random heads of 2 to 1,000 classes); a head whose classes are in another order gives few.
HALF_OTHERS: Final = 0.1
# Numbers in a vector register of AVX-512; fewer are in those of other processors.
ONEDNN_BLOCK: Final = 16


def check_gradients(surgery: Surgery) -> None:
    """Refuse to train what oneDNN cannot: it writes out of bounds, or gives wrong gradients.

    That happens for kernels of strided 1 x 1 convolutions with fewer input channels than a vector
    register holds (https://github.com/uxlfoundation/oneDNN/issues/6035).

    Raises:
        EngineUnavailableError: A trained layer is one of these, and TensorFlow would use oneDNN.
    """
    if not trains_with_onednn():
        return
    keras = import_keras()
    for layer in all_layers(surgery.loaded.network.layers[surgery.cut.first :]):
        if not isinstance(layer, keras.layers.Conv2D) or max(layer.strides) == 1:
            continue
        channels = int(layer.kernel.shape[2])
        if max(layer.kernel_size) == 1 and channels < ONEDNN_BLOCK:
            raise EngineUnavailableError(
                f"Expected layers that can be trained with oneDNN. Received: {layer.name}, a "
                f"strided 1 x 1 convolution of {counted(channels, 'channel')}, whose gradients "
                "oneDNN gets wrong.",
                hint=f"Set {ONEDNN}=0 for this command.",
            )


def check_network(
    options: FinetuneOptions, origin: Origin, surgery: Surgery, reporter: Reporter
) -> None:
    """Compare the network with the probe; network and head, to probabilities, with the cached path.

    A preset has a head of its own, so that the first alone can be compared.

    Raises:
        StaleFeaturesError: An image changed, or the network makes other features than the store's.
        RunError: The head is not the one that the run scored.
        PipelineError: The network as a whole disagrees with head and features.
    """
    allowed = _tolerance(options, origin)
    forward, head = compile_forward(surgery.whole), origin.head
    encoder = probing.ModelEncoder(lambda images: forward(images)[0], origin.store.dim)
    # Features of another precision differ by that, and by more on some networks than is allowed.
    is_same = options.precision == origin.store.identity.precision == "float32"
    for note in probing.check(encoder, origin.network.probe if is_same else None):
        reporter.say(note)
    if options.preset is not None:
        return
    found = stitch.sample(origin.run, origin.store)
    reporter.say(
        f"Comparing the network with stored features on {counted(len(found.paths), 'image')}"
    )
    stitch.check_features(found, encoder, origin.store, allowed)
    stitch.check_head(origin.run, origin.store, origin.name, head)
    num_classes = len(origin.run.record.classes)

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        scores = np.full((len(pixels), num_classes), -np.inf)
        scores[:, head.classes_] = forward(pixels)[1]
        return probabilities([scores], head.temperature_)

    expected = stitch.cached_probabilities(head, [found.features], num_classes)
    stitch.compare(found, expected, predict, "The network to fine-tune", allowed)


def check_start(options: FinetuneOptions, origin: Origin, training: FineTuning) -> float:
    """Compare what is about to be trained with the head on stored features, on all of val.

    Probabilities agree at the head's temperature, and so do answers, and with them the accuracy,
    but where two classes tie. Answers are compared too since those of many unsure classes are hard
    to tell apart by probabilities.

    Returns:
        The largest difference of a probability.

    Raises:
        StaleFeaturesError: They disagree.
    """
    rows, head = origin.rows("val"), origin.head
    scores = head.scores(origin.store.read(origin.examples.keys[rows]))
    stored = probabilities([scores], head.temperature_)
    received = probabilities([training.logits(rows)], head.temperature_)
    differences = np.abs(stored - received).max(axis=1)
    worst, allowed = int(differences.argmax()), _tolerance(options, origin)
    if not differences[worst] <= allowed:
        raise _other_start(
            origin,
            f"probabilities that differ by {differences[worst]:.1e} (allowed: {allowed:.0e}) for "
            f"{origin.examples.paths[rows[worst]]!r}",
        )
    others = np.flatnonzero(_answers_differ(stored, received))
    share = HALF_OTHERS if allowed > TOLERANCE else 0.0
    if len(others) > math.ceil(share * len(rows)):
        raise _other_start(
            origin,
            f"another answer for {len(others):,} of {len(rows):,} images of val (allowed: "
            f"{share:.0%}), beginning with {origin.examples.paths[rows[others[0]]]!r}",
        )
    return float(differences[worst])


def _answers_differ(
    stored: NDArray[np.floating], received: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Tell for which rows the most probable class is another one, and no tie.

    Two classes tie whose probabilities differ by less than the tolerance of the larger one: by a
    share, since with many classes all probabilities are small.
    """
    answer = received.argmax(axis=1)[:, None]
    highest = stored.max(axis=1)
    behind = highest - np.take_along_axis(stored, answer, axis=1)[:, 0]
    differ: NDArray[np.bool_] = behind >= TOLERANCE * highest
    return differ


def _other_start(origin: Origin, received: str) -> StaleFeaturesError:
    return StaleFeaturesError(
        f"Expected fine-tuning to start at the answers of {origin.name} in "
        f"{str(origin.run.path)!r}. Received: {received}.",
        hint="The features or the head are not of this network: extract and train again.",
    )


def measure_head_room(origin: Origin) -> dict[str, object]:
    """Tell whether more photos or better features are to gain by; see ``learning_curve``.

    Returns:
        What ``head_room`` does, and ``seconds``.
    """
    began = time.perf_counter()
    options = TrainHeadOptions(augment=tuple(origin.run.inputs.augment or ()))
    room = Room({origin.name: origin.head}, origin.examples, origin.store.dim, options)
    data = features_of(origin.store, origin.examples, options, in_memory=room.for_features())
    return {**head_room(origin.head, data), "seconds": time.perf_counter() - began}


def say_estimate(origin: Origin, seconds: float, epochs: int, reporter: Reporter) -> None:
    """Say what training costs and what there is to gain.

    Args:
        origin: Where fine-tuning starts.
        seconds: Of an epoch with its val.
        epochs: Most epochs that are left.
        reporter: Where it is said.
    """
    val = origin.run.record.heads[origin.name].val
    accuracy, (low, high) = val.accuracy or 0.0, val.accuracy_ci95 or (0.0, 1.0)
    reporter.say(
        f"Stage 2 ({origin.name}): val accuracy {accuracy:.4f} (95 % interval {low:.4f} to "
        f"{high:.4f})"
    )
    reporter.say(
        f"About {seconds:.1f} s per epoch, val included; at most {seconds * epochs:.0f} s for the "
        f"{epochs} left"
    )


def _tolerance(options: FinetuneOptions, origin: Origin) -> float:
    """Return what the start may differ by from stage 2's answers."""
    kinds = (options.precision, options.cache_precision, origin.store.identity.precision)
    return TOLERANCE if set(kinds) == {"float32"} else HALF_TOLERANCE
