"""Every engine against Keras' own graph, row by row."""

import hashlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_resnet
from fakes import JAX
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline import engines
from pipeline.backbones import frozen
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines import folding
from pipeline.engines import keras as keras_engine
from pipeline.engines import openvino as openvino_engine
from pipeline.engines.encoder import Encoder
from pipeline.engines.graph import converted
from pipeline.errors import ConfigError, PipelineError
from pipeline.system import machine

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TESTS = Path(__file__).parents[1]
TOLERANCE = 1e-5
# ResNet50's last maps are of 2 x 2 places, and a whole batch takes more than all of OpenVINO's
# requests at once.
SIZE = 48
BATCH = 17
Images = NDArray[np.uint8]
Features = NDArray[np.float32]


def images_of(count: int) -> Images:
    return np.random.default_rng(7).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def load() -> FrozenBackbone:
    return frozen.load("resnet50", weights="random", seed=0, image_size=SIZE, pooling="avg")


def error_of(made: Features, expected: Features) -> float:
    return float(np.abs(made - expected).max() / np.abs(expected).max())


def keras_own(loaded: FrozenBackbone, images: Images) -> Features:
    """Features by Keras alone: its network, its preprocessing, the same weights."""
    keras = frozen.import_keras()
    shape = (loaded.image_size, loaded.image_size, 3)
    network = keras.applications.resnet50.ResNet50(
        include_top=False, weights=None, pooling="avg", input_shape=shape
    )
    arrays = loaded.arrays()
    for layer in network.layers:
        layer.set_weights([arrays[f"{layer.name}/{variable.name}"] for variable in layer.weights])
    pixels = keras.applications.resnet50.preprocess_input(images.astype(np.float32))
    return np.asarray(network(pixels, training=False))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> FrozenBackbone:
    """ResNet50, which is converted once for each engine."""
    loaded = load()
    loaded.converted = tmp_path_factory.mktemp("converted")
    return loaded


@pytest.fixture(scope="module")
def tiny() -> FrozenBackbone:
    """A tiny network, for what does not depend on the network."""
    with tiny_resnet.in_place_of_resnet50():
        return load()


@pytest.fixture(scope="module", params=list(engines.ENGINES))
def encoder(request: pytest.FixtureRequest, loaded: FrozenBackbone) -> Encoder:
    return engines.create(request.param, loaded, batch_size=BATCH, precision="float32")


@pytest.fixture(scope="module")
def expected(loaded: FrozenBackbone) -> Features:
    return keras_own(loaded, images_of(64))


@pytest.mark.slow
def test_it_says_what_it_is(encoder: Encoder) -> None:
    assert encoder.engine in engines.ENGINES
    assert (encoder.dim, encoder.batch_size) == (2048, BATCH)
    assert encoder.device.startswith(("CPU (", "GPU ("))


@pytest.mark.slow
def test_rows_equal_keras_own_at_every_batch_size(encoder: Encoder, expected: Features) -> None:
    images = images_of(64)
    for count in range(1, BATCH + 1):
        features = encoder(images[64 - count :])
        assert features.shape == (count, 2048)
        assert features.dtype == np.float32
        error = np.abs(features - expected[64 - count :]).max() / np.abs(expected).max()
        assert error <= TOLERANCE, count


