"""Heads as layers: the arrays against the heads, then Keras' layers against the arrays."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import heads
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.errors import HeadNotTrainableError
from pipeline.heads.calibration import probabilities
from pipeline.heads.dense import DenseHead
from pipeline.heads.head import Head
from pipeline.heads.layers import head_network, is_network, layers_of
from pipeline.heads.scaler import FeatureScaler
from pipeline.serving.assembly import assemble

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NETWORKS = ("centroid", "dense", "linear", "linear-svc", "logreg", "majority", "ridge")
SIZE, DIM = 16, 24
# Float32 against heads that compute in float64, of the largest score.
TOLERANCE = 1e-5


def planted(num_classes: int = 3, rows: int = 90) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features with a large mean, and one that hardly varies beside the others."""
    rng = np.random.default_rng(11)
    y = np.arange(rows) % num_classes
    X = rng.normal(size=(num_classes, DIM))[y] + rng.normal(size=(rows, DIM))
    X += np.linspace(-40, 40, DIM)
    X[:, 3] = 5 + 7e-5 * X[:, 3]
    return X.astype(np.float32), y


def dense_head(X: NDArray[np.float32], num_classes: int) -> DenseHead:
    """A dense head with drawn weights, so that no training needs Keras."""
    rng = np.random.default_rng(5)
    head = DenseHead(hidden=(8, 6))
    scaler = FeatureScaler().fit(X)
    head.mean_, head.scale_ = scaler.mean_, scaler.scale_
    head.classes_, head.n_features_in_ = np.arange(num_classes), DIM
    sizes = (DIM, 8, 6, num_classes)
    head.weights_ = []
    for inputs, outputs in pairwise(sizes):
        head.weights_ += [rng.normal(size=(inputs, outputs)).astype(np.float32),
                          rng.normal(size=outputs).astype(np.float32)]  # fmt: skip
    return head


def fitted(name: str, num_classes: int = 3) -> tuple[Head, NDArray[np.float32]]:
    X, y = planted(num_classes)
    if name == "dense":
        head: Head = dense_head(X, num_classes)
    else:
        head = heads.create(name, {}, seed=0).fit(X, y)
    head.temperature_ = 0.7
    return head, X


def apply(layers: list[tuple[NDArray[Any], NDArray[Any]]], rows: NDArray[Any]) -> NDArray[Any]:
    for number, (kernel, bias) in enumerate(layers, start=1):
        rows = rows @ kernel + bias
        if number < len(layers):
            rows = np.maximum(rows, 0)
    return rows


def centred(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Scores without the constant of each row, which no probability depends on."""
    return scores.astype(np.float64) - scores.mean(axis=1, keepdims=True, dtype=np.float64)


def error(received: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference, of the largest score where that is above one."""
    difference = np.abs(centred(received) - centred(expected)).max()
    return float(difference / max(1.0, np.abs(centred(expected)).max()))


def test_which_heads_are_networks() -> None:
    assert {name for name in heads.HEADS if is_network(name)} == set(NETWORKS)
    assert not is_network("sklearn.ensemble.RandomForestClassifier")


@pytest.mark.parametrize("name", NETWORKS)
def test_arrays_give_the_heads_scores(name: str) -> None:
    head, X = fitted(name)
    found = layers_of(head)
    assert all(array.dtype == np.float64 for layer in found.layers for array in layer)
    scaled = (X.astype(np.float64) - found.mean) / found.scale
    is_float32 = name in ("dense", "linear")
    limit = 1e-5 if is_float32 else 1e-12
    assert error(apply(found.layers, scaled), head.scores(X)) < limit
    folded = apply(found.folded(0.7), X.astype(np.float64))
    assert error(folded, head.scores(X) / 0.7) < limit


@pytest.mark.parametrize("name", NETWORKS)
def test_rounding_the_mean_costs_nothing(name: str) -> None:
    head, X = fitted(name)
    found = layers_of(head)
    mean, factor = found.mean.astype(np.float32), (1 / found.scale).astype(np.float32)
    layers = [(kernel.astype(np.float32), bias.astype(np.float32))
              for kernel, bias in found.rounded()]  # fmt: skip
    assert error(apply(layers, (X - mean) * factor), head.scores(X)) < TOLERANCE


def test_without_the_correction_the_mean_would_cost_something() -> None:
    """The planted feature is one that tells: rounded 1e-7 of its mean is 1e-3 of its spread."""
    head, X = fitted("logreg")
    head.scale_[3], head.coef_[:, 3] = 7e-5, (5.0, -5.0, 0.0)
    found = layers_of(head)
    scaled = (X - found.mean.astype(np.float32)) / found.scale
    assert error(apply(list(found.layers), scaled), head.scores(X)) > TOLERANCE
    assert error(apply(found.rounded(), scaled), head.scores(X)) < TOLERANCE


def test_a_linear_head_folds_into_one_layer() -> None:
    head, _ = fitted("ridge")
    assert len(layers_of(head).folded(2.0)) == 1
    assert len(layers_of(fitted("dense")[0]).folded(2.0)) == 3


@pytest.mark.parametrize("name", ["knn", "sklearn.naive_bayes.GaussianNB"])
def test_other_heads_are_refused(name: str) -> None:
    head, _ = fitted(name)
    for function in (layers_of, head_network):
        with pytest.raises(HeadNotTrainableError) as caught:
            function(head)
        assert name in caught.value.message
        assert all(network in caught.value.message for network in NETWORKS)


# With Keras


@pytest.fixture(scope="module")
def backbone() -> FrozenBackbone:
    """A small network with preprocessing, whose features depend on every pixel."""
    from pipeline.system.keras_setup import import_keras

    keras = import_keras()
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="images")
    pixels = keras.ops.cast(images, "float32") / 255.0
    convolution = keras.layers.Conv2D(DIM, 5, strides=3, kernel_initializer="zeros", name="conv")
    normalization = keras.layers.BatchNormalization(name="norm")
    maps = normalization(convolution(pixels))
    rng = np.random.default_rng(3)
    convolution.set_weights([rng.normal(size=(5, 5, 3, DIM)), rng.normal(size=DIM)])
    normalization.set_weights([np.ones(DIM), rng.normal(size=DIM), np.full(DIM, 0.5),
                               np.full(DIM, 4.0)])  # fmt: skip
    features = keras.layers.GlobalAveragePooling2D()(keras.ops.relu(maps))
    model = keras.Model(images, features)
    model.trainable = False
    return FrozenBackbone(lambda: model, name="small", image_size=SIZE, pooling="avg", dim=DIM,
                          weights_sha256="0" * 64)  # fmt: skip


