"""Evaluate: the run's own scores again from image files, and what is left out of scores."""

import csv
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fakes import Command, FakeBackbone, replace_network, write_image, write_photos

from pipeline.cli.main import main
from pipeline.runs import model_folder
from pipeline.runs.run import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, their store, and runs on it; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos", 30)
    store, run = folder / "store", folder / "run"
    flags = ("--weights", "random", "--image-size", "32", "--views", "flip", "--quiet")
    with pytest.MonkeyPatch.context() as monkeypatch:
        replace_network(monkeypatch)
        assert main(["extract", str(folder / "photos"), "--store", str(store), *flags]) == 0
        for name, more in (("run", ()), ("averaged", ("--average", "flip")),
                           ("rejecting", ("--reject-below", "0.8"))):  # fmt: skip
            run = folder / name
            arguments = ["train-head", "--store", str(store), "--run", str(run), "--quiet"]
            assert main([*arguments, "--head", "logreg", "--head", "majority", *more]) == 0
    return folder


@pytest.fixture(autouse=True)
def network(fake_network: object) -> None:
    """The same projection in every test."""


def part_of(run: Run, folder: Path, *splits: str) -> Path:
    """Copy the images of some splits of a run into class folders."""
    rows = run.manifest()
    for index, split in enumerate(rows.splits):
        if split in splits:
            target = folder / rows.paths[index]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(rows.file(index), target)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "averaged", "rejecting"])
@pytest.mark.parametrize("head", ["logreg", "majority"])
def test_on_the_test_images_it_gives_the_scores_of_the_run(
    command: Command, made: Path, tmp_path: Path, name: str, head: str
) -> None:
    run = Run.open(made / name)
    data = part_of(run, tmp_path / "more", "test")
    status, result = command("evaluate", run.path, data, "--head", head)
    assert status == 0, result
    known = run.record.heads[head].test.as_json()
    for key, value in known.items():
        if key not in ("confusion_matrix", "per_class"):
            assert result["scores"][key] == pytest.approx(value, abs=1e-6), key
    assert result["scores"]["confusion_matrix"] == known["confusion_matrix"]
    for key, values in known["per_class"].items():
        assert result["scores"]["per_class"][key] == pytest.approx(values), key
    assert result["classes"] == ["ant", "bee", "cow"]
    assert result["seen"] == {"train": 0, "val": 0}
    reject = run.record.heads[head].reject
    assert result["reject"]["threshold"] == reject["threshold"]
    assert result["reject"]["coverage"] == pytest.approx(reject["test"]["coverage"])