@pytest.mark.slow
def test_a_row_depends_on_its_image_alone(encoder: Encoder) -> None:
    images = images_of(64)
    alone = np.concatenate([encoder(images[i : i + 1]) for i in range(0, 64, 4)])
    generator = np.random.default_rng(3)
    for _ in range(6):
        order = generator.permutation(64)[: generator.integers(1, BATCH + 1)]
        features = encoder(images[order])
        for row, image in enumerate(order):
            if image % 4 == 0:
                np.testing.assert_array_equal(features[row], alone[image // 4])


@pytest.mark.slow
def test_rows_stay_in_place_under_load(encoder: Encoder, expected: Features) -> None:
    """Several batches under way at once, their images in one buffer that is written over."""
    images, buffer = images_of(64), np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
    generator = np.random.default_rng(5)
    under_way: deque[tuple[NDArray[np.intp], Callable[[], Features]]] = deque()
    checked = 0
    for _ in range(40):
        order = generator.permutation(64)[: generator.integers(1, BATCH + 1)]
        batch = buffer[: len(order)]
        batch[:] = images[order]
        under_way.append((order, encoder.submit(batch)))
        batch[:] = 255
        while len(under_way) > generator.integers(0, 5):
            order, collect = under_way.popleft()
            error = np.abs(collect() - expected[order]).max() / np.abs(expected).max()
            assert error <= TOLERANCE
            checked += len(order)
    assert checked > 300


@pytest.mark.slow
def test_a_fitted_head_decides_alike(encoder: Encoder, expected: Features) -> None:
    scaled = (expected - expected.mean(axis=0)) / (expected.std(axis=0) + 1e-2)
    labels = np.arange(64) % 4
    head = LogisticRegression(max_iter=200).fit(scaled, labels)
    images = images_of(64)
    own = np.concatenate([encoder(images[row : row + BATCH]) for row in range(0, 64, BATCH)])
    rescaled = (own - expected.mean(axis=0)) / (expected.std(axis=0) + 1e-2)
    np.testing.assert_array_equal(head.predict(rescaled), head.predict(scaled))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["keras", "openvino"])
def test_the_batch_size_changes_no_feature(engine: str, tiny: FrozenBackbone) -> None:
    images = images_of(33)
    expected = np.asarray(tiny.model(images, training=False))
    for batch_size in (1, 5, 33):
        encoder = engines.create(engine, tiny, batch_size=batch_size, precision="float32")
        assert error_of(encoder(images[:batch_size]), expected[:batch_size]) <= TOLERANCE


@pytest.mark.slow
def test_large_images_take_the_folded_graph_and_agree(
    loaded: FrozenBackbone, expected: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[object] = []
    fold = folding.folded
    monkeypatch.setattr(folding, "folded", lambda model: folded.append(1) or fold(model))
    monkeypatch.setattr(keras_engine, "FOLD_FROM", SIZE)
    images = images_of(64)
    encoder = engines.create("keras", loaded, batch_size=4, precision="float32")
    assert folded
    features = np.concatenate([encoder(images[:4]), encoder(images[4:6])])
    assert error_of(features, expected[:6]) <= TOLERANCE
    np.testing.assert_array_equal(encoder(images[3:5]), features[3:5])


@pytest.mark.slow
def test_images_are_left_alone_and_features_are_nobody_elses(encoder: Encoder) -> None:
    images = images_of(BATCH)
    before = images.copy()
    images.flags.writeable = False
    first = encoder(images)
    kept = first.copy()
    second = encoder(images[:10])
    second[:] = -1
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable
    np.testing.assert_array_equal(encoder(images[::-1])[::-1], first)


@pytest.mark.slow
def test_encoding_never_changes_the_weights(loaded: FrozenBackbone, encoder: Encoder) -> None:
    before = loaded.arrays()
    encoder(images_of(BATCH))
    after = loaded.arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, SIZE, SIZE, 3), np.uint8),
        np.zeros((BATCH + 1, SIZE, SIZE, 3), np.uint8),
        np.zeros((2, 32, SIZE, 3), np.uint8),
        np.zeros((2, SIZE, SIZE, 3), np.float32),
        np.zeros((SIZE, SIZE, 3), np.uint8),
    ],
    ids=["none", "too many", "other size", "float", "no batch"],
)
def test_other_input_is_refused(encoder: Encoder, images: Any) -> None:
    with pytest.raises(ConfigError, match="Received"):
        encoder(images)


