"""The benchmark scripts run and print what the documentation quotes; nothing here is timed."""

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import planted_store, write_photos
from PIL import Image
from processes import run_python

from pipeline.cli.main import main
from pipeline.system import machine

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(script: str, *arguments: object) -> dict[str, Any]:
    """Run a benchmark with a tiny network in place of ResNet50."""
    done = run_python(ROOT / "tests/benchmark_process.py", ROOT / "benchmarks" / script, *arguments)
    assert done.returncode == 0, done.stderr
    return result_of(done.stdout)


def result_of(printed: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(printed)
    assert {"benchmark", "options", "machine"} <= set(result)
    return result


def test_end_to_end(tmp_path: Path) -> None:
    result = run("end_to_end.py", "--work", tmp_path, "--small", 2, "--large", 8, "--repeats", 1,
                 "--engines", "openvino", "--tool-seconds", 1, "--tool-requests", 1)  # fmt: skip
    assert "end to end / bare, openvino float32" in result["ratios"]
    assert "end to end / keras idiom, openvino float32" in result["ratios"]
    assert all(len(rates) == 1 for rates in result["rates"].values())


@pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed")
@pytest.mark.skipif(not machine.computes_in("int8"), reason="a processor without int8")
def test_int8(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 12)
    result = run("int8.py", tmp_path / "photos", "--backbones", "resnet50",
                 "--backbone", "resnet50", "--weights", "random", "--image-size", 32,
                 "--seconds", 0.01, "--repeats", 1, "--seeds", 1)  # fmt: skip
    assert set(result["rate"]["resnet50"]["images_per_second"]) == {"float32", "int8"}
    assert set(result["accuracy"]["photos"]["means"]) == {"float32", "int8"}


def test_million() -> None:
    (found,) = run("million.py", "--images", 200, "--dim", 8)["by_images"].values()
    assert (found["extract"]["encoded"], found["rerun"]["reused"]) == (200, 200)
    assert found["verify"]["ok"] and found["prune_a_tenth"]["dropped"] == 100


def test_a_rerun_opens_no_image() -> None:
    result = run("rerun.py", "--images", 300, "--repeats", 1)
    assert result["image_files_opened"] == 0
    assert (result["rerun_reused"], result["encoded_of_new"]) == (300, 100)


def test_memory() -> None:
    result = run("memory.py", "--small", 50, "--large", 150)
    assert set(result["peak_mb"]) == {"50", "150"}


def test_read_features() -> None:
    result = run("read_features.py", "--rows", 500, "--dim", 64, "--repeats", 1)
    assert set(result["seconds"]) == {"numpy_load", "manifest_order", "random_order"}


def test_near_duplicates() -> None:
    result = run("near_duplicates.py", "--rows", 600, "--dim", 64)
    assert result["planted_found"] == result["planted_above_threshold"] > 0


@pytest.mark.usefixtures("fake_network")
def test_audit_truth(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 8)
    pairs, labels = tmp_path / "pairs.csv", tmp_path / "labels.csv"
    pairs.write_text("test,train,judgment\nant/000.png,ant/001.png,1\n")
    rows = [f"{name}/{number:03}.png,{name},{'bee' if number == 0 else name}"
            for name in ("ant", "bee", "cow") for number in range(8)]  # fmt: skip
    labels.write_text("path,label,given\n" + "\n".join(rows) + "\n")
    extract = ("extract", tmp_path / "photos", "--store", tmp_path / "store", "--weights", "random",
               "--image-size", 32, "--quiet")  # fmt: skip
    assert main(list(map(str, extract))) == 0
    result = run("audit_truth.py", tmp_path / "store", "--pairs", pairs, "--labels", labels)
    assert result["copies"]["judged_1"]["pairs"] == 1
    assert result["labels"]["wrong"] == 2


def test_what_is_planted_is_told_from_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    planted = importlib.import_module("audit_planted")
    for number in range(80):
        file = tmp_path / "source" / ("ant", "bee")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), (number, 9, 9)).save(file)
    made = planted.plant(tmp_path / "photos", tmp_path / "source", tmp_path / "source", 80)
    copies, flips, outliers = made["copies"], made["flips"], made["outliers"]
    assert (len(copies), len(flips), len(outliers)) == (20, 2, 10)
    there = {
        path.relative_to(tmp_path / "photos").as_posix()
        for path in (tmp_path / "photos").rglob("*.jpg")
    }
    assert len(there) == 80 + 20 + 10
    originals = {original for _, original in copies.values()}
    assert there >= {*copies, *originals, *flips, *outliers} and not originals & set(flips)
    assert all(label != path.split("/")[1] for path, label in flips.items())
    path, (way, original) = next(iter(copies.items()))
    found = {
        "threshold": {},
        "near_duplicates": [{"paths": [path, original]}],
        "leaks": [1],
        "label_errors": [{"path": name, "proposed": label} for name, label in flips.items()],
        "label_error_head": {"estimated": 3},
        "outliers": [{"path": outliers[0]}, {"path": path}],
    }
    said = planted.judged(made, found)
    assert said["copies"][way] == "1 of 7" and said["flips"]["right_label"] == "2 of 2"
    assert (said["outliers"], said["other_outliers"]) == ("1 of 10", 1)


