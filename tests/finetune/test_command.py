"""The command: results, killing, resuming, and what it refuses."""

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_resnet
from fakes import Notes, edit_record
from finetuning import (
    QUICK,
    SIZE,
    Command,
    bars,
    killed_after_an_epoch,
    run_finetune,
    small_network,
)
from numpy.typing import NDArray

from pipeline import heads
from pipeline.backbones import frozen as backbone
from pipeline.backbones import probe, weights
from pipeline.cli.commands import find
from pipeline.cli.main import main
from pipeline.config.options import CommonOptions, FinetuneOptions, build
from pipeline.engines.encoder import drift
from pipeline.errors import (
    ConfigError,
    ManifestError,
    PipelineError,
    RunError,
    StaleFeaturesError,
    StoreError,
    WeightsUnavailableError,
)
from pipeline.files.atomic import exclusive
from pipeline.finetune import stage as finetune_command
from pipeline.finetune import surgery as surgery_of
from pipeline.finetune.photos import Photos
from pipeline.finetune.training import FineTuning
from pipeline.heads import layers as head_layers
from pipeline.runs import backbone as run_backbone
from pipeline.runs.run import Run
from pipeline.serving.classifier import Classifier
from pipeline.store.store import Store
from pipeline.system.keras_setup import import_keras
from pipeline.verify.run import verify_run

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("tiny"),
]


@pytest.fixture(scope="module")
def uninterrupted(trained: Path) -> dict[str, Any]:
    notes = Notes()
    result = run_finetune(trained / "run", run=str(trained / "whole"), notes=notes, **QUICK)
    assert result["finetune"]["kept_epoch"] == 2  # else the weights are those of the start
    return {**result, "notes": notes.lines}


@pytest.mark.slow
def test_the_result_has_the_keys_of_stage_two(trained: Path, uninterrupted: dict[str, Any]) -> None:
    assert set(uninterrupted["heads"]) == {"finetune", "majority"}
    record = Run.open(trained / "run").record.heads["majority"]
    assert uninterrupted["heads"]["finetune"].keys() == uninterrupted["heads"]["majority"].keys()
    assert uninterrupted["heads"]["majority"]["test"] == record.test.as_json()
    assert uninterrupted["split"] == Run.open(trained / "run").record.split.as_json()
    (pair,) = uninterrupted["pairs"]
    assert {pair["a"], pair["b"]} == {"finetune", "majority"}
    verdict = uninterrupted["finetune"]["verdict"]
    assert verdict["n"] == pair["n"] and verdict["recommended"] == uninterrupted["best"]
    assert verdict["text"].startswith("Fine-tuning helped: ")
    assert verdict["text"].endswith(" Use finetune.")
    assert verdict["text"] in find("finetune").text(uninterrupted)
    assert any("s per epoch" in line for line in uninterrupted["notes"])


