"""The bank: linear heads that differ in learning rate and weight decay, trained in one pass.

Every batch is read and scaled once for all heads, and multiplied with their kernels side by side; a
single head is a bank of one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.heads import rows
from pipeline.heads.scaler import FeatureScaler, scale_into
from pipeline.system import machine
from pipeline.system.randomness import RandomStream

Array = NDArray[np.float32]

MOMENTUM: Final = 0.9
# Adam's constants, as in Keras.
BETA_1: Final = 0.9
BETA_2: Final = 0.999
EPSILON: Final = 1e-7
# Entries of an array that are updated together: five arrays of 128 KB stay in the cache.
BLOCK_ENTRIES: Final = 2**15
# Multiplications of one product up to which one thread of linear algebra is used.
SMALL: Final = 2**25


@dataclass(frozen=True)
class Plan:
    """What the heads of a bank share; see ``LinearHead``."""

    optimizer: str
    epochs: int
    batch_size: int
    decay: bool
    label_smoothing: float
    seed: int


class LinearBank:
    """Softmax regressions on standardized features, trained together.

    Attributes:
        diverged: The epoch after which each head was not finite any more; 0 where it is.
        losses: Mean loss of every epoch so far by head, each ``(heads,)``.
    """

    def __init__(
        self,
        plan: Plan,
        rates: Sequence[float],
        weight_decays: Sequence[float],
        *,
        dim: int,
        num_classes: int,
    ) -> None:
        """Set all kernels to zero.

        Args:
            plan: What the heads share.
            rates: Learning rate of each head.
            weight_decays: Weight decay of each head.
            dim: Length of a feature row.
            num_classes: Number of classes.
        """
        self.diverged = [0] * len(rates)
        self.losses: list[NDArray[np.float64]] = []
        self._plan = plan
        self._dim = dim
        # Threads with heads of their own never wait for each other within a product: on two cores
        # as fast as threads of linear algebra when nothing else runs, and up to 20 times faster
        # when something does.
        num_parts = min(machine.processors(), len(rates))
        kind = _OPTIMIZERS[plan.optimizer]
        self._parts = [
            kind(part[0], part[1], plan.label_smoothing, (dim + 1, num_classes))
            for part in np.array_split(np.array([rates, weight_decays]), num_parts, axis=1)
        ]
        size = plan.batch_size * (dim + 1) * num_classes
        self._threads = 1 if size <= SMALL else max(1, machine.processors() // num_parts)

    @property
    def kernels(self) -> list[Array]:
        """The kernel of each head, float32 ``(dim + 1, classes)``; the last row is the bias."""
        return [
            part.kernel[:, :, number]
            for part in self._parts
            for number in range(part.kernel.shape[2])
        ]

    def train(
        self,
        X: rows.Features,
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        scaler: FeatureScaler,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Run all epochs; the order of rows follows from (seed, epoch).

        Args:
            X: rows.Features, ``(n, dim)``, in memory or ``rows.FeatureRows``.
            numbers: Class numbers, ``(n,)``.
            weights: Weights of rows, ``(n,)``; their mean is made 1.
            scaler: Fitted on X.
            progress: Called after each batch with the share of the whole that it was.
        """
        of_rows = np.ones(len(numbers)) if weights is None else weights / weights.mean()
        total = self._plan.epochs * len(numbers)
        with (
            ThreadPoolExecutor(len(self._parts)) as pool,
            threadpool_limits(self._threads, "blas"),
        ):
            for epoch in range(self._plan.epochs):
                seen = epoch * len(numbers)
                losses = np.zeros(len(self.diverged))
                for chosen, inputs in self._batches(X, scaler, epoch):
                    batch = (inputs, numbers[chosen], of_rows[chosen].astype(np.float32))
                    factor = self._factor(seen / total)
                    found = pool.map(lambda part: part.step(*batch, factor), self._parts)  # noqa: B023
                    losses += np.concatenate(list(found))
                    seen += len(chosen)
                    progress(len(chosen) / total)
                self.losses.append(losses / len(numbers))
                self._look_for_divergence(epoch + 1)

    def _batches(
        self, X: rows.Features, scaler: FeatureScaler, epoch: int
    ) -> Iterator[tuple[NDArray[np.intp], Array]]:
        """Yield (row numbers, scaled features and a one in each row, for the bias)."""
        generator = RandomStream.ORDER.generator(self._plan.seed, epoch)
        inputs: Array = np.ones((self._plan.batch_size, self._dim + 1), np.float32)
        for chosen, features in rows.batches(X, generator, self._plan.batch_size):
            scale_into(features, scaler.mean_, scaler.scale_, inputs[: len(chosen), :-1])
            yield chosen, inputs[: len(chosen)]

    def _factor(self, progress: float) -> float:
        """Return what the rates are multiplied with after a share of all rows."""
        return float(1 + np.cos(np.pi * progress)) / 2 if self._plan.decay else 1.0

    def _look_for_divergence(self, epoch: int) -> None:
        is_finite = np.concatenate([part.is_finite() for part in self._parts])
        for number in np.flatnonzero(~is_finite):
            self.diverged[number] = self.diverged[number] or epoch


