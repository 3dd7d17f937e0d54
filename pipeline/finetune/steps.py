"""The compiled parts of fine-tuning: the optimizer, one step, and outputs in inference mode.

Frozen state and inference mode are two things: layers below the cut are frozen, and the whole
backbone is called with ``training=False``, so that BatchNorm above the cut learns scale and shift
and keeps its moving statistics. The preset ``tutorial`` alone calls it with ``training=True``. The
head is always trained with its dropout.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.files.arrays import AnyArray
from pipeline.finetune.cut import all_layers
from pipeline.finetune.surgery import assign
from pipeline.system.keras_setup import (
    KerasModel,
    KerasOptimizer,
    KerasVariable,
    Tensor,
    gpu_name,
    import_keras,
)
from pipeline.system.randomness import RandomStream

# What each optimizer takes of a kernel, times the rate, at every step. Biases, and the scale and
# shift of normalizations, are left alone.
WEIGHT_DECAYS: Final[Mapping[str, float]] = MappingProxyType({"adam": 0.0, "adamw": 1e-2})

Step = Callable[[AnyArray, NDArray[np.int32], NDArray[np.float32]], Tensor]
Compile = Callable[..., Callable[..., Tensor]]
Forward = Callable[[AnyArray], tuple[NDArray[np.float32], NDArray[np.float32]]]


def adamw(
    variables: Sequence[KerasVariable],
    factors: Sequence[float],
    *,
    weight_decay: float = WEIGHT_DECAYS["adamw"],
    precision: str = "float32",
) -> Tensor:
    """Return AdamW with a rate of each variable's own, built.

    Adam's steps do not depend on the scale of gradients, so what is scaled is the rate, and with it
    the weight decay. With factors of one it is Keras' AdamW.

    Args:
        variables: What is trained.
        factors: Share of the rate that each of them has.
        weight_decay: Decoupled weight decay of kernels; Loshchilov and Hutter 2019, "Decoupled
            Weight Decay Regularization", algorithm 2.
        precision: Arithmetic of training; with float16 the loss is scaled, which would else lose
            gradients.
    """
    keras = import_keras()
    decays = [weight_decay if len(item.shape) > 1 else 0.0 for item in variables]

    base: KerasOptimizer = keras.optimizers.Adam

    class AdamWByVariable(base):
        """Adam with a rate and a weight decay of each variable's own."""

        def update_step(
            self, gradient: Tensor, variable: KerasVariable, learning_rate: Tensor
        ) -> None:
            number = self._get_variable_index(variable)
            rate = keras.ops.cast(learning_rate, variable.dtype) * factors[number]
            if decays[number]:
                self.assign_sub(variable, variable * decays[number] * rate)
            super().update_step(gradient, variable, rate)

    optimizer: KerasOptimizer = AdamWByVariable(1.0)
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def adam(variables: Sequence[KerasVariable]) -> Tensor:
    """Return Keras' Adam, built."""
    optimizer = import_keras().optimizers.Adam(1.0)
    optimizer.build(variables)
    return optimizer


def compile_step(
    model: KerasModel, head: KerasModel, optimizer: KerasOptimizer, *, training: bool
) -> Step:
    """Return one step of training: inputs, class numbers and row weights to the mean loss.

    Args:
        model: To ``[features, logits]``.
        head: The part of it that makes logits of features; trained with its dropout.
        optimizer: Built for the model's trainable variables; its rate is set before each call.
        training: Whether BatchNorm normalizes by the batch and moves its statistics.

    Raises:
        ConfigError: Keras runs on a backend that has no such step.
    """

    def loss_of(inputs: Tensor, classes: Tensor, row_weights: Tensor) -> Tensor:
        # Keras 3.15 hands ``training`` down to every layer of a model, whatever was recorded for
        # one. So the head, whose dropout is on, is called apart; the model's own logits are unused.
        features, _ = model(inputs, training=training)
        return _mean_loss(head(features, training=True), classes, row_weights)

    compiled: Step = _on_backend(_tensorflow_step, _jax_step)(loss_of, model, optimizer)
    return compiled


