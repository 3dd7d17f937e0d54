"""Every named backbone against Keras, and networks of one's own."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import backbones, engines
from pipeline.backbones import frozen, keras_file, weights, weights_file
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.variables import variables_of
from pipeline.errors import ConfigError, WeightsUnavailableError
from pipeline.finetune.checks import check_gradients
from pipeline.finetune.cut import find_cut, last_stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

Command = Callable[..., tuple[int, dict[str, Any]]]

SIZE = 64
IMAGES = np.random.default_rng(7).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
# Keras' own names, written out: the table under test does not say itself what is right.
KERAS = {
    "convnexttiny": ("ConvNeXtTiny", "convnext"),
    "efficientnetlite0": ("EfficientNet", "mobilenet_v2"),
    "efficientnetlite1": ("EfficientNet", "mobilenet_v2"),
    "efficientnetlite2": ("EfficientNet", "mobilenet_v2"),
    "efficientnetv2b0": ("EfficientNetV2B0", "efficientnet_v2"),
    "mobilenetv3large": ("MobileNetV3Large", "mobilenet_v3"),
    "resnet101": ("ResNet101", "resnet"),
    "resnet152": ("ResNet152", "resnet"),
    "resnet50": ("ResNet50", "resnet50"),
    "resnet50v2": ("ResNet50V2", "resnet_v2"),
}
# Of networks that Keras has none of: width and number of blocks of each stage.
LITE = {
    "efficientnetlite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "efficientnetlite1": ((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
    "efficientnetlite2": ((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
}


# The others have more of the same layers.
FAMILIES = [
    "convnexttiny", "efficientnetlite0", "efficientnetv2b0", "mobilenetv3large", "resnet50",
    "resnet50v2",
]  # fmt: skip


def load(name: str, **changes: Any) -> FrozenBackbone:
    options = {"weights": "random", "seed": 0, "image_size": SIZE, "pooling": "avg"}
    return frozen.load(name, **{**options, **changes})


@dataclass(frozen=True)
class Row:
    """A row of the table as loaded; Keras' own network with its weights; features of both."""

    loaded: FrozenBackbone
    own: Any
    made: np.ndarray
    expected: np.ndarray


@pytest.fixture(scope="module", params=list(KERAS))
def row(request: pytest.FixtureRequest) -> Row:
    loaded = load(request.param)
    own = keras_own(loaded)
    pixels = getattr(frozen.import_keras().applications, KERAS[loaded.name][1]).preprocess_input(
        IMAGES.astype(np.float32)
    )
    return Row(
        loaded,
        own,
        made=np.asarray(loaded.model(IMAGES, training=False)),
        expected=np.asarray(own(pixels, training=False)),
    )


def keras_own(loaded: FrozenBackbone) -> Any:
    """Build Keras' own network with the same weights."""
    if loaded.name in LITE:
        network = keras_lite(*LITE[loaded.name])
    else:
        network = getattr(frozen.import_keras().applications, KERAS[loaded.name][0])(
            include_top=False, weights=None, pooling="avg", input_shape=(SIZE, SIZE, 3)
        )
    network.set_weights(loaded.network.get_weights())
    return network


def keras_lite(widths: tuple[int, ...], depths: tuple[int, ...]) -> Any:
    """Build an EfficientNet-Lite with Keras' builder of EfficientNets, without their rescaling."""
    from keras.src.applications import efficientnet

    stages = [
        {**stage, "filters_in": before, "filters_out": width, "repeats": depth, "se_ratio": 0}
        for stage, before, width, depth in zip(
            efficientnet.DEFAULT_BLOCKS_ARGS, (32, *widths[:-1]), widths, depths, strict=True
        )
    ]
    network = efficientnet.EfficientNet(
        1.0, 1.0, SIZE, name="lite", include_top=False, weights=None, pooling="avg",
        input_shape=(SIZE, SIZE, 3), activation="relu6", drop_connect_rate=0, blocks_args=stages,
        weights_name="",
    )  # fmt: skip
    normalized = network.layers[2].output
    return frozen.import_keras().Model(normalized, network.output)


