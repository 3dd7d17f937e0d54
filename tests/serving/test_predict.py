"""Predict: the run's own probabilities again from image files, and everything that may differ."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tables
from fakes import (
    Bar,
    Command,
    FakeBackbone,
    FakeEncoder,
    Notes,
    edit_record,
    list_heads,
    save_nothing,
    write_image,
    write_photos,
)

from pipeline import engines, heads
from pipeline.backbones import frozen
from pipeline.cli.commands import find
from pipeline.cli.main import main
from pipeline.cli.text import as_lines
from pipeline.config.options import CommonOptions, build
from pipeline.config.serving import PredictOptions
from pipeline.errors import (
    ConfigError,
    ManifestError,
    PipelineError,
    RunError,
    StaleFeaturesError,
    StoreError,
    WeightsUnavailableError,
)
from pipeline.files.regular import sha256_file
from pipeline.images import manifest
from pipeline.runs.run import Run
from pipeline.serving.classifier import Classifier
from pipeline.serving.predict import list_files, predict
from pipeline.store.store import Store
from pipeline.system.progress import Silence

ROOT = Path(__file__).parents[2]
CLASSES = ("ant", "bee", "cow")
FAST_HEADS = tuple(name for name in sorted(heads.HEADS) if name != "dense")
KEYS = {
    *("predictions", "errors", "run", "head", "engine", "images_per_second", "seconds", "skipped"),
    *("startup_seconds", "device", "images", "classes", "reject_below", "csv"),
}


def succeed(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments] + ["--quiet"]) == 0


def extract(folder: Path, *more: object) -> None:
    flags = ("--weights", "random", "--image-size", 32, "--store", folder / "store")
    succeed("extract", folder / "photos", *flags, *more)


def train(folder: Path, run: str, *more: object, names: tuple[str, ...] = ("logreg",)) -> None:
    flags = [flag for name in names for flag in ("--head", name)]
    succeed("train-head", "--store", folder / "store", "--run", folder / run, *flags, *more)


def replace_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random projection in the place of backbone and engine; see ``fake_network``."""
    monkeypatch.setattr(
        frozen,
        "load",
        lambda name, *, weights, seed, **_: FakeBackbone(f"digest-of-{name}-{weights}-{seed}"),
    )
    monkeypatch.setattr(
        engines, "create", lambda *_, batch_size, **__: FakeEncoder(batch_size=batch_size)
    )
    monkeypatch.setattr("pipeline.backbones.weights.save", save_nothing)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, their store with a view, and runs on it; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos", 30)
    with pytest.MonkeyPatch.context() as monkeypatch:
        replace_network(monkeypatch)
        extract(folder, "--views", "flip", "--views", "crop1")
        train(folder, "run", names=FAST_HEADS)
        views = ("--average", "flip", "--average", "crop1")
        train(folder, "averaged", *views)
        train(folder, "rejecting", "--reject-below", 0.8)
    return folder


@pytest.fixture(autouse=True)
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the projection there for all tests but those that are marked ``real_network``."""
    if "real_network" not in request.keywords:
        replace_network(monkeypatch)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same in a place of its own, whose runs know the copied store."""
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    for path in folder.glob("*/run.json"):
        edit_record(path, lambda record: record["inputs"].update(store=str(folder / "store")))
    return folder


def held_out(run: Run) -> tuple[list[Path], np.ndarray]:
    """Images of test, and which of the run's rows of probabilities are theirs."""
    rows = run.manifest()
    scored = [split for split in rows.splits if split != "train"]
    paths = [rows.file(index) for index, split in enumerate(rows.splits) if split == "test"]
    return paths, np.array([split == "test" for split in scored])


def matrix(found: Any, classes: tuple[str, ...]) -> np.ndarray:
    """Probabilities in the order of the classes, of predictions that list all."""
    return np.array([[dict(item.top)[name] for name in classes] for item in found.predictions])


def run_predict(folder: Path, *paths: object, reporter: Any = None, force: bool = False,
                run: str = "run", **more: Any) -> dict[str, Any]:  # fmt: skip
    values = {"run": str(folder / run), "paths": [str(path) for path in paths], **more}
    common = CommonOptions(force=force)
    return predict(
        build(PredictOptions, values), common, reporter or Silence(), started=time.monotonic()
    )


# Places


def test_the_next_run_removes_what_a_killed_one_left_beside_its_csv(
    made: Path, tmp_path: Path
) -> None:
    kept = tmp_path / ".tmp-other.csv-abcdefgh.csv"
    for path in (tmp_path / ".tmp-found.csv-abcdefgh.csv", kept):
        path.touch()
    run_predict(made, made / "photos/ant/000.png", csv=str(tmp_path / "found.csv"))
    assert sorted(tmp_path.iterdir()) == [kept, tmp_path / "found.csv"]


# Probabilities


@pytest.mark.parametrize("name", FAST_HEADS)
def test_predictions_are_those_of_the_run(made: Path, name: str) -> None:
    run = Run.open(made / "run")
    paths, rows = held_out(run)
    classifier = Classifier.load(run.path, name, batch_size=7)
    found = classifier.predict(paths, top=3)
    expected = run.probabilities(name)[rows]
    assert len(expected) > 5 and len(np.unique(expected)) > (1 if name != "majority" else 0)
    np.testing.assert_allclose(matrix(found, CLASSES), expected, atol=1e-6, rtol=0)
    assert [item.path for item in found.predictions] == [str(path) for path in paths]
    with (run.path / "predictions.csv").open() as file:
        written = {row["path"]: row["predicted"] for row in csv.DictReader(file)
                   if row["head"] == name and row["split"] == "test"}  # fmt: skip
    labels = {Path(item.path).relative_to(made / "photos").as_posix(): item.label
              for item in found.predictions}  # fmt: skip
    assert labels == written


