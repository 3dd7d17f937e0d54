"""What fine-tuning starts from, and what it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import edit_record
from finetuning import run_finetune

from pipeline.config.options import FinetuneOptions
from pipeline.errors import ConfigError, HeadNotTrainableError, RunError, StoreError
from pipeline.finetune.origin import open_origin
from pipeline.runs.run import Run

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_the_preset_refuses_what_it_fixes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--epochs, --augment"):
        run_finetune(tmp_path, preset="tutorial", epochs=3, augment=True)


def test_a_run_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no run"):
        run_finetune(tmp_path / "nowhere")


def test_a_head_that_is_no_network_is_refused(planted: Callable[..., Path]) -> None:
    run = planted("--head", "knn")
    with pytest.raises(HeadNotTrainableError, match="dense, linear, logreg"):
        run_finetune(run)
    with pytest.raises(HeadNotTrainableError, match="logreg"):
        run_finetune(run, head="knn")
    with pytest.raises(ConfigError, match="Did you mean 'knn'"):
        run_finetune(run, head="kn")
    assert not run.with_name(f"{run.name}-finetune").exists()


def test_the_best_network_is_the_default(planted: Callable[..., Path]) -> None:
    run = planted("--head", "knn", "--head", "logreg", "--head", "linear")
    records = Run.open(run).record.heads
    origin = open_origin(FinetuneOptions(source=str(run)))
    other = {"logreg": "linear", "linear": "logreg"}[origin.name]
    best, second = records[origin.name].val, records[other].val
    assert (best.accuracy, -best.log_loss) >= (second.accuracy, -second.log_loss)


def test_a_run_whose_val_was_trained_on_is_refused(planted: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="without --refit"):
        run_finetune(planted("--head", "logreg", "--refit"))


def test_a_store_that_is_gone_or_another_is_named(planted: Callable[..., Path]) -> None:
    run = planted("--head", "logreg")
    store = run.parent / "store"
    edit_record(store / "store.json", lambda it: it["identity"].update(precision="bfloat16"))
    with pytest.raises(StoreError, match="precision = 'bfloat16'"):
        run_finetune(run)
    shutil.rmtree(store)
    with pytest.raises(RunError, match=str(store)):
        run_finetune(run)
