"""Stage 2 and compare, as commands on planted features: no network, no TensorFlow."""

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command, edit_record, planted_store

import pipeline
from pipeline import heads
from pipeline.files.atomic import temporary_sibling
from pipeline.images import manifest
from pipeline.runs.run import Run
from pipeline.store.store import Store

SCORES = {"n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1", "log_loss", "ece"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return planted_store(tmp_path / "store", {"ant": 80, "bee": 60, "cow": 60})


def train(command: Command, *more: object) -> dict[str, object]:
    arguments = ("train-head", "--store", "store", "--run", "run", "--head", "logreg",
                 "--head", "majority")  # fmt: skip
    status, result = command(*arguments, *more)
    assert status == 0, result
    return result


def test_result_has_the_keys_that_programs_rely_on(command: Command, store: Store) -> None:
    result = train(command)
    assert {"run", "heads", "best", "split"} <= set(result)
    for head in result["heads"].values():
        assert {"train", "val", "test", "fit_seconds", "converged"} <= set(head)
        for split in ("train", "val", "test"):
            assert set(head[split]) >= SCORES
            low, high = head[split]["accuracy_ci95"]
            assert 0 <= low <= head[split]["accuracy"] <= high <= 1
    assert result["best"] == "logreg"
    assert sum(result["split"].values()) == 200
    assert result["heads"]["logreg"]["converged"] is True


def test_logreg_learns_and_majority_is_the_floor(command: Command, store: Store) -> None:
    scores = train(command)["heads"]
    manifest_rows = Run.open(Path("run")).manifest()
    test = [label for label, split in zip(manifest_rows.labels, manifest_rows.splits, strict=True)
            if split == "test"]  # fmt: skip
    assert scores["majority"]["test"]["accuracy"] == pytest.approx(test.count("ant") / len(test))
    assert scores["logreg"]["test"]["accuracy"] > 0.9


def test_files_of_a_run(command: Command, store: Store) -> None:
    result = train(command)
    run = Run.open(Path("run"))
    json.loads(Path("run/run.json").read_text(), parse_constant=pytest.fail)
    with Path("run/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    scored = result["split"]["val"] + result["split"]["test"]
    assert len(rows) == 2 * scored
    assert list(rows[0]) == ["path", "key", "label", "split", "head", "predicted", "probability"]
    assert {row["split"] for row in rows} == {"val", "test"}
    for name in ("logreg", "majority"):
        assert run.probabilities(name).shape == (scored, 3)
        right = [row["label"] == row["predicted"] for row in rows
                 if row["head"] == name and row["split"] == "test"]  # fmt: skip
        assert np.mean(right) == pytest.approx(result["heads"][name]["test"]["accuracy"])
    assert not list(Path("run").rglob("*.pkl"))


def test_saved_head_predicts_the_same(command: Command, store: Store) -> None:
    train(command)
    run = Run.open(Path("run"))
    rows = run.manifest()
    for name in ("logreg", "majority"):
        head = heads.load(Path("run/heads") / name)
        # Split by split, as they were scored: the last digit of a product is that of its company.
        parts = [
            head.predict_proba(store.read(rows.keys[np.array(rows.splits) == split]))
            for split in ("val", "test")
        ]
        np.testing.assert_array_equal(
            np.concatenate(parts).astype(np.float32), run.probabilities(name)
        )


def test_same_run_is_kept_and_new_heads_are_added(command: Command, store: Store) -> None:
    first = train(command)
    written = Path("run/heads/logreg/head.json").stat().st_mtime_ns
    again = train(command)
    assert again["heads"] == first["heads"]
    status, added = command("train-head", "--store", "store", "--run", "run", "--head", "majority")
    assert status == 0 and set(added["heads"]) == {"logreg", "majority"}
    assert Path("run/heads/logreg/head.json").stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--split", "60/20/20"], "split"),
        (["--split-seed", 1], "split_seed"),
        (["--seed", 1], ""),
        (["--refit"], "refit"),
    ],
)
def test_other_options_are_refused_and_force_replaces(
    command: Command, store: Store, flags: list[object], field: str
) -> None:
    train(command)
    before = Path("run/run.json").read_bytes()
    arguments = ("train-head", "--store", "store", "--run", "run", "--head", "majority", *flags)
    status, result = command(*arguments)
    if field:
        assert status == 2 and f"{field} = " in result["error"]["message"]
        assert Path("run/run.json").read_bytes() == before
        status, result = command(*arguments, "--force")
        assert set(result["heads"]) == {"majority"}
    assert status == 0