@pytest.mark.slow
def test_it_starts_at_the_answers_of_stage_two(uninterrupted: dict[str, Any]) -> None:
    assert uninterrupted["finetune"]["start_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_saved_gives_the_recorded_answers_of_images(
    trained: Path, uninterrupted: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    path = trained / "whole"
    if precision == "float16":
        path = tmp_path / "half"
        run_finetune(trained / "run", run=str(path), cache_precision="float16", **QUICK)
    run = Run.open(path)
    record = run.record.finetuned()
    saved = weights.load(path / "finetune" / f"{record.weights_sha256}.h5")
    changed = {
        name.removeprefix("backbone/"): value
        for name, value in saved.items()
        if name.startswith("backbone/")
    }
    assert changed and all(name.startswith("conv5_block3") for name in changed)
    assert not [name for name in changed if "moving" in name]
    digest = run.inputs.identity.weights_sha256
    loaded = load_network(trained / "store" / "encoder" / f"{digest}.h5")
    backbone.assign(loaded.network, {**loaded.arrays(), **changed})
    assert weights.digest(loaded.arrays()) == record.backbone_sha256
    rows = run.manifest()
    scored = [index for index, split in enumerate(rows.splits) if split != "train"]
    with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
        features = np.asarray(loaded.model(photos.batch(np.array(scored), None), training=False))
    head = heads.load(path / "heads/finetune")
    np.testing.assert_allclose(
        head.predict_proba(features), run.probabilities("finetune"), atol=1e-4
    )


def load_network(saved: Path) -> backbone.FrozenBackbone:
    return backbone.load(
        "resnet50", weights="random", seed=0, image_size=SIZE, pooling="avg", saved=saved
    )


@pytest.mark.slow
def test_the_same_command_keeps_what_is_there_and_others_are_refused(
    trained: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "load", None)  # nothing is loaded
    options = {"run": str(trained / "whole"), **QUICK}
    again = run_finetune(trained / "run", **options)
    assert again["finetune"] == uninterrupted["finetune"]
    with pytest.raises(RunError, match=r"learning_rate = 0\.001\..*learning_rate = 0\.1"):
        run_finetune(trained / "run", **{**options, "learning_rate": 0.1})


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_weights(
    trained: Path, uninterrupted: dict[str, Any]
) -> None:
    killed_after_an_epoch(trained, "killed", QUICK)
    notes = Notes()
    result = run_finetune(trained / "run", run=str(trained / "killed"), notes=notes, **QUICK)
    assert "Going on after epoch 1" in notes.lines
    assert any("s for the 1 left" in line for line in notes.lines)
    for name in ("weights_sha256", "backbone_sha256"):
        assert result["finetune"][name] == uninterrupted["finetune"][name]
    np.testing.assert_array_equal(
        Run.open(trained / "killed").probabilities("finetune"),
        Run.open(trained / "whole").probabilities("finetune"),
    )
    assert not list((trained / "killed").rglob(".tmp-*"))
    assert not (trained / "killed/finetune/checkpoint.h5").exists()


@pytest.mark.slow
def test_augmented_training_needs_no_cache_and_repeats(trained: Path) -> None:
    notes, found = Notes(), []
    for name in ("one", "two"):
        options = {"run": str(trained / name), "augment": True, "epochs": 1, "batch_size": 16,
                   "unfreeze_from": "conv5_block3", "head": "logreg"}  # fmt: skip
        result = run_finetune(trained / "run", notes=notes, **options)
        found.append(
            [result["finetune"]["epochs"][0]["loss"], result["finetune"]["weights_sha256"]]
        )
        assert result["finetune"]["start_difference"] < 1e-4
    assert found[0] == found[1]
    assert any("augmented images differ" in line for line in notes.lines)


@pytest.mark.slow
def test_the_preset_runs_to_its_end(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {**finetune_command.TUTORIAL_PRESET, "epochs": 2, "batch_size": 16}
    assert finetune_command.TUTORIAL_PRESET == {
        "epochs": 10, "batch_size": 32, "learning_rate": 1e-3, "optimizer": "adam"
    }  # fmt: skip
    monkeypatch.setattr(finetune_command, "TUTORIAL_PRESET", short)
    notes = Notes()
    path = trained / "tutorial"
    result = run_finetune(trained / "run", run=str(path), preset="tutorial", notes=notes)
    assert [row["epoch"] for row in result["finetune"]["epochs"]] == [1, 2]
    assert result["finetune"]["kept_epoch"] == 2
    assert any("inside a block" in line for line in notes.lines)
    saved = weights.load(path / "finetune" / f"{result['finetune']['weights_sha256']}.h5")
    assert saved["head/hidden_1/kernel"].shape == (tiny_resnet.DIM, 1024)
    assert "backbone/conv5_block3_3_bn/moving_mean" in saved
    frozen = {layer.name for layer in network_layers(trained)[: surgery_of.TUTORIAL_FROZEN]}
    assert not frozen & {name.split("/")[1] for name in saved}
    # As earlier releases recorded it, so that their runs are kept, whichever name is given.
    assert Run.open(path).record.inputs["preset"] == "seed"
    for name in ("seed", "tutorial"):
        values = {"source": str(trained / "run"), "run": str(path), "preset": name}
        notes = Notes()
        again = finetune_command.finetune(build(FinetuneOptions, values), CommonOptions(), notes)
        assert again["finetune"] == result["finetune"]
        assert notes.lines == [f"finetune: already in {path}, kept"]


def network_layers(folder: Path) -> list[Any]:
    digest = Store.unchecked(folder / "store").identity.weights_sha256
    layers: list[Any] = load_network(folder / "store/encoder" / f"{digest}.h5").network.layers
    return layers


@pytest.mark.slow
def test_what_cannot_begin_leaves_nothing_behind(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    with pytest.raises(ConfigError, match="Stages: conv2, conv5; or all"):
        run_finetune(trained / "run", run=str(target), unfreeze_from="conv6")
    with pytest.raises(ConfigError, match="on a processor"):
        run_finetune(trained / "run", run=str(target), precision="bfloat16")
    assert not target.exists()
    for force in (False, True):
        with pytest.raises(RunError, match="another --run"):
            run_finetune(trained / "run", run=str(trained / "run"), force=force)
    assert Run.open(trained / "run").record.heads


@pytest.mark.slow
def test_force_replaces_a_run(trained: Path, tmp_path: Path) -> None:
    options = {**QUICK, "epochs": 1, "run": str(tmp_path / "run")}
    first = run_finetune(trained / "run", **options)
    second = run_finetune(trained / "run", force=True, **{**options, "seed": 1})
    assert first["finetune"]["weights_sha256"] != second["finetune"]["weights_sha256"]
    (kept,) = (tmp_path / "run/finetune").glob("*.h5")
    assert kept.stem == second["finetune"]["weights_sha256"]


@pytest.mark.slow
def test_prune_refuses_from_the_first_image_to_the_last_epoch(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    refused: dict[str, bool] = {}

    class Pruning(Notes):
        def bar(self, total: int, unit: str) -> Any:
            status, result = command("prune", trained / "store")
            refused[unit] = status == 2 and "finetune" in result["error"]["message"]
            return super().bar(total, unit)

    options = {**QUICK, "epochs": 1, "run": str(tmp_path / "run")}
    # A cut of its own, so that its cache is to be filled.
    options["unfreeze_from"] = "conv5_block2"
    run_finetune(trained / "run", notes=Pruning(), **options)
    assert refused == {"img": True, "step": True}
    assert command("prune", trained / "store")[0] == 0


@pytest.mark.slow
def test_a_network_that_disagrees_with_stage_two_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = head_layers.head_network

    def swapped(head: Any) -> Any:
        head = heads.load(trained / "run/heads/logreg")
        head.coef_, head.intercept_ = head.coef_[::-1].copy(), head.intercept_[::-1].copy()
        return make(head)

    monkeypatch.setattr(head_layers, "head_network", swapped)
    options = {**QUICK, "head": "logreg", "run": str(tmp_path / "run")}
    with pytest.raises(PipelineError, match="network to fine-tune differs from the cached path"):
        run_finetune(trained / "run", **options)
    # Activations in a cache may be wrong where images are right.
    monkeypatch.setattr(finetune_command, "check_network", lambda *_: None)
    with pytest.raises(StaleFeaturesError, match="start at the answers of logreg"):
        run_finetune(trained / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("preset", [None, "tutorial"])
def test_a_network_that_drifted_is_refused(
    trained: Path, tmp_path: Path, preset: str | None
) -> None:
    copy = tmp_path / "copy"
    for name in ("photos", "store", "run"):
        shutil.copytree(trained / name, copy / name)
    store = Store.open(copy / "store")
    kept = probe.find(store.path, store.identity, store.dim)
    assert kept is not None
    drifted = dataclasses.replace(kept, features=kept.features * np.float32(1.01))
    probe.keep(store.path, drifted)
    options = {"preset": preset} if preset else QUICK
    with pytest.raises(StaleFeaturesError, match="The network makes other features"):
        run_finetune(copy / "run", run=str(copy / "tuned"), store=str(store.path), **options)
    assert not (copy / "tuned").exists()


@pytest.mark.slow
def test_a_fine_tuned_network_has_a_probe_of_its_own(
    trained: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "whole"
    shutil.copytree(trained / "whole", copy)
    again = {"head": "finetune", "store": str(trained / "store")}
    path, photo = copy / "finetune/probe.json", str(next((trained / "photos").rglob("*.png")))
    for engine in ("keras", "openvino"):
        assert not Classifier.load(copy, engine=engine, **again).notes
    assert verify_run(copy)["ok"]
    store = Store.open(trained / "store")
    of_store = probe.find(store.path, store.identity, store.dim)
    sha256 = str(Run.open(copy).record.finetuned().backbone_sha256)
    kept = probe.find(path.parent, run_backbone.finetuned_identity(store.identity, sha256))
    assert of_store is not None and kept is not None
    assert drift(of_store.features, kept.features).max() > 1e-3, "it is another network"
    probe.keep(path.parent, dataclasses.replace(kept, features=-kept.features))
    with pytest.raises(StaleFeaturesError, match=r"finetune/probe\.json"):
        Classifier.load(copy, **again)
    path.write_text(path.read_text().replace("pixels", "pixles"))
    assert [found["shard"] for found in verify_run(copy)["problems"]] == ["finetune/probe.json"]
    assert verify_run(copy, repair=True)["repaired"] and not path.exists()
    found = Classifier.load(copy, **again)
    assert found.predict(photo).predictions, "one of an older release is not compared"


@pytest.mark.slow
def test_another_starting_head_is_another_training(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    options = {**QUICK, "head": "logreg"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "one_epoch", stop_after(1, FineTuning.one_epoch))
        with pytest.raises(KeyboardInterrupt):
            run_finetune(tmp_path / "run", **options)
    (tmp_path / "other.toml").write_text("[heads.logreg]\ngrid = [0.001]\n")
    again = ["train-head", "--store", trained / "store", "--run", tmp_path / "run", "--head",
             "logreg", "--split", "60/20/20", "--config", tmp_path / "other.toml",
             "--force"]  # fmt: skip
    assert main([*map(str, again), "--quiet"]) == 0
    with pytest.raises(RunError, match="was made with starting_head_sha256"):
        run_finetune(tmp_path / "run", **options)


def stop_after(count: int, epoch: Callable[..., float]) -> Callable[..., float]:
    """Return a training's epoch that is interrupted before one more."""

    def stopped(self: FineTuning, reporter: Any) -> float:
        if self.progress.epoch == count:
            raise KeyboardInterrupt
        return epoch(self, reporter)

    return stopped


def test_a_folder_of_something_else_is_refused_at_once(
    planted: Callable[..., Path], tmp_path: Path
) -> None:
    run = planted("--head", "logreg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    with pytest.raises(RunError, match="Received: something else"):
        run_finetune(run, run=str(tmp_path / "photos"))
    with pytest.raises(StoreError, match="Another finetune trains into"), held(tmp_path / "busy"):
        run_finetune(run, run=str(tmp_path / "busy"))
    # What cannot begin leaves nothing behind: the images are gone.
    with pytest.raises(ManifestError):
        run_finetune(run, run=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def held(folder: Path) -> AbstractContextManager[None]:
    return exclusive(folder / ".lock", "busy")


@pytest.mark.slow
def test_the_preset_starts_from_a_run_of_any_heads(trained: Path, tmp_path: Path) -> None:
    train = ["train-head", "--store", trained / "store", "--run", tmp_path / "knn", "--head", "knn"]
    assert main([*map(str, train), "--quiet"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_command, "TUTORIAL_PRESET", {"epochs": 1})
        result = run_finetune(tmp_path / "knn", preset="tutorial")
    assert set(result["heads"]) == {"finetune", "knn"}


@pytest.mark.slow
def test_weights_that_are_gone_or_others_are_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "store", tmp_path / "store")
    shutil.copytree(trained / "run", tmp_path / "run")
    path = tmp_path / "run/run.json"
    edit_record(path, lambda record: record["inputs"].update(store=str(tmp_path / "store")))
    edit_record(path, lambda record: record["source"].update(weights="mine.h5"))
    (saved,) = (tmp_path / "store/encoder").glob("*.h5")
    other = tmp_path / "other.h5"
    saved.rename(other)
    with pytest.raises(WeightsUnavailableError, match="--weights PATH"):
        run_finetune(tmp_path / "run", **QUICK)
    arrays = load_network_arrays(other, saved)
    arrays["conv1_conv/bias"] = arrays["conv1_conv/bias"] + 1
    weights.save(other, arrays)
    with pytest.raises(StaleFeaturesError, match="weights_sha256"):
        run_finetune(tmp_path / "run", weights=str(other), **QUICK)


def load_network_arrays(path: Path, name: Path) -> dict[str, NDArray[np.float32]]:
    """Read arrays that ``weights.save`` wrote, from a file that was renamed."""
    shutil.copy(path, name)
    arrays = weights.load(name)
    name.unlink()
    return arrays


@pytest.mark.slow
def test_the_last_stage_of_a_network_of_ones_own_is_the_default(
    tmp_path: Path, command: Command
) -> None:
    # It takes images of every size; its maps have one all the same.
    small_network(import_keras(), None).save(tmp_path / "small.keras")
    bars(tmp_path / "photos", 60)
    for arguments in (
        ("extract", tmp_path / "photos", "--store", tmp_path / "store", "--image-size", SIZE,
         "--backbone", tmp_path / "small.keras", "--preprocessing", "unit", "--engine", "keras"),
        ("train-head", "--store", tmp_path / "store", "--run", tmp_path / "run", "--head", "logreg",
         "--split", "60/20/20"),
    ):  # fmt: skip
        assert command(*arguments)[0] == 0
    notes = Notes()
    result = run_finetune(tmp_path / "run", notes=notes, epochs=1)
    # Both of its stages work at one resolution.
    assert "Training from conv2 on: the last 9 of 10 layers, and the head" in notes.lines
    assert result["finetune"]["layer"] == "conv2_block1_conv"
    assert Run.open(tmp_path / "run-finetune").record.inputs["unfreeze_from"] == "conv2"
    again = Notes()
    assert run_finetune(tmp_path / "run", notes=again, epochs=1, unfreeze_from="conv2") == result
    assert any("kept" in line for line in again.lines)
