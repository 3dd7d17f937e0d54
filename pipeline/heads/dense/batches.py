"""What dense heads are trained on, step by step: order of rows, dropout and rates.

Everything is drawn with NumPy from seeds, so it is the same on every Keras backend. Features on
disk come in windows, of which a few are in memory at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files.arrays import AnyArray
from pipeline.heads.dense.steps import BETA_1, BETA_2, Steps
from pipeline.heads.rows import WINDOW_ROWS, Block, FeatureRows, Features, shuffled
from pipeline.heads.scaler import scale_into
from pipeline.system.keras_setup import Tensor, import_keras
from pipeline.system.randomness import RandomStream

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one head is trained; see ``DenseHead``. Heads of one pass agree in the first five."""

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    decay: bool
    order_seed: int
    dropout: float
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    seed: int

    def shared(self) -> tuple[object, ...]:
        """Return what heads of one pass agree in."""
        return self.hidden, self.epochs, self.batch_size, self.decay, self.order_seed


@dataclass(frozen=True, slots=True)
class Rows:
    """What heads are trained on.

    Attributes:
        X: Features, ``(n, dim)``, in memory or on disk.
        numbers: Class numbers, ``(n,)``.
        weights: Weights of rows, ``(n,)``; None where all are one.
        mean: Subtracted from features, float64 ``(dim,)``.
        scale: Divides them then, float64 ``(dim,)``.
        num_classes: Number of classes.
    """

    X: Features
    numbers: NDArray[np.intp]
    weights: NDArray[np.float64] | None
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    num_classes: int

    def scaled(self, X: NDArray[np.floating], capacity: int) -> Array:
        """Return scaled features, float32, with rows of zero up to ``capacity``."""
        out = np.zeros((capacity, X.shape[1]), np.float32)
        scale_into(X, self.mean, self.scale, out[: len(X)])
        return out


class Window(NamedTuple):
    """Rows of some steps: a tensor of features, rows within it, and their numbers in X."""

    features: Tensor
    places: NDArray[np.intp]
    rows: NDArray[np.intp]


