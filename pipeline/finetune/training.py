"""Stage 3: trains the top of a network with its head at a low rate; resumable after any epoch.

A checkpoint is written after every epoch; with it the same call goes on as if nothing had happened.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import readable_errors
from pipeline.files.arrays import AnyArray
from pipeline.finetune.batches import BatchSource, order_of, parts_of, read_ahead
from pipeline.finetune.recipe import FineTuningRecipe, TrainingRows
from pipeline.finetune.steps import (
    WEIGHT_DECAYS,
    adam,
    adamw,
    compile_forward,
    compile_step,
    seed_random_layers,
)
from pipeline.finetune.surgery import Surgery, assign, rate_factors, values_of
from pipeline.heads.calibration import calibrated_loss
from pipeline.runs import checkpoint as finetune_checkpoint
from pipeline.runs.checkpoint import Arrays, Progress
from pipeline.system.keras_setup import KerasModel, KerasVariable, Tensor
from pipeline.system.progress import Reporter

# Batches that the estimate times, after some that are not: one compiles, and the next was loaded
# while it did, so that the time of that one would lack its loading.
TIMED_BATCHES: Final = 2
_UNTIMED_BATCHES: Final = 2


class FineTuning:
    """One training, from its start or from its last checkpoint.

    Attributes:
        progress: How far it is.

    Example:
        training = FineTuning(model, surgery, recipe, rows, checkpoint=path, identity={})
        training.resume()
        training.run(reporter)
    """

    def __init__(
        self,
        model: KerasModel,
        surgery: Surgery,
        recipe: FineTuningRecipe,
        rows: TrainingRows,
        *,
        checkpoint: Path,
        identity: Mapping[str, object],
    ) -> None:
        """Set up; nothing is computed yet.

        Args:
            model: Keras model, what the source gives to ``[features, logits]``.
            surgery: What it is a part of.
            recipe: How to train.
            rows: What to train on.
            checkpoint: The file that keeps the state.
            identity: What results depend on; a checkpoint of another training is refused.
        """
        self.progress = Progress()
        self._state = surgery.state
        self._recipe = recipe
        self._rows = rows
        self._path = checkpoint
        self._identity = json.loads(json.dumps(identity))
        self._model = model
        self._optimizer = _optimizer(model.trainable_variables, surgery, recipe)
        self._step = compile_step(model, surgery.head, self._optimizer, training=recipe.is_tutorial)
        self.compile_outputs(model, rows.source)
        self._columns = np.searchsorted(rows.classes, rows.y).astype(np.int32)
        self._weight_of = dict(zip(rows.train.tolist(), rows.weights.tolist(), strict=True))
        self._best = values_of(self._state)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        done = self.progress
        if done.stopped or done.epoch >= self._recipe.epochs:
            return True
        return not self._recipe.is_tutorial and (
            done.epoch - done.best_epoch >= self._recipe.patience
        )

    @property
    def epochs_left(self) -> int:
        """Most epochs that are still to train."""
        return 0 if self.is_over else self._recipe.epochs - self.progress.epoch

    @property
    def _steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self._rows.train) // self._recipe.batch_size)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Class number of each logit."""
        return self._rows.classes

    def compile_outputs(self, model: KerasModel, source: BatchSource) -> None:
        """Compute outputs from now on by a model, in its present precision, on a source."""
        self._forward, self._source = compile_forward(model), source

    def resume(self) -> bool:
        """Take up the checkpoint, if there is one; tells whether there was.

        Raises:
            RunError: It is damaged, or of another training.
        """
        if not self._path.exists():
            return False
        self.progress, arrays = finetune_checkpoint.read(
            self._path,
            self._identity,
            state=[tuple(variable.shape) for variable in self._state],
            optimizer=[tuple(variable.shape) for variable in self._optimizer.variables],
        )
        assign(self._state, arrays.state)
        assign(self._optimizer.variables, arrays.optimizer)
        self._best = list(arrays.best or arrays.state)
        return True

    def features(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return features of rows, float32 ``(n, dim)``, in inference mode."""
        return self._outputs(rows, 0)

    def logits(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return logits of rows, float32 ``(n, classes)``, in inference mode."""
        return self._outputs(rows, 1)

    def estimate(self) -> float | None:
        """Return the seconds of an epoch with its val, from a few timed batches of each.

        They leave no trace. What comes once an epoch is left out: the fit of a temperature on val
        and the checkpoint.

        Returns:
            None where no epoch is left.
        """
        if self.is_over:
            return None
        epoch, rows = self.progress.epoch, self._rows
        variables = [*self._state, *self._optimizer.variables]
        before = values_of(variables)
        train = _seconds_a_row(
            read_ahead(lambda part: rows.source.batch(part, epoch), _timed(self._parts(epoch))),
            lambda part, inputs: self._train_on(part, inputs, 0),
        )
        assign(variables, before)
        val = _seconds_a_row(
            self._loaded(_timed(parts_of(rows.val, self._recipe.batch_size))),
            lambda part, inputs: self._forward(inputs),
        )
        return train * len(rows.train) + val * len(rows.val)

    def run(
        self,
        reporter: Reporter,
        *,
        after_epoch: Callable[[Sequence[Mapping[str, object]]], None] = lambda epochs: None,
    ) -> None:
        """Train to the end; the network then has the best weights by val, or the last ones.

        Args:
            reporter: Where progress goes.
            after_epoch: Given the rows of all epochs, at first and after each checkpoint.

        Raises:
            PipelineError: A batch does not fit into memory.
        """
        if not self.progress.epoch and not self._recipe.is_tutorial:
            # Where training does not help, the start is what is kept.
            self.progress.best_loss = self._judge()[0]
        after_epoch(self.progress.epochs)
        while not self.is_over:
            self.one_epoch(reporter)
            self._save()
            after_epoch(self.progress.epochs)
        assign(self._state, self._best)

    def one_epoch(self, reporter: Reporter) -> float:
        """Train one epoch, judge it on val, and keep the weights if they are the best.

        Returns:
            Seconds of training alone.

        Raises:
            PipelineError: A batch does not fit into memory.
        """
        done, began = self.progress, time.perf_counter()
        loss = self._pass(reporter)
        trained = time.perf_counter() - began
        # A loss is that of the weights before its step: only val tells what the last step did.
        val_loss, val_accuracy = self._judge() if math.isfinite(loss) else (math.inf, 0.0)
        if not math.isfinite(val_loss):
            self._stop(reporter)
            return trained
        done.epoch += 1
        seconds = time.perf_counter() - began
        done.epochs.append(
            {
                "epoch": done.epoch,
                "loss": loss,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "learning_rate": self._recipe.rate(done.epoch * self._steps - 1, self._steps),
                "seconds": seconds,
            }
        )
        if val_loss < done.best_loss or self._recipe.is_tutorial:
            done.best_loss, done.best_epoch = val_loss, done.epoch
            self._best = values_of(self._state)
        reporter.say(
            f"epoch {done.epoch} of {self._recipe.epochs}: loss {loss:.4f}, val loss "
            f"{val_loss:.4f}, val accuracy {val_accuracy:.4f}, {seconds:.1f} s; at most "
            f"{seconds * (self._recipe.epochs - done.epoch):.0f} s left"
        )
        return trained

    def _stop(self, reporter: Reporter) -> None:
        """Go back to the last good weights, for good."""
        done = self.progress
        done.stopped = (
            f"the loss on train or val is not a number in epoch {done.epoch + 1}; the weights of "
            f"epoch {done.best_epoch} are kept; lower --learning-rate "
            f"({self._recipe.learning_rate:g})"
        )
        assign(self._state, self._best)
        reporter.say(f"finetune: {done.stopped}")

    def _outputs(self, rows: NDArray[np.intp], number: int) -> NDArray[np.float32]:
        """Return one of the model's outputs for rows, in one array, filled batch by batch."""
        made = np.empty((len(rows), self._model.outputs[number].shape[1]), np.float32)
        parts, done = parts_of(rows, self._recipe.batch_size), 0
        with readable_errors(self._recipe.batch_size):
            for part, inputs in self._loaded(parts):
                made[done : done + len(part)] = self._forward(inputs)[number]
                done += len(part)
        return made

    def _loaded(
        self, parts: Sequence[NDArray[np.intp]]
    ) -> Iterator[tuple[NDArray[np.intp], AnyArray]]:
        return read_ahead(lambda part: self._source.batch(part, None), parts)

    def _pass(self, reporter: Reporter) -> float:
        """Make all steps of an epoch; return the mean loss, not finite as soon as one is not."""
        epoch, total = self.progress.epoch, 0.0
        parts = self._parts(epoch)
        loaded = read_ahead(lambda part: self._rows.source.batch(part, epoch), parts)
        with reporter.bar(len(parts), "step") as bar:
            for number, (part, inputs) in enumerate(loaded):
                loss = self._train_on(part, inputs, epoch * len(parts) + number)
                if not math.isfinite(loss):
                    return loss
                total += loss * len(part)
                bar.advance(epoch=epoch + 1, loss=round(loss, 4))
        return total / len(self._rows.train)

    def _parts(self, epoch: int) -> list[NDArray[np.intp]]:
        order = order_of(self._recipe.seed, epoch, self._rows.train)
        return parts_of(order, self._recipe.batch_size)

    def _train_on(self, part: NDArray[np.intp], inputs: AnyArray, step: int) -> float:
        recipe = self._recipe
        self._optimizer.learning_rate.assign(recipe.rate(step, self._steps))
        seed_random_layers(self._model, recipe.seed, step)
        weights = np.array([self._weight_of[row] for row in part.tolist()], np.float32)
        with readable_errors(recipe.batch_size):
            return float(self._step(inputs, self._columns[part], weights))

    def _judge(self) -> tuple[float, float]:
        """Return log loss, at its own temperature, and accuracy on val.

        TrainingRows of a class that train lacks count as wrong, and not in the loss.
        """
        rows = self._rows
        logits = self.logits(rows.val)
        if not np.isfinite(logits).all():
            return math.inf, 0.0
        known = np.isin(rows.y[rows.val], rows.classes)
        columns = self._columns[rows.val]
        loss = calibrated_loss(logits[known], columns[known]) if known.any() else 0.0
        return loss, float((known & (logits.argmax(axis=1) == columns)).mean())

    def _save(self) -> None:
        is_best = self.progress.best_epoch == self.progress.epoch
        arrays = Arrays(
            state=values_of(self._state),
            optimizer=values_of(self._optimizer.variables),
            best=[] if is_best else self._best,
        )
        finetune_checkpoint.write(self._path, self._identity, self.progress, arrays)


def _timed(parts: Sequence[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    """Return the parts to time, again from the first where there are few.

    A smaller last one is left out where there are others, since it may be compiled anew.
    """
    equal = [part for part in parts if len(part) == len(parts[0])]
    return list(islice(cycle(equal), _UNTIMED_BATCHES + TIMED_BATCHES))


def _seconds_a_row(
    loaded: Iterable[tuple[NDArray[np.intp], AnyArray]],
    work: Callable[[NDArray[np.intp], AnyArray], Tensor],
) -> float:
    """Time work on parts of one size, each of which is loaded while the one before is worked on."""
    ends = []
    for part, inputs in loaded:
        work(part, inputs)
        ends.append(time.perf_counter())
    return (ends[-1] - ends[-1 - TIMED_BATCHES]) / (TIMED_BATCHES * len(part))


def _optimizer(
    variables: Sequence[KerasVariable], surgery: Surgery, recipe: FineTuningRecipe
) -> Tensor:
    if recipe.is_tutorial:
        return adam(variables)
    return adamw(
        variables,
        rate_factors(surgery, variables, recipe.layer_decay),
        weight_decay=WEIGHT_DECAYS[recipe.optimizer],
        precision=recipe.precision,
    )
