"""That fine-tuning gains what frozen features miss.

``benchmarks/finetune_outcomes.py --data strokes`` does the same with ResNet50.
"""

from pathlib import Path

import pytest
from finetuning import FLAGS, run_finetune
from photos import strokes

from pipeline.cli.main import main

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("tiny"),
]


@pytest.mark.slow
def test_it_beats_stage_two_where_frozen_features_miss_the_label(tmp_path: Path) -> None:
    strokes(tmp_path / "photos", 450)
    for arguments in (
        ("extract", tmp_path / "photos", "--store", tmp_path / "store", *FLAGS),
        ("train-head", "--store", tmp_path / "store", "--run", tmp_path / "run", "--head",
         "logreg", "--split", "60/10/30"),
    ):  # fmt: skip
        assert main([str(argument) for argument in (*arguments, "--quiet")]) == 0
    result = run_finetune(
        tmp_path / "run", unfreeze_from="conv2", epochs=6, learning_rate=3e-3, batch_size=16
    )
    verdict = result["finetune"]["verdict"]
    assert verdict["recommended"] == result["best"] == "finetune"
    assert verdict["difference"] > 0.1 and verdict["p_value"] < 1e-4
    assert result["finetune"]["boundary"] == "pool1_pool"