def test_suggest(tmp_path: Path) -> None:
    planted_store(tmp_path / "store", {"ant": 30, "bee": 30, "cow": 30})
    ways = ("badge", "entropy", "k-center", "margin", "margin, k-center", "suggest", "typical")
    few = ("--seeds", 2, "--batch", 5, "--rounds", 1)
    result = run("suggest.py", tmp_path / "store", "--ways", *ways, "--start", 10, *few)
    assert result["labels"] == [10, 15] and set(result["against_random"]) == set(ways)
    assert result["against_random"]["suggest"]["difference"][0] == 0
    cold = run("suggest.py", tmp_path / "store", "--start", 0, *few)
    assert cold["labels"] == [5, 10] and len(cold["random"]) == 2


def test_suggest_scale() -> None:
    result = run("suggest_scale.py", "--unlabelled", 200, "--labelled", 50, "--dim", 16, "--n", 9)
    assert result["with_labels"]["suggested"] == result["cold"]["suggested"] == 9


def test_stage_two() -> None:
    found = run("stage_two.py", "--rows", 600, "--dim", 32, "--heads", "ridge")
    planted = found["planted"]
    assert found["threshold"]["search"] == "exact"
    assert planted["pairs"] == 12 and planted["found"] == planted["above_threshold"] > 5


def test_ridge_path() -> None:
    assert "path_over_one" in run("ridge_path.py", "--quick")


