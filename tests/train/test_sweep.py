"""Sweeps: every setting tried, val chooses, test is scored once."""

import json
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command, edit_record, planted_store

from pipeline import heads
from pipeline.cli.main import main
from pipeline.config.options import SweepOptions
from pipeline.dataset.features import SplitFeatures
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.train.prepare import prepare_data
from pipeline.train.search import _by_folds, sweep_head
from pipeline.train.sweep_grids import GRIDS, settings_of

FAST = ("centroid", "knn", "linear", "logreg", "majority", "ridge")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return planted_store(tmp_path / "store", {"ant": 80, "bee": 60, "cow": 60}, separation=0.6)


def flags(*names: str) -> list[str]:
    return [part for name in names for part in ("--head", name)]


def sweep(command: Command, *more: object) -> dict[str, Any]:
    status, result = command("sweep", "--store", "store", "--run", "run", *more)
    assert status == 0, result
    return result


@pytest.mark.slow
def test_every_setting_is_tried_and_the_best_on_val_is_kept(command: Command, store: Store) -> None:
    result = sweep(command, *flags(*FAST))
    assert set(result["heads"]) == set(FAST)
    for name in FAST:
        trials = result["trials"][name]
        sizes = [len(values) for values in GRIDS["default"][name].values()]
        assert len(trials) == np.prod(sizes)
        best = min(trials, key=lambda trial: trial["log_loss"])
        assert result["heads"][name]["selected"] == best["setting"]
        val = result["heads"][name]["val"]
        assert val["accuracy"] == pytest.approx(best["accuracy"])
        assert val["log_loss"] == pytest.approx(best["log_loss"], rel=1e-3, abs=1e-6)
    accuracies = {name: head["val"]["accuracy"] for name, head in result["heads"].items()}
    assert accuracies[result["best"]] == max(accuracies.values())
    json.loads(Path("run/run.json").read_text(), parse_constant=pytest.fail)


def test_the_kept_head_is_the_trial(command: Command, store: Store) -> None:
    sweep(command, *flags("logreg", "linear"))
    run = Run.open(Path("run"))
    rows = run.manifest()
    scored = np.array([split != "train" for split in rows.splits])
    for name in ("logreg", "linear"):
        head = heads.load(Path("run/heads") / name)
        np.testing.assert_allclose(
            head.predict_proba(store.read(rows.keys[scored])), run.probabilities(name), atol=1e-6
        )


def test_a_finished_head_is_kept_and_another_grid_refused(command: Command, store: Store) -> None:
    first = sweep(command, *flags("ridge"))
    again = sweep(command, *flags("ridge", "majority"))
    assert again["heads"]["ridge"] == first["heads"]["ridge"]
    assert set(again["heads"]) == {"majority", "ridge"}
    Path("c.toml").write_text("[grids.ridge]\ngrid = [1.0, 2.0]\n")
    status, result = command("sweep", "--store", "store", "--run", "run", "--config", "c.toml",
                             *flags("ridge"))  # fmt: skip
    assert status == 2
    assert "ridge" in result["error"]["message"]


def test_kornblith_has_45_strengths_of_logreg_alone(command: Command, store: Store) -> None:
    result = sweep(command, "--grid", "kornblith", *flags("logreg"))
    values = sorted(1 / trial["setting"]["grid"][0] for trial in result["trials"]["logreg"])
    assert len(values) == 45
    np.testing.assert_allclose([values[0], values[-1]], [1e-6, 1e5])
    np.testing.assert_allclose(np.diff(np.log10(values)), 0.25)
    status, result = command("sweep", "--store", "store", "--grid", "kornblith", *flags("ridge"))
    assert status == 2
    assert "expected heads of logreg" in result["error"]["message"]


