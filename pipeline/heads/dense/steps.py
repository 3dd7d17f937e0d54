"""The compiled part of training dense heads: many steps of Adam on several heads at once.

Heads lie side by side: kernels are ``(inputs, heads, outputs)``, biases ``(heads, outputs)``,
activations ``(rows, heads, outputs)``; a single head is a row of one. So the first layer is one
matrix product for all heads, and a rate of each head, ``(heads, 1)``, fits kernels and biases
alike. Written with Keras' operations, and compiled by its backend.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Final, NamedTuple

from pipeline.system.keras_setup import Tensor, import_keras

# Adam's constants, as in Keras.
BETA_1: Final = 0.9
BETA_2: Final = 0.999
EPSILON: Final = 1e-7
# Compiled functions that are kept; TensorFlow never forgets a shape of one function.
KEPT_FUNCTIONS: Final = 8


class State(NamedTuple):
    """What training changes; a kernel and a bias a layer, in order.

    Attributes:
        weights: Kernels and biases.
        means: Adam's running means of their gradients.
        squares: Adam's running means of the squares.
        losses: Sum of the losses of rows since it was set to zero, ``(heads,)``.
    """

    weights: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    losses: Tensor


class Steps(NamedTuple):
    """Some steps, all arrays float32 unless said otherwise; padding has weight zero.

    Attributes:
        count: How many steps are to be made, int32.
        features: Scaled, ``(k, dim)``.
        rows: Rows of ``features`` of each step, int32 ``(steps, batch)``.
        classes: Class numbers, int32 ``(steps, batch)``.
        row_weights: ``(steps, batch)``.
        sizes: Rows of each batch, ``(steps,)``.
        rates: Learning rate with Adam's correction for its start, ``(steps, heads)``.
        shrinkage: Share of the weights that weight decay takes, ``(steps, heads)``.
        smoothing: Label smoothing, ``(heads, 1)``.
        kept: Units that dropout keeps, a bool array ``(steps, batch, heads, width)`` a hidden
            layer; none at all without dropout.
        kept_scale: One over the share that is kept, ``(heads, 1)``.
    """

    count: Tensor
    features: Tensor
    rows: Tensor
    classes: Tensor
    row_weights: Tensor
    sizes: Tensor
    rates: Tensor
    shrinkage: Tensor
    smoothing: Tensor
    kept: list[Tensor]
    kept_scale: Tensor


@lru_cache(maxsize=KEPT_FUNCTIONS)
def compiled(shapes: tuple[object, ...]) -> Callable[[Steps, State], State]:
    """Return ``train`` as the Keras backend compiles it; one function for each ``shapes``.

    Backends without a compiler run it as it stands.
    """
    backend = import_keras().backend.backend()
    function: Callable[[Steps, State], State] = train
    if backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(train, jit_compile=True, autograph=False)
    elif backend == "jax":
        import jax

        function = jax.jit(train)
    return function


def train(steps: Steps, state: State) -> State:
    """Make all steps and return the new state."""
    ops = import_keras().ops

    def step(number: Tensor, state: State) -> State:
        weights, row_weights = state.weights, steps.row_weights[number]
        kept = [ops.cast(layer[number], "float32") * steps.kept_scale for layer in steps.kept]
        activations = _forward(
            ops, ops.take(steps.features, steps.rows[number], axis=0), weights, kept
        )
        targets = _smoothed(ops, steps.classes[number], steps.smoothing, weights[-1].shape[-1])
        log_probabilities = ops.log_softmax(activations[-1], axis=-1)
        losses = -ops.sum(log_probabilities * targets, axis=-1)
        error = ops.exp(log_probabilities) - targets
        error = error * (row_weights / steps.sizes[number])[:, None, None]
        gradients = _gradients(ops, activations, weights, kept, error)
        rate, shrinkage = steps.rates[number][:, None], steps.shrinkage[number][:, None]
        updated = _adam(ops, state, gradients, rate, shrinkage)
        summed = ops.sum(losses * row_weights[:, None], axis=0)
        return updated._replace(losses=state.losses + summed)

    trained: State = ops.fori_loop(0, steps.count, step, state)
    return trained


def _forward(
    ops: ModuleType, features: Tensor, weights: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    """Return the inputs of each layer and, last, the logits ``(rows, heads, classes)``."""
    activations = [features]
    last = len(weights) // 2 - 1
    for layer, (kernel, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        outputs = _product(ops, activations[-1], kernel) + bias
        if layer < last:
            outputs = ops.relu(outputs)
            outputs = outputs * kept[layer] if kept else outputs
        activations.append(outputs)
    return activations


def _product(ops: ModuleType, inputs: Tensor, kernel: Tensor) -> Tensor:
    """Return inputs times kernels; features ``(rows, dim)`` are shared by all heads."""
    if len(inputs.shape) == 3:
        return ops.einsum("rhi,iho->rho", inputs, kernel)
    _, heads, width = kernel.shape
    flat = ops.matmul(inputs, ops.reshape(kernel, (-1, heads * width)))
    return ops.reshape(flat, (-1, heads, width))


def _gradients(
    ops: ModuleType,
    activations: Sequence[Tensor],
    weights: Sequence[Tensor],
    kept: Sequence[Tensor],
    error: Tensor,
) -> list[Tensor]:
    """Return the gradients of all weights by backpropagation.

    Args:
        ops: Keras' operations.
        activations: What ``_forward`` returned.
        weights: Kernels and biases.
        kept: The factor of each hidden unit, zero where dropped.
        error: Gradient of the loss by the logits, ``(rows, heads, classes)``.
    """
    gradients: list[Tensor] = []
    for layer in reversed(range(len(weights) // 2)):
        inputs, kernel = activations[layer], weights[2 * layer]
        of_kernel = _outer(ops, inputs, error, kernel.shape)
        gradients = [of_kernel, ops.sum(error, axis=0), *gradients]
        if layer:
            error = ops.einsum("rho,iho->rhi", error, kernel)
            # A unit that was dropped is zero too, so this is the slope of relu and of dropout.
            error = ops.where(inputs > 0, error, 0.0)
            error = error * kept[layer - 1] if kept else error
    return gradients


def _outer(ops: ModuleType, inputs: Tensor, error: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the gradient of a kernel of some shape, summed over rows."""
    if len(inputs.shape) == 3:
        return ops.einsum("rhi,rho->iho", inputs, error)
    _, heads, width = shape
    flat = ops.reshape(error, (-1, heads * width))
    return ops.reshape(ops.matmul(ops.transpose(inputs), flat), shape)


def _adam(
    ops: ModuleType, state: State, gradients: Sequence[Tensor], rate: Tensor, shrinkage: Tensor
) -> State:
    """Return the state after one step of AdamW, in the form that Keras has.

    Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", section 2, last paragraph;
    decoupled weight decay of Loshchilov and Hutter 2019, of biases too.
    """
    means = [
        mean + (gradient - mean) * (1 - BETA_1)
        for mean, gradient in zip(state.means, gradients, strict=True)
    ]
    squares = [
        square + (gradient * gradient - square) * (1 - BETA_2)
        for square, gradient in zip(state.squares, gradients, strict=True)
    ]
    weights = [
        weight - weight * shrinkage - rate * mean / (ops.sqrt(square) + EPSILON)
        for weight, mean, square in zip(state.weights, means, squares, strict=True)
    ]
    return State(weights, means, squares, state.losses)


def _smoothed(ops: ModuleType, classes: Tensor, smoothing: Tensor, num_classes: int) -> Tensor:
    """Return targets, ``(rows, heads, classes)``: Szegedy et al. 2016, section 7."""
    true = ops.one_hot(classes, num_classes)[:, None, :]
    return true * (1 - smoothing) + smoothing / num_classes
