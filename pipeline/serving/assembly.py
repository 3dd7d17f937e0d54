"""A backbone and a head as one model, from images to probabilities, in the form of the backbone."""

from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline import engines
from pipeline.backbones import onnx_graph
from pipeline.backbones.forms import KERAS
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.onnx_graph import Chain, OnnxModel
from pipeline.engines.encoder import Encoder
from pipeline.engines.probing import ModelEncoder
from pipeline.runs import stitch
from pipeline.runs.stitch import Predict
from pipeline.system.keras_setup import Tensor, import_keras

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head
from pipeline.heads.layers import dense_layers, layers_of, network_of


def assemble(
    backbone: FrozenBackbone, head: "Head", num_classes: int, *, fold: bool = True
) -> Tensor:
    """Return a backbone and a fitted head as one frozen Keras model.

    Made of Keras' own layers and operations, so that a saved model loads without this package.

    Args:
        backbone: The backbone that made the features which the head was fitted on.
        head: The head, with its temperature; its classes are numbers below ``num_classes``.
        num_classes: Classes of the run. One that the head does not know has probability 0.
        fold: Whether scaler and temperature become part of the dense layers, computed in float64:
            a linear head is then one layer.

    Returns:
        Keras model, ``images`` uint8 ``(n, S, S, 3)`` to ``probabilities`` float32
        ``(n, num_classes)``.

    Raises:
        HeadNotTrainableError: The head is no network; names those that are.
    """
    # What is shipped predicts: it has no dropout.
    found = replace(layers_of(head), dropout=0.0)
    keras = import_keras()
    features = backbone.model.output
    if fold:
        logits = dense_layers(keras, features, found.folded(head.temperature_))
    else:
        logits = keras.ops.divide(network_of(found)(features), head.temperature_)
    is_complete = len(head.classes_) == num_classes
    name = "probabilities" if is_complete else "softmax"
    probabilities = keras.layers.Softmax(dtype="float32", name=name)(logits)
    if not is_complete:
        probabilities = _in_places(keras, probabilities, head.classes_, num_classes)
    model = keras.Model(backbone.model.input, probabilities, name="classifier")
    model.trainable = False
    return model


def assemble_onnx(
    backbone: FrozenBackbone, head: "Head", num_classes: int, *, name: str
) -> OnnxModel:
    """Return a backbone in ONNX and a fitted head as one ONNX model.

    Args:
        backbone: The backbone that made the features which the head was fitted on.
        head: The head, with its temperature; its classes are numbers below ``num_classes``.
        num_classes: Classes of the run. One that the head does not know has probability 0.
        name: What its output is called.

    Returns:
        ONNX model, ``images`` uint8 ``(n, S, S, 3)`` to float32 ``(n, num_classes)``. Scaler and
        temperature are part of the layers, computed in float64.

    Raises:
        HeadNotTrainableError: The head is no network; names those that are.
    """
    chain = Chain("head", onnx_graph.OUTPUT)
    for number, (kernel, bias) in enumerate(layers_of(head).folded(head.temperature_)):
        if number:
            chain.then("Relu")
        chain.then("MatMul", kernel.astype(np.float32)).then("Add", bias.astype(np.float32))
    chain.then("Softmax", axis=1)
    if len(head.classes_) != num_classes:
        chain.then("MatMul", _places(head.classes_, num_classes))
    # A copy, since the backbone is asked for its features too.
    model = type(backbone.built)()
    model.CopyFrom(backbone.built)
    return onnx_graph.append(model, chain, name, num_classes)


def encoder_of(backbone: FrozenBackbone) -> Encoder:
    """Return a backbone as an encoder in float32: of Keras the model as it stands."""
    if backbone.form is KERAS:
        return ModelEncoder(stitch.runner(backbone.model), backbone.dim)
    engine, _ = engines.resolve("auto", backbone.form)
    return engines.create(engine, backbone, batch_size=stitch.BATCH, precision="float32")


def encoding(backbone: FrozenBackbone) -> Predict:
    """Return a backbone as a function, uint8 ``(n, S, S, 3)`` to float32 ``(n, dim)``."""
    if backbone.form is KERAS:
        return stitch.runner(backbone.model)
    encoder = encoder_of(backbone)
    return lambda pixels: stitch.in_batches(encoder, pixels)


def _places(classes: NDArray[np.integer], num_classes: int) -> NDArray[np.float32]:
    """Return what puts probabilities of some classes into their columns, zeros and ones."""
    found: NDArray[np.float32] = np.eye(num_classes, dtype=np.float32)[classes]
    return found


def _in_places(
    keras: ModuleType, probabilities: Tensor, classes: NDArray[np.integer], num_classes: int
) -> Tensor:
    """Put probabilities of some classes into their columns; a product with zeros and ones."""
    layer = keras.layers.Dense(
        num_classes,
        use_bias=False,
        kernel_initializer="zeros",
        dtype="float32",
        name="probabilities",
    )
    placed = layer(probabilities)
    layer.set_weights([_places(classes, num_classes)])
    return placed
