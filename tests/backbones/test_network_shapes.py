"""Networks of one's own that cannot be used: what they are and what to do, without Keras."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fakes import Command, write_classes

from pipeline import backbones
from pipeline.backbones import frozen, keras_file, network_shapes
from pipeline.errors import ConfigError, WeightsUnavailableError


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((None, 64, 64, 3), "Use --image-size 64"),
        ((None, 64, None, 3), "Use --image-size 64"),
        ((None, 28, 28, 3), "28 pixels, and --image-size begins at 32"),
        ((None, 32, 48, 3), "squares"),
        ((None, 32, 32, 1), "1 channel, and images have 3"),
        ((None, None, None, 1), "1 channel, and"),
        ((None, 64, 64, 1), "1 channel, and"),
        ((None, 32, 32, 4), "4 channels, and images have 3"),
        ((None, 3, 32, 32), "channels first"),
        ((None, 1, 64, 64), "channels first"),
        ((None, 3, None, None), "channels first"),
        ((8, 32, 32, 3), "batch size is fixed at 8"),
        ((1, 32, 32, 3), "batch size is fixed at 1"),
        ((None, 512), "batch of images"),
        ((None, 5, 32, 32, 3), "batch of images"),
    ],
)
def test_inputs(shape: network_shapes.Shape, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        network_shapes.check_inputs(Path("n.keras"), [shape], 32)
    assert words in caught.value.hint and str(shape) in caught.value.message
    # What was given already is no way out.
    assert "Use --image-size 32" not in caught.value.hint


def test_one_input_alone() -> None:
    image = (None, 32, 32, 3)
    for shapes in ([image, (None, 5)], []):
        with pytest.raises(ConfigError) as caught:
            network_shapes.check_inputs(Path("n.keras"), shapes, 32)
        assert "only input" in caught.value.hint
    for shape in (image, (None, None, None, 3), (None, 32, 32, None), (None, None, 32, 3)):
        network_shapes.check_inputs(Path("n.keras"), [shape], 32)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(None, 8), (None, 4)], "one output"),
        ([], "one output"),
        ([(None, 49, 8)], "GlobalAveragePooling1D"),
        ([(None,)], "last convolution"),
        ([(None, 2, 2, 2, 8)], "last convolution"),
        ([(None, None)], "must be fixed"),
        ([(None, 4, 4, None)], "must be fixed"),
    ],
)
def test_outputs(shapes: list[network_shapes.Shape], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        network_shapes.check_outputs(Path("n.keras"), shapes)
    assert words in caught.value.hint
    for shape in ((None, 8), (None, None, None, 8), (None, 4, 4, 8)):
        network_shapes.check_outputs(Path("n.keras"), [shape])


def layer(shape: Any, kind: str = "InputLayer") -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": {"batch_shape": shape}}


def write_network(path: Path, layers: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": layers}}))
    return path


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([layer([None, 32, 32, 1]), layer([1], "Dense")], [(None, 32, 32, 1)]),
        ([layer([None, 2]), layer([None, 3])], [(None, 2), (None, 3)]),
        ([layer("x")], []),
        ([layer(["a", None])], []),
        ([layer(None)], []),
        ([{"class_name": "InputLayer"}], []),
        ([3, None, {"class_name": "InputLayer", "config": 3}], []),
        ("x", []),
        (None, []),
    ],
)
def test_an_architecture_tells_its_inputs(layers: Any, expected: list[Any]) -> None:
    assert network_shapes.declared_inputs({"config": {"layers": layers}}) == expected
    for document in ({}, {"config": None}, {"config": []}):
        assert network_shapes.declared_inputs(document) == []


def test_it_is_refused_before_keras_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_network(tmp_path / "n.keras", [layer([None, 32, 32, 1])])
    monkeypatch.setattr(frozen, "import_keras", lambda: pytest.fail("it takes seconds"))
    with pytest.raises(ConfigError, match="1 channel"):
        frozen.load(str(path), weights="imagenet", seed=0, image_size=32, pooling="avg",
                      preprocessing="unit")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("n.h5", "load_model"),
        ("N.HDF5", "load_model"),
        ("n.weights.h5", "--weights"),
        ("n.pt", "torch.onnx.export"),
        ("n.pth", "build it in Keras 3"),
        ("n.pb", "SavedModel"),
        ("n.Keras", "model.save"),
        ("saved", "SavedModel"),
        ("plain", "model.save"),
        ("no/such/network", "model.save"),
        ("./resnet50", "model.save"),
    ],
)
def test_networks_in_other_forms(
    name: str, words: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "d", {"a": 1, "b": 1})
    Path("saved").mkdir()
    Path("saved/saved_model.pb").touch()
    Path("plain").touch()
    status, result = command("extract", "d", "--backbone", name, "--preprocessing", "unit")
    error = result["error"]
    assert status == 2 and words in error["hint"], error
    assert "Unknown backbone" not in error["message"] and repr(name) in error["message"]
    assert "a .keras or .onnx file" in error["message"]


@pytest.mark.parametrize("name", ["resnet51", "ResNet50", "vgg", ""])
def test_a_name_is_still_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vgg").mkdir()  # such as one of photos
    with pytest.raises(ConfigError, match="Unknown backbone"):
        backbones.find(name)


def test_files_that_are_no_network(tmp_path: Path) -> None:
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "old.keras").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    (tmp_path / "text.keras").write_text("text")
    for name, words in (
        ("absent.keras", "no such file. Correct"),
        ("folder.keras", "not a regular file"),
        ("old.keras", "an HDF5 file. Save it again"),
        ("text.keras", "model.save"),
    ):
        with pytest.raises(WeightsUnavailableError) as caught:
            keras_file.architecture(tmp_path / name)
        assert words in str(caught.value) and "Errno" not in str(caught.value)
