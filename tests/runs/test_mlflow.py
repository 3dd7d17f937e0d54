"""Runs in a store of MLflow itself, and what is said where it is not installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import Command, planted_store

from pipeline.cli.main import main
from pipeline.runs import mlflow
from pipeline.runs.run import Run


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", {"ant": 30, "bee": 30})
    return tmp_path


TRAIN = ("train-head", "--store", "store", "--run", "run", "--head", "linear", "--head", "majority")


@pytest.mark.slow
def test_a_run_is_logged_with_numbers_and_files_once(
    command: Command, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not among the development tools: 33 packages. CI runs this in the environment of the wheel.
    for library in mlflow.LIBRARIES:
        pytest.importorskip(library)
    from mlflow.tracking import MlflowClient

    assert main([*TRAIN, "--mlflow", "store of runs", "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    assert result["mlflow"]["uri"] == "sqlite:///store of runs/mlflow.db"
    client = MlflowClient(tracking_uri=result["mlflow"]["uri"])
    found = client.get_run(result["mlflow"]["run_id"])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    record = Run.open(Path("run")).record
    metrics = found.data.metrics
    assert metrics["test_accuracy"] == record.heads["linear"].test.accuracy
    assert metrics["majority/val_accuracy"] == record.heads["majority"].val.accuracy
    losses = client.get_metric_history(found.info.run_id, "linear/loss")
    assert [item.value for item in losses] == pytest.approx(record.heads["linear"].losses)
    assert found.data.params["linear.learning_rate"] == "0.001"
    assert found.data.params["identity.backbone"] == record.inputs["identity"]["backbone"]
    assert found.data.tags["pipeline.command"] == "train-head"
    copy = Path("store of runs/artifacts", found.info.run_id, "artifacts")
    for name in ("run.json", "manifest.csv", "heads/linear/head.json", "heads/linear/arrays.npz"):
        assert (copy / name).read_bytes() == Path("run", name).read_bytes()
    assert not (copy / "report.html").exists()
    # The same run is not logged twice; with its report, or another head, it is another state.
    assert command(*TRAIN, "--mlflow", "store of runs")[1]["mlflow"] == result["mlflow"]
    Path("run/report.html").write_text("page")
    again = command(*TRAIN, "--mlflow", "store of runs")[1]["mlflow"]["run_id"]
    assert again != found.info.run_id
    assert Path("store of runs/artifacts", again, "artifacts/report.html").read_text() == "page"
    # A damaged store is no traceback, and nothing is trained.
    Path("damaged").mkdir()
    Path("damaged/mlflow.db").write_text("no database" * 100)
    status, refused = command(*TRAIN[:4], "other", "--mlflow", "damaged")
    assert (status, refused["error"]["type"]) == (2, "RunError")
    assert not Path("other").exists()


@pytest.mark.parametrize("name", ["train-head", "sweep"])
def test_without_mlflow_nothing_is_trained(
    command: Command, work: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = importlib.util.find_spec

    def without(library: str, *more: Any) -> Any:
        return None if library == "sqlalchemy" else find(library, *more)

    monkeypatch.setattr(mlflow, "find_spec", without)
    status, result = command(name, *TRAIN[1:], "--mlflow", "tracked")
    assert (status, result["error"]["type"]) == (2, "EngineUnavailableError")
    assert "embedding-pipeline[mlflow]" in result["error"]["hint"]
    assert not Path("run").exists() and not Path("tracked").exists()


def test_a_store_is_made_when_there_is_a_run_to_log(
    command: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "find_spec", lambda library: library)
    status, result = command(*TRAIN[:2], "nowhere", "--mlflow", "tracked")
    assert (status, result["error"]["type"]) == (2, "StoreError")
    assert not Path("tracked").exists()


@pytest.mark.parametrize(("said", "line"), [("", "OSError"), ("\n  \n", "OSError"), ("a\nb", "a")])
def test_an_error_without_a_message_has_its_kind(said: str, line: str) -> None:
    assert mlflow._first_line(OSError(said)) == line


def test_a_place_that_is_a_file_is_refused(command: Command, work: Path) -> None:
    Path("tracked").touch()
    status, result = command(*TRAIN, "--mlflow", "tracked")
    assert status == 2 and "--mlflow" in result["error"]["message"]
    assert not Path("run").exists()