def test_the_gpu_script_says_when_there_is_none() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py")],
        capture_output=True,
        text=True,
        check=False,
        env={"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, "No GPU" in done.stderr) == (1, True)


def test_logreg_path() -> None:
    assert run("logreg_path.py", "--quick")["all_converged"]


def test_tutorial_head() -> None:
    assert run("tutorial_head.py", "--rows", 100, "--small-rows", 50, "--dim", 16, "--epochs", 1,
               "--small-epochs", 1, "--heads", 2, "--widths", 0, 8,
               "--repeats", 1)["results"]  # fmt: skip


def test_finetune() -> None:
    assert "keras_fit_over_cached" in run("finetune.py", "--quick", "--peers", "keras_fit")


def test_finetune_outcomes() -> None:
    result = run("finetune_outcomes.py", "--quick")
    (found,) = result["by_seed"]
    assert found["images"] == {"train": 27, "val": 9, "test": 9}
    assert found["default"]["start_difference"] < 1e-3
    assert found["preset_tutorial"]["start_difference"] is None
    assert found["preset_tutorial"]["kept_epoch"] == 10
    pair = found["default_against_preset_tutorial"]
    accuracies = [found[name]["test"]["accuracy"] for name in ("default", "preset_tutorial")]
    assert pair["difference"] == pytest.approx(accuracies[0] - accuracies[1])
    start = found["stage_two"][found["starting_head"]]
    for name, accuracy in zip(("default", "preset_tutorial"), accuracies, strict=True):
        difference = found[name]["against_stage_two"]["difference"]
        assert difference == pytest.approx(accuracy - start["test"]["accuracy"])
        assert result["summary"][name]["test_accuracy"] == {"mean": round(accuracy, 4), "sd": None}


def test_real_photos(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 12)
    flags = ("--backbone", "resnet50", "--weights", "random", "--image-size", 32, "--no-tutorial")
    parts = ("heads", "resize", "finetune")
    result = run("real_photos.py", tmp_path / "photos", "--quick", *flags, "--heads", "linear",
                 "--parts", *parts)  # fmt: skip
    found = result["data"]["photos"]
    assert set(found) == set(parts) and set(found["resize"]) == {"squash", "crop", "pad"}
    as_it_is, squashed = found["heads"]["linear"], found["resize"]["squash"]["linear"]
    assert as_it_is["test_accuracy"] == squashed["test_accuracy"]
    (seed,) = found["finetune"]["by_seed"]
    assert seed["starting_head"] == "linear" and len(seed["default"]["val_loss_by_epoch"]) == 1


def test_crops_of_a_picture_keep_to_their_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    outcomes = importlib.import_module("finetune_outcomes")
    # The level of red says how far right a pixel was.
    level = np.linspace(0, 250, 400).astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.tile(level[:, np.newaxis], (300, 1, 3))).save(tmp_path / "pictures/a.png")
    options = SimpleNamespace(pictures=tmp_path / "pictures", classes=1, crops=20)
    folders = outcomes.crops(options, tmp_path, 0)
    for split, (start, end) in outcomes.SPLITS.items():
        paths = list((folders / split / "picture00").iterdir())
        assert len(paths) == round(20 * (end - start))
        reds = np.concatenate([np.asarray(Image.open(path))[..., 0].ravel() for path in paths])
        # JPEG moves levels a little.
        assert 250 * start - 4 < reds.min() < reds.max() < 250 * end + 4
    options.classes = 2
    with pytest.raises(SystemExit, match="Received: 1 in"):
        outcomes.crops(options, tmp_path / "other", 0)


def test_finetune_memory() -> None:
    result = run("finetune_memory.py", "--quick")
    for mode in ("cached", "augmented"):
        found = result[mode]
        assert [row["epoch"] for row in found["epochs"]] == [1, 2, 3]
        # TensorFlow alone takes hundreds of megabytes; the system's own count is the highest.
        assert all(300 < row["resident_mb"] <= row["peak_mb"] for row in found["epochs"])
        peaks = [row["peak_mb"] for row in found["epochs"]]
        peaks += [found["before_training_peak_mb"], found["after_training_peak_mb"]]
        assert max(peaks) == pytest.approx(found["peak_mb"], rel=0.2)


def test_predict() -> None:
    result = run("predict.py", "--quick", "--engine", "keras")
    assert result["engine"] == "keras" and result["predict_over_extract"]["ratio"] > 0
    for name in ("images_per_second", "startup_seconds", "process_seconds"):
        assert {peer: len(found) for peer, found in result[name].items()} == {
            "extract": 1,
            "predict": 1,
        }


def test_threads() -> None:
    result = run("threads.py", "--quick")
    assert all(len(found) == 1 and found[0] > 0 for found in result["images_per_second"].values())
    assert list(result["over_one_thread"]) == ["2", "4", "8"]


def test_train_head_command() -> None:
    # In a new process and those forked from it, which have not loaded what they do without.
    script = [ROOT / "tests/benchmark_process.py", ROOT / "benchmarks/train_head_command.py"]
    done = subprocess.run(
        [sys.executable, *map(str, script), "--quick"],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    assert result_of(done.stdout.decode())["tensorflow_loaded"] is False


def test_linear_sweep() -> None:
    result = run("linear_sweep.py", "--rows", 200, "--dim", 16, "--epochs", 1, "--rates", 2,
                 "--decays", 2, "--batch-sizes", 32, "--repeats", 1)  # fmt: skip
    assert result


def test_stream() -> None:
    assert run("stream.py", "--rows", 500, "--dim", 16, "--classes", 5)