def images_of(count: int) -> NDArray[np.uint8]:
    """Images whose overall colour follows their class, one of three."""
    rng = np.random.default_rng(8)
    colours = np.array([[150, 60, 60], [60, 150, 60], [60, 60, 150]])
    noise = rng.integers(0, 100, (count, SIZE, SIZE, 3))
    return (colours[np.arange(count) % 3][:, None, None, :] + noise).astype(np.uint8)


def encode(backbone: FrozenBackbone, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(backbone.model(images, training=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_head_network_gives_the_heads_scores(name: str) -> None:
    head, X = fitted(name)
    network = head_network(head)
    logits = np.asarray(network(X))
    assert (logits.dtype, logits.shape) == (np.float32, (len(X), 3))
    assert error(logits, head.scores(X)) < TOLERANCE


@pytest.mark.slow
def test_head_network_trains_all_but_the_scaler() -> None:
    head, _ = fitted("dense")
    network = head_network(head)
    names = [layer.name for layer in network.layers]
    assert names == [
        "features", "scaler", "hidden_1", "dropout_1", "hidden_2", "dropout_2", "logits"
    ]  # fmt: skip
    assert network.layers[1].weights == []
    assert network.trainable_variables == network.weights
    for received, expected in zip(network.get_weights(), head.weights_, strict=True):
        np.testing.assert_array_equal(received, expected)


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_assembled_model_equals_the_cached_path(
    name: str, fold: bool, backbone: FrozenBackbone
) -> None:
    images = images_of(60)
    features = encode(backbone, images)
    if name == "dense":
        head: Head = dense_head(features, 3)
    else:
        head = heads.create(name, {}, seed=0).fit(features, np.arange(60) % 3)
    expected_by_temperature = []
    for temperature in (1.0, 0.3, 5.0):
        head.temperature_ = temperature
        model = assemble(backbone, head, 3, fold=fold)
        expected = probabilities([head.scores(features)], temperature)
        received = np.asarray(model(images))
        assert (received.dtype, received.shape) == (np.float32, (60, 3))
        assert np.abs(received - expected).max() < 1e-5
        expected_by_temperature.append(expected)
        assert model.input.name == "images" and model.input.dtype == "uint8"
        assert model.output_names == ["probabilities"]
    # Else the temperature would not have been tested.
    assert name == "majority" or np.ptp(expected_by_temperature, axis=0).max() > 1e-3


@pytest.mark.slow
def test_a_folded_linear_head_is_one_layer(backbone: FrozenBackbone) -> None:
    head, _ = fitted("logreg")
    before = {layer.name for layer in backbone.model.layers}
    model = assemble(backbone, head, 3, fold=True)
    added = [layer.name for layer in model.layers if layer.name not in before]
    assert added == ["logits", "probabilities"]


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
def test_a_class_that_train_lacked_has_probability_zero(
    fold: bool, backbone: FrozenBackbone
) -> None:
    images = images_of(12)
    features = encode(backbone, images)
    head = heads.create("logreg", {}, seed=0).fit(features, np.array([1, 3] * 6))
    received = np.asarray(assemble(backbone, head, 5, fold=fold)(images))
    assert received.shape == (12, 5)
    assert (received[:, [0, 2, 4]] == 0).all()
    expected = head.predict_proba(features)
    np.testing.assert_allclose(received[:, [1, 3]], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear-svc", "logreg", "ridge"])
def test_two_classes(name: str, backbone: FrozenBackbone) -> None:
    images = images_of(30)
    features = encode(backbone, images)
    head = heads.create(name, {}, seed=0).fit(features, (np.arange(30) % 3 == 0).astype(int))
    received = np.asarray(assemble(backbone, head, 2)(images))
    np.testing.assert_allclose(received, head.predict_proba(features), atol=1e-5)


@pytest.mark.slow
def test_rows_have_no_company_and_training_changes_nothing(backbone: FrozenBackbone) -> None:
    head, _ = fitted("dense")
    model = assemble(backbone, head, 3)
    images = images_of(5)
    together = np.asarray(model(images))
    for index in range(5):
        alone = np.asarray(model(images[index : index + 1]))
        np.testing.assert_allclose(alone[0], together[index], atol=1e-6)
    assert model.trainable_variables == []
    np.testing.assert_allclose(np.asarray(model(images, training=True)), together, atol=1e-6)