def test_views_are_averaged_as_in_the_run(made: Path) -> None:
    run = Run.open(made / "averaged")
    paths, rows = held_out(run)
    expected = run.probabilities("logreg")[rows]
    for batch_size in (1, 4, 64):
        classifier = Classifier.load(run.path, batch_size=batch_size)
        found = matrix(classifier.predict(paths, top=3), CLASSES)
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    plain = matrix(replace(classifier, average=()).predict(paths, top=3), CLASSES)
    assert np.abs(plain - expected).max() > 1e-3


def test_no_answer_below_the_threshold(made: Path) -> None:
    paths, _ = held_out(Run.open(made / "rejecting"))
    classifier = Classifier.load(made / "rejecting")
    assert classifier.reject_below == 0.8
    found = classifier.predict(paths, top=2).predictions
    withheld = [item for item in found if item.probability < 0.8]
    assert 0 < len(withheld) < len(found)
    assert all(item.label == "" and item.top[0][0] in CLASSES for item in withheld)
    assert all(item.label == item.top[0][0] for item in found if item.probability >= 0.8)
    exact = replace(classifier, reject_below=found[0].probability).predict(paths[:1])
    assert exact.predictions[0].label, "a probability at the threshold is an answer"


def test_class_that_train_lacked_has_probability_zero(copy: Path) -> None:
    rows = Store.open(copy / "store").read_manifest()
    places = range(len(rows))
    splits = [
        ("test" if index % 2 else "val") if label == "bee" else ("train", "val", "test")[index % 3]
        for index, label in zip(places, rows.labels, strict=True)
    ]
    manifest.write(copy / "declared.csv", replace(rows, splits=splits))
    train(copy, "lacking", "--manifest", copy / "declared.csv")
    found = Classifier.load(copy / "lacking").predict([copy / "photos/bee/000.png"], top=3)
    (item,) = found.predictions
    assert item.top[2] == ("bee", 0.0)
    assert sum(value for _, value in item.top) == pytest.approx(1)


def test_top_lists_the_most_probable_classes(made: Path) -> None:
    classifier = Classifier.load(made / "run", "logreg")
    path = made / "photos/cow/004.png"
    whole = classifier.predict([path], top=9).predictions[0]
    assert len(whole.top) == 3
    values = [value for _, value in whole.top]
    assert values == sorted(values, reverse=True) and len(set(values)) == 3
    for top in (1, 2, 3):
        item = classifier.predict([path], top).predictions[0]
        assert item.top == whole.top[:top]
        assert (item.label, item.probability) == whole.top[0]
    with pytest.raises(ConfigError, match="--top"):
        classifier.predict([path], top=0)


def test_order_and_company_change_nothing(made: Path, tmp_path: Path) -> None:
    paths = sorted((made / "photos").rglob("*.png"))
    whole = Classifier.load(made / "run", "logreg").predict(paths).predictions
    expected = {item.path: item.probability for item in whole}
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    mixed = list(np.random.default_rng(0).permutation(np.array([*paths, bad, bad, paths[0]])))
    bar = Bar()
    found = Classifier.load(made / "run", "logreg", batch_size=5, workers=3).predict(mixed, bar=bar)
    assert [item.path for item in found.predictions] == [str(p) for p in mixed if p != bad]
    for item in found.predictions:
        assert item.probability == pytest.approx(expected[item.path], abs=1e-9)
    assert found.errors == [{"path": str(bad), "reason": "not an image that Pillow can read"}] * 2
    assert bar.steps == len(mixed)


def test_of_no_paths_there_are_no_predictions(made: Path) -> None:
    found = Classifier.load(made / "run").predict([])
    assert (found.predictions, found.errors) == ([], [])


def test_features_that_are_not_finite_are_an_error(made: Path) -> None:
    classifier = Classifier.load(made / "run", "logreg")

    class Broken(FakeEncoder):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            features = super().__call__(images)
            features[-1] = np.nan
            return features

    broken = replace(classifier, encoder=Broken(batch_size=3))
    paths = [made / f"photos/ant/{number:03}.png" for number in range(3)]
    with pytest.raises(PipelineError, match=r"finite.*ant/002\.png"):
        broken.predict(paths)


# The command


def test_result_has_the_keys_that_programs_rely_on(made: Path) -> None:
    result = run_predict(made, made / "photos", top=2)
    assert set(result) == KEYS
    json.dumps(result, allow_nan=False)
    assert (result["images"], result["skipped"], result["errors"]) == (90, 0, [])
    assert (result["head"], result["engine"]) == (Run.open(made / "run").record.best, "fake")
    assert result["images_per_second"] > 0
    assert result["seconds"] >= result["startup_seconds"] >= 0
    for item in result["predictions"]:
        assert set(item) == {"path", "label", "probability", "top"}
        assert [set(entry) for entry in item["top"]] == [{"label", "probability"}] * 2
        assert item["top"][0] == {"label": item["label"], "probability": item["probability"]}


def listed(*paths: str) -> list[str]:
    return list(list_files(paths, Silence(), without=None))


def test_packed_files_are_listed_as_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "b.zip", "w") as archive:
        for name in ("z/1.png", "a/2.png", "a/2.cls", "LICENSE", "__MACOSX/a/._2.png"):
            archive.writestr(name, b"any")
    shutil.copy(tmp_path / "in" / "b.zip", tmp_path / "alone.zip")
    for name in ("a.png", "c.png", "damaged.tar"):
        (tmp_path / "in" / name).write_bytes(bytes(range(200)) * 9)
    members = ["z/1.png", "a/2.png"]
    inside = ["a.png", *(f"b.zip/{name}" for name in members), "c.png", "damaged.tar"]
    assert listed(str(tmp_path / "in"), str(tmp_path / "alone.zip")) == [
        *(str(tmp_path / "in" / name) for name in inside),
        *(str(tmp_path / "alone.zip" / name) for name in members),
    ]
    with pytest.raises(ManifestError, match="Expected a tar file"):
        listed(str(tmp_path / "in" / "damaged.tar"))


