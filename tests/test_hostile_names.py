"""Names of files and classes as Linux allows them: everything that is written reads back."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes import Command, FakeEncoder, write_image
from finetuning import FLAGS

from pipeline.cli.main import main
from pipeline.files.table import write_csv
from pipeline.runs.run import Run
from pipeline.store.store import Store

CLASSES = ('a "b",\r\nc', "=d\r🐈", os.fsdecode(b"caf\xe9 "))
# Names that a table, a terminal or a spreadsheet may take for something else.
NAMES = (
    "a\rb.png", "a\nb.png", "a\r\nb.png", "\r.png", 'quo"te.png', '"all".png', "com,ma.png",
    "semi;colon.png", "tab\t.png", "=1+1.png", "-1.png", "@x.png", " lead.png", "trail.png ",
    "' .png", "a\u2028b.png", "a\x85b.png", "a\x0bb\x0cc.png", "\ufeffmark.png", "🐈.png",
    "e\u0301.png", os.fsdecode(b"\xff\xfe.png"), "sep=;.png",
)  # fmt: skip
TRAIN = ("train-head", "--store", "store", "--run", "run", "--head", "ridge", "--head", "majority")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Photos of such names in classes of such names; returns their paths."""
    monkeypatch.chdir(tmp_path)
    made = [f"{label}/{name}" for label in CLASSES for name in NAMES]
    for seed, path in enumerate(made):
        write_image(tmp_path / "photos" / path, seed, size=32)
    return set(made)


def read_back(path: Path) -> list[dict[str, str]]:
    """Read a CSV as any program would, keeping bytes that are no UTF-8."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert all(None not in row and None not in row.values() for row in rows), "rows of one length"
    return rows


def check_store(paths: set[str]) -> None:
    rows = read_back(Path("store/manifest.csv"))
    assert {row["path"] for row in rows} == paths and len(rows) == len(paths)
    assert {row["label"] for row in rows} == set(CLASSES)
    assert set(Store.open(Path("store")).read_manifest().paths) == paths


def check_run(folder: Path, paths: set[str], heads: int) -> None:
    """Compare both tables of a run with what was in the photos' folder."""
    run = Run.open(folder)
    rows = read_back(folder / "manifest.csv")
    split_of = {row["path"]: row["split"] for row in rows}
    assert set(split_of) == paths == set(run.manifest().paths) and len(rows) == len(paths)
    assert all(row["path"].startswith(f"{row['label']}/") for row in rows)
    predictions = read_back(folder / "predictions.csv")
    held_out = {path for path, split in split_of.items() if split != "train"}
    assert {row["path"] for row in predictions} == held_out
    assert len(predictions) == heads * len(held_out)
    for row in predictions:
        assert row["path"].startswith(f"{row['label']}/") and row["predicted"] in CLASSES
        assert row["split"] == split_of[row["path"]]
    recorded = json.loads((folder / "run.json").read_text())
    assert set(recorded["classes"]) == set(CLASSES)


def done(command: Command, *arguments: object) -> dict[str, Any]:
    """Run a command, whose result has come through JSON."""
    status, result = command(*arguments)
    assert status == 0, result
    return result


@pytest.mark.slow
def test_tables_of_every_command_read_back(
    command: Command, paths: set[str], fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engines.resolve", lambda name, form: ("fake", ""))
    flags = ("--weights", "random", "--image-size", 32, "--store", "store")
    assert done(command, "extract", "photos", *flags)["encoded"] == len(paths)
    check_store(paths)
    done(command, *TRAIN)
    check_run(Path("run"), paths, heads=2)
    done(command, "train-head", "--store", "store", "--manifest", "run/manifest.csv", "--run", "2",
         "--head", "majority")  # fmt: skip
    check_run(Path("2"), paths, heads=1)
    result = done(command, "sweep", "--store", "store", "--run", "swept", "--head", "ridge")
    check_run(Path("swept"), paths, heads=len(result["heads"]))

    result = done(command, "predict", "run", "photos", "--csv", "out.csv", "--top", 3)
    rows = read_back(Path("out.csv"))
    assert {row["path"] for row in rows} == {f"photos/{path}" for path in paths}
    assert [row["path"] for row in rows] == [item["path"] for item in result["predictions"]]
    for row, item in zip(rows, result["predictions"], strict=True):
        labels = [row[name] for name in ("label", "label_2", "label_3")]
        assert labels == [entry["label"] for entry in item["top"]]
        assert set(labels) == set(CLASSES) == set(result["classes"])


def test_bad_images_are_listed_by_name(
    command: Command, paths: set[str], fake_network: FakeEncoder
) -> None:
    bad = {f"{CLASSES[0]}/{name}" for name in NAMES}
    for path in bad:
        (Path("photos") / path).write_bytes(b"no image")
    flags = ("--weights", "random", "--image-size", 32, "--store", "store")
    result = done(command, "extract", "photos", *flags)
    assert {item["path"] for item in result["errors"]} == bad
    rows = read_back(Path("store/manifest.csv"))
    assert {row["path"] for row in rows if row["status"] != "ok"} == bad


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_tables_of_finetune_read_back(paths: set[str]) -> None:
    for arguments in (
        ("extract", "photos", "--store", "store", *FLAGS),
        TRAIN,
        ("finetune", "run", "--run", "tuned", "--head", "majority", "--epochs", 1,
         "--unfreeze-from", "conv5_block3"),
    ):  # fmt: skip
        assert main([*map(str, arguments), "--quiet"]) == 0
    check_store(paths)
    check_run(Path("tuned"), paths, heads=2)


@pytest.mark.parametrize(
    "cell", [*NAMES, *CLASSES, "", " ", "\r", "\n", '"', ",", "''", "a\r\r\nb"]
)
def test_every_cell_is_read_back_in_every_place(tmp_path: Path, cell: str) -> None:
    rows = [("path", "b"), (cell, "x"), ("x", cell), (cell, cell), ("", cell)]
    write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [tuple(row) for row in csv.reader(file, strict=True)] == rows
