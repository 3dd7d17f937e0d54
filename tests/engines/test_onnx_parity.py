"""The same network in Keras' form and in ONNX: the same features, row by row, on every engine."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import engines
from pipeline.backbones import frozen
from pipeline.config.extracting import PREPROCESSINGS
from pipeline.system.keras_setup import import_converter, quiet_loggers

pytestmark = [
    pytest.mark.slow,
    # Keras reads its variables in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

TOLERANCE = 1e-5
SIZE = 48
IMAGES = np.random.default_rng(7).integers(0, 256, (33, SIZE, SIZE, 3), dtype=np.uint8)
# What is tried with each pooling: both forms and both engines, and with the other the other pairs.
TRIED = {
    "avg": (("nhwc.onnx", "onnx"), ("nchw.onnx", "openvino")),
    "max": (("nhwc.onnx", "openvino"), ("nchw.onnx", "onnx")),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one network in every form: a part of MobileNetV2, which ends in a map."""
    folder = tmp_path_factory.mktemp("networks")
    keras = frozen.import_keras()
    keras.utils.set_random_seed(3)
    whole = keras.applications.MobileNetV2(
        include_top=False, weights=None, alpha=0.35, input_shape=(SIZE, SIZE, 3)
    )
    network = keras.Model(whole.inputs, whole.get_layer("block_6_project_BN").output)
    network.save(folder / "own.keras")
    convert = import_converter().convert.from_function
    import tensorflow as tf

    signature = [tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="pixels")]
    function = tf.function(lambda x: network(x, training=False), input_signature=signature)
    for order, first in (("nhwc", None), ("nchw", ["pixels"])):
        with quiet_loggers("tensorflow", "tf2onnx"):
            model, _ = convert(function, input_signature=signature, opset=17, inputs_as_nchw=first)
        (folder / f"{order}.onnx").write_bytes(model.SerializeToString())
    return folder


def load(path: Path, preprocessing: str, pooling: str) -> frozen.FrozenBackbone:
    return frozen.load(
        str(path), weights="imagenet", seed=0, image_size=SIZE, pooling=pooling,
        preprocessing=preprocessing,
    )  # fmt: skip


@pytest.mark.parametrize("preprocessing", list(PREPROCESSINGS))
def test_features_are_those_of_keras(preprocessing: str, networks: Path) -> None:
    for pooling, tried in TRIED.items():
        model = load(networks / "own.keras", preprocessing, pooling).model
        expected = np.asarray(model(IMAGES, training=False))
        for name, engine in tried:
            loaded = load(networks / name, preprocessing, pooling)
            encoder = engines.create(engine, loaded, batch_size=8, precision="float32")
            parts = [encoder(IMAGES[start : start + 8]) for start in range(0, 33, 8)]
            difference = np.abs(np.concatenate(parts) - expected).max(axis=1)
            assert (difference <= TOLERANCE * np.abs(expected).max()).all(), (name, engine)