class Planner:
    """Draws what every step needs and hands it over as tensors of fixed shapes."""

    def __init__(self, recipes: Sequence[Recipe], rows: Rows) -> None:
        self.first, self.recipes, self.rows = recipes[0], recipes, rows
        self.num_rows, self.dim = rows.X.shape
        self.batch = min(self.first.batch_size, self.num_rows)
        self.num_steps = -(-self.num_rows // self.batch)
        # A window on disk may bring a batch that the one before left unfinished.
        self.capacity = min(self.num_steps, (WINDOW_ROWS + self.batch - 1) // self.batch + 1)
        self.drops = bool(self.first.hidden) and any(recipe.dropout > 0 for recipe in recipes)
        self._ops = import_keras().ops
        self._whole: Tensor = None
        if not isinstance(rows.X, FeatureRows):
            self._whole = self._ops.convert_to_tensor(rows.scaled(rows.X, self.num_rows))

    @property
    def shapes(self) -> tuple[object, ...]:
        """What the compiled function depends on."""
        loaded = self.capacity * self.batch if self._whole is None else self.num_rows
        sizes = (loaded, self.dim, *self.first.hidden, self.rows.num_classes)
        return sizes, self.capacity, self.batch, len(self.recipes), self.drops

    def epoch(self, epoch: int) -> Iterator[Steps]:
        """Yield the steps of an epoch; dropout follows from (seed, epoch) of each head."""
        generators = [RandomStream.LAYERS.generator(recipe.seed, epoch) for recipe in self.recipes]
        done = epoch * self.num_steps
        for window in self._windows(epoch):
            yield self._steps(window, done, generators)
            done += -(-len(window.rows) // self.batch)

    def _windows(self, epoch: int) -> Iterator[Window]:
        """Yield windows of whole batches; only the last of an epoch may end in a smaller one."""
        generator = RandomStream.ORDER.generator(self.first.order_seed, epoch)
        if self._whole is not None:
            order = generator.permutation(self.num_rows)
            size = self.capacity * self.batch
            for start in range(0, self.num_rows, size):
                rows = order[start : start + size]
                yield Window(self._whole, rows, rows)
            return
        capacity = self.capacity * self.batch
        blocks = shuffled(self.rows.X, generator, window=WINDOW_ROWS)
        for rows, features in _whole_batches(blocks, self.batch):
            loaded = self._ops.convert_to_tensor(self.rows.scaled(features, capacity))
            yield Window(loaded, np.arange(len(rows)), rows)

    def _steps(self, window: Window, done: int, generators: Sequence[np.random.Generator]) -> Steps:
        """Return the steps of a window after ``done`` steps of training."""
        rows, weights = window.rows, self.rows.weights
        count = -(-len(rows) // self.batch)
        sizes = np.minimum(len(rows) - np.arange(count) * self.batch, self.batch)
        rates, shrinkage = self._rates(done + np.arange(count))
        dropout = np.array([[recipe.dropout] for recipe in self.recipes])
        return Steps(
            count=self._tensor(count, "int32"),
            features=window.features,
            rows=self._batches(window.places, "int32"),
            classes=self._batches(self.rows.numbers[rows], "int32"),
            row_weights=self._batches(
                np.ones(len(rows)) if weights is None else weights[rows], "float32"
            ),
            # One, not zero, where there is no step: nothing is divided by zero.
            sizes=self._padded(sizes, "float32", fill=1),
            rates=self._padded(rates, "float32"),
            shrinkage=self._padded(shrinkage, "float32"),
            smoothing=self._tensor(
                [[recipe.label_smoothing] for recipe in self.recipes], "float32"
            ),
            kept=self._kept(count, generators) if self.drops else [],
            kept_scale=self._tensor(1 / (1 - dropout), "float32"),
        )

    def _rates(self, steps: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return Adam's corrected rates and the shares that decay takes, ``(steps, heads)``."""
        rates = np.outer(np.ones(len(steps)), [recipe.learning_rate for recipe in self.recipes])
        if self.first.decay:
            total = self.first.epochs * self.num_steps
            rates *= 0.5 * (1 + np.cos(np.pi * steps / total))[:, None]
        corrections = np.sqrt(1 - BETA_2 ** (steps + 1.0)) / (1 - BETA_1 ** (steps + 1.0))
        decays = np.array([recipe.weight_decay for recipe in self.recipes])
        return rates * corrections[:, None], rates * decays

    def _kept(self, count: int, generators: Sequence[np.random.Generator]) -> list[Tensor]:
        """Draw the units that dropout keeps, one array a hidden layer."""
        layers = []
        for width in self.first.hidden:
            shape = (self.capacity, self.batch, len(generators), width)
            kept = np.zeros(shape, np.bool_)
            drawn = zip(self.recipes, generators, strict=True)
            for head, (recipe, generator) in enumerate(drawn):
                draws = generator.random((count, self.batch, width), np.float32)
                kept[:count, :, head] = draws >= recipe.dropout
            layers.append(self._tensor(kept, "bool"))
        return layers

    def _batches(self, values: AnyArray, dtype: str) -> Tensor:
        """Return one value per row as a tensor ``(steps, batch)``, zero where there is no row."""
        padded = np.zeros(self.capacity * self.batch, dtype)
        padded[: len(values)] = values
        return self._tensor(padded.reshape(self.capacity, self.batch), dtype)

    def _padded(self, values: AnyArray, dtype: str, *, fill: float = 0) -> Tensor:
        """Return one value or row per step as a tensor with ``capacity`` of them."""
        padded = np.full((self.capacity, *values.shape[1:]), fill, dtype)
        padded[: len(values)] = values
        return self._tensor(padded, dtype)

    def _tensor(self, values: object, dtype: str) -> Tensor:
        return self._ops.convert_to_tensor(np.asarray(values, dtype), dtype=dtype)


def _whole_batches(blocks: Iterator[Block], size: int) -> Iterator[Block]:
    """Yield the same rows in blocks of whole batches; what is left comes last."""
    rest: Block | None = None
    for rows, features in blocks:
        if rest is not None:
            rows = np.concatenate([rest[0], rows])
            features = np.concatenate([rest[1], features])
        whole = len(rows) - len(rows) % size
        rest = rows[whole:], features[whole:].copy()
        if whole:
            yield rows[:whole], features[:whole]
    if rest is not None and len(rest[0]):
        yield rest
