"""What is checked and said before fine-tuning trains: that it starts at stage 2, and what it costs.

Called by ``finetune_command``.
"""

import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import stitch
from pipeline.calibration import probabilities
from pipeline.config import FinetuneOptions, TrainHeadOptions
from pipeline.errors import StaleFeaturesError
from pipeline.finetune import FineTuning
from pipeline.finetune_data import Origin
from pipeline.finetune_model import Surgery
from pipeline.finetune_steps import compile_forward
from pipeline.learning_curve import head_room
from pipeline.reporting import Reporter
from pipeline.stage_two import features_of

# Probabilities may differ this much from those on stored features: engines differ by 1e-5 of the
# largest feature. Where numbers are kept or computed in 16 bits, by what these lose.
TOLERANCE: Final = stitch.TOLERANCE
HALF_TOLERANCE: Final = 5e-2


def check_network(
    options: FinetuneOptions, origin: Origin, surgery: Surgery, reporter: Reporter
) -> None:
    """Compare network and head, from images to probabilities, with the cached path.

    Raises:
        StaleFeaturesError: An image changed, or the network makes other features than the store's.
        RunError: The head is not the one that the run scored.
        PipelineError: The network as a whole disagrees with head and features.
    """
    allowed = _tolerance(options, origin)
    found = stitch.sample(origin.run, origin.store)
    reporter.say(f"Comparing the network with stored features on {len(found.paths)} images")
    forward, head = compile_forward(surgery.whole), origin.head
    stitch.check_features(found, lambda pixels: forward(pixels)[0], origin.store, allowed)
    stitch.check_head(origin.run, origin.store, origin.name, head)
    num_classes = len(origin.run.record["classes"])

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        scores = np.full((len(pixels), num_classes), -np.inf)
        scores[:, head.classes_] = forward(pixels)[1]
        return probabilities([scores], head.temperature_)

    expected = stitch.cached_probabilities(head, [found.features], num_classes)
    stitch.compare(found, expected, predict, "The network to fine-tune", allowed)


def check_start(options: FinetuneOptions, origin: Origin, training: FineTuning) -> float:
    """Compare what is about to be trained with the head on stored features, on all of val.

    Returns:
        The largest difference of a probability.

    Raises:
        StaleFeaturesError: They disagree.
    """
    rows = origin.rows("val")
    stored = probabilities([origin.head.scores(origin.store.read(origin.examples.keys[rows]))], 1.0)
    received = probabilities([training.logits(rows)], 1.0)
    differences = np.abs(stored - received).max(axis=1)
    worst = int(differences.argmax())
    allowed = _tolerance(options, origin)
    if not differences[worst] <= allowed:
        raise StaleFeaturesError(
            f"Expected fine-tuning to start at the answers of {origin.name} in "
            f"{str(origin.run.path)!r}. Received: probabilities that differ by "
            f"{differences[worst]:.1e} (allowed: {allowed:.0e}) for "
            f"{origin.examples.paths[rows[worst]]!r}.",
            hint="The features or the head are not of this network: extract and train again.",
        )
    return float(differences[worst])


def measure_head_room(origin: Origin) -> dict[str, Any]:
    """Tell whether more photos or better features are to gain by; see ``learning_curve``.

    Returns:
        What ``head_room`` does, and ``seconds``.
    """
    began = time.perf_counter()
    augment = tuple(origin.run.record["inputs"]["augment"] or ())
    data = features_of(origin.store, origin.examples, TrainHeadOptions(augment=augment))
    return {**head_room(origin.head, data), "seconds": time.perf_counter() - began}


def say_estimate(origin: Origin, seconds: float, epochs: int, reporter: Reporter) -> None:
    """Say what training costs and what there is to gain.

    Args:
        origin: Where fine-tuning starts.
        seconds: Of an epoch with its val.
        epochs: Most epochs that are left.
        reporter: Where it is said.
    """
    val = origin.run.record["heads"][origin.name]["val"]
    low, high = val["accuracy_ci95"]
    reporter.say(
        f"About {seconds:.1f} s an epoch, val included; at most {seconds * epochs:.0f} s for the "
        f"{epochs} left. "
        f"Stage 2 ({origin.name}): val accuracy {val['accuracy']:.4f} (95 % interval {low:.4f} to "
        f"{high:.4f}), so that {1 - val['accuracy']:.4f} is left to gain"
    )


def _tolerance(options: FinetuneOptions, origin: Origin) -> float:
    """Return what the start may differ by from stage 2's answers."""
    kinds = (options.precision, options.cache_precision, origin.store.identity["precision"])
    return TOLERANCE if set(kinds) == {"float32"} else HALF_TOLERANCE