def test_own_grids_and_their_errors(command: Command, store: Store) -> None:
    Path("c.toml").write_text(
        "[heads.linear]\nepochs = 5\n"
        "[grids.linear]\nlearning_rate = [0.1, 0.01]\nseed = [0, 1, 2]\n"
    )
    result = sweep(command, "--config", "c.toml", *flags("linear"))
    assert len(result["trials"]["linear"]) == 6
    for text, says in (
        ("[grids.linar]\nseed = [1]\n", "Did you mean 'linear'"),
        ("[grids.linear]\nsed = [1]\n", "Did you mean 'seed'"),
        ("[grids.linear]\nseed = 1\n", "a list of values"),
        ("[grids.linear]\nepochs = [1, 'a']\n", "an integer such as"),
        ("[grids.linear]\nepochs = []\n", "a list of values"),
        ("[grids]\nlinear = 1\n", "expected a table"),
    ):
        Path("c.toml").write_text(text)
        status, error = command("sweep", "--store", "store", "--config", "c.toml", *flags("linear"))
        assert (status, says in error["error"]["message"]) == (2, True), error


def test_the_edge_of_a_grid_and_unfinished_fits_are_said(command: Command, store: Store) -> None:
    Path("c.toml").write_text(
        "[heads.logreg]\nmax_iter = 1\n[grids.logreg]\ngrid = [1e-9, 1e-8, 1e-7]\n"
    )
    result = sweep(command, "--config", "c.toml", *flags("logreg"))
    notes = " ".join(result["heads"]["logreg"]["notes"])
    assert "at the edge of what was tried (1e-09 to 1e-07)" in notes


def test_the_lead_has_an_interval(command: Command, store: Store) -> None:
    result = sweep(command, *flags("logreg", "majority"))
    assert (result["lead"]["best"], result["lead"]["next"]) == ("logreg", "majority")
    low, high = result["lead"]["difference_ci95"]
    assert 0 < low < result["lead"]["difference"] < high
    assert result["lead"]["n"] == result["split"]["val"]


@pytest.mark.slow
def test_without_val_cross_validation_chooses(command: Command, store: Store) -> None:
    result = sweep(command, "--split", "85/0/15", *flags("logreg", "ridge"))
    assert result["split"]["val"] == 0
    assert result["heads"]["logreg"]["val"]["n"] == result["split"]["train"]
    assert result["heads"]["logreg"]["test"]["accuracy"] > 0.6
    run = Run.open(Path("run"))
    assert run.record.heads["logreg"].selected_on == "5 folds of train"
    assert len(run.probabilities("logreg")) == result["split"]["test"]
    status, error = command("train-head", "--store", "store", "--run", "other", "--split",
                            "85/0/15", "--head", "majority")  # fmt: skip
    assert status == 2
    assert "sweep" in error["error"]["hint"]


