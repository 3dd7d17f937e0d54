"""Fixtures of the tests of fine-tuning."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import planted_store
from finetuning import FLAGS, Command, bars

from pipeline.cli.main import main


@pytest.fixture
def planted(tmp_path: Path, command: Command) -> Callable[..., Path]:
    """Train heads on planted features; there are no images and no weights."""
    planted_store(tmp_path / "store", {"a": 40, "b": 40})

    def train(*arguments: object) -> Path:
        name = f"run{len(list(tmp_path.glob('run*')))}"
        status, _ = command(
            "train-head", "--store", tmp_path / "store", "--run", tmp_path / name, *arguments
        )
        assert status == 0
        return tmp_path / name

    return train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    """A folder with photos, their store, and a run of stage 2."""
    folder = tmp_path_factory.mktemp("finetune")
    bars(folder / "photos", 60)
    for arguments in (
        ("extract", folder / "photos", "--store", folder / "store", *FLAGS),
        ("train-head", "--store", folder / "store", "--run", folder / "run", "--head", "logreg",
         "--head", "majority", "--head", "knn", "--split", "60/20/20"),
    ):  # fmt: skip
        assert main([str(argument) for argument in (*arguments, "--quiet")]) == 0
    return folder
