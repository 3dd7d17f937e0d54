"""Every stage follows the rule of the store, by which its images became squares."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_resnet
from exported_models import metadata_of
from fakes import Command, FakeEncoder, edit_record, replace_network, write_photos
from finetuning import run_finetune
from PIL import Image

import pipeline
from pipeline import engines
from pipeline.cli.main import main
from pipeline.config.options import CommonOptions
from pipeline.config.serving import ExportOptions
from pipeline.errors import StaleFeaturesError
from pipeline.finetune.photos import Photos
from pipeline.images import resizing, views
from pipeline.images.decoder import decode
from pipeline.runs import stitch
from pipeline.runs.run import Run
from pipeline.serving.classifier import Classifier
from pipeline.serving.export import export
from pipeline.store.store import Store
from pipeline.system.progress import Silence

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 32
FLAGS = ("--weights", "random", "--image-size", SIZE, "--store", "store")
FORMATS = {"folder": "model", "keras": "model.keras", "onnx": "model.onnx", "savedmodel": "saved"}


def write_oblong_photos(folder: Path, count: int = 20) -> None:
    """Photos of which no two rules make the same square."""
    write_photos(folder, count)
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        with Image.open(path) as image:
            turned = (
                image.convert("RGB")
                .crop((0, 0, 48, 24 + number % 8))
                .rotate(90 * (number % 2), expand=True)
            )
        turned.save(path)


def succeed(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments] + ["--quiet"]) == 0


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_oblong_photos(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture(scope="module", params=["crop", "pad"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A folder with photos, their store by a rule, and runs on it; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    write_oblong_photos(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        replace_network(patch)
        patch.chdir(folder)
        succeed("extract", "photos", *FLAGS, "--resize", request.param, "--views", "crop1")
        for run, more in (("run", ()), ("averaged", ("--average", "crop1"))):
            succeed("train-head", "--store", "store", "--run", run, "--head", "logreg", *more)
    return folder, request.param


# Stage 1


@pytest.mark.slow
@pytest.mark.usefixtures("fake_network")
def test_features_are_those_of_the_rule(made: tuple[Path, str], fake_network: FakeEncoder) -> None:
    folder, resize = made
    store = Store.open(folder / "store")
    assert store.identity.decoder == f"pillow-1-{resize}" and store.identity.resize == resize
    rows = store.read_manifest()
    for index in (0, 25, 59):
        data, key = rows.file(index).read_bytes(), rows.keys[index : index + 1]
        found = views.pixels(data, key[0].decode(), ["crop1"], SIZE, resize)["crop1"]
        for view, pixels in ((None, decode(data, SIZE, resize)), ("crop1", found)):
            expected = fake_network(pixels[np.newaxis])[0]
            np.testing.assert_allclose(store.read(key, view)[0], expected, rtol=1e-5)


def test_a_store_keeps_to_its_rule(
    command: Command, photos: Path, fake_network: FakeEncoder
) -> None:
    assert command("extract", photos, *FLAGS, "--resize", "crop")[1]["encoded"] == 60
    status, result = command("extract", photos, *FLAGS, "--resize", "crop")
    assert (status, result["reused"]) == (0, 60)
    before = fake_network.images
    for more in ((), ("--resize", "pad"), ("--resize", "pad", "--dry-run")):
        status, result = command("extract", photos, *FLAGS, *more)
        asked = "'pillow-1-pad'" if more else "'pillow-1'"
        assert status == 2 and result["error"]["type"] == "StaleFeaturesError"
        said = result["error"]["message"]
        assert "decoder = 'pillow-1-crop'" in said and f"decoder = {asked}" in said
        assert "go back to --resize crop" in result["error"]["hint"]
    assert fake_network.images == before
    assert command("extract", photos, *FLAGS, "--resize", "pad", "--force")[1]["encoded"] == 60
    assert Store.open(Path("store")).identity.resize == "pad"


@pytest.mark.usefixtures("fake_network")
def test_the_rule_is_a_key_of_the_file_and_a_keyword_of_the_function(
    command: Command, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pipeline.toml").write_text('[extract]\nresize = "pad"\n')
    assert command("extract", photos, *FLAGS, "--config", "pipeline.toml")[0] == 0
    assert Store.open(Path("store")).identity.resize == "pad"
    pipeline.extract_features(
        photos, store="other", weights="random", image_size=SIZE, resize="crop", quiet=True
    )
    assert command("info", "other")[1]["identity"]["decoder"] == "pillow-1-crop"
    assert main(["info", "other"]) == 0
    assert "decoder: pillow-1-crop" in capsys.readouterr().out
    status, result = command("extract", photos, *FLAGS, "--resize", "fit")
    assert status == 2 and "squash, crop, pad" in json.dumps(result["error"])


@pytest.mark.usefixtures("fake_network")
def test_the_transformer_has_a_store_for_each_rule(photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    made = {
        rule: pipeline.FeatureExtractor(
            "stores", weights="random", image_size=SIZE, resize=rule
        ).transform(paths)
        for rule in resizing.RESIZES
    }
    assert len(list(Path("stores").glob("*/store.json"))) == 3
    assert not np.allclose(made["squash"], made["crop"])
    assert not np.allclose(made["squash"], made["pad"])
    default = pipeline.FeatureExtractor("stores", weights="random", image_size=SIZE)
    np.testing.assert_array_equal(default.transform(paths), made["squash"])


# What looks at images after it


@pytest.mark.usefixtures("fake_network")
@pytest.mark.parametrize("name", ["run", "averaged"])
def test_predictions_are_those_of_the_run(made: tuple[Path, str], name: str) -> None:
    run = Run.open(made[0] / name)
    rows = run.manifest()
    scored = [index for index, split in enumerate(rows.splits) if split != "train"]
    classifier = Classifier.load(run.path)
    found = classifier.predict_proba([rows.file(index) for index in scored])
    np.testing.assert_allclose(found, run.probabilities("logreg"), atol=1e-5)


@pytest.mark.usefixtures("fake_network")
def test_evaluate_scores_as_the_run_did(
    made: tuple[Path, str], command: Command, tmp_path: Path
) -> None:
    run = Run.open(made[0] / "run")
    rows = run.manifest()
    for index, split in enumerate(rows.splits):
        if split == "test":
            target = tmp_path / "test" / rows.paths[index]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(rows.file(index), target)
    status, result = command("evaluate", run.path, tmp_path / "test")
    assert status == 0
    expected = run.record.heads["logreg"].test.as_json()
    assert result["scores"]["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-5)


@pytest.mark.usefixtures("fake_network")
def test_rows_encoded_again_are_the_same(
    made: tuple[Path, str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "resolve", lambda name, form: ("fake", ""))
    status, result = command("verify", made[0] / "store", "--reencode", 100)
    assert (status, result["ok"], result["reencoded"]) == (0, True, 120)


def test_the_stitch_check_and_fine_tuning_see_what_extract_saw(made: tuple[Path, str]) -> None:
    folder, resize = made
    run, store = Run.open(folder / "run"), Store.open(folder / "store")
    found = stitch.sample(run, store, count=9)
    for path, pixels in zip(found.paths, found.pixels, strict=True):
        np.testing.assert_array_equal(pixels, decode(path.read_bytes(), SIZE, resize))
    with Photos(run.manifest(), SIZE, resize, augment_seed=0) as images:
        np.testing.assert_array_equal(images.batch(found.rows, None), found.pixels)
        wide = decode(found.paths[0].read_bytes(), SIZE, resize, is_wide=True)
        augmented = images.batch(found.rows[:1], 3)[0]
    assert wide.shape == (37, 37, 3) and augmented.shape == (SIZE, SIZE, 3)


@pytest.mark.usefixtures("fake_network")
def test_features_of_a_decoder_of_another_release_are_refused(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    def change(record: dict[str, Any]) -> None:
        record["inputs"]["identity"]["decoder"] = "pillow-1-fit"

    shutil.copytree(made[0] / "run", tmp_path / "run")
    edit_record(tmp_path / "run/run.json", change)
    with pytest.raises(StaleFeaturesError, match=r"'pillow-1-crop'.*'pillow-1-fit'"):
        Classifier.load(tmp_path / "run")


# With a network


@pytest.fixture(scope="module", params=["crop", "pad"])
def encoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Photos, their store by a rule, and a run on it, by a small network of Keras."""
    folder = tmp_path_factory.mktemp("encoded")
    write_oblong_photos(folder / "photos", 16)
    with tiny_resnet.in_place_of_resnet50(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        succeed("extract", "photos", *FLAGS, "--engine", "keras", "--resize", request.param)
        succeed("train-head", "--store", "store", "--run", "run", "--head", "logreg",
                "--split", "50/25/25")  # fmt: skip
        yield folder, request.param


@pytest.mark.slow
def test_exported_models_say_the_rule(encoded: tuple[Path, str], tmp_path: Path) -> None:
    folder, resize = encoded
    for form in FORMATS if resize == "crop" else ("folder", "keras"):
        out = tmp_path / FORMATS[form]
        options = ExportOptions(run=str(folder / "run"), out=str(out), format=form)
        export(options, CommonOptions(), Silence())
        said = metadata_of(out, form)
        assert said["resize"] == resize, form
        assert said["identity"]["decoder"] == f"pillow-1-{resize}", form
        assert said["input"] == resizing.find(resize).described(SIZE), form
    paths = sorted((folder / "photos").rglob("*.png"))
    expected = Classifier.load(folder / "run", engine="keras").predict_proba(paths)
    shipped = Classifier.load(tmp_path / FORMATS["folder"], engine="keras")
    assert shipped.resize == resize
    np.testing.assert_allclose(shipped.predict_proba(paths), expected, atol=1e-5)


@pytest.mark.slow
def test_fine_tuning_follows_the_store(encoded: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = encoded
    result = run_finetune(folder / "run", run=str(tmp_path / "tuned"), epochs=1, batch_size=16,
                          unfreeze_from="conv5_block3", views=("crop1",))  # fmt: skip
    assert result["finetune"]["start_difference"] < 1e-4
    run = Run.open(tmp_path / "tuned")
    rows = run.manifest()
    scored = [index for index, split in enumerate(rows.splits) if split != "train"]
    found = Classifier.load(run.path, "finetune", engine="keras").predict_proba(
        [rows.file(index) for index in scored]
    )
    np.testing.assert_allclose(found, run.probabilities("finetune"), atol=1e-4)