def test_what_packed_files_lack_is_said_and_each_table_is_entered(tmp_path: Path) -> None:
    data, notes = tmp_path / "in", Notes()
    photo = pa.array([{"bytes": b"a", "path": "a.png"}], tables.IMAGE)
    for part in ("x", "y"):
        both = pa.table({"photo": photo, "mask": [b"m"]})
        tables.write_parquet(data / f"{part}.parquet", both)
    tables.write_parquet(data / "paths.parquet", pa.table({"path": ["a.png"]}))
    with tarfile.open(data / "s.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("1.png", "2.png", "3.png", "in.zip"):
            archive.addfile(tarfile.TarInfo(name))
    whole = bytearray((data / "s.tar").read_bytes())
    whole[512 + 130] ^= 1
    (data / "s.tar").write_bytes(whole)
    (data / "t.tar").write_bytes(b"no tar" * 500)
    found = list_files([str(data)], notes, without=None)
    reasons = {Path(name).relative_to(data).as_posix(): reason for name, reason in found.items()}
    assert list(reasons) == [
        "paths.parquet", "s.tar/1.png", "s.tar/3.png", "t.tar", "x.parquet/photo/00000000-a.png",
        "y.parquet/photo/00000000-a.png",
    ]  # fmt: skip
    assert "Received: none" in reasons["paths.parquet"]
    assert "Expected a tar file at" in reasons["t.tar"]
    assert notes.lines == [
        "'s.tar': a damaged header at byte 512: 512 bytes, up to the next one, are lost",
        "'s.tar': packed files in it are not entered, 1: 'in.zip'",
        "'x.parquet': images are in 'photo', and 'mask' not taken for images",
        "'y.parquet': images are in 'photo', and 'mask' not taken for images",
    ]


def test_packed_files_and_folders_are_no_image_and_why(made: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "photos"), "zip", made / "photos")
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "t.tar").write_bytes(b"no tar" * 500)
    packed = str(tmp_path / "photos.zip")
    found = Classifier.load(made / "run").predict([packed, tmp_path, tmp_path / "folder.zip"])
    assert [error["reason"] for error in found.errors] == [
        f"a packed file: name images in it, as pipeline predict calls them, such as {packed}/...",
        *["a folder: list its files"] * 2,
    ]
    result = run_predict(made, tmp_path)
    (error,) = result["errors"]
    assert len(result["predictions"]) > 1
    assert error["path"] == str(tmp_path / "t.tar") and "a tar file at" in error["reason"]


def test_files_and_folders_are_listed_once_each(tmp_path: Path) -> None:
    for name in ("b/deep/x.png", "b/a.png", "b/.hidden/y.png", "b/.z.png", "b/Thumbs.db", "c.png"):
        write_image(tmp_path / name, 1)
    folder, single = str(tmp_path / "b"), str(tmp_path / "c.png")
    inside = [f"{folder}/a.png", f"{folder}/deep/x.png"]
    assert listed(single, folder) == [single, *inside]
    assert listed(inside[1], folder, folder) == [inside[1], inside[0]]
    assert listed(f"{folder}/.z.png") == [f"{folder}/.z.png"], "asked for by name"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no files"):
        listed(str(tmp_path / "empty"))


@pytest.mark.parametrize("absent", ["absent.png", "a" * 300])
def test_a_missing_file_is_an_error_before_anything_runs(tmp_path: Path, absent: str) -> None:
    with pytest.raises(ManifestError, match=r"does not exist"):
        run_predict(tmp_path, tmp_path / absent, run="no-run")


def test_bad_images_are_listed_and_no_rows(made: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "new/a.png", 5)
    (tmp_path / "new/b.txt").write_text("no image")
    (tmp_path / "new/c.png").touch()
    os.mkfifo(tmp_path / "new/d.png")
    result = run_predict(made, tmp_path / "new")
    assert [item["path"] for item in result["predictions"]] == [str(tmp_path / "new/a.png")]
    assert {Path(item["path"]).name: item["reason"] for item in result["errors"]} == {
        "b.txt": "not an image that Pillow can read",
        "c.png": "empty file",
        "d.png": "not a regular file",
    }
    assert (result["images"], result["skipped"]) == (4, 3)


