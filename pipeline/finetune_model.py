"""The network that fine-tuning trains: where it is cut, what is frozen, and one compiled step.

Called by ``finetune`` and its command. Frozen state and inference mode are two things: layers below
the cut are frozen, and the whole is called with ``training=False``, so that BatchNorm above the cut
learns scale and shift and keeps its moving statistics. The preset ``seed`` alone calls it with
``training=True``.
"""

import difflib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbone import FrozenBackbone
from pipeline.errors import ConfigError
from pipeline.runtime import gpu_name, import_keras

ALL: Final = "all"
# The tutorial counts layers from the input: it freezes 15 and trains the others.
SEED_FROZEN: Final = 15
SEED_WIDTH: Final = 1024

# Keras' AdamW takes this share of a kernel, times the rate, at every step. Biases, and the scale
# and shift of normalizations, are left alone.
WEIGHT_DECAY: Final = 1e-2
# The stream of random numbers, of a seed, that is for layers that draw.
_RANDOM_LAYERS: Final = 2

Step = Callable[[NDArray[Any], NDArray[np.int32], NDArray[np.float32]], Any]
Forward = Callable[[NDArray[Any]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a backbone is divided into a frozen and a trained part.

    Attributes:
        first: Number of the first trained layer in ``network.layers``.
        layer: Its name.
        boundary: The one tensor that the trained part takes from the frozen one; None where it
            takes several, or where nothing is frozen.
        below: Name of the operation that makes the boundary; empty without one.
    """

    first: int
    layer: str
    boundary: Any = None
    below: str = ""


@dataclass(frozen=True, slots=True)
class Surgery:
    """A backbone with a head, cut.

    Attributes:
        loaded: The backbone.
        cut: Where it is cut.
        whole: Keras model, uint8 images to ``[features (n, dim), logits (n, classes)]``.
        top: The same from the boundary on, float32; None where there is no single boundary.
        bottom: The part below as a backbone of its own, for an engine: images to the flattened
            boundary; None where ``top`` is.
        head: The head's network.
    """

    loaded: FrozenBackbone
    cut: Cut
    whole: Any
    top: Any
    bottom: FrozenBackbone | None
    head: Any

    @property
    def boundary_shape(self) -> tuple[int, ...]:
        """Shape of one image's activations at the boundary."""
        return tuple(self.cut.boundary.shape[1:])

    @property
    def state(self) -> list[Any]:
        """Every variable that training may change, in a fixed order."""
        layers = self.loaded.network.layers[self.cut.first :]
        return [variable for layer in (*layers, self.head) for variable in layer.weights]

    def fixed(self, *, trains_statistics: bool) -> list[Any]:
        """Every variable that training must not change.

        Args:
            trains_statistics: Whether BatchNorm above the cut moves its statistics.
        """
        if not trains_statistics:
            found: list[Any] = self.whole.non_trainable_weights
            return found
        layers = self.loaded.network.layers[: self.cut.first]
        return [variable for layer in layers for variable in layer.weights]


def find_cut(network: Any, unfreeze_from: str) -> Cut:
    """Find the first layer to train and the boundary before it.

    Args:
        network: The backbone, as Keras built it.
        unfreeze_from: A stage (``conv5``), a block (``conv5_block3``), a layer's name, or ``all``.

    Raises:
        ConfigError: There is no such part; lists the stages.
    """
    names = [layer.name for layer in network.layers]
    if unfreeze_from == ALL:
        return Cut(0, names[0])
    if unfreeze_from in names:
        return cut_at(network, names.index(unfreeze_from))
    for number, name in enumerate(names):
        if name.startswith(f"{unfreeze_from}_"):
            return cut_at(network, number)
    raise _unknown_part(unfreeze_from, names)


def cut_at(network: Any, first: int) -> Cut:
    """Return the cut before a layer; the layers of a network come in the order of computing."""
    layer = network.layers[first]
    operations = network.operations
    place = next(number for number, item in enumerate(operations) if item is layer)
    # Input layers make the pixels: a boundary there freezes nothing.
    made = {id(operation.output): operation for operation in operations[:place]}
    crossing = {
        id(tensor): tensor
        for operation in operations[place:]
        for tensor in _inputs(operation)
        if id(tensor) in made
    }
    if len(crossing) != 1:
        return Cut(first, layer.name)
    (identity, boundary) = next(iter(crossing.items()))
    if made[identity] is operations[0]:
        return Cut(first, layer.name)
    return Cut(first, layer.name, boundary, made[identity].name)


def operate(loaded: FrozenBackbone, head: Any, cut: Cut) -> Surgery:
    """Put a head's network on a backbone and unfreeze what is above the cut.

    Args:
        loaded: The backbone; its layers are shared, not copied.
        head: Keras model, features ``(n, dim)`` to logits ``(n, classes)``.
        cut: Where to divide.
    """
    keras = import_keras()
    network = loaded.network
    network.trainable = True
    for layer in network.layers[: cut.first]:
        layer.trainable = False
    features = loaded.model.output
    whole = keras.Model(loaded.model.input, [features, head(features)], name="finetuned")
    if cut.boundary is None:
        return Surgery(loaded, cut, whole, None, None, head)
    top = keras.Model(cut.boundary, [network.output, head(network.output)], name="finetuned_top")
    return Surgery(loaded, cut, whole, top, _bottom(keras, loaded, cut.boundary), head)


def seed_head(num_classes: int, dim: int, seed: int) -> Any:
    """Return the tutorial's fresh head: Dense 1024 relu, Dense; the softmax is in the loss.

    Kernels are Glorot uniform, as Keras' default, drawn from the seed.
    """
    keras = import_keras()
    widths = (dim, SEED_WIDTH, num_classes)
    network = keras.Sequential(name="head")
    network.add(keras.Input((dim,), name="features"))
    for number, (width, name) in enumerate(((SEED_WIDTH, "hidden_1"), (num_classes, "logits"))):
        activation = "relu" if number == 0 else None
        layer = keras.layers.Dense(width, activation=activation, kernel_initializer="zeros",
                                   name=name)  # fmt: skip
        network.add(layer)
        limit = math.sqrt(6 / (widths[number] + width))
        generator = np.random.default_rng([seed, 0, number])
        kernel = generator.uniform(-limit, limit, (widths[number], width))
        layer.set_weights([kernel.astype(np.float32), np.zeros(width, np.float32)])
    return network


def adamw(model: Any, precision: str) -> Any:
    """Return AdamW for a model, built; with a scaled loss where float16 would lose gradients."""
    keras = import_keras()
    optimizer = keras.optimizers.AdamW(1.0, weight_decay=WEIGHT_DECAY)
    variables = model.trainable_variables
    optimizer.exclude_from_weight_decay([item for item in variables if len(item.shape) < 2])
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def adam(model: Any) -> Any:
    """Return Keras' Adam for a model, built."""
    optimizer = import_keras().optimizers.Adam(1.0)
    optimizer.build(model.trainable_variables)
    return optimizer


def compile_step(model: Any, optimizer: Any, *, training: bool) -> Step:
    """Return one step of training: inputs, class numbers and row weights to the mean loss.

    Args:
        model: To ``[features, logits]``.
        optimizer: Built for the model's trainable variables; its rate is set before each call.
        training: Whether BatchNorm normalizes by the batch and moves its statistics.

    Raises:
        ConfigError: Keras runs on a backend that has no such step.
    """
    backend = import_keras().backend.backend()
    if backend == "tensorflow":
        return _tensorflow_step(model, optimizer, training=training)
    if backend == "jax":
        return _jax_step(model, optimizer, training=training)
    raise ConfigError(
        f"finetune: expected Keras on TensorFlow or JAX. Received: KERAS_BACKEND={backend}.",
        hint="Unset KERAS_BACKEND.",
    )


def compile_forward(model: Any) -> Forward:
    """Return a model in inference mode as a function of NumPy arrays to features and logits."""
    keras = import_keras()
    backend = keras.backend.backend()
    call: Callable[[Any], Any] = model.predict_on_batch
    if backend == "tensorflow":
        import tensorflow as tf

        signature = [tf.TensorSpec(model.input.shape, model.input.dtype)]
        call = tf.function(
            lambda inputs: model(inputs, training=False), input_signature=signature, autograph=False
        )

    def forward(inputs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features, logits = (keras.ops.convert_to_numpy(item) for item in call(inputs))
        return np.array(features, np.float32), np.array(logits, np.float32)

    return forward


def seed_random_layers(model: Any, seed: int, step: int) -> None:
    """Set what layers that draw (dropout, stochastic depth) draw from, for one step."""
    generators = [
        layer.seed_generator
        for layer in _all_layers(model)
        if getattr(layer, "seed_generator", None) is not None
    ]
    drawn = np.random.default_rng([seed, _RANDOM_LAYERS, step])
    for generator in generators:
        generator.state.assign(drawn.integers(0, 2**31, 2).astype(generator.state.dtype))


def set_precision(surgery: Surgery, precision: str) -> None:
    """Give the trained part an arithmetic, for what is compiled from now on.

    The weights stay float32, and so do the last layer, the pooling, and the head.
    """
    policy = "float32" if precision == "float32" else f"mixed_{precision}"
    for layer in surgery.loaded.network.layers[surgery.cut.first : -1]:
        layer.dtype_policy = policy


def values_of(variables: Sequence[Any]) -> list[NDArray[Any]]:
    """Return copies of the values of variables."""
    convert = import_keras().ops.convert_to_numpy
    return [np.array(convert(variable)) for variable in variables]


def assign(variables: Sequence[Any], values: Sequence[NDArray[Any]]) -> None:
    """Set variables to values, in order."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def digest_of(variables: Sequence[Any]) -> str:
    """Return the SHA-256 of the values of variables, bit for bit."""
    sha256 = hashlib.sha256()
    for value in values_of(variables):
        sha256.update(np.ascontiguousarray(value).data)
    return sha256.hexdigest()


def _all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _all_layers(layer)
        yield layer


def _inputs(operation: Any) -> list[Any]:
    found = operation.input
    return list(found) if isinstance(found, list | tuple) else [found]


def _unknown_part(name: str, layers: Sequence[str]) -> ConfigError:
    stages = dict.fromkeys(layer.partition("_block")[0] for layer in layers if "_block" in layer)
    blocks = dict.fromkeys("_".join(layer.split("_")[:2]) for layer in layers if "_block" in layer)
    valid = [ALL, *stages, *blocks, *layers]
    near = difflib.get_close_matches(name, valid, n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(stages) or "none, as its layers' names tell none"
    return ConfigError(
        f"--unfreeze-from: expected a stage, a block or a layer of the backbone. "
        f"Received: {name!r}.{suggestion}",
        hint=f"Stages: {listed}; or all; a block, such as {next(iter(blocks), layers[-1])}; "
        "or a layer's name.",
    )


def _bottom(keras: Any, loaded: FrozenBackbone, boundary: Any) -> FrozenBackbone:
    """Return the frozen part as a backbone whose features are the flattened boundary."""
    dim = math.prod(boundary.shape[1:])
    lower = keras.Model(loaded.network.input, boundary, name="below")
    # The operation before the network makes its pixels.
    pixels = loaded.model.operations[-2].output
    flat = keras.layers.Reshape((dim,), name="flat")(lower(pixels, training=False))
    model = keras.Model(loaded.model.input, flat, name="bottom")
    return FrozenBackbone(
        lambda: model,
        name=loaded.name,
        image_size=loaded.image_size,
        pooling=loaded.pooling,
        dim=dim,
        weights_sha256=loaded.weights_sha256,
    )


def _mean_loss(logits: Any, classes: Any, row_weights: Any) -> Any:
    """Return the mean over rows of weight times cross-entropy, as Keras' ``fit`` does."""
    ops = import_keras().ops
    logits = ops.cast(logits, "float32")
    losses = -ops.take_along_axis(ops.log_softmax(logits, axis=-1), classes[:, None], axis=-1)
    return ops.mean(losses[:, 0] * row_weights)


def _tensorflow_step(model: Any, optimizer: Any, *, training: bool) -> Step:
    import tensorflow as tf

    variables = model.trainable_variables

    def step(inputs: Any, classes: Any, row_weights: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = _mean_loss(model(inputs, training=training)[1], classes, row_weights)
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


def _jax_step(model: Any, optimizer: Any, *, training: bool) -> Step:
    import jax

    def loss_of(trained: Any, others: Any, inputs: Any, classes: Any, row_weights: Any) -> Any:
        outputs, others = model.stateless_call(trained, others, inputs, training=training)
        return _mean_loss(outputs[1], classes, row_weights), others

    def update(trained: Any, others: Any, moments: Any, *batch: Any) -> Any:
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), gradients = differentiate(trained, others, *batch)
        trained, moments = optimizer.stateless_apply(moments, gradients, trained)
        return loss, (trained, others, moments)

    compiled = jax.jit(update)

    def step(*batch: Any) -> Any:
        groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        values = [[variable.value for variable in group] for group in groups]
        loss, changed = compiled(*values, *batch)
        for group, arrays in zip(groups, changed, strict=True):
            assign(group, arrays)
        return loss

    return step
