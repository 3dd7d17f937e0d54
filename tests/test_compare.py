"""Compare beyond the leaderboard: seeds and learning curves, from the store alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from fakes import planted_store

from pipeline.cli import main
from pipeline.compare_command import CURVE_SHARES, Retraining
from pipeline.learning_curve import nested
from pipeline.run import Run
from pipeline.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> Store:
    monkeypatch.chdir(tmp_path)
    made = planted_store(tmp_path / "store", {"ant": 80, "bee": 60, "cow": 60}, separation=0.6)
    train(command)
    return made


def train(command: Command, *more: object) -> None:
    status, result = command("train-head", "--store", "store", "--run", "run", "--head", "logreg",
                             "--head", "majority", *more)  # fmt: skip
    assert status == 0, result


def compare(command: Command, *more: object) -> dict[str, Any]:
    status, result = command("compare", "run", *more)
    assert status == 0, result
    return result


def test_seeds_give_mean_and_spread(command: Command, store: Store) -> None:
    before = Path("run/run.json").read_bytes()
    result = compare(command, "--seeds", 4)
    rows = {row["head"]: row for row in result["seeds"]}
    assert set(rows) == {"logreg", "majority"}
    for name, row in rows.items():
        values = row["accuracies"]
        assert (len(values), row["varies"]) == (4, "split and head")
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["sd"] == pytest.approx(np.std(values, ddof=1))
        of_run = next(item for item in result["rows"] if item["head"] == name)
        assert values[0] == of_run["accuracy"], "the first seed is the run's own"
    assert rows["logreg"]["low"] > rows["majority"]["high"]
    assert len(set(rows["logreg"]["accuracies"])) > 1
    assert Path("run/run.json").read_bytes() == before


def test_declared_splits_stay(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    splits = (["train"] * 40 + ["val"] * 10 + ["test"] * 10) * 2
    planted_store(tmp_path / "store", {"ant": 60, "bee": 60}, splits=splits)
    train(command)
    (row, _) = compare(command, "--seeds", 3)["seeds"]
    assert row["varies"] == "head"
    assert row["sd"] == 0, "logistic regression has no seed"


def test_the_curve_grows_and_ends_at_the_run(command: Command, store: Store) -> None:
    result = compare(command, "--curve")
    rows = [row for row in result["curve"] if row["head"] == "logreg"]
    counts = [row["n_train"] for row in rows]
    run = Run.open(Path("run"))
    assert counts == sorted(set(counts))
    assert counts[-1] == run.record["split"]["train"]
    whole = next(item for item in result["rows"] if item["head"] == "logreg")
    assert rows[-1]["accuracy"] == pytest.approx(whole["accuracy"])
    assert rows[0]["accuracy"] < rows[-1]["accuracy"]
    for row in rows:
        assert row["accuracy_ci95"][0] <= row["accuracy"] <= row["accuracy_ci95"][1]


def test_parts_of_the_curve_lie_in_each_other_and_hold_every_class(store: Store) -> None:
    data = Retraining(Run.open(Path("run"))).split(0)
    before: set[int] = set()
    for _, rows in nested(data, CURVE_SHARES):
        assert before <= set(rows.tolist())
        assert set(data.y[rows]) == {0, 1, 2}
        assert set(rows.tolist()) <= set(range(data.rows["train"].start, data.rows["train"].stop))
        before = set(rows.tolist())


def test_a_store_that_changed_is_refused(command: Command, store: Store) -> None:
    run = Run.open(Path("run"))
    run.record["inputs"]["identity"] = {"precision": "bfloat16"}
    run.save_record()
    status, result = command("compare", "run", "--seeds", 2)
    assert status == 2
    assert "was made from features of" in result["error"]["message"]


def test_heads_that_are_no_heads_on_stored_features_are_refused(
    command: Command, store: Store
) -> None:
    run = Run.open(Path("run"))
    run.record["heads"]["finetune"] = run.record["heads"]["logreg"]
    run.save_record()
    status, result = command("compare", "run", "--curve")
    assert status == 2
    assert "finetune" in result["error"]["message"]


def test_pairs_are_corrected_for_their_number(command: Command, store: Store) -> None:
    train(command, "--head", "ridge", "--head", "centroid")
    pairs = compare(command)["pairs"]
    assert len(pairs) == 3
    for pair in pairs:
        assert pair["p_value"] <= pair["p_adjusted"] <= 1
        low, high = pair["difference_ci95"]
        assert low < pair["difference"] < high


def test_seeds_and_curve_in_words(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "run", "--seeds", "2", "--curve", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "Test accuracy over 2 seeds of split and head:" in text
    assert "Test accuracy by number of training images:" in text
