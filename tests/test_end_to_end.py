"""Whole commands on files, in processes of their own: the real network, killing, the demo."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_resnet
from fakes import write_classes, write_image
from processes import WarmPython

import pipeline
from pipeline.images.sample import write_sample
from pipeline.store.store import Store

pytestmark = pytest.mark.slow

FLAGS = ("--weights", "random", "--image-size", "32", "--batch-size", "8")


def start(*arguments: object, cwd: Path) -> WarmPython:
    return WarmPython("-m", "pipeline", *arguments, cwd=cwd)


def start_tiny(*arguments: object, cwd: Path) -> WarmPython:
    """Start a command whose way is tested, which is the same with a tiny network."""
    return WarmPython("-c", tiny_resnet.PROGRAM, "pipeline", *arguments, cwd=cwd)


def run(*arguments: object, cwd: Path, start: Callable[..., WarmPython] = start) -> dict[str, Any]:
    process = start(*arguments, "--json", "--quiet", cwd=cwd)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""
    return json.loads(out)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_classes(folder / "photos", {"cat": 60, "dog": 60})
    return folder


@pytest.fixture(scope="module")
def whole(photos: Path) -> np.ndarray:
    """Features of the real network, in the store ``whole``."""
    result = run("extract", "photos", "--store", "whole", *FLAGS, cwd=photos)
    assert result["encoded"] == 120
    return pipeline.load(photos / "whole")[0]


def test_killed_at_five_moments_ends_in_the_same_features(photos: Path) -> None:
    flags = ("extract", "photos", *FLAGS)
    seconds = run(*flags, "--store", "calm", cwd=photos, start=start_tiny)["seconds"]
    statuses = []
    for moment in np.linspace(0.3, 1.0, 5):
        process = start_tiny(*flags, "--store", "killed", cwd=photos)
        try:
            process.wait(timeout=float(moment * seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        statuses.append(process.returncode)
    assert -signal.SIGKILL in statuses
    run(*flags, "--store", "killed", cwd=photos, start=start_tiny)
    features, expected = (pipeline.load(photos / name)[0] for name in ("killed", "calm"))
    np.testing.assert_array_equal(features, expected)
    assert run("verify", "killed", cwd=photos)["ok"]
    assert not list((photos / "killed").rglob(".tmp-*"))


def test_features_depend_on_neither_batch_size_nor_order(
    photos: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    shutil.copytree(photos / "photos", tmp_path / "photos")
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    for number, path in enumerate(paths):  # another order of the same images
        path.rename(path.with_name(f"{len(paths) - number:04}-{path.name}"))
    run("extract", "photos", "--store", "s", *FLAGS[:-1], "5", cwd=tmp_path)
    one, other = Store.open(photos / "whole"), Store.open(tmp_path / "s")
    keys = one.read_manifest().keys
    np.testing.assert_allclose(
        other.read(keys), one.read(keys), atol=1e-5 * float(np.abs(whole).max()), rtol=0
    )


def test_interrupt_by_the_user_keeps_what_was_done(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", {"a": 240, "b": 240})
    process = start("extract", "photos", "--store", "s", *FLAGS, cwd=tmp_path)
    while process.poll() is None and not (tmp_path / "s/store.json").exists():
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("this machine was done before the signal came")
    assert process.returncode == 130 and "Traceback" not in err
    kept = len(Store.open(tmp_path / "s"))
    result = run("extract", "photos", "--store", "s", *FLAGS, cwd=tmp_path)
    assert (result["encoded"], result["reused"]) == (480 - kept, kept)


def test_rerun_loads_no_network(photos: Path, whole: np.ndarray) -> None:
    code = (
        "import sys\nfrom pipeline.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "sys.exit(bool({'tensorflow', 'keras', 'PIL.JpegImagePlugin'} & set(sys.modules)))"
    )
    arguments = ["extract", "photos", "--store", "whole", *FLAGS, "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=photos, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_weights_of_the_store_are_found_by_digest(photos: Path, whole: np.ndarray) -> None:
    """New images need no second look at where the weights came from."""
    write_image(photos / "photos/cat/new.png", seed=10_000)
    result = run("extract", "photos", "--store", "whole", *FLAGS, cwd=photos)
    assert (result["encoded"], result["reused"]) == (1, 120)
    (photos / "photos/cat/new.png").unlink()
    saved = next((photos / "whole/encoder").glob("*.h5"))
    flags = ("--weights", saved, *FLAGS[2:])
    assert run("extract", "photos", "--store", "whole", *flags, cwd=photos)["encoded"] == 0


def test_what_was_extracted_is_fine_tuned_and_predicts(
    photos: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    shutil.copytree(photos / "whole", tmp_path / "store")
    shutil.copytree(photos / "photos", tmp_path / "photos")
    run("train-head", "--store", "store", "--run", "run", "--head", "logreg", cwd=tmp_path)
    tuned = run("finetune", "run", "--run", "tuned", "--epochs", "1", cwd=tmp_path)
    assert tuned["finetune"]["boundary"] == "conv4_block6_out"
    assert set(tuned["heads"]) == {"finetune", "logreg"}
    assert run("verify", "store", "--reencode", "4", cwd=tmp_path)["ok"]
    predictions = run("predict", "tuned", "photos/cat", "--head", "finetune", cwd=tmp_path)
    assert len(predictions["predictions"]) == 60


def test_sample_is_learned(tmp_path: Path) -> None:
    """The demo's own way, on half of the sample."""
    write_sample(tmp_path / "sample")
    for number, path in enumerate(sorted((tmp_path / "sample").rglob("*.png"))):
        if number % 2:
            path.unlink()
    run("extract", "sample", "--store", "s", "--weights", "random", "--image-size", "64",
        cwd=tmp_path)  # fmt: skip
    result = run("train-head", "--store", "s", "--run", "r", cwd=tmp_path)
    scores = {name: head["test"]["accuracy"] for name, head in result["heads"].items()}
    assert scores["logreg"] > 0.92 and scores["dense"] > 0.92 and scores["majority"] < 0.2
    tutorial = run("train-head", "--store", "s", "--run", "t", "--head", "dense",
                   "--preset", "tutorial", cwd=tmp_path)  # fmt: skip
    assert tutorial["heads"]["dense"]["test"]["accuracy"] > 0.6
    assert (tmp_path / "r/predictions.csv").exists()