def test_nothing_but_bad_images_is_an_error(made: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a.txt").write_text("no image")
    with pytest.raises(ManifestError, match=r"None of 1 file could.*a\.txt.*Pillow"):
        run_predict(made, tmp_path / "new", csv=str(tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_csv(made: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a,\r b\udcff.png"
    write_image(odd, 5)
    out = tmp_path / "more/out.csv"
    result = run_predict(made, odd, made / "photos/bee", top=3, csv=str(out))
    with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "probability", "label_2", "probability_2", "label_3",
                       "probability_3", "status"]  # fmt: skip
    assert len(rows) == 1 + 31
    for row, item in zip(rows[1:], result["predictions"], strict=True):
        assert row[0] == item["path"]
        assert row[1:-1:2] == [entry["label"] for entry in item["top"]]
        expected = [entry["probability"] for entry in item["top"]]
        np.testing.assert_allclose([float(cell) for cell in row[2:-1:2]], expected, atol=5e-7)
    assert [path.name for path in out.parent.iterdir()] == ["out.csv"]


def test_a_csv_has_a_row_for_every_file(made: Path, tmp_path: Path) -> None:
    for name in ("b.png", "d.png"):
        shutil.copyfile(made / "photos/bee/000.png", tmp_path / name)
    (tmp_path / "a.png").touch()
    (tmp_path / "c,\r.png").write_bytes(b"no image")
    files = [tmp_path / f"{name}.png" for name in ("d", "a", "b", "c,\r")]
    out = tmp_path / "out.csv"
    result = run_predict(made, *files, csv=str(out), top=2)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(path) for path in files]
    assert [row["status"] for row in rows][::2] == ["ok", "ok"]
    reasons = {item["path"]: item["reason"] for item in result["errors"]}
    for row in rows[1::2]:
        assert row["status"] == reasons[row["path"]] != ""
        assert not any(row[name] for name in ("label", "probability", "label_2", "probability_2"))


def test_a_file_named_twice_is_classified_once_and_said(made: Path, tmp_path: Path) -> None:
    photo, notes = made / "photos/bee/000.png", Notes()
    same = f"{photo.parent}/../bee/./000.png"
    result = run_predict(made, same, photo, photo.parent, reporter=notes)
    assert [item["path"] for item in result["predictions"]].count(same) == 1
    assert len(result["predictions"]) == 30
    assert notes.lines[0] == "2 files named more than once; each is classified once"


def test_an_earlier_csv_is_no_image(made: Path, tmp_path: Path) -> None:
    shutil.copyfile(made / "photos/bee/000.png", tmp_path / "a.png")
    out = tmp_path / "out.csv"
    for force in (False, True):
        assert run_predict(made, tmp_path, csv=str(out), force=force)["errors"] == []


def test_an_empty_folder_and_a_folder_to_be_made(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no files in") as caught:
        run_predict(made, tmp_path / "empty")
    assert "class" not in caught.value.hint and "images" in caught.value.hint
    notes = Notes()
    photo = made / "photos/bee/000.png"
    run_predict(made, photo, csv=str(tmp_path / "new/out.csv"), reporter=notes)
    assert f"--csv: the folder '{tmp_path}/new' is to be made" in notes.lines
    assert any(line.startswith("1 file; head") for line in notes.lines)


def test_a_csv_that_cannot_be_written_is_refused_before_anything_is_loaded(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    for place in ("file/out.csv", "file/more/out.csv"):
        with pytest.raises(ConfigError, match="--csv: expected a place"):
            run_predict(made, made / "photos/bee", csv=str(tmp_path / place))
    with pytest.raises(ManifestError, match="does not exist"):
        run_predict(made, tmp_path / "absent", csv=str(tmp_path / "more/out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_existing_csv_is_replaced_on_request_alone(made: Path, tmp_path: Path) -> None:
    out, photo = tmp_path / "out.csv", made / "photos/ant/000.png"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="--csv"):
        run_predict(made, photo, csv=str(out))
    assert out.read_text() == "mine"
    run_predict(made, photo, csv=str(out), force=True)
    assert out.read_text().startswith("path,label,probability,status\n")
    with pytest.raises(ConfigError, match="a folder that is there"):
        run_predict(made, photo, csv=str(tmp_path), force=True)


def test_notes_say_what_the_run_does_besides(made: Path) -> None:
    said = []
    for run in ("run", "averaged", "rejecting"):
        notes = Notes()
        run_predict(made, made / "photos/ant", run=run, reporter=notes)
        assert "30 files" in notes.lines[0] and "CPU (fake)" in notes.lines[0]
        said.append(notes.lines[1:])
    assert said[0] == []
    assert len(said[1]) == 1 and "flip, crop1" in said[1][0]
    assert len(said[2]) == 1 and "below 0.8" in said[2][0]


def test_command_line(command: Command, made: Path, tmp_path: Path) -> None:
    shutil.copyfile(made / "photos/bee/000.png", tmp_path / "a.png")
    status, result = command("predict", made / "run", tmp_path, "--top", 2)
    assert (status, len(result["predictions"])) == (0, 1)
    (tmp_path / "bad.png").touch()
    assert command("predict", made / "run", tmp_path)[0] == 0
    assert command("predict", made / "run", tmp_path, "--strict")[0] == 1
    status, result = command("predict", made / "run", tmp_path / "absent.png")
    assert (status, result["error"]["type"]) == (2, "ManifestError")
    status, result = command("predict", made / "run", tmp_path, "--head", "logrge")
    assert (status, result["error"]["type"]) == (2, "ConfigError")


# Runs and heads that cannot be used


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run"):
        Classifier.load(tmp_path)


def test_unknown_heads_are_refused_with_the_nearest_name(made: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'logreg'"):
        Classifier.load(made / "run", "logrge")
    with pytest.raises(ConfigError, match=r"Unknown head '\.\./logreg'"):
        Classifier.load(made / "run", "../logreg")


def change_record(folder: Path, **changes: Any) -> None:
    edit_record(folder / "run/run.json", lambda record: record.update(changes))


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"heads": {}, "best": None}, RunError, "none is trained yet"),
        ({"heads": {"knn": {"not_saved": "no skops"}}, "best": "knn"}, RunError, "no skops"),
        ({"schema_version": 1}, StoreError, "schema version"),
        ({"heads": []}, RunError, r"heads = \[\]"),
        ({"heads": {"knn": 3}}, RunError, "knn = 3"),
        ({"heads": {"finetune": {}}}, RunError, "no 'finetune'"),
        ({"heads": {"finetune": {}}, "finetune": {}}, RunError, "no 'weights_sha256'"),
        ({"finetune": 3}, RunError, "finetune = 3"),
        ({"classes": [1, 2]}, RunError, r"classes = \[1, 2\]"),
        ({"inputs": {}}, RunError, "identity"),
        ({"classes": ["ant", "bee"]}, RunError, "classes of 0 to 1"),
    ],
)
def test_records_that_cannot_be_used(
    copy: Path, changes: dict[str, Any], kind: type[Exception], expected: str
) -> None:
    change_record(copy, **changes)
    with pytest.raises(kind, match=expected):
        Classifier.load(copy / "run")


@pytest.mark.parametrize("name", ["inputs", "classes", "split", "root", "source", "heads", "best"])
def test_a_record_that_lacks_something_is_refused(copy: Path, name: str) -> None:
    edit_record(copy / "run/run.json", lambda record: record.pop(name))
    with pytest.raises(RunError, match=rf"describe a run\. Received: no '{name}'"):
        Run.open(copy / "run")


@pytest.fixture
def shipped(copy: Path) -> Path:
    """A folder as ``export --format folder`` writes it, but for the weights."""
    from pipeline.runs import model_folder

    run = Run.open(copy / "run")
    record = model_folder.ModelRecord(
        schema_version=model_folder.SCHEMA_VERSION,
        classes=run.record.classes,
        identity=run.inputs.identity,
        dim=16,
        head="logreg",
        average=[],
        reject_below=0.0,
    )
    head = heads.load(copy / "run/heads/logreg")
    model_folder.write(copy / "model", FakeBackbone("0" * 64), head, record, None)  # type: ignore[arg-type]
    return copy / "model"


FOLDER_FIELDS = ("head", "classes", "identity", "dim", "average", "reject_below")


@pytest.mark.parametrize("name", FOLDER_FIELDS)
def test_a_folder_whose_record_lacks_something_is_refused(shipped: Path, name: str) -> None:
    Classifier.load(shipped)
    edit_record(shipped / "model.json", lambda record: record.pop(name))
    with pytest.raises(RunError, match=rf"describe a model\. Received: no '{name}'"):
        Classifier.load(shipped)


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        *[({name: None}, RunError, f"{name} = None") for name in FOLDER_FIELDS],
        ({"identity": {}}, RunError, "no 'backbone'"),
        ({"average": ["turned"]}, ConfigError, "Unknown view 'turned'"),
        ({"average": [["flip"]]}, RunError, "average = "),
    ],
)
def test_a_folder_whose_record_is_damaged_is_refused(
    shipped: Path, changes: dict[str, Any], kind: type[Exception], expected: str
) -> None:
    edit_record(shipped / "model.json", lambda record: record.update(changes))
    with pytest.raises(kind, match=expected):
        Classifier.load(shipped)


