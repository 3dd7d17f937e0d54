"""The bank: linear heads that differ in learning rate and weight decay, trained in one pass.

Called by ``linear``; a single head is a bank of one. Every batch is read, scaled and multiplied
once for all heads, with their kernels side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import sgemm
from threadpoolctl import threadpool_limits

from pipeline.heads import rows
from pipeline.heads.scaler import FeatureScaler, scale_into

Array = NDArray[np.float32]

MOMENTUM: Final = 0.9
# Adam's constants, as in Keras.
BETA_1: Final = 0.9
BETA_2: Final = 0.999
EPSILON: Final = 1e-7
# Entries of an array that are updated together: five arrays of 128 KB stay in the cache.
BLOCK_ENTRIES: Final = 2**15
# Entries of a bank's kernel: 128 MB an array. More heads than that train in several banks.
MAX_ENTRIES: Final = 2**25
# Multiplications of one product up to which one thread is used: two take as long, and up to a
# hundred times longer where another process keeps a core busy.
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
        kernel: float32 ``(dim + 1, classes, heads)``; the last row is the bias.
        diverged: The epoch after which each head was no longer finite; 0 where it is.
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
        self.kernel: Array = np.zeros((dim + 1, num_classes, len(rates)), np.float32)
        self.diverged = np.zeros(len(rates), np.intp)
        self._plan = plan
        self._stacked = self.kernel.reshape(dim + 1, -1)
        columns = [np.tile(np.asarray(each, np.float64), num_classes)
                   for each in (rates, weight_decays)]  # fmt: skip
        self._optimizer = _OPTIMIZERS[plan.optimizer](self._stacked, *columns)

    def train(
        self,
        X: Any,
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        scaler: FeatureScaler,
    ) -> None:
        """Run all epochs; the order of rows follows from (seed, epoch).

        Args:
            X: Features, ``(n, dim)``, in memory or ``rows.FeatureRows``.
            numbers: Class numbers, ``(n,)``.
            weights: Weights of rows, ``(n,)``; their mean is made 1.
            scaler: Fitted on X.
        """
        of_rows = np.ones(len(numbers)) if weights is None else weights / weights.mean()
        total = self._plan.epochs * len(numbers)
        threads = 1 if self._plan.batch_size * self._stacked.size <= SMALL else None
        # A head that diverges leaves the others alone and is told by ``diverged``.
        with np.errstate(over="ignore", invalid="ignore"), threadpool_limits(threads, "blas"):
            for epoch in range(self._plan.epochs):
                seen = epoch * len(numbers)
                for chosen, inputs in self._batches(X, scaler, epoch):
                    self._step(inputs, numbers[chosen], of_rows[chosen], seen / total)
                    seen += len(chosen)
                self._look_for_divergence(epoch + 1)

    def _batches(self, X: Any, scaler: FeatureScaler, epoch: int) -> Iterator[tuple[Any, Array]]:
        """Yield (row numbers, scaled features and a one in each row, for the bias)."""
        generator = np.random.default_rng([self._plan.seed, 1, epoch])
        inputs: Array = np.ones((self._plan.batch_size, len(self._stacked)), np.float32)
        for chosen, features in rows.batches(X, generator, self._plan.batch_size):
            scale_into(features, scaler.mean_, scaler.scale_, inputs[: len(chosen), :-1])
            yield chosen, inputs[: len(chosen)]

    def _step(
        self,
        inputs: Array,
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64],
        progress: float,
    ) -> None:
        factor = (1 + np.cos(np.pi * progress)) / 2 if self._plan.decay else 1.0
        # BLAS computes in column order, so it is given every array transposed.
        logits: Array = np.empty((len(inputs), self._stacked.shape[1]), np.float32)
        sgemm(1.0, self._stacked.T, inputs.T, c=logits.T, overwrite_c=1)
        errors = logits.reshape(len(inputs), *self.kernel.shape[1:])
        _softmax_errors(errors, numbers, weights / len(inputs), self._plan.label_smoothing)
        self._optimizer.step(inputs, logits, factor)

    def _look_for_divergence(self, epoch: int) -> None:
        is_finite = np.isfinite(self.kernel.sum(axis=0)).all(axis=0)
        self.diverged[~is_finite & (self.diverged == 0)] = epoch


class _Optimizer(ABC):
    """What both optimizers share: the stacked kernel ``(dim + 1, columns)``, rates by column."""

    def __init__(
        self, kernel: Array, rates: NDArray[np.float64], weight_decays: NDArray[np.float64]
    ) -> None:
        self._kernel = kernel
        self._rates = rates
        self._weight_decays = weight_decays
        self._velocity: Array = np.zeros_like(kernel)

    @abstractmethod
    def step(self, inputs: Array, errors: Array, factor: float) -> None:
        """Update the kernel with one batch.

        Args:
            inputs: float32 ``(batch, dim + 1)``.
            errors: Gradient of the loss by the logits, ``(batch, columns)``; overwritten.
            factor: What all learning rates are multiplied with.
        """

    def _blocks(self) -> Iterator[slice]:
        num_rows, num_columns = self._kernel.shape
        size = max(1, BLOCK_ENTRIES // num_columns)
        return (slice(start, start + size) for start in range(0, num_rows, size))

    def _decay(self, block: slice, rates: NDArray[np.float64]) -> None:
        """Decay the kernel apart from the gradient (Loshchilov and Hutter 2019), not the bias."""
        if self._weight_decays.any():
            kept = (1 - rates * self._weight_decays).astype(np.float32)
            self._kernel[block.start : min(block.stop, len(self._kernel) - 1)] *= kept


class _Momentum(_Optimizer):
    """SGD with momentum, as in Keras: ``v = 0.9 v - rate g; w += v``."""

    def step(self, inputs: Array, errors: Array, factor: float) -> None:
        """See the base."""
        rates = factor * self._rates
        errors *= -rates.astype(np.float32)
        velocity = self._velocity
        # The product is added to what remains of the velocity, without an array in between.
        sgemm(1.0, errors.T, inputs.T, MOMENTUM, velocity.T, trans_b=1, overwrite_c=1)
        for block in self._blocks():
            self._decay(block, rates)
            self._kernel[block] += velocity[block]


class _Adam(_Optimizer):
    """Adam (Kingma and Ba 2015) with Keras' order of operations."""

    def __init__(
        self, kernel: Array, rates: NDArray[np.float64], weight_decays: NDArray[np.float64]
    ) -> None:
        super().__init__(kernel, rates, weight_decays)
        self._squares: Array = np.zeros_like(kernel)
        self._gradient: Array = np.empty_like(kernel)
        self._steps = 0

    def step(self, inputs: Array, errors: Array, factor: float) -> None:
        """See the base."""
        self._steps += 1
        sgemm(1.0, errors.T, inputs.T, c=self._gradient.T, trans_b=1, overwrite_c=1)
        correction = np.sqrt(1 - BETA_2**self._steps) / (1 - BETA_1**self._steps)
        rates = factor * self._rates
        corrected = (correction * rates).astype(np.float32)
        for block in self._blocks():
            self._decay(block, rates)
            self._kernel[block] -= self._direction(block) * corrected

    def _direction(self, block: slice) -> Array:
        """Update both moments; return their quotient in the place of the gradient."""
        gradient, mean, square = (
            array[block] for array in (self._gradient, self._velocity, self._squares)
        )
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


def _softmax_errors(
    logits: NDArray[np.float32],
    numbers: NDArray[np.intp],
    weights: NDArray[np.float64],
    smoothing: float,
) -> None:
    """Turn logits ``(batch, classes, heads)`` into the loss's gradient by them, in place.

    The loss is cross-entropy with targets ``(1 - smoothing) * one-hot + smoothing / classes``.
    """
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    if smoothing:
        logits -= smoothing / logits.shape[1]
    logits[np.arange(len(logits)), numbers] -= 1 - smoothing
    logits *= weights.astype(np.float32)[:, None, None]