NEW_PROCESS = """
import sys
import tiny_resnet
from pipeline.cli.main import main
with tiny_resnet.in_place_of_resnet50():
    status = main(sys.argv[1:])
print(status, sorted({"keras", "tensorflow"} & set(sys.modules)), file=sys.stderr)
"""


def test_new_images_need_no_keras_where_the_store_keeps_the_converted_network(
    tmp_path: Path,
) -> None:
    write_classes(tmp_path / "photos", {"cat": 3, "dog": 3})
    flags = ("photos", "--store", "store", *FLAGS, "--engine", "openvino")
    run("extract", *flags, cwd=tmp_path, start=start_tiny)
    (graph,) = (tmp_path / "store" / "encoder").glob("*.pb")
    write_image(tmp_path / "photos" / "cat" / "new.png", 99)
    script = [sys.executable, "-c", NEW_PROCESS, "extract", *flags, "--json", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        script, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    assert done.stderr == "0 []\n"
    assert json.loads(done.stdout)["encoded"] == 1
    run("extract", "photos", "--store", "whole", *flags[3:], cwd=tmp_path, start=start_tiny)
    features, expected = (pipeline.load(tmp_path / name)[0] for name in ("store", "whole"))
    np.testing.assert_array_equal(features, expected)
    # A damaged copy is not used; another one is made from the weights.
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + b"?")
    write_image(tmp_path / "photos" / "dog" / "new.png", 98)
    assert run("extract", *flags, cwd=tmp_path, start=start_tiny)["encoded"] == 1
    assert graph.read_bytes() == content