def test_the_hint_is_how_to_make_that_head_again(copy: Path, shipped: Path) -> None:
    record = {"weights_sha256": "0" * 64, "backbone_sha256": "1" * 64}
    edit_record(
        copy / "run/run.json", lambda run: run["heads"].update(finetune=run["heads"]["logreg"])
    )
    change_record(copy, finetune=record)
    head = heads.load(copy / "run/heads/logreg")
    head.temperature_ = 0.0
    for folder in ("run/heads/logreg", "run/heads/finetune", "model/head"):
        heads.save(head, copy / folder)
    list_heads(copy / "run")
    digest = sha256_file(copy / "model/head/head.json")
    edit_record(shipped / "model.json", lambda it: it["files"].update({"head/head.json": digest}))
    for place, name, hint in (
        ("run", "logreg", "Train it again with train-head --force."),
        ("run", "finetune", "Train it again with finetune --force."),
        ("model", "logreg", "Export it again."),
    ):
        with pytest.raises(RunError, match="a temperature above 0") as caught:
            Classifier.load(copy / place, name)
        assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"classes_": np.array([0, 1, 3])}, "classes of 0 to 2"),
        ({"classes_": np.array([0, 2, 1])}, "ascending classes"),
        ({"classes_": np.array([0.0, 1.0, 2.0])}, "classes of 0 to 2"),
        ({"classes_": np.array([0, 1])}, "scores of 2 classes"),
        ({"coef_": np.ones((3, 5))}, "scores of 3 classes from 16 features"),
        ({"coef_": np.full((3, 16), np.nan)}, "scores of 3 classes"),
        ({"n_features_in_": 5}, "from 16 features"),
        ({"temperature_": 0.0}, "a temperature above 0"),
        ({"temperature_": "warm"}, "a temperature above 0"),
    ],
)
def test_heads_that_do_not_fit_the_run_are_refused(
    copy: Path, changes: dict[str, Any], expected: str
) -> None:
    folder = copy / "run/heads/logreg"
    head = heads.load(folder)
    for name, value in changes.items():
        setattr(head, name, value)
    heads.save(head, folder)
    list_heads(copy / "run")
    with pytest.raises(RunError, match=expected):
        Classifier.load(copy / "run", "logreg")


def test_damaged_heads_are_refused(copy: Path) -> None:
    arrays = copy / "run/heads/logreg/arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match=r"arrays\.npz"):
        Classifier.load(copy / "run", "logreg")


# Features that this release, store or engine does not make


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("decoder", "pillow-0", StaleFeaturesError),
        ("preprocessing", "torch", StaleFeaturesError),
        ("new_field", 1, StaleFeaturesError),
        ("backbone", "resnet05", ConfigError),
    ],
)
def test_features_that_this_release_makes_another_way_are_refused(
    copy: Path, field: str, value: object, kind: type[Exception]
) -> None:
    edit_record(
        copy / "run/run.json", lambda record: record["inputs"]["identity"].update({field: value})
    )
    with pytest.raises(kind, match=str(value)):
        Classifier.load(copy / "run", weights="random")


def from_a_file(folder: Path) -> None:
    """Make a run whose weights are known by no name."""
    edit_record(folder / "run/run.json", lambda record: record["source"].update(weights="mine.h5"))


def test_another_store_in_its_place_is_refused(copy: Path) -> None:
    from_a_file(copy)
    edit_record(copy / "store/store.json", lambda record: record["identity"].update(pooling="max"))
    with pytest.raises(StaleFeaturesError, match=r"pooling = 'avg'.*pooling = 'max'"):
        Classifier.load(copy / "run")
    classifier = Classifier.load(copy / "run", weights="random")
    assert classifier.predict([copy / "photos/ant/000.png"]).errors == []


