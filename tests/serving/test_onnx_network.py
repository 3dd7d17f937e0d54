"""An encoder in ONNX from photos to predictions: its file is needed once, by ``extract``."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_files
import pytest
from fakes import edit_record, write_photos
from onnx_files import SIZE, Network

from pipeline import Classifier, FeatureExtractor
from pipeline.backbones import onnx_file
from pipeline.cli.main import main
from pipeline.files.regular import sha256_file
from pipeline.images import decoder
from pipeline.runs.run import Run
from pipeline.serving.formats import FORMATS
from pipeline.store.store import Store

Command = Callable[..., tuple[int, dict[str, Any]]]
OWN = ("--preprocessing", "unit", "--image-size", SIZE)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a store by a network with several outputs, and a run; the network's file is gone."""
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos", 24)
    file = Network(("tokens", "map", "pooled")).save(folder / "own.onnx")
    arguments = ["extract", folder / "photos", "--store", folder / "store", "--backbone", file,
                 "--output", "map", *OWN, "--quiet"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    heads = ["--head", "logreg", "--head", "knn", "--head", "majority"]
    arguments = ["train-head", "--store", folder / "store", "--run", folder / "run", *heads]
    assert main([*map(str, arguments), "--quiet"]) == 0
    file.rename(folder / "elsewhere.bin")
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    copy = tmp_path / "own"
    shutil.copytree(made, copy)
    record = copy / "run" / "run.json"
    edit_record(record, lambda said: said["inputs"].update(store=str(copy / "store")))
    edit_record(record, lambda said: said.update(root=str(copy / "photos")))
    return copy


def pixels_of(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the decoded held-out images of a run, and what it recorded of logreg for them."""
    rows = run.manifest()
    held_out = [index for index, split in enumerate(rows.splits) if split != "train"]
    pixels = [decoder.decode(rows.file(index).read_bytes(), SIZE) for index in held_out]
    return np.stack(pixels), run.probabilities("logreg")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that is to exit with status 2, and return its one line."""
    assert main([str(argument) for argument in arguments] + ["--quiet"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_the_store_has_features_identity_and_file(made: Path) -> None:
    store = Store.open(made / "store")
    digest = sha256_file(made / "elsewhere.bin")
    identity = store.identity
    assert identity.backbone == f"onnx-file:{digest}" and identity.weights_sha256 == digest
    assert (identity.output, identity.preprocessing) == ("map", "unit")
    names = sorted(path.name for path in store.encoder_folder.iterdir())
    assert [name for name in names if not name.endswith(".model-1.onnx")] == [f"{digest}.onnx"]
    assert len(names) == 2
    rows = store.read_manifest()
    images = [decoder.decode(rows.file(index).read_bytes(), SIZE) for index in range(len(rows))]
    expected = onnx_files.pooled(np.stack(images))
    found = store.read(rows.keys)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "openvino", "auto"])
@pytest.mark.parametrize("is_converted", [True, False])
def test_predict_needs_no_file(is_converted: bool, engine: str, own: Path) -> None:
    if not is_converted:
        for path in (own / "store" / "encoder").glob("*.model-1.onnx"):
            path.unlink()
    run = Run.open(own / "run")
    rows = run.manifest()
    index = rows.splits.index("test")
    found = Classifier.load(run.path, "logreg", engine=engine).predict_proba([rows.file(index)])
    scored = [row for row, split in enumerate(rows.splits) if split != "train"]
    np.testing.assert_allclose(
        found[0], run.probabilities("logreg")[scored.index(index)], atol=TOLERANCE
    )


def test_a_converted_copy_is_enough_where_onnx_is_not_installed(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    assert Classifier.load(made / "run", engine="openvino").encoder.dim == onnx_files.DIM


@pytest.mark.slow
def test_neither_keras_nor_onnx_is_imported_to_predict(made: Path) -> None:
    code = (
        "import sys, pipeline\n"
        f"pipeline.Classifier.load({str(made / 'run')!r})\n"
        "print({'keras', 'tensorflow', 'onnx'} & set(sys.modules))"
    )
    # In a process of its own: those that are forked for tests have TensorFlow.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_other_commands_on_the_store(own: Path, command: Command) -> None:
    status, scores = command("evaluate", own / "run", own / "photos")
    assert (status, scores["images"]) == (0, 72)
    assert command("verify", own / "store", "--reencode", 9)[1]["ok"] is True
    kept = next(path for path in (own / "store" / "encoder").iterdir() if len(path.stem) == 64)
    kept.write_bytes(b"damaged")
    found = command("verify", own / "store", "--repair")[1]
    assert "--backbone FILE.onnx" in found["problems"][0]["fix"]
    assert not kept.exists()


def test_the_file_may_come_back_under_another_name(own: Path, command: Command) -> None:
    file = (own / "elsewhere.bin").rename(own / "again.onnx")
    arguments = ("extract", own / "photos", "--store", own / "store", "--backbone", file, *OWN)
    status, result = command(*arguments, "--output", "map")
    assert (status, result["encoded"], result["reused"]) == (0, 0, 72)
    status, result = command(*arguments, "--output", "pooled")
    assert status == 2
    assert "holds features of output = 'map'" in result["error"]["message"]
    other = Network(("map",), dim=onnx_files.DIM, opset=13).save(own / "other.onnx")
    status, result = command("extract", own / "photos", "--store", own / "store",
                             "--backbone", other, *OWN)  # fmt: skip
    assert status == 2
    assert "holds features of backbone = 'onnx-file:" in result["error"]["message"]


def test_without_the_store_the_file_is_given_again(own: Path) -> None:
    file = (own / "elsewhere.bin").rename(own / "again.onnx")
    for path in (own / "store" / "encoder").iterdir():
        path.unlink()
    expected = Run.open(own / "run").probabilities("logreg")
    assert main(["predict", str(own / "run"), str(own / "photos"), "--quiet"]) == 2
    for engine in ("onnx", "openvino"):
        loaded = Classifier.load(own / "run", "logreg", weights=str(file), engine=engine)
        pixels, _ = pixels_of(Run.open(own / "run"))
        np.testing.assert_allclose(loaded.predict_proba(list(pixels)), expected, atol=TOLERANCE)


def test_features_for_scikit_learn(made: Path, tmp_path: Path) -> None:
    file = Network(("map", "pooled")).save(tmp_path / "own.onnx")
    extractor = FeatureExtractor(
        tmp_path / "stores", backbone=str(file), preprocessing="unit", output="pooled",
        image_size=SIZE,
    )  # fmt: skip
    assert len(extractor.get_feature_names_out()) == onnx_files.DIM
    paths = sorted((made / "photos").rglob("*.*"))[:5]
    images = np.stack([decoder.decode(path.read_bytes(), SIZE) for path in paths])
    expected = onnx_files.pooled(images)
    np.testing.assert_allclose(extractor.transform(paths), expected, rtol=1e-4, atol=1e-6)


# Export


@pytest.mark.parametrize("head", ["logreg", "majority"])
def test_one_graph_from_pixels_to_probabilities(
    head: str, made: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "model.onnx"
    status, result = command("export", made / "run", out, "--head", head)
    assert status == 0, result
    assert result["stitch"]["n"] == 32 and result["stitch"]["same_argmax"] is True
    assert result["stitch"]["max_difference"] < TOLERANCE
    model = onnx_files.checked(out)
    said = {item.key: json.loads(item.value) for item in model.metadata_props}
    run = Run.open(made / "run")
    assert said["identity"] == run.inputs.identity.as_json()
    assert said["classes"] == ["ant", "bee", "cow"]
    import onnxruntime

    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    pixels, _ = pixels_of(run)
    found = session.run(["probabilities"], {"images": pixels})[0]
    np.testing.assert_allclose(found, run.probabilities(head), atol=TOLERANCE)
    alone = session.run(["probabilities"], {"images": pixels[:1]})[0]
    np.testing.assert_allclose(alone, found[:1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["logreg", "knn"])
def test_a_folder_predicts_without_store_and_run(
    head: str, own: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "model"
    status, result = command("export", own / "run", out, "--head", head, "--format", "folder")
    assert status == 0, result
    pixels, _ = pixels_of(Run.open(own / "run"))
    expected = Run.open(own / "run").probabilities(head)
    shutil.rmtree(own)
    assert sorted(path.name for path in (out / "encoder").iterdir()) == [
        "network.onnx",
        "probe.json",
    ]
    np.testing.assert_allclose(FORMATS["folder"].load(out)(pixels), expected, atol=TOLERANCE)
    for engine in ("onnx", "openvino"):
        loaded = Classifier.load(out, engine=engine)
        np.testing.assert_allclose(loaded.predict_proba(list(pixels)), expected, atol=TOLERANCE)
    assert command("verify", out)[1]["ok"] is True
    (out / "encoder" / "network.onnx").write_bytes(b"damaged")
    assert command("verify", out)[1]["ok"] is False


def test_a_network_of_another_store_stops_the_export(own: Path, command: Command) -> None:
    kept = next(path for path in (own / "store" / "encoder").iterdir() if len(path.stem) == 64)
    kept.write_bytes(Network().save(own / "other.onnx").read_bytes())
    status, result = command("export", own / "run", own / "model.onnx", "--head", "logreg")
    assert status == 2
    assert "by the SHA-256 in its name" in result["error"]["message"]
    assert not (own / "model.onnx").exists()


# Refused


@pytest.mark.parametrize("form", ["keras", "savedmodel"])
def test_formats_of_keras_are_refused(
    form: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("model.keras" if form == "keras" else "model")
    said = refused(capsys, "export", made / "run", out, "--head", "logreg", "--format", form)
    assert "network in ONNX" in said and "--format folder or onnx" in said
    assert not list(tmp_path.iterdir())


def test_finetune_needs_a_network_of_keras(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "finetune", made / "run")
    assert "expected a run on features of a Keras network" in said
    assert ".keras file" in said


def test_the_engine_keras_is_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = (own / "elsewhere.bin").rename(own / "again.onnx")
    for arguments in (
        ("predict", own / "run", own / "photos"),
        ("extract", own / "photos", "--store", own / "new", "--backbone", file, *OWN),
    ):
        said = refused(capsys, *arguments, "--engine", "keras")
        assert "expected onnx or openvino, which run networks in ONNX" in said
    assert not (own / "new").exists()