class _Part(ABC):
    """Some heads of a bank with the state of their optimizer.

    Attributes:
        kernel: float32 ``(dim + 1, classes, heads)``; the last row is the bias.
    """

    def __init__(
        self,
        rates: NDArray[np.float64],
        weight_decays: NDArray[np.float64],
        smoothing: float,
        shape: tuple[int, int],
    ) -> None:
        self.kernel: Array = np.zeros((*shape, len(rates)), np.float32)
        self._smoothing = smoothing
        # Side by side: a column is a class of a head.
        self._stacked = self.kernel.reshape(shape[0], -1)
        self._gradient: Array = np.empty_like(self._stacked)
        self._rates = np.tile(rates, shape[1])
        self._weight_decays = np.tile(weight_decays, shape[1])

    def step(
        self, inputs: Array, numbers: NDArray[np.intp], weights: Array, factor: float
    ) -> Array:
        """Update all heads with one batch; return the sums of its losses before, ``(heads,)``.

        Args:
            inputs: Scaled features and a one, float32 ``(batch, dim + 1)``.
            numbers: Class numbers, ``(batch,)``.
            weights: float32 ``(batch,)``.
            factor: What all learning rates are multiplied with.
        """
        # A head that diverges leaves the others alone; the bank looks for it after each epoch.
        with np.errstate(over="ignore", invalid="ignore"):
            logits: Array = inputs @ self._stacked
            errors = logits.reshape(len(inputs), *self.kernel.shape[1:])
            shares = weights / np.float32(len(inputs))
            losses = _to_errors(errors, numbers, shares, self._smoothing)
            np.matmul(inputs.T, logits, out=self._gradient)
            self._update(factor * self._rates)
            return losses * np.float32(len(inputs))

    def is_finite(self) -> NDArray[np.bool_]:
        """Tell which heads are finite, ``(heads,)``."""
        with np.errstate(over="ignore", invalid="ignore"):
            finite: NDArray[np.bool_] = np.isfinite(self.kernel.sum(axis=0)).all(axis=0)
        return finite

    @abstractmethod
    def _update(self, rates: NDArray[np.float64]) -> None:
        """Update the stacked kernel by its gradient, at the rates ``(columns,)``."""

    def _blocks(self) -> Iterator[slice]:
        """Yield blocks of rows that stay in the cache while every operation goes over them."""
        num_rows, num_columns = self._stacked.shape
        size = max(1, BLOCK_ENTRIES // num_columns)
        return (slice(start, start + size) for start in range(0, num_rows, size))

    def _decay(self, block: slice, rates: NDArray[np.float64]) -> None:
        """Decay the kernel apart from the gradient (Loshchilov and Hutter 2019), not the bias."""
        if self._weight_decays.any():
            kept = (1 - rates * self._weight_decays).astype(np.float32)
            self._stacked[block.start : min(block.stop, len(self._stacked) - 1)] *= kept


class _Momentum(_Part):
    """SGD with momentum, as in Keras: ``v = 0.9 v - rate g; w += v``."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._velocity: Array = np.zeros_like(self._stacked)

    def _update(self, rates: NDArray[np.float64]) -> None:
        rates_32 = rates.astype(np.float32)
        for block in self._blocks():
            gradient, velocity = self._gradient[block], self._velocity[block]
            gradient *= rates_32
            velocity *= MOMENTUM
            velocity -= gradient
            self._decay(block, rates)
            self._stacked[block] += velocity


class _Adam(_Part):
    """Adam (Kingma and Ba 2015) in Keras' order of operations."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._mean: Array = np.zeros_like(self._stacked)
        self._square: Array = np.zeros_like(self._stacked)
        self._steps = 0

    def _update(self, rates: NDArray[np.float64]) -> None:
        self._steps += 1
        correction = np.sqrt(1 - BETA_2**self._steps) / (1 - BETA_1**self._steps)
        corrected = (correction * rates).astype(np.float32)
        for block in self._blocks():
            direction = self._direction(block)
            direction *= corrected
            self._decay(block, rates)
            self._stacked[block] -= direction

    def _direction(self, block: slice) -> Array:
        """Update both moments; return their quotient in the place of the gradient."""
        gradient, mean, square = self._gradient[block], self._mean[block], self._square[block]
        mean *= BETA_1
        mean += (1 - BETA_1) * gradient
        gradient *= gradient
        gradient *= 1 - BETA_2
        square *= BETA_2
        square += gradient
        np.sqrt(square, out=gradient)
        gradient += EPSILON
        np.divide(mean, gradient, out=gradient)
        return gradient


_OPTIMIZERS: Final = {"adam": _Adam, "sgd": _Momentum}


def _to_errors(logits: Array, numbers: NDArray[np.intp], weights: Array, smoothing: float) -> Array:
    """Turn logits ``(batch, classes, heads)`` into the loss's gradient by them, in place.

    The loss is cross-entropy with targets ``(1 - smoothing) * one-hot + smoothing / classes``.

    Returns:
        The losses of the batch, weighted and added up, ``(heads,)``.
    """
    logits -= logits.max(axis=1, keepdims=True)
    of_targets = (1 - smoothing) * logits[np.arange(len(logits)), numbers]
    if smoothing:
        of_targets += smoothing * logits.mean(axis=1)
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    losses: Array = weights @ (np.log(sums[:, 0]) - of_targets)
    logits /= sums
    if smoothing:
        logits -= smoothing / logits.shape[1]
    logits[np.arange(len(logits)), numbers] -= 1 - smoothing
    logits *= weights[:, None, None]
    return losses