def compile_forward(model: KerasModel) -> Forward:
    """Return a model in inference mode as a function of NumPy arrays to features and logits.

    It is compiled anew at each call of this, in the arithmetic that the layers have at the first
    batch: what Keras compiled before, for another precision, is no part of it.

    Raises:
        ConfigError: Keras runs on a backend that fine-tuning has no step for.
    """
    convert = import_keras().ops.convert_to_numpy
    call = _on_backend(_tensorflow_forward, _jax_forward)(model)

    def forward(inputs: AnyArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features, logits = (convert(item) for item in call(inputs))
        return np.array(features, np.float32), np.array(logits, np.float32)

    return forward


def seed_random_layers(model: KerasModel, seed: int, step: int) -> None:
    """Set what layers that draw (dropout, stochastic depth) draw from, for one step."""
    generators = [
        layer.seed_generator
        for layer in all_layers(model.layers)
        if getattr(layer, "seed_generator", None) is not None
    ]
    drawn = RandomStream.LAYERS.generator(seed, step)
    # From the top down: layers above a cut draw the same whether the part below is there or not.
    for generator in reversed(generators):
        generator.state.assign(drawn.integers(0, 2**31, 2).astype(generator.state.dtype))


def _mean_loss(logits: Tensor, classes: Tensor, row_weights: Tensor) -> Tensor:
    """Return the mean over rows of weight times cross-entropy, as Keras' ``fit`` does."""
    ops = import_keras().ops
    logits = ops.cast(logits, "float32")
    losses = -ops.take_along_axis(ops.log_softmax(logits, axis=-1), classes[:, None], axis=-1)
    return ops.mean(losses[:, 0] * row_weights)


def _on_backend(tensorflow: Compile, jax: Compile) -> Compile:
    """Return what compiles for Keras' backend.

    Raises:
        ConfigError: There is nothing for it.
    """
    backend = import_keras().backend.backend()
    compilers = {"tensorflow": tensorflow, "jax": jax}
    if backend not in compilers:
        raise ConfigError(
            f"finetune: expected Keras on TensorFlow or JAX. Received: KERAS_BACKEND={backend}.",
            hint="Unset KERAS_BACKEND.",
        )
    return compilers[backend]


def _tensorflow_forward(model: KerasModel) -> Callable[[Tensor], Tensor]:
    import tensorflow as tf

    signature = [tf.TensorSpec(model.input.shape, model.input.dtype)]
    compiled: Callable[[Tensor], Tensor] = tf.function(
        lambda inputs: model(inputs, training=False), input_signature=signature, autograph=False
    )
    return compiled


def _tensorflow_step(
    loss_of: Callable[..., Tensor], model: KerasModel, optimizer: KerasOptimizer
) -> Step:
    import tensorflow as tf

    variables = model.trainable_variables

    def step(inputs: Tensor, classes: Tensor, row_weights: Tensor) -> Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(inputs, classes, row_weights)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    signature = [
        tf.TensorSpec(model.input.shape, model.input.dtype),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None,), tf.float32),
    ]
    compiled: Step = tf.function(
        step, input_signature=signature, autograph=False, jit_compile=gpu_name() is not None
    )
    return compiled


def _jax_step(loss_of: Callable[..., Tensor], model: KerasModel, optimizer: KerasOptimizer) -> Step:
    import jax

    keras = import_keras()
    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    variables = [variable for group in groups for variable in group]

    def scaled_loss(trained: Tensor, others: Tensor, moments: Tensor, *batch: Tensor) -> Tensor:
        mapping = zip(variables, (*trained, *others, *moments), strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            loss = loss_of(*batch)
            scaled = optimizer.scale_loss(loss)
        return scaled, (loss, [scope.get_current_value(variable) for variable in groups[1]])

    def update(trained: Tensor, others: Tensor, moments: Tensor, *batch: Tensor) -> Tensor:
        differentiate = jax.value_and_grad(scaled_loss, has_aux=True)
        (_, (loss, others)), gradients = differentiate(trained, others, moments, *batch)
        trained, moments = optimizer.stateless_apply(moments, gradients, trained)
        return loss, (trained, others, moments)

    compiled = _jax_compiled(update)

    def step(*batch: Tensor) -> Tensor:
        loss, changed = compiled(*([item.value for item in group] for group in groups), *batch)
        for group, arrays in zip(groups, changed, strict=True):
            assign(group, arrays)
        return loss

    return step


def _jax_forward(model: KerasModel) -> Callable[[Tensor], Tensor]:
    groups = (model.trainable_variables, model.non_trainable_variables)

    def outputs(trained: Tensor, others: Tensor, inputs: Tensor) -> Tensor:
        return model.stateless_call(trained, others, inputs, training=False)[0]

    compiled = _jax_compiled(outputs)
    return lambda inputs: compiled(*([item.value for item in group] for group in groups), inputs)


def _jax_compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function whose float32 is float32; JAX' own default takes TF32 on some GPUs.

    Layers in half precision multiply halves, which this leaves as they are.
    """
    import jax

    compiled = jax.jit(function)

    def call(*arguments: Tensor) -> Tensor:
        with jax.default_matmul_precision("highest"):
            return compiled(*arguments)

    return call
