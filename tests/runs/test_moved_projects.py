"""Projects that are moved, renamed or copied: runs, stores and photos still find each other."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import (
    Command,
    FakeEncoder,
    as_before,
    edit_record,
    planted_store,
    replace_network,
    write_photos,
)

from pipeline.cli.main import main
from pipeline.config.options import FinetuneOptions
from pipeline.errors import RunError
from pipeline.files import places
from pipeline.finetune import stage
from pipeline.finetune.origin import open_origin
from pipeline.finetune.photos import Photos
from pipeline.runs import backbone as run_backbone
from pipeline.runs import checkpoint, stitch
from pipeline.runs.record import HeadRecord
from pipeline.runs.run import Run
from pipeline.serving.classifier import Classifier
from pipeline.store.store import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the project is made, and is again for every test: records name places in full, too."""
    return tmp_path_factory.mktemp("place") / "one"


@pytest.fixture(scope="module")
def kept(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a store and a run in one folder, made from within it by relative paths, moved."""
    write_photos(place / "photos", 12)
    with pytest.MonkeyPatch.context() as patch:
        replace_network(patch)
        patch.chdir(place)
        for arguments in (
            ("extract", "photos", "--image-size", "32", "--weights", "random"),
            ("train-head", "--store", "stores/photos", "--head", "logreg"),
        ):
            assert main([*arguments, "--quiet"]) == 0
    return Path(shutil.move(place, tmp_path_factory.mktemp("kept")))


@pytest.fixture
def project(
    place: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, fake_network: FakeEncoder
) -> Path:
    """The project where it was made."""
    shutil.rmtree(place.parent)
    shutil.copytree(kept, place)
    monkeypatch.chdir(place)
    return place


def moved(folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(target.parent)
    shutil.move(folder, target)
    monkeypatch.chdir(target)
    return target


def require_whole(command: Command, run: str, *more: str) -> None:
    """What export, finetune, compare and predict need of a run."""
    options = FinetuneOptions(source=run)
    if more:
        options = FinetuneOptions(source=run, **{more[0].removeprefix("--"): more[1]})
    origin = open_origin(options)
    rows = origin.run.manifest()
    with Photos(rows, 32, "squash", augment_seed=None) as photos:
        photos.require()
        photos.batch(np.arange(len(rows)), None)
    assert len(stitch.sample(origin.run, origin.store).unreadable) == 0
    assert run_backbone.find(origin.run, None).converted == origin.store.encoder_folder
    status, result = command("compare", run, "--seeds", 2, *(more if "--store" in more else ()))
    assert status == 0, result


@pytest.mark.slow
def test_a_renamed_project_goes_on(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(project, project.parent / "two", monkeypatch)
    require_whole(command, "runs/photos")
    first = Path("runs/photos/heads/logreg/head.json").stat().st_mtime_ns
    status, result = command("train-head", "--store", "stores/photos", "--head", "logreg",
                             "--head", "ridge")  # fmt: skip
    assert (status, set(result["heads"])) == (0, {"logreg", "ridge"})
    assert Path("runs/photos/heads/logreg/head.json").stat().st_mtime_ns == first
    record = json.loads(Path("runs/photos/run.json").read_text())
    assert record["inputs"]["store"] == str(project.parent / "two/stores/photos")
    status, result = command("sweep", "--store", "stores/photos", "--head", "ridge")
    assert status == 0, result


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["two", "much/deeper/two"])
def test_the_working_directory_and_the_depth_do_not_matter(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch, depth: str, tmp_path: Path
) -> None:
    target = tmp_path / depth
    target.parent.mkdir(parents=True, exist_ok=True)
    moved(project, target, monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    require_whole(command, str(target / "runs/photos"))
    require_whole(command, os.path.relpath(target / "runs/photos"))


def test_a_copy_is_whole_in_itself(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = project.parent / "copy"
    shutil.copytree(project, copy)
    monkeypatch.chdir(copy)
    run = Run.open(Path("runs/photos"))
    assert run.store_path == copy / "stores/photos"
    assert run.manifest().root == copy / "photos"
    assert Store.open(Path("stores/photos")).read_manifest().root == copy / "photos"
    require_whole(command, "runs/photos")


def test_a_run_that_is_moved_alone_finds_what_stayed(
    command: Command, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(project / "runs/photos", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    require_whole(command, "run")


def test_a_run_that_lies_beside_another_store_by_accident_takes_its_own(
    command: Command, project: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(project / "runs/photos", other / "runs/photos")
    planted_store(other / "stores/photos", {"a": 10, "b": 10})
    (other / "photos").mkdir()
    run = Run.open(other / "runs/photos")
    assert run.store_path == project / "stores/photos"
    assert run.manifest().root == project / "photos"


@pytest.mark.slow
def test_a_store_that_is_moved_alone_is_named_by_an_option(
    command: Command, project: Path, tmp_path: Path
) -> None:
    shutil.move(project / "stores/photos", tmp_path / "features")
    given = str(tmp_path / "features")
    with pytest.raises(RunError, match=r"stores/photos.*--store DIR"):
        open_origin(FinetuneOptions(source="runs/photos"))
    with pytest.raises(RunError, match=r"--store: expected the store.*Received: 'no'"):
        open_origin(FinetuneOptions(source="runs/photos", store="no"))
    status, result = command("compare", "runs/photos", "--seeds", 2)
    assert status == 2 and "--store DIR" in result["error"]["hint"]
    require_whole(command, "runs/photos", "--store", given)
    classifier = Classifier.load("runs/photos", store=given)
    assert classifier.predict("photos/ant/000.png").predictions
    # So that whoever unpickles it finds the store too.
    assert classifier.loaded_from is not None and classifier.loaded_from.store == given
    # Taken down where it is, it is found without the option.
    status, result = command("train-head", "--store", given, "--run", "runs/photos", "--head",
                             "ridge")  # fmt: skip
    assert status == 0, result
    require_whole(command, "runs/photos")


def test_photos_that_are_moved_alone_are_named_by_an_option(
    command: Command, project: Path, tmp_path: Path
) -> None:
    shutil.move(project / "photos", tmp_path / "pictures")
    origin = open_origin(FinetuneOptions(source="runs/photos"))
    photos = Photos(origin.run.manifest(), 32, "squash", augment_seed=None)
    with pytest.raises(ValueError, match="--data DIR"):
        photos.require()
    with pytest.raises(RunError, match="--data: expected the folder of the images"):
        open_origin(FinetuneOptions(source="runs/photos", data="nowhere"))
    require_whole(command, "runs/photos", "--data", str(tmp_path / "pictures"))


def test_a_linked_store_moves_with_its_link(
    command: Command, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(project / "stores/photos", tmp_path / "disk")
    Path("stores/photos").symlink_to(tmp_path / "disk")
    status, result = command("train-head", "--store", "stores/photos", "--run", "runs/new",
                             "--head", "logreg")  # fmt: skip
    assert status == 0, result
    two = moved(project, tmp_path / "two", monkeypatch)
    assert Run.open(Path("runs/new")).store_path == two / "stores/photos"
    require_whole(command, "runs/new")


@pytest.mark.slow
def test_records_of_older_releases_still_work(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older() -> None:
        run, store = Path("runs/photos/run.json"), Path("stores/photos/store.json")

        def of_run(record: dict[str, Any]) -> None:
            record.pop("nearby", None)
            record["root"] = "photos"

        def of_store(record: dict[str, Any]) -> None:
            for part in (record, *record["manifests"].values()):
                part["root"] = "photos"
                part.pop("nearby_root")
                part.pop("nearby", None)

        as_before(run, of_run)
        as_before(store, of_store)

    older()
    require_whole(command, "runs/photos")
    assert command("extract", "photos", "--image-size", 32, "--weights", "random")[0] == 0
    older()
    # As it was typed, from where the default places lie.
    monkeypatch.chdir(project.parent)
    require_whole(command, "one/runs/photos")
    status, result = command("train-head", "--store", "one/stores/photos", "--run",
                             "one/runs/photos", "--head", "ridge")  # fmt: skip
    assert status == 0, result
    monkeypatch.chdir("/")
    assert Run.open(project / "runs/photos").manifest().root == project / "photos"


@pytest.mark.slow
def test_manifests_elsewhere_move_with_the_store(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("photos", "--image-size", 32, "--weights", "random", "--manifest", "mine.csv")
    assert command("extract", *arguments)[0] == 0
    moved(project, project.parent / "two", monkeypatch)
    store = Store.open(Path("stores/photos"))
    assert store.read_manifest(Path("mine.csv")).root == project.parent / "two/photos"
    assert len(store.needed_keys()) == 36
    status, result = command("prune", "stores/photos")
    assert (status, result["dropped"]) == (0, 0)
    # It is still known as ours, and under one name.
    assert command("extract", *arguments)[0] == 0
    names = Store.open(Path("stores/photos")).record.manifests
    assert sorted(names) == [str(project.parent / "two/mine.csv"), "manifest.csv"]
    status, result = command("train-head", "--store", "stores/photos", "--manifest", "mine.csv",
                             "--run", "runs/mine", "--head", "logreg")  # fmt: skip
    assert status == 0, result
    require_whole(command, "runs/mine")


def test_another_store_of_equal_features_is_said(
    command: Command, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project / "stores/photos", tmp_path / "again")
    arguments = ["train-head", "--store", str(tmp_path / "again"), "--run", "runs/photos"]
    assert main([*arguments, "--head", "majority"]) == 0
    said = capsys.readouterr().err
    assert f"was {str(project / 'stores/photos')!r}, and is {str(tmp_path / 'again')!r} now" in said


def test_a_store_of_other_features_is_still_refused(command: Command, project: Path) -> None:
    store = Path("stores/photos/store.json")
    edit_record(store, lambda record: record["identity"].update(pooling="max"))
    with pytest.raises(Exception, match="pooling"):
        open_origin(FinetuneOptions(source="runs/photos"))


def test_fine_tuning_depends_on_no_place(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run may be gone on with after the project was moved; and its own record is whole."""
    options = FinetuneOptions(source="runs/photos")
    inputs = stage._inputs(options, open_origin(options))
    run = stage._create_run(Path("runs/fine"), inputs, open_origin(options))
    run.record = replace(run.record, heads={"logreg": HeadRecord.of({})})
    run.save_record()
    two = moved(project, project.parent / "two", monkeypatch)
    again = stage._inputs(options, open_origin(options))
    assert again["store"] != inputs["store"]
    assert again["finetuned_run"] != inputs["finetuned_run"]
    begun = stage._begun_run(Path("runs/fine"), again, force=False)
    assert begun is not None
    assert (begun.store_path, begun.manifest().root) == (two / "stores/photos", two / "photos")
    with pytest.raises(RunError, match="starting_head_sha256"):
        begun.require_inputs({**again, "starting_head_sha256": "0" * 64})


def test_checkpoints_depend_on_no_place(tmp_path: Path) -> None:
    """Nor do those of older releases, which took down where things were."""
    path, wanted = tmp_path / "checkpoint.h5", {"epochs": 3}
    arrays = checkpoint.Arrays([np.ones(2)], [], [])
    for places_then in ({}, {"store": "/one/store", "finetuned_run": "/one/run"}):
        progress = checkpoint.Progress(epoch=2)
        checkpoint.write(path, {**wanted, **places_then}, progress, arrays)
        found, _ = checkpoint.read(path, wanted, state=[(2,)], optimizer=[])
        assert found.epoch == 2
    with pytest.raises(RunError, match="another training"):
        checkpoint.read(path, {"epochs": 4}, state=[(2,)], optimizer=[])


@pytest.mark.parametrize("name", ["predict", "export", "finetune", "compare"])
def test_the_option_is_there(name: str) -> None:
    from pipeline.cli.commands import find
    from pipeline.config.options import options_of

    assert "store" in options_of(find(name).options)
    assert ("data" in options_of(find(name).options)) == (name in ("export", "finetune"))


def test_places_relative_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.relative(Path("stores/x"), Path("runs/x")) == "../../stores/x"
    assert places.relative(Path("runs/x/inside"), Path("runs/x")) == "inside"
    found = places.candidates("/gone", "../../stores/x", tmp_path / "runs/x")
    assert found == [tmp_path / "stores/x", Path("/gone")]
    assert places.choose(found, Path.exists) == tmp_path / "stores/x"
    assert places.choose([Path("/gone"), tmp_path], Path.exists) == tmp_path