def as_finetuned(path: Path) -> None:
    """Give a run what fine-tuning adds to it."""
    shutil.copytree(path / "heads/logreg", path / "heads/finetune")
    (path / "finetune/tensorboard").mkdir(parents=True)
    (path / "finetune/weights.h5").write_bytes(b"weights")
    changed = {"weights_sha256": "0" * 64, "backbone_sha256": "1" * 64}
    edit_record(path / "run.json", lambda record: record.update(finetune=changed))
    edit_record(path / "run.json", lambda it: it["heads"].update(finetune=it["heads"]["logreg"]))


@pytest.mark.parametrize("name", ["train-head", "sweep"])
def test_force_replaces_a_run_of_fine_tuning(command: Command, store: Store, name: str) -> None:
    train(command)
    as_finetuned(Path("run"))
    flags = ("--store", "store", "--run", "run", "--head", "majority", "--refit", "--force")
    status, result = command(name, *flags)
    assert status == 0, result
    assert not Path("run/finetune").exists()
    assert all(head.startswith("majority") for head in Run.open(Path("run")).record.heads)


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(7))
def test_a_run_that_is_removed_in_part_can_be_replaced(
    command: Command, store: Store, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(command)
    as_finetuned(Path("run"))
    left = iter(range(steps))

    def or_die(do: Callable[..., None]) -> Callable[..., None]:
        def stopping(*arguments: Any, **options: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            do(*arguments, **options)

        return stopping

    with monkeypatch.context() as killed:
        killed.setattr(Run, "save_record", or_die(Run.save_record))
        killed.setattr(shutil, "rmtree", or_die(shutil.rmtree))
        killed.setattr(Path, "unlink", or_die(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            Run.remove(Path("run"))
    assert bool(Run.open(Path("run")).record.heads) == (steps == 0)
    status, result = command("train-head", "--store", "store", "--run", "run", "--head",
                             "majority", "--force")  # fmt: skip
    assert (status, list(result["heads"])) == (0, ["majority"])


def test_a_run_that_a_kill_left_at_its_first_write_is_made_by_the_next(
    command: Command, store: Store
) -> None:
    Path("run").mkdir()
    for name in (".lock", ".tmp-run.json-abcdefgh.json", ".tmp-5xk2_q1z.csv"):
        Path("run", name).touch()
    train(command)
    assert not list(Path("run").rglob(".tmp-*"))


def test_what_a_kill_left_within_a_run_goes_and_what_is_missing_is_made(
    command: Command, store: Store
) -> None:
    train(command)
    made = Path("run/manifest.csv").read_bytes()
    Path("run/manifest.csv").unlink()
    Path("run/finetune/tensorboard").mkdir(parents=True)
    places = ("run", "run/heads", "run/heads/logreg", "run/finetune", "run/finetune/tensorboard")
    for place in places:
        Path(place, ".tmp-arrays.npz-abcdefgh.npz").touch()
    with temporary_sibling(Path("run/heads/logreg/arrays.npz")) as in_use:
        train(command)
        assert list(Path("run").rglob(".tmp-*")) == [in_use.relative_to(Path.cwd())]
    assert Path("run/manifest.csv").read_bytes() == made


def test_a_run_with_something_else_in_it_is_not_replaced(command: Command, store: Store) -> None:
    train(command)
    Path("run/notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    status, result = command("train-head", "--store", "store", "--run", "run", "--head",
                             "majority", "--force")  # fmt: skip
    assert status == 2 and "notes.txt" in result["error"]["message"]
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_other_head_parameters_are_refused(command: Command, store: Store) -> None:
    train(command)
    Path("c.toml").write_text("[heads.logreg]\ngrid = [1.0, 10.0]\n")
    arguments = ("train-head", "--store", "store", "--run", "run", "--config", "c.toml",
                 "--head", "logreg")  # fmt: skip
    status, result = command(*arguments)
    assert status == 2 and "grid" in result["error"]["message"]


def test_split_depends_on_content_alone(command: Command, store: Store, tmp_path: Path) -> None:
    train(command)
    rows = Run.open(Path("run")).manifest()
    before = dict(zip(rows.keys, rows.splits, strict=True))
    full = store.read_manifest()
    relabelled = replace(full, labels=["bee" if index == 3 else label
                                       for index, label in enumerate(full.labels)])  # fmt: skip
    manifest.write(tmp_path / "edited.csv", relabelled)
    status, _ = command("train-head", "--store", "store", "--run", "other", "--head", "majority",
                        "--manifest", "edited.csv")  # fmt: skip
    assert status == 0
    rows = Run.open(Path("other")).manifest()
    assert dict(zip(rows.keys, rows.splits, strict=True)) == before


def test_refit_scores_test_by_the_refitted_head_and_val_by_the_one_before(
    command: Command, store: Store
) -> None:
    plain = train(command)
    status, refit = command("train-head", "--store", "store", "--run", "refit", "--head", "logreg",
                            "--refit")  # fmt: skip
    assert status == 0
    assert refit["heads"]["logreg"]["val"] == plain["heads"]["logreg"]["val"]
    assert refit["heads"]["logreg"]["test"] != plain["heads"]["logreg"]["test"]


def test_test_rows_reach_no_fit(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(command)
    rows = Run.open(Path("run")).manifest()
    test = store.read(rows.keys[np.array([split == "test" for split in rows.splits])])
    forbidden = {row.tobytes() for row in test}
    from pipeline.heads.logreg import LogregHead

    original = LogregHead.fit
    seen = []

    def watch(self: LogregHead, X: np.ndarray, y: np.ndarray, **more: object) -> LogregHead:
        parts = [X, *([more["validation"][0]] if more.get("validation") else [])]
        seen.append(sum(row.tobytes() in forbidden for part in parts for row in part))
        return original(self, X, y, **more)

    monkeypatch.setattr(LogregHead, "fit", watch)
    command("train-head", "--store", "store", "--run", "r2", "--head", "logreg", "--refit")
    assert seen == [0, 0]


@pytest.mark.parametrize(
    ("counts", "flags", "expected"),
    [
        ({"only": 20}, [], "two or more classes"),
        ({"a": 20, "b": 2}, [], "--rare drop"),
        ({"a": 20, "b": 2}, ["--rare", "drop"], "two or more classes"),
    ],
)
def test_unusable_data_is_a_clear_error(
    command: Command, tmp_path: Path, counts: dict[str, int], flags: list[str], expected: str
) -> None:
    planted_store(tmp_path / "s", counts)
    status, result = command("train-head", "--store", tmp_path / "s", "--run", tmp_path / "r",
                             "--head", "majority", *flags)  # fmt: skip
    assert status == 2
    assert expected in result["error"]["message"] + result["error"]["hint"]
    assert not (tmp_path / "r").exists()


def test_rare_classes_can_be_left_out(command: Command, tmp_path: Path) -> None:
    planted_store(tmp_path / "s", {"a": 20, "b": 20, "rare": 2})
    status, result = command("train-head", "--store", tmp_path / "s", "--run", tmp_path / "r",
                             "--head", "majority", "--rare", "drop")  # fmt: skip
    assert status == 0 and result["dropped"] == {"rare class": 2}


def test_store_without_the_manifests_images(command: Command, store: Store) -> None:
    next(Path("store/shards").iterdir()).unlink()
    status, result = command("train-head", "--store", "store", "--run", "run")
    assert status == 2
    assert result["error"]["type"] == "MissingFeaturesError"
    assert "extract" in result["error"]["hint"]


def test_class_that_train_lacks_has_probability_zero(command: Command, tmp_path: Path) -> None:
    counts = {"a": 20, "b": 20, "late": 6}
    splits = (["train"] * 12 + ["val"] * 4 + ["test"] * 4) * 2 + ["val"] * 3 + ["test"] * 3
    planted_store(tmp_path / "s", counts, splits=splits)
    status, result = command("train-head", "--store", tmp_path / "s", "--run", tmp_path / "r",
                             "--head", "logreg")  # fmt: skip
    assert status == 0
    probabilities = Run.open(tmp_path / "r").probabilities("logreg")
    assert (probabilities[:, 2] == 0).all()
    assert math.isfinite(result["heads"]["logreg"]["test"]["log_loss"])


def test_declared_splits_win(command: Command, tmp_path: Path) -> None:
    splits = (["train"] * 14 + ["test"] * 6) * 2
    planted_store(tmp_path / "s", {"a": 20, "b": 20}, splits=splits)
    status, result = command("train-head", "--store", tmp_path / "s", "--run", tmp_path / "r",
                             "--head", "majority")  # fmt: skip
    assert status == 0 and result["split"]["test"] == 12
    assert result["split"]["val"] > 0 and result["split"]["train"] > result["split"]["val"]


@pytest.mark.slow
def test_a_preset_is_the_same_by_its_old_name(command: Command, store: Store) -> None:
    dense = ("train-head", "--store", "store", "--head", "dense", "--run")
    Path("c.toml").write_text('[train-head]\npreset = "seed"\n')
    status, first = command(*dense, "new", "--preset", "tutorial")
    assert status == 0
    for flags in (("--preset", "seed"), ("--config", "c.toml")):
        assert command(*dense, "new", *flags)[1]["heads"] == first["heads"], "it is kept"
    found = pipeline.train_heads("store", heads=["dense"], run="old", preset="seed", quiet=True)
    for one, other in zip(*(Run.open(Path(run)).record.heads.values() for run in ("new", "old")),
                          strict=True):  # fmt: skip
        assert one.params == other.params
    assert found["heads"]["dense"]["test"] == first["heads"]["dense"]["test"]


def test_preset_and_parameters_exclude_each_other(command: Command, store: Store) -> None:
    Path("c.toml").write_text("[heads.dense]\nepochs = 3\n")
    status, result = command("train-head", "--store", "store", "--preset", "tutorial", "--config",
                             "c.toml")  # fmt: skip
    assert status == 2 and "--preset tutorial" in result["error"]["message"]


@pytest.mark.slow
def test_sklearn_heads_import_no_tensorflow(command: Command, store: Store) -> None:
    code = (
        "import sys\nfrom pipeline.cli.main import main\n"
        "assert main(['train-head', '--store', 'store', '--head', 'logreg', '--quiet']) == 0\n"
        "sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compare_pairs_runs_on_their_common_test_images(command: Command, store: Store) -> None:
    train(command)
    command("train-head", "--store", "store", "--run", "other", "--head", "logreg",
            "--split-seed", 1)  # fmt: skip
    status, result = command("compare", "run", "other")
    assert status == 0
    tests = [
        {key for key, split in zip(rows.keys, rows.splits, strict=True) if split == "test"}
        for rows in (Run.open(Path(name)).manifest() for name in ("run", "other"))
    ]
    assert result["n"] == len(tests[0] & tests[1]) > 0
    assert {row["n"] for row in result["rows"]} == {result["n"]}
    assert len(result["rows"]) == 3 and len(result["pairs"]) == 2
    assert all({"a", "b", "n", "difference", "p_value"} <= set(pair) for pair in result["pairs"])
    assert [row["accuracy"] for row in result["rows"]] == sorted(
        (row["accuracy"] for row in result["rows"]), reverse=True
    )


def test_compare_tests_heads_against_logistic_regression(command: Command, store: Store) -> None:
    train(command)
    _, result = command("compare", "run")
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"]) == ("majority", "logreg")
    assert pair["difference"] < 0 and pair["p_value"] < 1e-4


def test_leaderboard_in_words(
    store: Store, capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    from pipeline.cli.main import main

    train(command)
    assert main(["compare", "run", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "95 % interval" in out and "majority is" in out and "worse than logreg" in out


FOREST = "sklearn.ensemble.RandomForestClassifier"


def test_a_classifier_by_dotted_name(command: Command, store: Store) -> None:
    Path("c.toml").write_text(f'[heads."{FOREST}"]\nn_estimators = 20\n')
    arguments = ("train-head", "--store", "store", "--run", "run", "--head", FOREST, "--config",
                 "c.toml")  # fmt: skip
    status, result = command(*arguments)
    assert status == 0, result
    head = result["heads"][FOREST]
    assert (head["not_saved"], head["test"]["accuracy"] > 0.8) == ("", True)
    run = Run.open(Path("run"))
    rows = run.manifest()
    scored = np.array([split != "train" for split in rows.splits])
    again = heads.load(Path("run/heads") / FOREST).predict_proba(store.read(rows.keys[scored]))
    np.testing.assert_array_equal(again.astype(np.float32), run.probabilities(FOREST))
    Path("c.toml").write_text(f'[heads."{FOREST}"]\nn_estimatrs = 20\n')
    status, result = command(*arguments)
    assert (status, "Did you mean 'n_estimators'" in result["error"]["message"]) == (2, True)


def test_a_classifier_that_cannot_be_saved_is_scored(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skops.io", None)
    status, result = command("train-head", "--store", "store", "--run", "run", "--head", FOREST)
    assert status == 0, result
    head = result["heads"][FOREST]
    assert "skops is not installed" in head["not_saved"]
    assert head["test"]["accuracy"] > 0.8
    assert not (Path("run/heads") / FOREST / "head.json").exists()


@pytest.mark.slow
def test_features_that_do_not_fit_stay_on_disk(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = train(command, "--head", "linear", "--head", "ridge")
    room = 8000
    monkeypatch.setattr("pipeline.system.machine.free_memory", lambda: room)
    arguments = ("train-head", "--store", "store", "--run", "streamed")
    status, result = command(*arguments, "--head", "linear", "--head", "ridge")
    assert status == 0, result
    ridge = (result["heads"]["ridge"], fits["heads"]["ridge"])
    for split in ("train", "val", "test"):
        assert ridge[0][split]["log_loss"] == pytest.approx(ridge[1][split]["log_loss"], rel=1e-4)
    assert result["heads"]["linear"]["test"]["accuracy"] > 0.9
    # Before anything is fitted, though another head comes first.
    others = ("train-head", "--store", "store", "--run", "other", "--head", "ridge")
    for command_name in ("train-head", "sweep"):
        status, result = command(command_name, *others[1:], "--head", "logreg")
        assert status == 2
        assert "Expected memory to fit logreg on" in result["error"]["message"]
        assert "linear" in result["error"]["hint"]
        assert not Path("other").exists()
        # Nor is there room for what every head makes of the held-out images.
        room = 1000
        status, result = command(command_name, *others[1:])
        assert status == 2 and "56 images (to choose on, and test) and 3" in str(result["error"])
        room = 8000


def test_a_head_without_room_beside_the_features_is_refused_before(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Twice the features, so that they are read, and less than logreg takes beside them.
    room = 2 * 4 * store.dim * len(store)
    monkeypatch.setattr("pipeline.system.machine.free_memory", lambda: room)
    arguments = ("train-head", "--store", "store", "--run", "run", "--head", "ridge", "--head")
    status, result = command(*arguments, "logreg")
    assert status == 2 and "Expected memory to fit logreg" in result["error"]["message"]
    assert not Path("run").exists()
    assert command(*arguments, "majority")[0] == 0


def test_views_that_do_not_fit_are_refused(
    command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.system.machine.free_memory", lambda: 12_000)
    status, result = command("train-head", "--store", "store", "--run", "run", "--head", "ridge",
                             "--average", "flip")  # fmt: skip
    assert status == 2
    assert "and 1 view, and to fit on them" in result["error"]["message"]
    assert "--average" in result["error"]["hint"]


def test_info_of_a_run_has_its_scores(
    command: Command, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli.main import main

    result = train(command)
    assert main(["info", "run"]) == 0
    said = capsys.readouterr().out
    for name, head in result["heads"].items():
        assert any(
            name in line and f"{head['test']['accuracy']:.3f}" in line
            and f"{head['val']['accuracy']:.3f}" in line
            for line in said.splitlines()
        )  # fmt: skip
    assert str(store.path) in said
    shutil.rmtree("run/heads")
    run = Run.open(Path("run"))
    Run(Path("run"), run.record.with_heads({})).save_record()
    assert main(["info", "run"]) == 0
    assert "heads none" in capsys.readouterr().out


def test_rows_left_out_have_a_status_under_strict(command: Command, tmp_path: Path) -> None:
    planted_store(tmp_path / "s", {"a": 20, "b": 20, "rare": 2})
    for name in ("train-head", "sweep"):
        arguments = (name, "--store", tmp_path / "s", "--run", tmp_path / name, "--head",
                     "majority", "--rare", "drop", "--strict")  # fmt: skip
        assert command(*arguments)[0] == 1
        assert command(*arguments)[0] == 1, "also where all heads are kept"