@pytest.mark.slow
def test_running_out_of_memory_names_a_batch_size(
    tiny: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    encoder: Any = engines.create("keras", tiny, batch_size=8, precision="float32")

    def exhausted(_: Images) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(encoder, "_forward", exhausted)
    with pytest.raises(PipelineError, match="memory") as caught:
        encoder(images_of(2))
    assert caught.value.hint == "Try --batch-size 4."


@pytest.mark.slow
def test_other_errors_are_not_hidden(tiny: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Any = engines.create("keras", tiny, batch_size=1, precision="float32")

    def broken(_: Images) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(encoder, "_forward", broken)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        encoder(images_of(1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(engines.ENGINES))
@pytest.mark.parametrize(
    ("batch_size", "precision", "named"),
    [(0, "float32", "--batch-size"), (4, "float64", "--precision: the .* engine computes in")],
)
def test_options_it_lacks_are_refused(
    loaded: FrozenBackbone, engine: str, batch_size: int, precision: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        engines.create(engine, loaded, batch_size=batch_size, precision=precision)


# Precision


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["keras", "openvino"])
def test_bfloat16_is_bfloat16_or_refused(
    engine: str, loaded: FrozenBackbone, expected: Features
) -> None:
    if not machine.computes_in("bfloat16"):
        with pytest.raises(ConfigError, match=r"computes in float32.* on this processor"):
            engines.create(engine, loaded, batch_size=BATCH, precision="bfloat16")
        return
    encoder = engines.create(engine, loaded, batch_size=BATCH, precision="bfloat16")
    features = encoder(images_of(64)[:BATCH])
    error = np.abs(features - expected[:BATCH]).max() / np.abs(expected).max()
    assert 1e-4 < error < 3e-2, "float32 in disguise, or no features at all"
    again = engines.create("keras", loaded, batch_size=BATCH, precision="float32")
    error = np.abs(again(images_of(64)[:BATCH]) - expected[:BATCH]).max() / np.abs(expected).max()
    assert error <= TOLERANCE, "the network still computes in bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(engines.ENGINES))
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
def test_what_the_processor_lacks_is_refused(
    engine: str, precision: str, loaded: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "computes_in", lambda precision: precision == "float32")
    with pytest.raises(ConfigError, match=f"Received: '{precision}'"):
        engines.create(engine, loaded, batch_size=1, precision=precision)


@pytest.mark.slow
def test_openvino_that_computes_in_something_else_is_refused(
    loaded: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not machine.computes_in("bfloat16"):
        pytest.skip("this processor has nothing but float32")
    other = openvino_engine._properties("bfloat16")
    monkeypatch.setattr(openvino_engine, "_properties", lambda precision: other)
    with pytest.raises(PipelineError, match=r"compute in f32\. Received: bf16"):
        engines.create("openvino", loaded, batch_size=1, precision="float32")


# The converted network


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_only_keeps_nothing(
    tmp_path: Path, tiny: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the folder should be fails for root too.
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tiny, "converted", tmp_path / "file")
    encoder = engines.create("openvino", tiny, batch_size=4, precision="float32")
    images = images_of(4)
    assert error_of(encoder(images), np.asarray(tiny.model(images, training=False))) <= TOLERANCE


def test_a_converted_network_of_other_weights_is_replaced(tmp_path: Path) -> None:
    def of(weights_sha256: str) -> FrozenBackbone:
        return FrozenBackbone(
            lambda: pytest.fail("the network was built"),
            name="any", image_size=8, pooling="avg", dim=2,
            weights_sha256=weights_sha256, converted=tmp_path / "encoder",
        )  # fmt: skip

    def content_of(weights_sha256: str) -> bytes:
        with converted(
            of(weights_sha256), ".pb", lambda loaded: loaded.weights_sha256.encode()
        ) as path:
            return path.read_bytes()

    assert content_of("a" * 64) == b"a" * 64
    (kept,) = (tmp_path / "encoder").iterdir()
    with converted(of("a" * 64), ".pb", lambda _: pytest.fail("converted again")) as path:
        assert path == kept
    # As files were called that told nothing of the weights.
    content = b"another network"
    (tmp_path / "encoder" / f"{hashlib.sha256(content).hexdigest()}.pb").write_bytes(content)
    assert content_of("a" * 64) == b"a" * 64
    assert content_of("b" * 64) == b"b" * 64
    (other,) = (tmp_path / "encoder").iterdir()
    assert other != kept


# Other backends of Keras

ON_JAX = """
import json, sys
import numpy as np
import tiny_resnet
from pipeline import engines
from pipeline.backbones import frozen
size = int(sys.argv[3])
with tiny_resnet.in_place_of_resnet50():
    loaded = frozen.load("resnet50", weights="random", seed=0, image_size=size, pooling="avg")
refused = []
for engine in ("onnx", "openvino"):
    try:
        engines.create(engine, loaded, batch_size=1, precision="float32")
    except ImportError as error:
        refused.append(str(error))
images = np.load(sys.argv[1])
encoder = engines.create("keras", loaded, batch_size=len(images), precision="float32")
np.save(sys.argv[2], encoder(images))
about = {"digest": loaded.weights_sha256, "refused": refused, "auto": engines.resolve("auto")[0]}
print(json.dumps(about))
"""


@pytest.mark.slow
def test_on_jax_features_and_digest_are_the_same(tmp_path: Path, tiny: FrozenBackbone) -> None:
    given, made = tmp_path / "images.npy", tmp_path / "features.npy"
    images = images_of(4)
    np.save(given, images)
    done = subprocess.run(
        [sys.executable, "-c", ON_JAX, str(given), str(made), str(SIZE)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **JAX, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
    )
    about = json.loads(done.stdout)
    assert about["digest"] == tiny.weights_sha256
    assert about["auto"] == "keras"
    assert len(about["refused"]) == 2
    assert all("KERAS_BACKEND=jax" in message for message in about["refused"])
    expected = np.asarray(tiny.model(images, training=False))
    assert error_of(np.load(made), expected) <= TOLERANCE
