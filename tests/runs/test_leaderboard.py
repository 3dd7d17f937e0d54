"""Compare beyond the leaderboard: seeds and learning curves, from the store alone."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command, edit_record, planted_store

from pipeline.cli import leaderboard as text
from pipeline.cli.main import main
from pipeline.runs.learning_curve import nested
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.train.retraining import CURVE_SHARES, Retraining

HEADS = ("logreg", "majority")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a run that stay as they are."""
    folder = tmp_path_factory.mktemp("original")
    planted_store(folder / "store", {"ant": 80, "bee": 60, "cow": 60}, separation=0.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train()
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, original: Path) -> Store:
    """A store with its run in the folder at hand, as they are in a project that was copied."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return Store.open(tmp_path / "store")


def train(store: str = "store", run: str = "run", heads: Sequence[str] = HEADS) -> None:
    flags = [flag for head in heads for flag in ("--head", head)]
    assert main(["train-head", "--store", store, "--run", run, *flags, "--quiet"]) == 0


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
    train()
    (row, _) = compare(command, "--seeds", 3)["seeds"]
    assert row["varies"] == "head"
    assert row["sd"] == 0, "logistic regression has no seed"


def test_the_curve_grows_and_ends_at_the_run(command: Command, store: Store) -> None:
    result = compare(command, "--curve")
    rows = [row for row in result["curve"] if row["head"] == "logreg"]
    counts = [row["n_train"] for row in rows]
    run = Run.open(Path("run"))
    assert counts == sorted(set(counts))
    assert counts[-1] == run.record.split.train
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
    edit_record(Path("run/run.json"), lambda it: it["inputs"]["identity"].update(pooling="max"))
    status, result = command("compare", "run", "--seeds", 2)
    assert status == 2
    assert "was made from features of" in result["error"]["message"]


def test_heads_that_are_no_heads_on_stored_features_are_refused(
    command: Command, store: Store
) -> None:
    changed = {"weights_sha256": "0" * 64, "backbone_sha256": "1" * 64}
    edit_record(Path("run/run.json"), lambda record: record.update(finetune=changed))
    edit_record(Path("run/run.json"), lambda it: it["heads"].update(finetune=it["heads"]["logreg"]))
    status, result = command("compare", "run", "--curve")
    assert status == 2
    assert "finetune" in result["error"]["message"]


def test_pairs_are_corrected_for_their_number(command: Command, store: Store) -> None:
    train(heads=("ridge", "centroid"))
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


@pytest.fixture(scope="module")
def original_others(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one data set, one of another, and what else lies in a folder of runs."""
    folder = tmp_path_factory.mktemp("others")
    shutil.copytree(original, folder, dirs_exist_ok=True)
    splits = (["train"] * 40 + ["val"] * 10 + ["test"] * 10) * 2
    # Planted images of one number are of one key: their labels tell them apart.
    planted_store(folder / "else", {"dog": 60, "elk": 60}, splits=splits)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(run="runs/a")
        train(run="runs/b", heads=("ridge", "logreg"))
        train("else", "runs/c")
        Path("runs/folder").mkdir()
        Path("runs/file.txt").touch()
        empty = Run.open(Path("runs/a"))
        shutil.copytree("runs/a", "runs/empty")
        Run(Path("runs/empty"), empty.record.with_heads({})).save_record()
    return folder


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, original_others: Path) -> None:
    """The same in the folder at hand."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original_others, tmp_path, dirs_exist_ok=True)


def all_runs() -> list[str]:
    return sorted(str(path) for path in Path("runs").iterdir())


def test_runs_without_common_test_images_are_in_leaderboards_of_their_own(
    command: Command, others: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status, result = command("compare", *all_runs())
    assert status == 0, result
    assert [group["runs"] for group in result["groups"]] == [["runs/a", "runs/b"], ["runs/c"]]
    assert [len(group["rows"]) for group in result["groups"]] == [4, 2]
    assert [len(group["pairs"]) for group in result["groups"]] == [3, 1]
    assert result["rows"] == [row for group in result["groups"] for row in group["rows"]]
    assert result["pairs"] == [pair for group in result["groups"] for pair in group["pairs"]]
    # Each leaderboard is what it would be without the others.
    for group in result["groups"]:
        _, alone = command("compare", *group["runs"])
        assert (alone["rows"], alone["pairs"]) == (group["rows"], group["pairs"])
        assert alone["n"] == group["n"] and len(alone["groups"]) == 1
    assert main(["compare", *all_runs()]) == 0
    said = capsys.readouterr().out
    assert said.count("Accuracy on") == 2
    assert "share no test image" in said
    for head in (line.split()[0] for line in said.splitlines() if " * " in line):
        assert head.startswith("runs/"), "of which run?"


def test_what_is_no_run_is_named_and_left_out_of_several(
    command: Command, others: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status, result = command("compare", *all_runs())
    assert {item["run"]: item["reason"] for item in result["left_out"]} == {
        "runs/empty": "no finished head", "runs/file.txt": "no run", "runs/folder": "no run",
    }  # fmt: skip
    assert main(["compare", *all_runs(), "--strict"]) == 1
    said = capsys.readouterr().out
    assert "Left out: runs/folder: no run" in said
    for alone in ("runs/empty", "runs/file.txt", "runs/folder"):
        status, result = command("compare", alone)
        assert status == 2, alone
    status, result = command("compare", "runs/empty", "runs/folder")
    assert status == 2
    assert "'runs/empty' (no finished head), 'runs/folder' (no run)" in result["error"]["message"]


def test_a_run_given_twice_counts_once(command: Command, others: None) -> None:
    _, twice = command("compare", "runs/a", "runs/a")
    _, once = command("compare", "runs/a")
    assert twice == once


def test_a_damaged_run_is_no_reason_to_go_on(command: Command, others: None) -> None:
    Path("runs/b/run.json").write_text("{")
    status, result = command("compare", *all_runs())
    assert status == 2 and "runs/b" in result["error"]["message"]


def test_verdict_and_interval_agree_in_words(command: Command, others: None) -> None:
    _, result = command("compare", "runs/a", "runs/b")
    for pair in result["pairs"]:
        low, high = pair["simultaneous_ci95"]
        assert pair["comparisons"] == 3
        assert pair["is_real"] == (not low <= 0 <= high) == (pair["p_adjusted"] <= 0.05)
        said = text.verdict(pair)
        assert f"simultaneous 95 % interval {100 * low:+.1f} to {100 * high:+.1f}" in said
        assert ("no real difference" in said) != pair["is_real"]
    _, alone = command("compare", "runs/c")
    assert "(95 % interval" in text.verdict(alone["pairs"][0])


def test_seeds_of_a_head_by_dotted_name(command: Command, store: Store) -> None:
    name = "sklearn.naive_bayes.GaussianNB"
    Path("c.toml").write_text(f'[heads."{name}"]\nvar_smoothing = 0.5\n')
    status, result = command("train-head", "--store", "store", "--run", "runs/d", "--head", name,
                             "--config", "c.toml")  # fmt: skip
    assert status == 0, result
    status, result = command("compare", "runs/d", "--seeds", 2)
    assert status == 0, result
    (row,) = result["seeds"]
    assert row["accuracies"][0] == result["rows"][0]["accuracy"]


def test_rows_declared_in_train_stay_there_with_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of images that suggest chose, beside others that declare nothing."""
    monkeypatch.chdir(tmp_path)
    splits = ["train"] * 10 + [""] * 30
    planted_store(tmp_path / "store", {"ant": 40, "bee": 40}, splits=splits * 2)
    train(heads=("majority",))
    again = Retraining(Run.open(Path("run")))
    rows = again.run.manifest()
    chosen = {key for key, said in zip(rows.keys, rows.declared, strict=True) if said == "train"}
    assert not again.is_declared and len(chosen) == 20
    data = [again.split(seed) for seed in range(3)]
    seen = [frozenset(found.keys[found.rows["train"]]) for found in data]
    assert all(chosen <= keys for keys in seen)
    assert len(set(seen)) == 3, "those that declare nothing are drawn again"