def test_images_that_the_run_was_trained_on_are_found_under_other_names(
    command: Command, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(made / "run")
    data = part_of(run, tmp_path / "more", "val", "train")
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        path.rename(path.with_name(f"renamed-{number}.png"))
    split = run.record.split.as_json()
    status, result = command("evaluate", run.path, data)
    assert status == 0
    assert result["seen"] == {"train": split["train"], "val": split["val"]}
    assert main(["evaluate", str(run.path), str(data), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert f"{split['train']:,} in train and {split['val']:,} in val" in said
    assert "optimistic" in said


def test_what_is_left_out_is_counted_and_said(
    command: Command, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = part_of(Run.open(made / "run"), tmp_path / "more", "test")
    test = len(list(data.rglob("*.png")))
    write_image(data / "fox" / "1.png", 1)
    write_image(data / "fox" / "2.png", 2)
    write_image(data / "owl" / "3.png", 3)
    write_image(data / "loose.png", 4)
    (data / "ant" / "bad.png").write_bytes(b"no image")
    write_image(data / "ant" / "both.png", 5)
    write_image(data / "bee" / "both.png", 5)
    out = tmp_path / "out.csv"
    status, result = command("evaluate", made / "run", data, "--csv", out)
    assert status == 0
    assert result["scored"] == result["scores"]["n"] == test
    assert result["unknown"] == {"fox": 2, "owl": 1}
    assert (result["unlabelled"], result["conflicting"], result["skipped"]) == (1, 2, 1)
    assert [item["path"] for item in result["errors"]] == ["ant/bad.png"]
    assert result["images"] == test + 7
    with out.open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == test + 7
    assert list(rows["fox/1.png"]) == ["path", "label", "predicted", "probability", "status"]
    assert rows["fox/1.png"]["status"] == "class that the run does not know"
    assert rows["loose.png"]["status"] == "no label"
    assert rows["ant/both.png"]["status"] == "conflicting label"
    assert rows["ant/bad.png"]["predicted"] == ""
    right = [row["label"] == row["predicted"] for row in rows.values() if row["status"] == "ok"]
    assert np.mean(right) == pytest.approx(result["scores"]["accuracy"])
    assert main(["evaluate", str(made / "run"), str(data), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Left out: 3 images of 2 classes that the run does not know: 'fox' (2), 'owl' (1)" in (
        said
    )
    assert "Left out: 1 image without a label" in said
    assert "Left out: 2 images under two labels" in said
    assert "skipped ant/bad.png" in said
    assert "Confusion matrix on" in said and "Scores of every class on" in said
    assert command("evaluate", made / "run", data, "--strict")[0] == 1


def test_a_table_is_taken_as_extract_takes_it(command: Command, made: Path, tmp_path: Path) -> None:
    lines = ["file,path,label,split"]
    lines += [f"x,{made}/photos/{name}/00{n}.png,{name},train"
              for name in ("ant", "bee") for n in range(4)]  # fmt: skip
    (tmp_path / "more.csv").write_text("\n".join(lines))
    status, result = command("evaluate", made / "run", tmp_path / "more.csv")
    assert status == 0
    assert result["scores"]["per_class"]["support"] == [4, 4, 0]
    assert result["scores"]["per_class"]["recall"][2] is None


def test_an_exported_folder_is_scored_and_tells_of_no_training_images(
    command: Command, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(made / "run")
    backbone, identity = FakeBackbone.drawn("resnet50random0"), run.inputs.identity
    assert backbone.weights_sha256 == identity.weights_sha256
    record = model_folder.ModelRecord(
        schema_version=model_folder.SCHEMA_VERSION,
        classes=run.record.classes,
        identity=identity,
        dim=backbone.dim,
        head="logreg",
        average=[],
        reject_below=0.0,
    )
    folder = tmp_path / "exported"
    model_folder.write(folder, cast(Any, backbone), run.load_head("logreg"), record, None)
    data = part_of(run, tmp_path / "more", "test")
    status, result = command("evaluate", folder, data)
    assert (status, result["seen"]) == (0, None)
    known = run.record.heads["logreg"].test
    assert result["scores"]["accuracy"] == pytest.approx(known.accuracy)
    assert main(["evaluate", str(folder), str(data), "--quiet"]) == 0
    assert "does not tell" in capsys.readouterr().out


def test_many_classes_are_shown_by_the_worst(
    command: Command, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.cli.commands.evaluate._SHOWN_CLASSES", 2)
    data = part_of(Run.open(made / "run"), tmp_path / "more", "test")
    assert main(["evaluate", str(made / "run"), str(data), "--head", "majority", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Lowest recall on" in said and "Confusion matrix" not in said


def refused(made: Path, tmp_path: Path, case: str) -> tuple[list[object], str]:
    data = tmp_path / "data"
    write_image(data / "ant" / "1.png", 1)
    run = made / "run"
    if case == "unknown classes":
        (data / "ant").rename(data / "fox")
        return [run, data], "classes of"
    if case == "bad images":
        (data / "ant" / "1.png").write_bytes(b"no image")
        return [run, data], "None of 1 image could be scored"
    if case == "no run":
        return [tmp_path / "none", data], "no run"
    if case == "no data":
        return [run, tmp_path / "none"], "no data"
    if case == "unknown head":
        return [run, data, "--head", "logrge"], "Did you mean 'logreg'"
    (tmp_path / "out.csv").write_text("mine")
    return [run, data, "--csv", tmp_path / "out.csv"], "--force"


@pytest.mark.parametrize(
    "case", ["unknown classes", "bad images", "no run", "no data", "unknown head", "csv"]
)
def test_what_cannot_be_scored_is_refused(
    command: Command, made: Path, tmp_path: Path, case: str
) -> None:
    arguments, said = refused(made, tmp_path, case)
    status, result = command("evaluate", *arguments)
    assert status == 2
    assert said in result["error"]["message"] + result["error"]["hint"]
    if case == "csv":
        assert (tmp_path / "out.csv").read_text() == "mine"
        assert command("evaluate", *arguments, "--force")[0] == 0
        assert (tmp_path / "out.csv").read_text().startswith("path,label,predicted")