def test_views_of_another_rule_are_refused(copy: Path) -> None:
    edit_record(copy / "store/store.json", lambda record: record["views"].update(crop1="crop-0"))
    with pytest.raises(StaleFeaturesError, match=r"crop1 = 'crop-1'.*crop1 = 'crop-0'"):
        Classifier.load(copy / "averaged")
    Classifier.load(copy / "run")


def test_unknown_views_are_refused(copy: Path) -> None:
    edit_record(copy / "run/run.json", lambda record: record["inputs"].update(average=["flop"]))
    with pytest.raises(ConfigError, match="Did you mean 'flip'"):
        Classifier.load(copy / "run")


def test_a_store_that_is_gone_is_named_and_weights_stand_in(copy: Path) -> None:
    path = copy / "photos/bee/003.png"
    before = Classifier.load(copy / "run").predict([path])
    (copy / "store").rename(copy / "moved")
    assert Classifier.load(copy / "run").predict([path]) == before, "known by name"
    from_a_file(copy)
    with pytest.raises(WeightsUnavailableError, match=r"copy/store.*--weights"):
        Classifier.load(copy / "run")
    assert Classifier.load(copy / "run", weights="random").predict([path]) == before
    with pytest.raises(StaleFeaturesError, match=r"digest-of-resnet50-random-0.*other\.h5"):
        Classifier.load(copy / "run", weights="other.h5")


def bfloat16(folder: Path) -> None:
    """Make a run and its store those of features in bfloat16, by OpenVINO."""
    low = {"precision": "bfloat16", "engine": "openvino"}
    edit_record(folder / "run/run.json", lambda record: record["inputs"]["identity"].update(low))
    for name in ("store.json", "probe.json"):
        edit_record(folder / "store" / name, lambda record: record["identity"].update(low))


