"""Features in int8: one network, made of the data's images, kept by digest, the same for all."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fakes import Command, FakeEncoder, write_classes, write_image

import pipeline
from pipeline.backbones import quantized_file
from pipeline.backbones.identity import Identity
from pipeline.config.extracting import ExtractOptions
from pipeline.engines import int8
from pipeline.errors import ConfigError, PipelineError, WeightsUnavailableError
from pipeline.extract import calibration
from pipeline.images.sources import scan
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system import machine

INT8 = ("--precision", "int8")


@pytest.fixture(scope="module")
def has_instructions() -> Iterator[None]:
    """OpenVINO computes in int8 on every processor, only no faster; so the tests run on all."""
    before = machine.computes_in
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "computes_in", lambda name: name == "int8" or before(name))
        yield


# What needs no network


def test_a_file_has_the_same_bytes_for_the_same_network(tmp_path: Path) -> None:
    content = quantized_file.pack(b"<net/>", b"weights", {"images": ["b", "a"]})
    assert content == quantized_file.pack(b"<net/>", b"weights", {"images": ["b", "a"]})
    path = quantized_file.keep(tmp_path, content)
    assert path == quantized_file.of_store(tmp_path, quantized_file.digest(content))
    assert quantized_file.is_one(path)
    assert quantized_file.read(path) == (b"<net/>", b"weights")
    assert quantized_file.calibration(path) == {"images": ["b", "a"]}


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    path = quantized_file.keep(tmp_path, quantized_file.pack(b"<net/>", b"weights", {}))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for use in (quantized_file.read, quantized_file.calibration, quantized_file.require_as_kept):
        with pytest.raises(WeightsUnavailableError, match="by the SHA-256 in its name"):
            use(path)
    path.unlink()
    with pytest.raises(WeightsUnavailableError, match="No such file"):
        quantized_file.read(path)


def sampled(folder: Path, count: int) -> tuple[list[str], np.ndarray]:
    return calibration.sample(scan(folder), ExtractOptions(data="", image_size=32), count)


def test_the_sample_is_by_content_whatever_files_are_called(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", {"cat": 6, "dog": 6})
    keys, images = sampled(tmp_path / "one", 5)
    every, _ = sampled(tmp_path / "one", 100)
    assert len(every) == 12 and keys == sorted(every)[:5]
    assert images.shape == (5, 32, 32, 3) and images.dtype == np.uint8
    for number, path in enumerate(sorted((tmp_path / "one").rglob("*.*"), reverse=True)):
        target = tmp_path / "two" / "all" / f"{number:02}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(target, target.with_name("copy.png"))
    (target.parent / "bad.png").write_bytes(b"no image")
    again, same = sampled(tmp_path / "two", 5)
    assert again == keys
    np.testing.assert_array_equal(same, images)


def test_a_listing_without_an_image_cannot_calibrate(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(PipelineError, match="images to calibrate int8 on"):
        sampled(tmp_path, 5)


@pytest.mark.parametrize("engine", ["keras", "onnx"])
def test_other_engines_refuse_it(
    engine: str, tmp_path: Path, command: Command, fake_network: FakeEncoder
) -> None:
    write_classes(tmp_path / "photos", {"cat": 2})
    status, result = command("extract", tmp_path / "photos", *INT8, "--engine", engine)
    assert status == 2
    assert "expected --engine openvino" in result["error"]["message"]


def test_a_processor_without_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "computes_in", lambda precision: False)
    with pytest.raises(ConfigError, match="avx512_vnni"):
        int8.require("auto")


def test_without_nncf_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="no module 'nncf'") as caught:
        int8.require_nncf()
    assert "embedding-pipeline[int8]" in str(caught.value.hint)


def test_the_network_is_part_of_the_identity() -> None:
    made = Identity(
        backbone="resnet50", weights_sha256="0" * 64, image_size=32, pooling="avg",
        preprocessing="caffe", decoder="d", precision="int8", engine="openvino", quantized="1" * 64,
    )  # fmt: skip
    plain = made.in_float32()
    assert (plain.precision, plain.engine, plain.quantized) == ("float32", None, None)
    assert "quantized" not in plain.as_json()
    assert Identity.of(made.as_json()) == made


# The whole way

needs_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed")


@pytest.fixture(scope="module")
def made(tiny: None, has_instructions: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a store of their features in int8, and a run on it."""
    folder = tmp_path_factory.mktemp("int8")
    write_classes(folder / "photos", {"cat": 20, "dog": 20})
    result = pipeline.extract_features(
        folder / "photos", store=folder / "store", weights="random", image_size=32,
        precision="int8", quiet=True,
    )  # fmt: skip
    assert (result["engine"], result["precision"], result["encoded"]) == ("openvino", "int8", 40)
    pipeline.train_heads(folder / "store", run=folder / "run", heads=["logreg"], quiet=True)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where nothing may be quantized any more, as without NNCF."""
    shutil.copytree(made, tmp_path / "made")
    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made"


def kept(folder: Path) -> Path:
    (path,) = (folder / "store" / "encoder").glob("*.int8")
    return path


def extract(command: Command, folder: Path, *more: object) -> tuple[int, dict[str, object]]:
    asked = ("--weights", "random", "--image-size", 32, *INT8)
    return command("extract", folder / "photos", "--store", folder / "store", *asked, *more)


@pytest.mark.slow
@needs_nncf
def test_features_are_near_those_in_float32(made: Path) -> None:
    pipeline.extract_features(
        made / "photos", store=made / "float32", weights="random", image_size=32, quiet=True
    )
    other, _, _ = pipeline.load(made / "float32")
    features, _, _ = pipeline.load(made / "store")
    assert 1e-4 < np.abs(features - other).max() / np.abs(other).max() < 0.1


@pytest.mark.slow
@needs_nncf
def test_the_store_records_the_network_and_its_images(made: Path) -> None:
    store = Store.open(made / "store")
    path = kept(made)
    assert store.identity.quantized == path.stem and store.identity.engine == "openvino"
    found = quantized_file.calibration(path)
    assert found["images"] == sorted(key.decode() for key in store.index.keys)
    assert set(found["versions"]) == {"nncf", "openvino"}


@pytest.mark.slow
@needs_nncf
def test_later_images_get_the_same_network_without_nncf(folder: Path, command: Command) -> None:
    before = kept(folder).read_bytes()
    write_image(folder / "photos" / "cat" / "new.png", seed=99)
    status, result = extract(command, folder)
    assert (status, result.get("encoded"), result.get("reused")) == (0, 1, 40), result
    assert kept(folder).read_bytes() == before
    status, result = command("verify", folder / "store", "--reencode", 100)
    assert status == 0 and result["ok"], result
    status, result = command("predict", folder / "run", folder / "photos")
    assert status == 0, result
    classifier = pipeline.Classifier.load(folder / "run", batch_size=1)
    assert len(classifier.predict(folder / "photos" / "cat" / "new.png").predictions) == 1
    status, result = command("evaluate", folder / "run", folder / "photos")
    assert status == 0, result


@pytest.mark.slow
@needs_nncf
def test_a_dry_run_makes_a_network_for_itself_alone(made: Path, command: Command) -> None:
    asked = ("--weights", "random", "--image-size", 32, *INT8, "--dry-run")
    status, result = command("extract", made / "photos", "--store", made / "other", *asked)
    assert (status, result["new"]) == (0, 40), result
    assert result["estimated_seconds"] > 0 and not (made / "other").exists()


@pytest.mark.slow
@needs_nncf
@pytest.mark.parametrize("is_gone", [False, True])
def test_damage_of_the_network_is_noticed(is_gone: bool, folder: Path, command: Command) -> None:
    path = kept(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if is_gone else path.write_bytes(content)
    write_image(folder / "photos" / "cat" / "new.png", seed=99)
    for asked in (("predict", folder / "run", folder / "photos"), None):
        status, result = command(*asked) if asked else extract(command, folder)
        assert status != 0 and "network in int8" in result["error"]["message"], result
        assert "--force" in result["error"]["hint"]
    status, result = command("verify", folder / "store")
    assert status != 0
    assert "network in int8" in " ".join(item["problem"] for item in result["problems"])


@pytest.mark.slow
@needs_nncf
def test_force_makes_a_damaged_network_anew(made: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(made, tmp_path / "made")
    kept(tmp_path / "made").write_bytes(b"")
    status, result = extract(command, tmp_path / "made", "--force")
    assert (status, result.get("encoded")) == (0, 40), result
    quantized_file.require_as_kept(kept(tmp_path / "made"))


@pytest.mark.slow
@needs_nncf
def test_what_needs_the_network_in_floating_point_refuses(folder: Path, command: Command) -> None:
    status, result = command("finetune", folder / "run", "--run", folder / "tuned")
    assert status == 2 and "--precision float32" in result["error"]["hint"], result
    status, result = command("export", folder / "run", folder / "model.onnx")
    assert status == 2 and "'int8'" in result["error"]["message"], result
    status, result = command("predict", folder / "run", folder / "photos", "--engine", "keras")
    assert status == 2 and "expected openvino" in result["error"]["message"], result
    asked = ("--store", folder / "store", "--weights", "random", "--image-size", 32)
    status, result = command("extract", folder / "photos", *asked)
    assert status == 2 and "precision" in result["error"]["message"], result


@pytest.mark.slow
@needs_nncf
def test_weights_do_not_stand_in_for_a_store_that_is_gone(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "store").rename(folder / "elsewhere")
    # Where the run was made, too, there is none.
    monkeypatch.setattr(Run, "store_path", folder / "store")
    for more in ((), ("--weights", "random")):
        status, result = command("predict", folder / "run", folder / "photos", *more)
        assert status == 2, result
        assert result["error"]["hint"] == "Put it back, or say where it is with --store DIR."
