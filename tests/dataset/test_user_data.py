"""What the commands say, and do, about a user's folders, tables, labels and splits."""

import csv
import json
from pathlib import Path

import pytest
from fakes import Command, FakeEncoder, planted_store, write_classes, write_image

import pipeline
from pipeline.cli.main import main
from pipeline.runs.run import Run
from pipeline.store import scan_cache
from pipeline.store.store import Store

EXTRACT = ("--weights", "random", "--image-size", 32, "--store", "store")
TRAIN = ("train-head", "--store", "store", "--run", "run", "--head", "majority")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scan_cache, "RACY_NS", 0)


def write_table(rows: list[tuple[str, ...]], name: str = "d.csv") -> str:
    with Path(name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return name


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return what a command writes to stderr for a person."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().err


def test_a_missing_file_is_a_bad_image(command: Command, fake_network: FakeEncoder) -> None:
    write_classes(Path("d"), {"cat": 3, "dog": 3})
    rows = [(path.as_posix(), path.parent.name) for path in sorted(Path("d").rglob("*.png"))]
    data = write_table([("path", "label"), *rows, ("d/cat/gone.png", "cat")])
    status, result = command("extract", data, *EXTRACT)
    assert status == 0
    assert (result["encoded"], result["skipped"], result["images"]) == (6, 1, 7)
    assert [error["path"] for error in result["errors"]] == ["d/cat/gone.png"]
    assert "1 of 7 files do not exist" in result["notes"][0]
    manifest = Store.open(Path("store")).read_manifest()
    assert "No such file" in manifest.statuses[list(manifest.paths).index("d/cat/gone.png")]
    assert command("extract", data, *EXTRACT, "--strict")[0] == 1
    for refused in (("--on-error", "raise"), ("--max-errors", 0)):
        status, result = command("extract", data, *EXTRACT, *refused)
        assert status == 2 and "gone.png" in result["error"]["message"]
    data = write_table([("path", "label"), ("gone.png", "cat"), ("far/gone.png", "dog")])
    status, result = command("extract", data, *EXTRACT)
    assert status == 2 and "2 of 2 files do not exist" in result["error"]["message"]


def test_stores_and_runs_within_the_data_are_no_images(
    command: Command, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(Path("photos"), {"cat": 6, "dog": 6})
    monkeypatch.chdir("photos")
    options = ("--weights", "random", "--image-size", 32)
    assert command("extract", ".", *options)[0] == 0
    assert command("train-head", "--store", "stores/photos", "--head", "majority")[0] == 0
    for _ in range(2):
        status, result = command("extract", ".", *options, "--strict")
        assert (status, result["images"], result["reused"]) == (0, 12, 12)
    (note,) = result["notes"]
    assert "'stores/photos' (a feature store)" in note and "'runs/photos' (a run)" in note
    assert command("extract", ".", *options, "--manifest", "m.csv", "--strict")[0] == 0
    assert command("extract", ".", *options, "--strict")[1]["images"] == 12


def test_layouts_by_flag_and_file(command: Command, fake_network: FakeEncoder) -> None:
    for split in ("train", "test"):
        write_classes(Path("d") / split, {"cat": 3, "dog": 3}, first_seed=len(split))
    write_image(Path("d/odd/1.png"), seed=99)
    status, result = command("extract", "d", *EXTRACT)
    assert status == 2 and "--layout splits" in result["error"]["hint"]
    assert not Path("store").exists()
    status, result = command("extract", "d", *EXTRACT, "--layout", "splits")
    assert status == 0 and "'odd' (names no split)" in " ".join(result["notes"])
    assert pipeline.load("store")[2] == ["cat", "dog"]
    Path("c.toml").write_text('[extract]\nlayout = "classes"\n')
    assert command("extract", "d", *EXTRACT, "--config", "c.toml")[0] == 0
    assert pipeline.load("store")[2] == ["odd", "test", "train"]
    assert command("extract", "d", *EXTRACT, "--layout", "tree")[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("names", [("cat", "cat "), ("caf\u00e9", "cafe\u0301"), ("1", "1.0")])
def test_labels_that_look_alike_are_said_and_merged_on_request(
    command: Command, fake_network: FakeEncoder, capsys: pytest.CaptureFixture[str],
    names: tuple[str, str],
) -> None:  # fmt: skip
    write_classes(Path("d"), {names[0]: 6, names[1]: 4, "dog": 6})
    assert "look alike" in said(capsys, "extract", "d", *EXTRACT)
    assert "differ only" in said(capsys, *TRAIN)
    assert len(Run.open(Path("run")).record.classes) == 3
    assert any("look alike" in note for note in Run.open(Path("run")).record.source.notes)
    status, result = command("extract", "d", *EXTRACT, "--merge-labels")
    assert (status, result["encoded"]) == (0, 0)
    assert any("Labels merged" in note and note.endswith("images: 4") for note in result["notes"])
    assert pipeline.load("store")[2] == sorted((names[0], "dog"))
    assert "look alike" not in said(capsys, *TRAIN, "--force")


def test_labels_of_a_manifest_that_look_alike_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    store = planted_store(Path("store"), {"ant": 20, "bee": 20})
    text = store.manifest_path.read_text()
    Path("m.csv").write_text(text.replace(",ant,", ",Ant,", 7).replace("status", "status,remark"))
    shown = said(capsys, *TRAIN, "--manifest", "m.csv")
    assert "'Ant' and 'ant' (differ only in capitals)" in shown
    assert "columns not used: 'remark'" in shown


def test_notes_are_not_for_programs(
    fake_network: FakeEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(Path("d/wrapped"), {"cat": 4, "cat ": 4, "docs": 0})
    arguments = ["extract", "d", *map(str, EXTRACT), "--json", "--quiet"]
    capsys.readouterr()
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and len(json.loads(shown.out)["notes"]) == 2
    assert main([*arguments, "--dry-run"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_many_small_classes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    planted_store(Path("store"), {f"c{number:03}": 3 for number in range(120)})
    shown = said(capsys, *TRAIN, "--head", "logreg", "--head", "ridge")
    (line,) = [line for line in shown.splitlines() if "moved" in line]
    moved = Run.open(Path("run")).record.moved
    assert f"class, {len(moved)} (" in line and len(moved) > 120
    assert "more" in line and len(line) < 400


@pytest.mark.parametrize("name", ["train-head", "sweep"])
def test_one_class_in_train_is_an_error(command: Command, name: str) -> None:
    splits = ["train"] * 8 + ["val"] * 4 + ["test"] * 4 + ["val"] * 4 + ["test"] * 4
    planted_store(Path("store"), {"ant": 16, "bee": 8}, splits=splits)
    status, result = command(name, "--store", "store", "--run", "run", "--head", "ridge")
    assert status == 2 and "two or more classes in train" in result["error"]["message"]
    assert not Path("run").exists()


def test_folds_of_one_class_are_an_error(command: Command) -> None:
    splits = ["train"] * 12 + ["test"] * 4 + ["train"] + ["test"] * 3
    planted_store(Path("store"), {"ant": 16, "bee": 4}, splits=splits)
    status, result = command("sweep", "--store", "store", "--run", "run", "--head", "ridge",
                             "--split", "85/0/15")  # fmt: skip
    assert status == 2 and "in every fold" in result["error"]["message"]


def test_train_and_val_are_scored_on_val(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = (["train"] * 30 + ["val"] * 10) * 2
    store = planted_store(Path("store"), {"ant": 40, "bee": 40}, splits=splits)
    shown = said(capsys, *TRAIN)
    assert "val is the test split, scored once" in shown
    run = Run.open(Path("run"))
    assert run.record.split.test == 20 and run.record.split.val > 0
    declared = dict(zip(store.read_manifest().paths, splits, strict=True))
    rows = run.manifest()
    for path, split in zip(rows.paths, rows.splits, strict=True):
        assert (split == "test") == (declared[path] == "val")
    # The store's manifest says what the source gives, and a copy of it means the same.
    assert set(store.read_manifest().splits) == {"train", "val"}
    Path("m.csv").write_bytes(store.manifest_path.read_bytes())
    status, result = command(*TRAIN, "--manifest", "m.csv")
    assert status == 0 and result["split"] == run.record.split.as_json()
    X, _, _ = pipeline.load("store", split="test")
    assert len(X) == 20
    status, result = command(*TRAIN[:3], "--run", "other", *TRAIN[5:], "--split", "70/15/15")
    assert status == 0 and result["split"]["val"] == 20


def test_a_test_without_labels_is_extracted_and_never_scored(
    command: Command, fake_network: FakeEncoder
) -> None:
    for seed, split in enumerate(("train", "val")):
        write_classes(Path("d") / split, {"cat": 8, "dog": 8}, first_seed=100 * seed)
    for number in range(5):
        write_image(Path(f"d/test/{number}.png"), seed=1000 + number)
    status, result = command("extract", "d", *EXTRACT)
    assert status == 0 and result["images"] == 37
    (note,) = result["notes"]
    assert "Images declared test have no label, all 5" in note and "predict" in note
    status, result = command(*TRAIN)
    assert status == 0 and result["split"]["test"] == 16 and result["dropped"] == {"no label": 5}


def test_shares_that_do_not_sum_are_refused(command: Command) -> None:
    planted_store(Path("store"), {"ant": 20, "bee": 20})
    status, result = command(*TRAIN, "--split", "80/10/20")
    assert status == 2 and "110" in result["error"]["message"]
    status, result = command(*TRAIN, "--split", "0.7/0.15/0.15")
    assert status == 0


def test_rare_classes_that_are_all_dropped_are_named(command: Command) -> None:
    planted_store(Path("store"), {"ant": 2, "bee": 1})
    status, result = command(*TRAIN, "--rare", "drop")
    assert status == 2
    assert "'ant (2)', 'bee (1)'" in result["error"]["message"]
    assert "--min-per-class" in result["error"]["hint"]


def test_predicting_an_empty_folder_says_nothing_of_classes(command: Command) -> None:
    planted_store(Path("store"), {"ant": 20, "bee": 20})
    assert command(*TRAIN)[0] == 0
    Path("none").mkdir()
    status, result = command("predict", "run", "none")
    assert status == 2 and "no files in 'none'" in result["error"]["message"]
    assert "class" not in json.dumps(result)
