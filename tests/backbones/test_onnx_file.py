"""A network in ONNX: what is read, what is refused, and what its encoder computes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_files
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import DIM, IMAGES, SIZE, Network

from pipeline import backbones, engines
from pipeline.backbones import frozen, onnx_file
from pipeline.backbones.forms import ONNX
from pipeline.engines.base import require_apart
from pipeline.errors import (
    ConfigError,
    EngineUnavailableError,
    PipelineError,
    WeightsUnavailableError,
)
from pipeline.files.regular import sha256_file

ENGINES = ["onnx", "openvino"]
TOLERANCE = 1e-5


def load(path: Path, **changes: Any) -> frozen.FrozenBackbone:
    given = {"image_size": SIZE, "pooling": "avg", "preprocessing": "unit", **changes}
    return frozen.load(str(path), weights="imagenet", seed=0, **given)


def encoded(path: Path, engine: str, **changes: Any) -> np.ndarray:
    encoder = engines.create(engine, load(path, **changes), batch_size=6, precision="float32")
    return encoder(IMAGES)


def require_close(made: np.ndarray, expected: np.ndarray) -> None:
    assert made.dtype == np.float32 and made.shape == expected.shape
    assert np.abs(made - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("first", [True, False], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("output", "pooling"),
    [("pooled", "avg"), ("map", "avg"), ("map", "max"), ("last", "avg"), ("last", "max")],
)
def test_features_are_those_of_the_network(
    output: str, pooling: str, first: bool, engine: str, tmp_path: Path
) -> None:
    path = Network((output,), channels_first=first).save(tmp_path / "own.onnx")
    require_close(encoded(path, engine, pooling=pooling), onnx_files.pooled(IMAGES, pooling))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "network",
    [
        Network(sides=("height", "width")),
        Network(("map",), sides=("", ""), batch=""),
        Network(channels="num_channels", sides=("height", "width")),
        Network(opset=9),
        Network(opset=13),
    ],
    ids=["any size", "nameless", "named channels", "opset 9", "opset 13"],
)
def test_what_varies_and_older_operators(network: Network, engine: str, tmp_path: Path) -> None:
    path = network.save(tmp_path / "own.onnx")
    require_close(encoded(path, engine), onnx_files.pooled(IMAGES))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("preprocessing", "pixels"),
    [
        ("none", IMAGES.astype(np.float64)),
        ("unit", IMAGES / 255),
        ("tf", IMAGES / 127.5 - 1),
        (
            "clip",
            (IMAGES / 255 - [0.48145466, 0.4578275, 0.40821073])
            / [0.26862954, 0.26130258, 0.27577711],
        ),
        ("torch", (IMAGES / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("caffe", IMAGES[..., ::-1] - np.array([103.939, 116.779, 123.68])),
    ],
)
def test_the_declared_preprocessing(
    preprocessing: str, pixels: np.ndarray, engine: str, tmp_path: Path
) -> None:
    path = Network().save(tmp_path / "own.onnx")
    expected = onnx_files.map_of(pixels).mean(axis=(1, 2))
    require_close(encoded(path, engine, preprocessing=preprocessing), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_of_several_outputs(engine: str, tmp_path: Path) -> None:
    network = Network(("tokens", "map", "pooled"))
    path = network.save(tmp_path / "own.onnx", onnx_files.with_text_branch)
    with pytest.raises(ConfigError, match=r"4 outputs, tokens \(batch, 64, 5\), map") as caught:
        backbones.find(str(path), "unit")
    assert caught.value.hint == "Choose one: --output map or pooled."
    with pytest.raises(ConfigError, match=r"tokens .*--output map or pooled"):
        backbones.find(str(path), "unit", "tokens")
    with pytest.raises(ConfigError, match="expected features of one input"):
        backbones.find(str(path), "unit", "text")
    for output in ("map", "pooled"):
        require_close(encoded(path, engine, output=output), onnx_files.pooled(IMAGES))


def test_what_the_output_does_not_need_is_left_out(tmp_path: Path) -> None:
    def with_much_else(model: Any) -> None:
        onnx_files.with_text_branch(model)
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(9), "unused"))

    path = Network(("pooled", "tokens")).save(tmp_path / "own.onnx", with_much_else)
    graph = load(path, output="pooled").built.graph
    assert [item.name for item in graph.input] == ["images"]
    assert [item.name for item in graph.output] == ["features"]
    assert not {"network/unused", "network/rows"} & {item.name for item in graph.initializer}
    assert "Cast" not in [node.op_type for node in graph.node if node.input[0] != "images"]


@pytest.mark.parametrize("engine", ENGINES)
def test_branches_keep_what_they_read(engine: str, tmp_path: Path) -> None:
    path = Network().save(tmp_path / "own.onnx", onnx_files.with_branches)
    onnx_files.checked(path)
    require_close(encoded(path, engine), onnx_files.pooled(IMAGES))


def test_a_file_in_a_table_of_backbones(tmp_path: Path) -> None:
    path = Network().save(tmp_path / "own.onnx")
    spec = backbones.find(str(path), "unit")
    assert (spec.form, spec.output, spec.dim) == (ONNX, "pooled", DIM)
    assert spec.name == f"onnx-file:{sha256_file(path)}"
    loaded = load(path)
    assert loaded.weights_sha256 == sha256_file(path)
    assert loaded.dim == DIM
    with pytest.raises(ConfigError, match="Expected a Keras network"):
        _ = loaded.model
    with pytest.raises(ConfigError, match=r"--engine: expected onnx or openvino.*'keras'"):
        engines.create("keras", loaded, batch_size=1, precision="float32")


def test_options_that_are_missing_or_not_for_it(tmp_path: Path) -> None:
    path = Network().save(tmp_path / "own.onnx")
    with pytest.raises(ConfigError, match="--preprocessing: expected"):
        backbones.find(str(path))
    with pytest.raises(ConfigError, match=r"--output is for an \.onnx file.*resnet50"):
        backbones.find("resnet50", None, "pooled")
    with pytest.raises(ConfigError, match=r"--output is for an \.onnx file"):
        backbones.find("own.keras", "unit", "pooled")


# Refused


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (onnx_files.with_external_data, WeightsUnavailableError, "external data of 'kernel'"),
        (onnx_files.with_custom_operator, ConfigError, "'com.microsoft.QuickGelu'"),
        (onnx_files.with_own_function, ConfigError, "'mine.Own'.*inline_local_functions"),
        (lambda model: model.ClearField("graph"), WeightsUnavailableError, "without a graph"),
        (lambda model: model.ClearField("opset_import"), WeightsUnavailableError, "cut short"),
    ],
    ids=["external data", "custom operator", "own function", "no graph", "no operators"],
)
def test_files_that_are_not_read(
    change: onnx_files.Change, error: type[Exception], says: str, tmp_path: Path
) -> None:
    path = Network().save(tmp_path / "own.onnx", change)
    with pytest.raises(error, match=f"own.onnx: .*{says}"):
        backbones.find(str(path), "unit")


def hidden_in_a_branch(model: Any) -> None:
    onnx_files.with_branches(model)
    inner = model.graph.node[4].attribute[0].g
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    inner.node.append(helper.make_node("Constant", [], ["inner"], value=tensor))


def test_external_data_of_a_constant_within_a_branch(tmp_path: Path) -> None:
    path = Network().save(tmp_path / "own.onnx", hidden_in_a_branch)
    with pytest.raises(WeightsUnavailableError, match="external data of 'hidden'"):
        backbones.find(str(path), "unit")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Network(dim="features"), "fixed number of features"),
        (Network(("map",), dim="features", sides=("h", "w")), "must be fixed"),
        (Network(("tokens",)), "rows of tokens"),
        (Network(batch=1), "batch size is fixed at 1"),
        (Network(channels=1), "input of 3 channels"),
        (Network(kind=TensorProto.FLOAT16), "input in float32"),
        (Network(opset=6), "opset 7 or later"),
    ],
    ids=["dynamic", "dynamic map", "tokens", "batch", "channels", "float16", "opset"],
)
def test_networks_that_cannot_be_used(network: Network, says: str, tmp_path: Path) -> None:
    path = network.save(tmp_path / "own.onnx")
    with pytest.raises(ConfigError, match=says):
        backbones.find(str(path), "unit")


def test_another_size_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    path = Network(sides=(64, 64)).save(tmp_path / "own.onnx")
    with pytest.raises(ConfigError, match="--image-size 64"):
        load(path)


def test_damaged_files(tmp_path: Path) -> None:
    whole = Network().save(tmp_path / "own.onnx").read_bytes()
    path = tmp_path / "damaged.onnx"
    for content in (b"", b"no network", whole[:-40], whole[: len(whole) // 2], b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(WeightsUnavailableError, match=r"damaged\.onnx: .*whole and valid"):
            backbones.find(str(path), "unit")
    with pytest.raises(WeightsUnavailableError, match="No such file"):
        backbones.find(str(tmp_path / "none.onnx"), "unit")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(WeightsUnavailableError, match=r"folder\.onnx"):
        backbones.find(str(tmp_path / "folder.onnx"), "unit")


def test_no_cut_and_no_changed_byte_ends_in_a_traceback(tmp_path: Path) -> None:
    whole = Network().save(tmp_path / "own.onnx").read_bytes()
    path = tmp_path / "damaged.onnx"
    random = np.random.default_rng(0)
    cuts = [whole[:end] for end in range(0, len(whole), 37)]
    flips = []
    for place in random.integers(0, len(whole), 150):
        changed = bytearray(whole)
        changed[place] ^= int(random.integers(1, 256))
        flips.append(bytes(changed))
    for content in (*cuts, *flips):
        path.write_bytes(content)
        try:
            load(path)
        except PipelineError as error:
            assert error.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.full((DIM, 3, 4, 4), np.nan, np.float32), "kernel")
        ),
        lambda model: model.graph.initializer[0].dims.append(7),
        lambda model: model.graph.node[2].input.__setitem__(0, "nowhere"),
    ],
    ids=["NaN", "other size", "undefined"],
)
def test_invalid_graphs_are_refused_when_they_are_loaded(
    change: onnx_files.Change, tmp_path: Path
) -> None:
    path = Network().save(tmp_path / "own.onnx", change)
    with pytest.raises((WeightsUnavailableError, ConfigError)):
        load(path)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_whose_rows_depend_on_each_other_is_refused(engine: str, tmp_path: Path) -> None:
    good = Network().save(tmp_path / "good.onnx")
    bad = Network().save(tmp_path / "bad.onnx", onnx_files.with_mean_over_the_batch)
    require_apart(engines.create(engine, load(good), batch_size=4, precision="float32"), SIZE)
    encoder = engines.create(engine, load(bad), batch_size=4, precision="float32")
    with pytest.raises(ConfigError, match="alone and beside others") as caught:
        require_apart(encoder, SIZE)
    assert "model.eval()" in caught.value.hint


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_cannot_run_it_says_what_to_do(engine: str, tmp_path: Path) -> None:
    def unknown(model: Any) -> None:
        model.graph.node[2].op_type = "Relu"
        model.opset_import[0].version = 99

    loaded = load(Network().save(tmp_path / "own.onnx"))
    unknown(loaded.built)
    loaded.built.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(PipelineError, match=f"the {engine} engine can run") as caught:
        engines.create(engine, loaded, batch_size=4, precision="float32")
    assert "opset such as 17" in caught.value.hint


def test_without_the_package_that_reads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = Network().save(tmp_path / "own.onnx")
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match="package onnx") as caught:
        backbones.find(str(path), "unit")
    assert "embedding-pipeline[onnx]" in caught.value.hint


def test_onnx_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, pipeline.backbones, pipeline.engines; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
