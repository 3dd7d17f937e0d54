"""BatchNorm folded into convolutions: the same features, and only where that is right."""

from typing import Any

import numpy as np
import pytest

from pipeline.engines.folding import folded
from pipeline.system.keras_setup import KerasModel, import_keras

pytestmark = pytest.mark.slow
SIDE = 8


def drawn(outputs: Any, inputs: Any) -> KerasModel:
    """Return a frozen model with weights that make no normalization the identity."""
    model = import_keras().Model(inputs, outputs)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    model.trainable = False
    return model


def norms_left(model: KerasModel) -> int:
    keras = import_keras()
    return sum(
        norms_left(layer)
        if isinstance(layer, keras.Model)
        else isinstance(layer, keras.layers.BatchNormalization)
        for layer in model.layers
    )


def require_equal(model: KerasModel, *, left: int) -> None:
    before = [np.array(variable) for variable in model.weights]
    images = np.random.default_rng(1).uniform(-1, 1, (3, SIDE, SIDE, 3)).astype(np.float32)
    made = folded(model)
    expected = np.asarray(model(images, training=False))
    np.testing.assert_allclose(made(images, training=False), expected, rtol=1e-4, atol=1e-4)
    assert norms_left(made) == left
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_convolutions_of_every_kind_take_the_normalization_behind_them() -> None:
    layers = import_keras().layers
    images = layers.Input((SIDE, SIDE, 3))
    x = layers.BatchNormalization(epsilon=0.1)(layers.Conv2D(8, 3, padding="same")(images))
    x = layers.BatchNormalization(scale=False)(layers.Conv2D(8, 1, groups=2, use_bias=False)(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(layers.ReLU()(x))
    require_equal(drawn(layers.BatchNormalization(center=False)(x), images), left=0)


def test_a_normalization_stays_where_the_convolution_feeds_something_else() -> None:
    layers = import_keras().layers
    images = layers.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 1)(images)
    y = layers.BatchNormalization()(layers.Conv2D(4, 1, activation="relu")(images))
    require_equal(drawn(layers.Add()([layers.BatchNormalization()(x), x, y]), images), left=2)


def test_a_convolution_that_is_called_twice_is_left_alone() -> None:
    layers = import_keras().layers
    images = layers.Input((SIDE, SIDE, 3))
    shared = layers.Conv2D(3, 1)
    require_equal(drawn(shared(layers.BatchNormalization()(shared(images))), images), left=1)


def test_models_within_the_model_are_folded_too() -> None:
    keras = import_keras()
    layers = keras.layers
    images = layers.Input((SIDE, SIDE, 3))
    inner = keras.Sequential(
        [layers.Input((SIDE, SIDE, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    )
    scaled = keras.ops.multiply(images, 2.0)
    require_equal(drawn(layers.GlobalAveragePooling2D()(inner(scaled)), images), left=0)
