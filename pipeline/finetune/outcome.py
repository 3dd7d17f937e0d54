"""What fine-tuning leaves behind: two heads in a run, the changed weights, and a verdict.

The verdict comes last: a run that has one is complete.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import probe, weights
from pipeline.dataset.examples import Examples
from pipeline.dataset.features import SplitFeatures
from pipeline.engines import probing
from pipeline.engines.encoder import Encoder
from pipeline.finetune.origin import Origin
from pipeline.finetune.surgery import Surgery
from pipeline.runs import backbone as run_backbone
from pipeline.runs import metrics
from pipeline.runs.checkpoint import Progress
from pipeline.runs.record import Score
from pipeline.runs.run import FINETUNED, FittedHead, Run
from pipeline.runs.scored_rows import scored_rows
from pipeline.runs.scoring import ChosenHead, score_head
from pipeline.system.keras_setup import KerasModel

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.dense import DenseHead


# What a run says of training that has ended.
_TRAINED: Final = ("weights_sha256", "backbone_sha256", "layer", "boundary", "start_difference",
                   "estimated_seconds_per_epoch", "kept_epoch", "stopped", "epochs")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training brought.

    Attributes:
        features: Of the trained network, of every row, float32 ``(n, dim)``.
        classes: Class number of each logit.
        mean: What the head's frozen scaler subtracts, float64 ``(dim,)``.
        scale: What it divides by, float64 ``(dim,)``.
        dropout: Share of the head's hidden units that training dropped.
        params: How the head was trained, as parameters of a dense head.
        progress: Losses by epoch, and which epoch is kept.
        estimated_seconds: Of an epoch with its val, before training; None where none was left.
        start_difference: Largest difference of a probability at the start; None without a check.
        reject_below: Probability below which no answer is given.
        encoder: The trained network.
    """

    features: NDArray[np.float32]
    classes: NDArray[np.int64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    dropout: float
    params: Mapping[str, Any]
    progress: Progress
    estimated_seconds: float | None
    start_difference: float | None
    reject_below: float
    encoder: Encoder


def record_outcome(
    run: Run,
    name: str,
    outcome: Outcome,
    origin: Origin,
    original: Mapping[str, NDArray[np.float32]],
    surgery: Surgery,
) -> None:
    """Save the changed weights and both heads, and compare these.

    Args:
        run: The run to write into.
        name: What the trained head is called.
        outcome: What training brought.
        origin: Where it started.
        original: Weights of the backbone before training, by variable path.
        surgery: The trained network.
    """
    folder = run.path / FINETUNED
    weights_sha256, backbone_sha256 = _save_weights(folder, original, surgery)
    identity = run_backbone.finetuned_identity(origin.store.identity, backbone_sha256)
    probe.keep(folder, probing.make(outcome.encoder, identity))
    # What is to gain was recorded before training.
    trained = run.record.finetuned().naming(*_TRAINED)
    trained = replace(
        trained,
        weights_sha256=weights_sha256,
        backbone_sha256=backbone_sha256,
        layer=surgery.cut.layer,
        boundary=surgery.cut.below or None,
        start_difference=outcome.start_difference,
        estimated_seconds_per_epoch=outcome.estimated_seconds,
        kept_epoch=outcome.progress.best_epoch,
        stopped=outcome.progress.stopped or None,
        epochs=outcome.progress.epochs,
    )
    run.record = replace(run.record, finetune=trained)
    kept = origin.run.record.heads[origin.name].without("not_saved")
    before = FittedHead(origin.head, origin.run.probabilities(origin.name), kept)
    run.add_head(origin.name, before)
    run.add_head(name, _scored(outcome, origin.examples, surgery))
    found = verdict(run, name, origin.name)
    run.write_predictions()
    # Last: by its verdict a run is known to be finished. Where the start was kept, the two heads
    # differ by rounding alone.
    trained = replace(trained, verdict=found)
    run.record = replace(run.record, finetune=trained, best=str(found["recommended"]))
    run.save_record()


def verdict(run: Run, name: str, other: str) -> dict[str, object]:
    """Return whether fine-tuning was worth it: by val, and paired on the test images (McNemar).

    It was where log loss on val fell by more than chance: the epoch that is kept is the best on
    val, and among ten epochs one is better on few images even where nothing was learnt.
    """
    manifest, classes = run.manifest(), run.record.classes
    test, val = (scored_rows(manifest, classes, split) for split in ("test", "val"))
    after, before = run.probabilities(name), run.probabilities(other)
    first, second = (
        probabilities[test.places].argmax(axis=1) == test.y for probabilities in (after, before)
    )
    compared = metrics.compared(
        int((first & ~second).sum()), int((second & ~first).sum()), len(test.y)
    )
    gain, interval = metrics.log_loss_gain(val.y, before[val.places], after[val.places])
    scores = {head: run.record.heads[head].val for head in (name, other)}
    is_moved = (run.record.finetuned().kept_epoch or 0) > 0
    if not is_moved:  # What is left is rounding.
        gain, interval = 0.0, (0.0, 0.0)
    is_better = interval[0] > 0
    return {
        "recommended": name if is_better else other,
        "is_better_on_val": is_better,
        "val_accuracy": {head: scores[head].accuracy for head in scores},
        "val_log_loss_gain": gain,
        "val_log_loss_gain_ci95": list(interval),
        **compared,
        "text": _in_words(scores[other], scores[name], gain, is_better, (name, other)),
    }


def _in_words(
    before: Score, after: Score, gain: float, is_better: bool, names: tuple[str, str]
) -> str:
    """Say whether fine-tuning helped on val, and which head to use."""
    old, new = (f"{100 * (scores.accuracy or 0.0):.1f} %" for scores in (before, after))
    found = f"{new} on val before and after" if old == new else f"{new} on val instead of {old}"
    if gain > 0 or old != new:
        found += f", log loss {after.log_loss or 0:.4f} instead of {before.log_loss or 0:.4f}"
    if is_better:
        return f"Fine-tuning helped: {found}. Use {names[0]}."
    if gain > 0:
        return (
            f"Fine-tuning may have helped: {found}, "
            f"which {after.n} images cannot tell from chance. Keep {names[1]}."
        )
    return f"Fine-tuning did not help: {found}. Keep {names[1]}."


def _scored(outcome: Outcome, examples: Examples, surgery: Surgery) -> FittedHead:
    """Score the trained head on features of the trained network, as stage 2 scores its heads."""
    head = _as_dense(surgery.head, outcome)
    data = SplitFeatures.of(examples, outcome.features)
    seconds = sum(row["seconds"] for row in outcome.progress.epochs)
    chosen = ChosenHead(head, data.scores(head, "val"), data.part("val")[1], seconds)
    return score_head(chosen, data, reject_below=outcome.reject_below)


def _as_dense(network: KerasModel, outcome: Outcome) -> "DenseHead":
    """Return the head's layers as a dense head, which predicts and is saved without Keras."""
    from pipeline.heads.dense import DenseHead

    arrays = [np.asarray(value) for layer in network.layers for value in layer.get_weights()]
    widths = tuple(bias.shape[0] for bias in arrays[1:-1:2])
    head = DenseHead(hidden=widths, dropout=outcome.dropout, **outcome.params)
    head.classes_, head.n_features_in_ = outcome.classes, outcome.features.shape[1]
    head.mean_, head.scale_, head.weights_ = outcome.mean, outcome.scale, arrays
    head.notes_ = (f"finetune: {outcome.progress.stopped}",) if outcome.progress.stopped else ()
    return head


def _save_weights(
    folder: Path, original: Mapping[str, NDArray[np.float32]], surgery: Surgery
) -> tuple[str, str]:
    """Save the backbone's variables that changed, and the head's, under their digest.

    Returns:
        That digest, and the digest of the whole backbone.
    """
    now = surgery.loaded.arrays()
    arrays = {
        f"backbone/{path}": value
        for path, value in now.items()
        if not np.array_equal(value, original[path])
    }
    for layer in surgery.head.layers:
        for variable, value in zip(layer.weights, layer.get_weights(), strict=True):
            arrays[f"head/{layer.name}/{variable.name}"] = value
    digest = weights.digest(arrays)
    weights.save(folder / f"{digest}.h5", arrays)
    return digest, weights.digest(now)