def error_of(made: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(made - expected).max() / np.abs(expected).max())


def test_the_table_is_complete() -> None:
    assert set(KERAS) == set(backbones.BACKBONES)
    assert list(backbones.BACKBONES) == sorted(backbones.BACKBONES)


def test_every_row_of_the_table_is_true(row: Row) -> None:
    loaded = row.loaded
    assert loaded.dim == backbones.BACKBONES[loaded.name].dim
    assert loaded.model.input_shape == (None, SIZE, SIZE, 3)
    assert loaded.model.inputs[0].dtype == "uint8"


def test_features_are_those_of_keras(row: Row) -> None:
    made = row.made
    assert made.shape == (4, backbones.BACKBONES[row.loaded.name].dim)
    assert error_of(made, row.expected) <= 1e-5
    assert np.isfinite(made).all()
    assert np.abs(made).max() < 6e4, "beyond float16"
    assert np.abs(made[0] - made[1]).max() > 1e-3 * np.abs(made).max(), "all images look alike"


def test_the_table_says_the_last_stage(row: Row) -> None:
    stage = backbones.BACKBONES[row.loaded.name].last_stage
    assert last_stage(row.loaded.network) == stage
    assert find_cut(row.loaded.network, stage).boundary is not None


@pytest.mark.parametrize("row", FAMILIES, indirect=True)
@pytest.mark.parametrize("engine", ["keras", "openvino"])
def test_engines_agree(engine: str, row: Row) -> None:
    encoder = engines.create(engine, row.loaded, batch_size=4, precision="float32")
    assert error_of(encoder(IMAGES), row.made) <= 2e-5


def test_weights_do_not_depend_on_what_was_built_before(row: Row) -> None:
    drawn = weights.draw(variables_of(row.own), seed=0)
    assert weights.digest(drawn) == row.loaded.weights_sha256


def test_onednn_trains_every_layer_rightly(row: Row) -> None:
    surgery: Any = SimpleNamespace(loaded=row.loaded, cut=SimpleNamespace(first=0))
    check_gradients(surgery)


