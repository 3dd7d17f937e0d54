"""Engines: the lazy table, and the Keras engine against Keras' own graph, row by row."""

import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import backbone, engines
from pipeline.backbone import LoadedBackbone
from pipeline.encoder import Encoder
from pipeline.engines import Engine
from pipeline.errors import ConfigError, EngineUnavailableError, PipelineError

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOLERANCE = 1e-5
Images = NDArray[np.uint8]
Features = NDArray[np.float32]

# The table


def test_engines_are_listed_in_order_and_can_be_chosen() -> None:
    assert list(engines.ENGINES) == sorted(engines.ENGINES)
    assert set(engines.FASTEST_FIRST) <= set(engines.ENGINES)


def test_auto_says_what_and_why() -> None:
    assert engines.resolve("auto") == ("keras", "the only engine installed")
    assert engines.resolve("keras") == ("keras", "asked for")


def test_auto_takes_the_fastest_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    add_row(monkeypatch, "swift", Engine("swift:create", "json", "pip install swift"))
    monkeypatch.setattr(engines, "FASTEST_FIRST", ("absent", "swift", "keras"))
    add_row(monkeypatch, "absent", Engine("absent:create", "no_such_runtime", "pip install it"))
    assert engines.resolve("auto") == ("swift", "the fastest engine installed")


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'keras'") as caught:
        engines.resolve("kera")
    assert "auto" in caught.value.hint


def test_an_absent_engine_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    add_row(monkeypatch, "absent", Engine("absent:create", "no_such_runtime", "pip install it"))
    for call in (engines.resolve, create_nothing):
        with pytest.raises(EngineUnavailableError) as caught:
            call("absent")
        assert "no_such_runtime" in caught.value.message
        assert "pip install it" in caught.value.hint


def test_an_engine_that_fails_to_import_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "half_installed.py").write_text("import a_missing_part")
    monkeypatch.syspath_prepend(tmp_path)
    add_row(monkeypatch, "half", Engine("half_installed:create", "json", "pip install half"))
    with pytest.raises(EngineUnavailableError, match="a_missing_part") as caught:
        create_nothing("half")
    assert "pip install half" in caught.value.hint


