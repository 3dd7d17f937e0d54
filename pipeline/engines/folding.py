"""BatchNorm folded into the convolutions before it, for engines that run a network as it is.

A normalization in inference mode is one factor and one summand per channel, and a convolution is
linear: ``(x * kernel + bias) * factor + summand`` is a convolution with another kernel and bias.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 3.2.
"""

from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.system.keras_setup import KerasLayer, KerasModel, Tensor, import_keras

_LAST_AXES: Final = (-1, 3)


def folded(model: KerasModel) -> KerasModel:
    """Return a copy of a frozen model in which convolutions do what BatchNorm did.

    Folded is a BatchNorm whose one input is a convolution that feeds nothing else, each of them
    called once, in two dimensions and with the channels last; also in models within the model.
    Every other layer is copied as it is.

    Args:
        model: A functional or sequential Keras model; it is left as it is.

    Returns:
        A functional model of the same input and output, with weights of its own.
    """
    keras = import_keras()
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    norms = _pairs(model)
    replaced = {norm.name for norm in norms.values()}

    def copy(operation: KerasLayer) -> KerasLayer:
        if operation.name in replaced or not isinstance(operation, keras.Layer):
            return operation  # it is not called, or has no weights
        if isinstance(operation, keras.Model):
            return folded(operation)
        config = operation.get_config()
        if operation.name in norms:
            config["use_bias"] = True
        return type(operation).from_config(config)

    def call(operation: KerasLayer, images: Tensor, *more: Any, **named: Any) -> Tensor:
        return images if operation.name in replaced else operation(images, *more, **named)

    made = keras.models.clone_model(model, clone_function=copy, call_function=call)
    made.trainable = False
    for layer in model.layers:
        if layer.name in norms:
            made.get_layer(layer.name).set_weights(_folded_weights(layer, norms[layer.name]))
        elif layer.weights and layer.name not in replaced and not isinstance(layer, keras.Model):
            made.get_layer(layer.name).set_weights(layer.get_weights())
    return made


def _pairs(model: KerasModel) -> dict[str, KerasLayer]:
    """Return the normalizations that can be folded, by the name of the convolution before each."""
    keras = import_keras()
    calls = {one["name"]: len(one["inbound_nodes"]) for one in model.get_config()["layers"]}
    once = [layer for layer in model.layers if calls[layer.name] == 1]
    used = Counter(id(tensor) for tensor in model.outputs)
    used.update(id(tensor) for one in model.operations for tensor in _inputs(one))
    convolutions = {
        id(layer.output): layer
        for layer in once
        if type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        and layer.data_format == "channels_last"
        and layer.activation is keras.activations.linear
        and used[id(layer.output)] == 1
    }
    return {
        convolutions[id(norm.input)].name: norm
        for norm in once
        if type(norm) is keras.layers.BatchNormalization
        and norm.axis in _LAST_AXES
        and id(norm.input) in convolutions
    }


def _inputs(operation: KerasLayer) -> list[object]:
    found = operation.input
    return list(found) if isinstance(found, list | tuple) else [found]


def _folded_weights(layer: KerasLayer, norm: KerasLayer) -> list[NDArray[np.float32]]:
    """Return kernel and bias of a convolution that also does what a normalization did."""
    kernel, *rest = (values.astype(np.float64) for values in layer.get_weights())
    mean, variance = (
        np.asarray(variable, np.float64) for variable in (norm.moving_mean, norm.moving_variance)
    )
    factor = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        factor = factor * np.asarray(norm.gamma, np.float64)
    bias = ((rest[0] if rest else 0.0) - mean) * factor
    if norm.center:
        bias = bias + np.asarray(norm.beta, np.float64)
    # Of a depthwise convolution, the channels that come out are the last two axes.
    is_depthwise = isinstance(layer, import_keras().layers.DepthwiseConv2D)
    shape = kernel.shape[2:] if is_depthwise else (-1,)
    scaled = kernel * factor.reshape(shape)
    return [scaled.astype(np.float32), bias.astype(np.float32)]