@pytest.mark.parametrize("row", FAMILIES, indirect=True)
def test_weights_come_back_from_every_file(row: Row, tmp_path: Path) -> None:
    loaded = row.loaded
    row.own.save(tmp_path / "whole.keras")
    row.own.save_weights(tmp_path / "only.weights.h5")
    kept = tmp_path / f"{loaded.weights_sha256}.h5"
    weights.save(kept, loaded.arrays())
    variables = variables_of(loaded.network)
    for path in (tmp_path / "whole.keras", tmp_path / "only.weights.h5"):
        read = weights_file.read(path, variables)
        assert weights.digest(read) == loaded.weights_sha256, path.suffix
        path.unlink()
    assert weights.digest(weights.load(kept)) == loaded.weights_sha256
    kept.unlink()


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a network that is none of those it is given to."""
    path = tmp_path_factory.mktemp("other") / "other.weights.h5"
    keras = frozen.import_keras()
    network = keras.applications.ResNet50V2(
        include_top=False, weights=None, pooling="avg", input_shape=(SIZE, SIZE, 3)
    )
    network.save_weights(path)
    return path


@pytest.mark.parametrize("name", ["convnexttiny", "mobilenetv3large"])
def test_a_file_of_another_network_is_refused(name: str, other_weights: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="expected"):
        load(name, weights=str(other_weights))


# A network of one's own


def save_own(path: Path, *, layers: Callable[[Any], list[Any]], size: int | None = SIZE) -> Path:
    keras = frozen.import_keras()
    keras.utils.set_random_seed(3)
    keras.Sequential([keras.Input((size, size, 3)), *layers(keras.layers)]).save(path)
    return path


def convolutions(layers: Any) -> list[Any]:
    return [layers.Conv2D(8, 3, activation="relu"), layers.Dropout(0.5), layers.Conv2D(6, 3)]


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        ("none", IMAGES.astype(np.float32)),
        ("unit", IMAGES / np.float32(255)),
        ("tf", IMAGES / np.float32(127.5) - 1),
        (
            "clip",
            (IMAGES / np.float32(255) - [0.48145466, 0.4578275, 0.40821073])
            / [0.26862954, 0.26130258, 0.27577711],
        ),
        ("torch", (IMAGES / np.float32(255) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("caffe", IMAGES[..., ::-1] - np.array([103.939, 116.779, 123.68])),
    ],
)
def test_a_file_gets_the_declared_preprocessing(
    preprocessing: str, expected: np.ndarray, tmp_path: Path
) -> None:
    path = save_own(tmp_path / "own.keras", layers=convolutions)
    loaded = load(str(path), weights="imagenet", preprocessing=preprocessing)
    keras = frozen.import_keras()
    model = keras.saving.load_model(path)
    features = np.asarray(model(expected.astype(np.float32), training=False)).mean(axis=(1, 2))
    assert loaded.dim == 6
    made = np.asarray(loaded.model(IMAGES, training=False))
    assert error_of(made, features) <= 1e-5


def test_features_of_a_file_that_pools_itself_and_by_maximum(tmp_path: Path) -> None:
    own = {"weights": "imagenet", "preprocessing": "unit"}
    flat = save_own(
        tmp_path / "flat.keras",
        layers=lambda layers: [*convolutions(layers), layers.GlobalAveragePooling2D()],
    )
    assert load(str(flat), **own).dim == 6
    path = save_own(tmp_path / "map.keras", layers=convolutions)
    mean, most = (load(str(path), pooling=pooling, **own) for pooling in ("avg", "max"))
    difference = np.asarray(most.model(IMAGES)) - np.asarray(mean.model(IMAGES))
    assert (difference >= 0).all()
    assert difference.max() > 0


@pytest.mark.parametrize(
    ("layers", "size", "error", "says"),
    [
        (lambda layers: [layers.Conv2D(2, 3)], 32, ConfigError, "--image-size 32"),
        (
            lambda layers: [layers.Lambda(lambda x: x * 2), layers.Conv2D(2, 3)],
            SIZE,
            WeightsUnavailableError,
            "Lambda",
        ),
        (lambda layers: [layers.Reshape((SIZE, -1))], SIZE, ConfigError, "one output of shape"),
    ],
    ids=["other size", "code", "no features"],
)
def test_networks_that_cannot_be_used_are_refused(
    layers: Callable[[Any], list[Any]], size: int, error: type[Exception], says: str, tmp_path: Path
) -> None:
    path = save_own(tmp_path / "own.keras", layers=layers, size=size)
    with pytest.raises(error, match=says):
        load(str(path), weights="imagenet", preprocessing="unit")


def test_a_class_of_others_is_refused_though_it_is_registered(tmp_path: Path) -> None:
    keras = frozen.import_keras()

    class Foreign(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            pytest.fail("its code was run")

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    path = tmp_path / "own.keras"
    with keras.saving.custom_object_scope({"Others>Foreign": Foreign}):
        save_own(path, layers=lambda layers: [*convolutions(layers), Foreign()])
        with pytest.raises(WeightsUnavailableError, match=r"Foreign, registered as"):
            load(str(path), weights="imagenet", preprocessing="unit")


@pytest.mark.parametrize(
    "change",
    [
        {"module": "os", "class_name": "system"},
        {"module": "keras.utils", "class_name": "get_file"},
        {"module": "keras", "class_name": "utils.get_file"},
        {"module": "keras_hub.layers", "class_name": "Conv2D"},
        {"module": "keras.layers", "class_name": "TFSMLayer"},
        {"module": "keras.layers", "class_name": "Conv2D", "registered_name": "Others>Conv2D"},
        {"class_name": "__lambda__"},
        {"class_name": ["Conv2D"]},
    ],
)
def test_an_architecture_names_classes_of_keras_alone(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = save_own(tmp_path / "own.keras", layers=convolutions)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1]["config"]["kernel_initializer"].update(change)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, "config.json": json.dumps(config)}.items():
            archive.writestr(name, content)
    with pytest.raises(WeightsUnavailableError, match="registered as"):
        load(str(path), weights="imagenet", preprocessing="unit")


def test_a_loss_of_ones_own_is_no_part_of_the_network(tmp_path: Path) -> None:
    keras = frozen.import_keras()
    network = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(2, 3)])

    def own_loss(expected: Any, made: Any) -> Any:
        return keras.ops.mean(made - expected)

    network.compile(loss=own_loss)
    network.save(tmp_path / "own.keras")
    own = load(str(tmp_path / "own.keras"), weights="imagenet", preprocessing="unit")
    assert own.dim == 2


def test_the_networks_of_keras_are_built_in(row: Row) -> None:
    config = frozen.import_keras().saving.serialize_keras_object(row.loaded.network)
    keras_file._require_built_in(Path("any.keras"), json.loads(json.dumps(config)))


def test_a_sequential_network_that_pools_has_a_graph_and_its_own_digest(tmp_path: Path) -> None:
    keras = frozen.import_keras()
    path = save_own(
        tmp_path / "own.keras",
        layers=lambda layers: [*convolutions(layers), layers.GlobalAveragePooling2D()],
    )
    own = load(str(path), weights="imagenet", preprocessing="unit")
    saved = frozen._arrays(keras.saving.load_model(path))
    assert own.weights_sha256 == weights.digest(saved)
    assert find_cut(own.network, own.network.layers[-2].name).boundary is not None


def test_a_file_from_the_command_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fakes import write_classes

    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", {"cat": 2, "dog": 2})
    save_own(tmp_path / "own.keras", layers=convolutions)
    arguments = ["extract", "data", "--image-size", str(SIZE), "--store", "store"]
    own = ["--backbone", "own.keras", "--preprocessing", "unit"]
    status, result = command(*arguments, *own[:2])
    assert status == 2
    assert "unit: RGB from 0 to 1" in result["error"]["hint"]
    status, result = command(*arguments, *own, "--weights", "random")
    assert status == 2
    assert "brings its own weights" in result["error"]["message"]
    status, result = command(*arguments, *own)
    assert (status, result["encoded"], result["dim"]) == (0, 4, 6)
    (tmp_path / "own.keras").rename(tmp_path / "renamed.keras")
    script = (
        "import sys; from pipeline.cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        "print(status, 'keras' in sys.modules)"
    )
    again = [*arguments, "--backbone", "renamed.keras", "--preprocessing", "unit", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *again], capture_output=True, text=True, check=True
    )
    first, last = done.stdout.splitlines()
    assert (json.loads(first)["reused"], last) == (4, "0 False")
    status, result = command(*arguments, "--backbone", "renamed.keras", "--preprocessing", "tf")
    assert (status, "preprocessing" in result["error"]["message"]) == (2, True)


def test_a_preprocessing_is_not_for_named_backbones_and_a_file_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has its own"):
        backbones.find("resnet50", "tf")
    (tmp_path / "text.keras").write_text("no archive")
    for path in (tmp_path / "absent.keras", tmp_path / "text.keras"):
        with pytest.raises(WeightsUnavailableError, match="expected a network"):
            backbones.find(str(path), "tf")


def test_the_name_of_a_file_is_that_of_its_architecture(tmp_path: Path) -> None:
    first = save_own(tmp_path / "first.keras", layers=convolutions)
    other = save_own(tmp_path / "other.keras", layers=lambda layers: [layers.Conv2D(8, 3)])
    names = {backbones.find(str(path), "tf").name for path in (first, other)}
    assert len(names) == 2
    assert all(name.startswith("keras-file:") for name in names)
    assert len(hashlib.sha256().hexdigest()) == len(names.pop().partition(":")[2])