def test_an_engine_is_one_file_and_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "new_engine.py").write_text(
        "def create(loaded, *, batch_size, precision):\n    return loaded, batch_size, precision\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    add_row(monkeypatch, "new", Engine("new_engine:create", "json", "pip install new"))
    made: Any = engines.create("new", "loaded", batch_size=3, precision="float32")  # type: ignore[arg-type]
    assert made == ("loaded", 3, "float32")


def test_choosing_an_engine_imports_no_network_library() -> None:
    script = (
        "import sys, pipeline.backbone, pipeline.engines, pipeline.weights\n"
        "pipeline.engines.resolve('auto')\n"
        "print(sorted({'jax', 'keras', 'tensorflow', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def add_row(monkeypatch: pytest.MonkeyPatch, name: str, row: Engine) -> None:
    rows = {**engines.ENGINES, name: row}
    monkeypatch.setattr(engines, "ENGINES", MappingProxyType(rows))


def create_nothing(name: str) -> Any:
    nothing: Any = None
    return engines.create(name, nothing, batch_size=1, precision="float32")


# The Keras engine


def images_of(count: int, size: int) -> Images:
    return np.random.default_rng(7).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def load(size: int) -> LoadedBackbone:
    return backbone.load("resnet50", weights="random", seed=0, image_size=size, pooling="avg")


def keras_own(loaded: LoadedBackbone, images: Images) -> Features:
    """Features by Keras alone: its network, its preprocessing, the same weights."""
    keras = backbone.import_keras()
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
def loaded() -> LoadedBackbone:
    return load(64)


@pytest.fixture(scope="module")
def encoder(loaded: LoadedBackbone) -> Encoder:
    return engines.create("keras", loaded, batch_size=33, precision="float32")


@pytest.fixture(scope="module")
def expected(loaded: LoadedBackbone) -> Features:
    return keras_own(loaded, images_of(64, 64))


@pytest.mark.slow
def test_it_says_what_it_is(encoder: Encoder) -> None:
    assert (encoder.engine, encoder.dim, encoder.batch_size) == ("keras", 2048, 33)
    assert encoder.device.startswith(("CPU (", "GPU ("))


@pytest.mark.slow
def test_rows_equal_keras_own_at_every_batch_size(encoder: Encoder, expected: Features) -> None:
    images = images_of(64, 64)
    for count in range(1, 34):
        features = encoder(images[64 - count :])
        assert features.shape == (count, 2048)
        assert features.dtype == np.float32
        error = np.abs(features - expected[64 - count :]).max() / np.abs(expected).max()
        assert error <= TOLERANCE, count


@pytest.mark.slow
def test_a_row_depends_on_its_image_alone(encoder: Encoder) -> None:
    images = images_of(64, 64)
    alone = np.concatenate([encoder(images[i : i + 1]) for i in range(0, 64, 4)])
    generator = np.random.default_rng(3)
    for _ in range(6):
        order = generator.permutation(64)[: generator.integers(1, 34)]
        features = encoder(images[order])
        for row, image in enumerate(order):
            if image % 4 == 0:
                np.testing.assert_array_equal(features[row], alone[image // 4])


@pytest.mark.slow
def test_the_batch_size_changes_no_feature(loaded: LoadedBackbone, expected: Features) -> None:
    for batch_size in (1, 5):
        encoder = engines.create("keras", loaded, batch_size=batch_size, precision="float32")
        features = encoder(images_of(64, 64)[:batch_size])
        error = np.abs(features - expected[:batch_size]).max() / np.abs(expected).max()
        assert error <= TOLERANCE


@pytest.mark.slow
def test_large_images_take_the_folded_graph_and_agree() -> None:
    from pipeline.engines.keras import FOLD_FROM

    loaded, images = load(FOLD_FROM), images_of(6, FOLD_FROM)
    own = keras_own(loaded, images)
    encoder = engines.create("keras", loaded, batch_size=4, precision="float32")
    features = np.concatenate([encoder(images[:4]), encoder(images[4:])])
    assert np.abs(features - own).max() / np.abs(own).max() <= TOLERANCE
    np.testing.assert_array_equal(encoder(images[3:5]), features[3:5])


@pytest.mark.slow
def test_images_are_left_alone_and_features_are_nobody_elses(encoder: Encoder) -> None:
    images = images_of(33, 64)
    before = images.copy()
    images.flags.writeable = False
    first = encoder(images)
    kept = first.copy()
    second = encoder(images[:20])
    second[:] = -1
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable
    np.testing.assert_array_equal(encoder(images[::-1])[::-1], first)


@pytest.mark.slow
def test_encoding_never_changes_the_weights(loaded: LoadedBackbone, encoder: Encoder) -> None:
    before = loaded.arrays()
    encoder(images_of(33, 64))
    after = loaded.arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((34, 64, 64, 3), np.uint8),
        np.zeros((2, 32, 64, 3), np.uint8),
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
    ],
    ids=["none", "too many", "other size", "float", "no batch"],
)
def test_other_input_is_refused(encoder: Encoder, images: Any) -> None:
    with pytest.raises(ConfigError, match="Received"):
        encoder(images)


@pytest.mark.slow
def test_running_out_of_memory_names_a_batch_size(
    loaded: LoadedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    encoder: Any = engines.create("keras", loaded, batch_size=8, precision="float32")

    def exhausted(_: Images) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(encoder, "_forward", exhausted)
    with pytest.raises(PipelineError, match="memory") as caught:
        encoder(images_of(2, 64))
    assert caught.value.hint == "Try --batch-size 4."


@pytest.mark.slow
def test_other_errors_are_not_hidden(
    loaded: LoadedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = engines.create("keras", loaded, batch_size=1, precision="float32")

    def broken(_: Images) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(encoder, "_forward", broken)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        encoder(images_of(1, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "precision", "named"),
    [(0, "float32", "--batch-size"), (4, "float16", "--precision")],
)
def test_options_it_lacks_are_refused(
    loaded: LoadedBackbone, batch_size: int, precision: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        engines.create("keras", loaded, batch_size=batch_size, precision=precision)


@pytest.mark.slow
def test_other_backends_go_through_keras_alone(
    loaded: LoadedBackbone, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras = backbone.import_keras()
    images = images_of(33, 64)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    other: Any = engines.create("keras", loaded, batch_size=33, precision="float32")
    assert other._forward == loaded.model.predict_on_batch
    np.testing.assert_allclose(other(images), encoder(images), atol=1e-5, rtol=0)