def test_lower_precisions_need_the_engine_that_made_the_features(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bfloat16(copy)
    asked = []

    def create(name: str, *_: object, precision: str, **__: object) -> FakeEncoder:
        asked.append((name, precision))
        return FakeEncoder()

    monkeypatch.setattr(engines, "create", create)
    for engine in ("auto", "openvino"):
        Classifier.load(copy / "run", engine=engine)
    assert asked == [("openvino", "bfloat16")] * 2
    with pytest.raises(ConfigError, match=r"expected openvino.*bfloat16.*'keras'"):
        Classifier.load(copy / "run", engine="keras")


def test_unknown_engines_are_refused(made: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'openvino'"):
        Classifier.load(made / "run", engine="openvin")


# Where the weights come from


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """An engine that asks for the network at once; what it was loaded from."""
    calls: list[dict[str, Any]] = []

    def load(name: str, **given: Any) -> SimpleNamespace:
        calls.append({"name": name, **given})
        return SimpleNamespace(weights_sha256="digest-of-resnet50-random-0", built=None, dim=16)

    def create(_: str, loaded: Any, **__: object) -> FakeEncoder:
        assert loaded.built is None
        return FakeEncoder()

    monkeypatch.setattr(frozen, "load", load)
    monkeypatch.setattr(engines, "create", create)
    return calls


def test_weights_come_from_the_store(copy: Path, loads: list[dict[str, Any]]) -> None:
    kept = copy / "store/encoder/digest-of-resnet50-random-0.h5"
    Classifier.load(copy / "run", weights="never-looked-at.h5")
    assert (loads[0]["name"], loads[0]["saved"]) == ("resnet50", kept)
    assert (loads[0]["image_size"], loads[0]["pooling"]) == (32, "avg")


def test_else_from_what_is_given(copy: Path, loads: list[dict[str, Any]]) -> None:
    shutil.rmtree(copy / "store/encoder")
    Classifier.load(copy / "run", weights="given.h5")
    assert (loads[0]["weights"], loads[0]["saved"]) == ("given.h5", None)


@pytest.mark.parametrize("keyword", ["imagenet", "random"])
def test_else_from_where_extract_had_them_by_name(
    copy: Path, loads: list[dict[str, Any]], keyword: str
) -> None:
    shutil.rmtree(copy / "store/encoder")
    made = {"weights": keyword, "weights_seed": 3}
    edit_record(copy / "run/run.json", lambda record: record["source"].update(made))
    Classifier.load(copy / "run")
    assert (loads[0]["weights"], loads[0]["seed"], loads[0]["saved"]) == (keyword, 3, None)


def test_a_file_that_extract_had_is_asked_for(copy: Path, loads: list[dict[str, Any]]) -> None:
    shutil.rmtree(copy / "store/encoder")
    from_a_file(copy)
    with pytest.raises(WeightsUnavailableError, match=r"encoder/digest-of-.*--weights"):
        Classifier.load(copy / "run")
    assert loads == []


def test_engines_find_the_network_in_their_own_form_in_the_store(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def create(_: str, loaded: Any, **__: object) -> FakeEncoder:
        given.append(loaded)
        return FakeEncoder()

    monkeypatch.setattr(engines, "create", create)
    monkeypatch.setattr(frozen, "load", lambda *_, **__: pytest.fail("the network was loaded"))
    Classifier.load(copy / "run")
    assert given[0].converted == copy / "store/encoder"
    assert (given[0].dim, given[0].image_size) == (16, 32)


# On a network: what is tested of ResNet50 itself is tested of the engines and of export


NEW_PROCESS = """
import json, sys, tiny_resnet
from pipeline.serving.classifier import Classifier
run, engine, head, *paths = sys.argv[1:]
with tiny_resnet.in_place_of_resnet50():
    found = Classifier.load(run, head or None, engine=engine).predict(paths, top=2)
loaded = sorted({"keras", "tensorflow"} & set(sys.modules))
print(json.dumps([loaded, [item.top for item in found.predictions]]))
"""


def in_new_process(
    run: Path, engine: str, paths: list[Path], head: str = ""
) -> tuple[list[str], list[Any]]:
    script = [sys.executable, "-c", NEW_PROCESS, str(run), engine, head, *map(str, paths)]
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        script, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    loaded, tops = json.loads(done.stdout)
    return loaded, tops


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    """Photos, a store that keeps the network for every engine, and a run."""
    folder = tmp_path_factory.mktemp("encoded")
    write_photos(folder / "photos", 12)
    shutil.rmtree(folder / "photos/cow")
    for engine in ("onnx", "openvino"):  # each leaves the network in its form
        extract(folder, "--engine", engine)
        write_image(folder / "photos/ant/new.png", 9)
    extract(folder, "--engine", "openvino")
    # A head that has much to learn.
    (folder / "early.toml").write_text("[heads.linear]\nepochs = 1\nlearning_rate = 0.003\n")
    early = ("--config", folder / "early.toml")
    train(folder, "run", "--split", "50/25/25", *early, names=("dense", "linear", "logreg"))
    return folder


@pytest.mark.slow
@pytest.mark.real_network
def test_every_engine_predicts_as_the_run_and_only_one_imports_keras(encoded: Path) -> None:
    run = Run.open(encoded / "run")
    paths, rows = held_out(run)
    assert len(paths) > 1
    best = run.record.best
    for engine, expected in (("openvino", []), ("onnx", []), ("keras", ["keras", "tensorflow"])):
        loaded, tops = in_new_process(run.path, engine, paths)
        assert loaded == expected, engine
        found = [[dict(top)[name] for name in ("ant", "bee")] for top in tops]
        np.testing.assert_allclose(found, run.probabilities(best)[rows], atol=1e-3)


@pytest.mark.slow
@pytest.mark.real_network
def test_dense_heads_predict_as_in_the_run(encoded: Path) -> None:
    run = Run.open(encoded / "run")
    paths, rows = held_out(run)
    found = Classifier.load(run.path, "dense", engine="openvino").predict(paths, top=2)
    np.testing.assert_allclose(
        matrix(found, ("ant", "bee")), run.probabilities("dense")[rows], atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.real_network
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_finetuned_head_predicts_with_the_network_that_was_trained_with_it(
    encoded: Path, tmp_path: Path
) -> None:
    succeed("finetune", encoded / "run", "--run", tmp_path / "tuned", "--head", "linear",
            "--epochs", 2, "--learning-rate", 0.003)  # fmt: skip
    run = Run.open(tmp_path / "tuned")
    paths, rows = held_out(run)
    recorded = {name: run.probabilities(name)[rows] for name in ("finetune", "linear")}
    assert np.abs(recorded["finetune"] - recorded["linear"]).max() > 0.02, "nothing was trained"
    for name, expected in recorded.items():
        for engine in ("keras", "openvino"):
            found = Classifier.load(run.path, name, engine=engine).predict(paths, top=2)
            np.testing.assert_allclose(matrix(found, ("ant", "bee")), expected, atol=1e-3)
    loaded, _ = in_new_process(run.path, "openvino", paths[:1], "finetune")
    assert loaded == [], "the converted network is kept"
    (kept,) = (run.path / "finetune").glob("*.h5")
    edit_record(
        run.path / "run.json", lambda record: record["finetune"].update(backbone_sha256="0" * 64)
    )
    with pytest.raises(StaleFeaturesError, match=rf"'{'0' * 64}'"):
        Classifier.load(run.path, "finetune", engine="keras")
    (run.path / "finetune/probe.json").unlink()
    with pytest.raises(StaleFeaturesError, match=rf"'{'0' * 64}'"):
        Classifier.load(run.path, "finetune", engine="keras")
    kept.unlink()
    with pytest.raises(WeightsUnavailableError, match=kept.stem):
        Classifier.load(run.path, "finetune", engine="keras")


@pytest.mark.slow
@pytest.mark.real_network
def test_an_exported_folder_predicts_as_its_run_without_run_and_store(
    encoded: Path, tmp_path: Path
) -> None:
    run = Run.open(encoded / "run")
    paths, rows = held_out(run)
    succeed("export", run.path, tmp_path / "model", "--head", "dense", "--format", "folder")
    for engine in ("keras", "openvino", "onnx"):
        found = Classifier.load(tmp_path / "model", engine=engine).predict(paths, top=2)
        np.testing.assert_allclose(
            matrix(found, ("ant", "bee")), run.probabilities("dense")[rows], atol=1e-4
        )
    found = {path.suffix for path in (tmp_path / "model/encoder").iterdir()}
    assert found == {".h5", ".json"}, "a shipped folder is only read"
    succeed("predict", tmp_path / "model", paths[0], "--csv", tmp_path / "found.csv")
    with pytest.raises(ConfigError, match="Unknown head 'logreg'"):
        Classifier.load(tmp_path / "model", "logreg")
    with pytest.raises(ConfigError, match="brings its own"):
        Classifier.load(tmp_path / "model", weights="random")
    (kept,) = (tmp_path / "model/encoder").glob("*.h5")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    with pytest.raises(WeightsUnavailableError):
        Classifier.load(tmp_path / "model", engine="keras")
    edit_record(
        tmp_path / "model/model.json", lambda record: record["identity"].update(decoder="x-1")
    )
    with pytest.raises(StaleFeaturesError, match="x-1"):
        Classifier.load(tmp_path / "model")
    edit_record(tmp_path / "model/model.json", lambda record: record.pop("dim"))
    with pytest.raises(RunError, match="no 'dim'"):
        Classifier.load(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.real_network
def test_weights_given_are_checked_by_digest(encoded: Path, tmp_path: Path) -> None:
    shutil.copytree(encoded / "run", tmp_path / "run")
    edit_record(tmp_path / "run/run.json", lambda record: record["inputs"].update(store="/gone"))
    (saved,) = (encoded / "store/encoder").glob("*.h5")
    path = encoded / "photos/ant/001.png"
    found = Classifier.load(tmp_path / "run", weights=str(saved), engine="keras").predict([path])
    expected = Classifier.load(encoded / "run", engine="keras").predict([path])
    assert found == expected
    (other,) = (encoded / "store/encoder").glob("*.onnx")
    with pytest.raises(WeightsUnavailableError, match="expected a Keras weights file"):
        Classifier.load(tmp_path / "run", weights=str(other), engine="keras")
    identity = {"weights_sha256": "0" * 64}
    edit_record(
        tmp_path / "run/run.json", lambda record: record["inputs"]["identity"].update(identity)
    )
    with pytest.raises(StaleFeaturesError, match=rf"'{'0' * 64}'.*{saved.stem}"):
        Classifier.load(tmp_path / "run", weights=str(saved), engine="keras")


def save_network(path: Path, kernel: int) -> None:
    """A small network of one's own."""
    from pipeline.system.keras_setup import import_keras

    keras = import_keras()
    keras.utils.set_random_seed(4)
    layers = [
        keras.Input((32, 32, 3)),
        keras.layers.Conv2D(24, kernel, strides=4, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
    ]
    keras.Sequential(layers).save(path)


@pytest.mark.slow
@pytest.mark.real_network
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_network_of_ones_own_is_kept_in_its_store(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 12)
    own, other = tmp_path / "own.keras", tmp_path / "other.keras"
    save_network(own, 5)
    save_network(other, 3)
    network = ("--backbone", own, "--preprocessing", "unit", "--engine", "openvino")
    flags = ("extract", tmp_path / "photos", "--store", tmp_path / "store", "--image-size", 32)
    succeed(*flags, *network)
    train(tmp_path, "run")
    run = Run.open(tmp_path / "run")
    paths, rows = held_out(run)
    expected = run.probabilities("logreg")[rows]
    kept = tmp_path / "store" / "encoder" / f"{sha256_file(own)}.keras"
    assert kept.read_bytes() == own.read_bytes()
    with pytest.raises(StaleFeaturesError, match="backbone = 'keras-file:"):
        Classifier.load(run.path, engine="keras", weights=str(other))
    mine = own.rename(tmp_path / "mine.keras")
    for engine, weights in (("keras", str(mine)), ("openvino", None), ("keras", None)):
        classifier = Classifier.load(run.path, engine=engine, weights=weights)
        found = matrix(classifier.predict(paths, top=3), CLASSES)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    for out in ("model.onnx", "folder"):
        succeed("export", run.path, tmp_path / out)
    succeed("evaluate", tmp_path / "folder", tmp_path / "photos")
    with pytest.raises(ConfigError, match="show no stage"):
        main(["finetune", str(run.path), "--quiet", "--debug"])
    succeed("finetune", run.path, "--unfreeze-from", "all", "--epochs", 1)
    succeed("verify", tmp_path / "store", "--reencode", 3)
    succeed("prune", tmp_path / "store")
    kept.write_bytes(b"other")
    with pytest.raises(WeightsUnavailableError, match="by the SHA-256 in its name"):
        Classifier.load(run.path, engine="keras")
    assert main(["verify", str(tmp_path / "store"), "--repair", "--quiet"]) == 2
    assert not kept.exists()
    with pytest.raises(WeightsUnavailableError, match="no --weights, and none in"):
        Classifier.load(run.path, engine="keras")
    mine.rename(own)
    succeed(*flags, *network)
    assert kept.exists(), "as in a store of an older release"
    own.unlink()
    moved = (tmp_path / "store").rename(tmp_path / "elsewhere")
    (moved / "encoder").chmod(0o555)
    classifier = Classifier.load(run.path, engine="keras", store=str(moved))
    np.testing.assert_allclose(
        matrix(classifier.predict(paths, top=3), CLASSES), expected, atol=1e-4
    )


def test_many_images_in_a_csv_are_counted_by_class(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    out = tmp_path / "out.csv"
    arguments = ["predict", str(made / "run"), str(made / "photos"), str(bad), "--quiet"]
    assert main([*arguments, "--csv", str(out)]) == 0
    said = capsys.readouterr().out
    with out.open(newline="") as file:
        found = Counter(row["label"] for row in csv.DictReader(file) if row["status"] == "ok")
    for name, count in found.items():
        assert re.search(rf"^{name} +{count}$", said, re.MULTILINE)
    assert "ant/000.png" not in said and f"skipped {bad}" in said
    assert "90 images classified, 1 skipped" in said and f"wrote {out}" in said
    assert main(arguments) == 0
    assert "ant/000.png" in capsys.readouterr().out, "without a CSV they are shown"
    few = ["predict", str(made / "run"), str(made / "photos/ant/000.png"), "--quiet"]
    assert main([*few, "--csv", str(out), "--force"]) == 0
    assert "ant/000.png" in capsys.readouterr().out


def test_of_many_predicted_classes_the_most_frequent_are_counted() -> None:
    labels = [f"class {number}" for number in range(30) for _ in range(40 - number)]
    predictions = [{"path": "a", "label": label, "top": []} for label in labels]
    result = {"predictions": predictions, "errors": [], "skipped": 0, "csv": "out.csv",
              "images_per_second": 1.0, "engine": "keras"}  # fmt: skip
    lines = list(as_lines(find("predict").text(result)))
    assert lines[1].split() == ["class", "0", "40"]
    assert lines[21] == f"and 10 classes more, {sum(40 - n for n in range(20, 30))} images"
