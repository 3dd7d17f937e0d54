"""What fine-tuning is to do with which rows: numbers, rates and class weights."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.finetune.batches import BatchSource

# The rate rises for one epoch, or for this share of all steps where that is less.
WARM_UP_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class FineTuningRecipe:
    """How the network is trained.

    Attributes:
        epochs: Most passes over train.
        batch_size: Images a step; the last of an epoch may have fewer.
        learning_rate: The learning rate after warm-up.
        seed: Seed of order and of layers that draw.
        patience: Epochs without a better val before stopping.
        precision: Arithmetic of training.
        is_tutorial: Whether to train as Keras' ``fit`` in the tutorial does: Adam at a constant
            rate, BatchNorm by batch, all epochs, the last weights.
        optimizer: ``adamw``, or ``adam`` without its weight decay.
        layer_decay: Rate of a block over that of the block above it.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    patience: int
    precision: str = "float32"
    is_tutorial: bool = False
    optimizer: str = "adamw"
    layer_decay: float = 1.0

    def rate(self, step: int, steps_an_epoch: int) -> float:
        """Return the rate of one step: linear warm-up, then half a cosine to zero.

        Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts; Goyal et al. 2017,
        "Accurate, Large Minibatch SGD", section 2.2, gradual warm-up.
        """
        if self.is_tutorial:
            return self.learning_rate
        total = self.epochs * steps_an_epoch
        warm = max(1, min(steps_an_epoch, math.ceil(WARM_UP_SHARE * total)))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """What is trained on and what is judged by.

    Attributes:
        source: Inputs by row number.
        y: Class numbers of all rows, ``(n,)``.
        classes: Class number of each logit, ascending.
        train: Rows of train.
        val: Rows of val.
        weights: Weight of each row of train, in the order of ``train``, float32.
    """

    source: BatchSource
    y: NDArray[np.int64]
    classes: NDArray[np.int64]
    train: NDArray[np.intp]
    val: NDArray[np.intp]
    weights: NDArray[np.float32]
