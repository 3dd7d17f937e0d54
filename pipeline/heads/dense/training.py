"""Training dense heads: one or several in one pass over the features.

``batches`` says what each step takes, ``steps`` does it.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.heads.dense.batches import Planner, Recipe, Rows
from pipeline.heads.dense.steps import State, compiled
from pipeline.system.keras_setup import import_keras
from pipeline.system.randomness import RandomStream

Array = NDArray[np.float32]


class TrainedWeights(NamedTuple):
    """One trained head: its weights, and the mean loss of each epoch, ``(epochs,)``."""

    weights: list[Array]
    losses: NDArray[np.float64]


def initial_weights(recipe: Recipe, dim: int, num_classes: int) -> list[Array]:
    """Draw Glorot uniform kernels (Glorot and Bengio 2010); biases are zero."""
    generator = RandomStream.WEIGHTS.generator(recipe.seed)
    weights = []
    for fan_in, fan_out in pairwise((dim, *recipe.hidden, num_classes)):
        limit = np.sqrt(6 / (fan_in + fan_out))
        kernel = generator.uniform(-limit, limit, (fan_in, fan_out))
        weights += [kernel.astype(np.float32), np.zeros(fan_out, np.float32)]
    return weights


def train(
    recipes: Sequence[Recipe], rows: Rows, progress: Callable[[float], None] = lambda share: None
) -> list[TrainedWeights]:
    """Train heads in one pass.

    Args:
        recipes: One a head; they agree in what ``Recipe.shared`` returns.
        rows: What they are trained on.
        progress: Called after each epoch with the share of the whole that it was.

    Raises:
        PipelineError: A loss is not a number.
    """
    ops = import_keras().ops
    planner = Planner(recipes, rows)
    function = compiled(planner.shapes)
    state, losses = _initial_state(ops, recipes, rows), []
    for epoch in range(recipes[0].epochs):
        state = state._replace(losses=ops.zeros((len(recipes),), "float32"))
        for steps in planner.epoch(epoch):
            state = function(steps, state)
        losses.append(ops.convert_to_numpy(state.losses) / len(rows.numbers))
        _check(losses[-1], recipes, epoch)
        progress(1 / recipes[0].epochs)
    weights = [np.asarray(ops.convert_to_numpy(array)) for array in state.weights]
    return [
        TrainedWeights([array[..., head, :].copy() for array in weights], np.array(losses)[:, head])
        for head in range(len(recipes))
    ]


def _initial_state(ops: ModuleType, recipes: Sequence[Recipe], rows: Rows) -> State:
    """Return the initial weights of all heads side by side."""
    each = [initial_weights(recipe, rows.X.shape[1], rows.num_classes) for recipe in recipes]
    weights = [
        ops.convert_to_tensor(np.stack(arrays, axis=-2)) for arrays in zip(*each, strict=True)
    ]
    means = [ops.zeros_like(array) for array in weights]
    squares = [ops.zeros_like(array) for array in weights]
    return State(weights, means, squares, ops.zeros((len(recipes),), "float32"))


def _check(losses: NDArray[np.float64], recipes: Sequence[Recipe], epoch: int) -> None:
    """Refuse losses that are not numbers.

    Raises:
        PipelineError: Names the loss, the epoch and the learning rates.
    """
    failed = [head for head, loss in enumerate(losses) if not np.isfinite(loss)]
    if failed:
        rates = ", ".join(f"{recipes[head].learning_rate:g}" for head in failed)
        raise PipelineError(
            f"dense: the loss is {losses[failed[0]]} in epoch {epoch + 1}.",
            hint=f"Lower learning_rate ({rates}) under [heads.dense].",
        )
