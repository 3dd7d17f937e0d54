"""The command on ResNet50 itself."""

from pathlib import Path

import numpy as np
import pytest
from finetuning import FLAGS, run_finetune
from PIL import Image

from pipeline.cli.main import main

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def strokes(path: Path, count: int) -> None:
    """Write images of a faint diagonal stroke, rising or falling, on coloured squares."""
    rng = np.random.default_rng(0)
    for number in range(count):
        squares = rng.integers(88, 168, (4, 4, 3))
        pixels = np.kron(squares, np.ones((8, 8, 1), np.int64))
        top, left = rng.integers(0, 16, 2)
        level = 75 * rng.choice([-1, 1])
        for step in range(16):
            place = left + (step if number % 2 else 15 - step)
            pixels[top + step, max(place - 1, 0) : place + 2] += level
        file = path / f"class{number % 2}" / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


@pytest.mark.slow
def test_it_beats_stage_two_where_frozen_features_miss_the_label(tmp_path: Path) -> None:
    strokes(tmp_path / "photos", 900)
    for arguments in (
        ("extract", tmp_path / "photos", "--store", tmp_path / "store", *FLAGS),
        ("train-head", "--store", tmp_path / "store", "--run", tmp_path / "run", "--head",
         "logreg", "--split", "60/10/30"),
    ):  # fmt: skip
        assert main([str(argument) for argument in (*arguments, "--quiet")]) == 0
    result = run_finetune(
        tmp_path / "run", unfreeze_from="conv2", epochs=10, learning_rate=1e-3, patience=10
    )
    verdict = result["finetune"]["verdict"]
    assert verdict["recommended"] == result["best"] == "finetune"
    assert verdict["difference"] > 0 and verdict["p_value"] < 0.01
    assert result["finetune"]["boundary"] == "pool1_pool"