@pytest.mark.filterwarnings("error")
def test_a_class_of_fewer_images_than_folds_and_more_folds_than_images(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    splits = ["train"] * 40 + ["test"] * 10 + ["train"] * 30 + ["test"] * 10 + ["train", "test"]
    planted_store(tmp_path / "store", {"ant": 50, "bee": 40, "cow": 2}, splits=splits)
    rare = ("--split", "85/0/15", "--min-per-class", 1)
    result = sweep(command, *rare, *flags("ridge"))
    trials = result["trials"]["ridge"]
    # The one image of the smallest class is wrong in its fold, and no setting is lost for it.
    assert all(trial["log_loss"] is not None for trial in trials)
    assert max(trial["accuracy"] for trial in trials) > 0.9
    status, error = command("sweep", "--store", "store", "--run", "other", *rare, "--folds", 41,
                            *flags("ridge"))  # fmt: skip
    assert status == 2
    assert "at most 40" in error["error"]["message"]


def test_folds_see_neither_their_rows_nor_copies_of_them(store: Store) -> None:
    data = prepare_data(SweepOptions(store="store", split="85/0/15"), {}).data
    train = data.rows["train"]
    # Every image stands twice, and its features tell its number.
    copies = np.repeat(np.arange(train.stop // 2), 2)
    count = len(copies)
    X = np.random.default_rng(0).normal(size=(count // 2, 4)).astype(np.float32)[copies]
    doubled = SplitFeatures(
        X=X,
        y=(copies % 2).astype(np.int64),
        keys=np.array([f"{number:064x}".encode() for number in copies]),
        rows={"train": slice(0, count), "val": slice(count, count), "test": slice(count, count)},
        num_classes=2,
    )
    base = heads.create("knn", {"grid": [1]}, seed=0)
    (_, scores, y), *_ = list(_by_folds(base, [{}], doubled, 4))
    assert np.isfinite(scores[0]).all()
    # The nearest neighbour of a row whose copy was in train would be right every time.
    assert (scores[0].argmax(axis=1) == y).mean() < 0.8


def test_choosing_looks_at_val_alone(store: Store) -> None:
    prepared = prepare_data(SweepOptions(store="store"), {})
    base = heads.create("ridge", {}, seed=0)
    settings = settings_of("ridge", GRIDS["default"]["ridge"], base.get_params())
    data, other = prepared.data, scrambled(prepared.data, "test")
    for found in (sweep_head("ridge", base, settings, item, folds=5) for item in (data, other)):
        record = [trial.record() for trial in found.trials]
        assert record == [
            trial.record() for trial in sweep_head("ridge", base, settings, data, folds=5).trials
        ]


def scrambled(data: SplitFeatures, split: str) -> SplitFeatures:
    """The same data with other features and labels in one split."""
    rng = np.random.default_rng(5)
    X, y, rows = data.X.copy(), data.y.copy(), data.rows[split]
    X[rows] = rng.normal(size=X[rows].shape) * 100
    y[rows] = rng.permutation(y[rows])
    return replace(data, X=X, y=y)


def test_settings_are_all_combinations() -> None:
    grid = {"a": [1, 2], "grid": [0.1, 0.2, 0.3]}
    settings = settings_of("x", grid, {"a": 0, "grid": ()})
    assert len(settings) == 6
    assert Counter(setting["a"] for setting in settings) == {1: 3, 2: 3}
    assert all(len(setting["grid"]) == 1 for setting in settings)
    assert settings_of("x", {}, {}) == [{}]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_rate_too_high_loses_and_stops_nothing(command: Command, store: Store) -> None:
    Path("c.toml").write_text("[grids.linear]\nlearning_rate = [1e30, 0.01]\n")
    result = sweep(command, "--config", "c.toml", *flags("linear"))
    lost, won = result["trials"]["linear"]
    assert (lost["log_loss"], lost["converged"]) == (None, False)
    assert result["heads"]["linear"]["selected"] == won["setting"]
    assert any(
        "1 of 2 fits did not converge" in note for note in result["heads"]["linear"]["notes"]
    )
    Path("c.toml").write_text("[grids.linear]\nlearning_rate = [1e30, 1e31]\n")
    status, error = command("sweep", "--store", "store", "--run", "other", "--config", "c.toml",
                            *flags("linear"))  # fmt: skip
    assert status == 2
    assert "lower rates" in error["error"]["hint"]


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", ["", "majority", "ridge", "centroid"])
def test_a_sweep_that_was_killed_comes_to_the_same_record(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    names = ("majority", "ridge", "centroid")
    whole = sweep(command, *flags(*names))["lead"]
    assert (whole["best"], whole["next"], whole["comparisons"]) == ("ridge", "centroid", 3)
    low, high = whole["simultaneous_ci95"]
    assert whole["is_real"] == (not low <= 0 <= high)
    add = Run.add_head

    def stopping(self: Run, name: str, fitted: Any) -> None:
        add(self, name, fitted)
        if name == stop_at:
            raise KeyboardInterrupt

    arguments = ["sweep", "--store", "store", "--run", "other", *flags(*names)]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "add_head", stopping)
        assert main([*arguments, "--quiet"]) == (130 if stop_at else 0)
    assert main([*arguments, "--quiet"]) == 0
    record, expected = (json.loads(Path(name, "run.json").read_text()) for name in ("other", "run"))
    assert record["lead"] == expected["lead"] == whole
    assert list(record) == list(expected)
    assert list(record["heads"]) == list(expected["heads"])
    for name in names:
        assert list(record["heads"][name]) == list(expected["heads"][name])


@pytest.mark.slow
def test_heads_one_by_one_have_the_lead_of_a_sweep_of_all(command: Command, store: Store) -> None:
    together = sweep(command, *flags("ridge", "logreg", "majority"))["lead"]
    for name in ("ridge", "logreg", "majority"):
        status, result = command("sweep", "--store", "store", "--run", "other", *flags(name))
        assert status == 0
    assert result["lead"] == together


def test_the_lead_of_an_older_release_is_kept(
    command: Command, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sweep(command, *flags("ridge", "majority"))["lead"]
    new = ("p_value", "p_adjusted", "simultaneous_ci95", "comparisons", "is_real")
    older = {name: value for name, value in first.items() if name not in new}

    def change(record: dict[str, Any]) -> None:
        record["lead"] = older
        for head in record["heads"].values():
            head.pop("choice")

    edit_record(Path("run/run.json"), change)
    again = sweep(command, *flags("ridge"))["lead"]
    assert again["difference_ci95"] == first["difference_ci95"]
    assert main(["sweep", "--store", "store", "--run", "run", *flags("ridge")]) == 0
    assert "In the search, ridge leads majority" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("split", ["70/15/15", "85/0/15"])
@pytest.mark.parametrize(
    "name", ["knn", "linear", "logreg", "ridge", pytest.param("dense", marks=pytest.mark.slow)]
)
def test_progress_is_told_while_fits_go_on(store: Store, name: str, split: str) -> None:
    """One step a setting, and most of them before all fits of a shared pass are over."""
    data = prepare_data(SweepOptions(store="store", split=split), {}).data
    base = heads.create(name, {"epochs": 4} if name == "dense" else {}, seed=0)
    settings = settings_of(name, GRIDS["default"][name], base.get_params())
    told: list[str | None] = []
    sweep_head(
        name, base, settings, data, folds=2,
        progress=lambda best: told.append(best and best.head),
    )  # fmt: skip
    assert len(told) == len(settings)
    # Before the first one is scored, which for fits that share a pass is after all of them.
    assert told.count(None) >= (len(settings) // 2 if name != "knn" else 1)


@pytest.mark.slow
def test_many_classes_of_few_images_are_no_reason_to_warn(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", {f"class-{number}": 4 for number in range(40)})
    # Warnings are errors here.
    status, result = command("train-head", "--store", "store", "--run", "run", *flags(*FAST))
    assert status == 0, result
    status, result = command("sweep", "--store", "store", "--run", "other", "--split", "75/0/25",
                             "--folds", 2, *flags("ridge", "knn"))  # fmt: skip
    assert status == 0, result


def test_warnings_of_other_packages_are_said_in_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.heads.ridge import RidgeHead

    fit = RidgeHead._fit_path

    def warning(self: RidgeHead, *arguments: Any) -> Any:
        for _ in range(2):
            warnings.warn("ill-conditioned\n  matrix", RuntimeWarning, stacklevel=1)
        return fit(self, *arguments)

    monkeypatch.setattr(RidgeHead, "_fit_path", warning)
    for command in ("train-head", "sweep"):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            arguments = [command, "--store", "store", "--run", command, *flags("ridge")]
            assert main(arguments) == 0
        said = capsys.readouterr().err
        assert said.count("RuntimeWarning: ill-conditioned matrix\n") == 1
        assert "stacklevel" not in said and "warnings.warn" not in said
