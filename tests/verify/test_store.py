"""Verify of stores, runs and exported folders, and the repair of each, up to the next command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import Command, FakeEncoder, as_before, planted_store, replace_network, write_classes

from pipeline.backbones import kept_file
from pipeline.cli.commands import find
from pipeline.cli.main import main
from pipeline.errors import ManifestError, RunError, StoreError
from pipeline.runs.run import Run
from pipeline.store.lock import lock
from pipeline.store.store import Store
from pipeline.verify.run import verify_run
from pipeline.verify.store import verify

COUNTS = {"ant": 14, "bee": 14, "cow": 14}
HEADS = ("--head", "logreg", "--head", "centroid")


def flip(path: Path, place: int = -10) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


EXTRACT = ("extract", "photos", "--store", "store", "--image-size", "32", "--weights", "random",
           "--views", "flip")  # fmt: skip


@pytest.fixture(scope="module")
def original_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and their store, which stay as they are."""
    folder = tmp_path_factory.mktemp("store")
    write_classes(folder / "photos", {"ant": 5, "bee": 5})
    with pytest.MonkeyPatch.context() as patch:
        replace_network(patch)
        patch.chdir(folder)
        assert main([*EXTRACT, "--quiet"]) == 0
    return folder


@pytest.fixture
def store(
    tmp_path: Path, original_store: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """A store of photos in the folder at hand, as it is in a project that was copied."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original_store, tmp_path, dirs_exist_ok=True)
    return Store.open(tmp_path / "store")


def extract(command: Command) -> dict[str, Any]:
    status, result = command(*EXTRACT)
    assert status == 0
    return result


def repair(command: Command, path: str = "store") -> list[str]:
    """Verify, repair, and return what was done."""
    status, found = command("verify", path)
    assert status == 2 and not found["ok"] and found["problems"] and not found["repaired"]
    status, mended = command("verify", path, "--repair")
    assert status == 2 and mended["problems"] == found["problems"]
    assert all(line in "\n".join(find("verify").text(mended)) for line in mended["repaired"])
    return list(mended["repaired"])


def is_ok(command: Command, path: str) -> bool:
    status, result = command("verify", path)
    assert (status == 0) == result["ok"]
    return bool(result["ok"])


@pytest.mark.parametrize("folder", ["shards", "views/flip"])
def test_a_bad_shard_is_dropped_and_only_its_images_are_encoded_again(
    store: Store, command: Command, folder: str
) -> None:
    before = store.read(store.index.keys)
    (shard,) = (store.path / folder).glob("*.h5")
    flip(shard)
    done = repair(command)
    assert any(str(shard.name) in line for line in done) and not shard.exists()
    with h5py.File("store/features.h5") as file:
        name = "views/flip/features" if folder.startswith("views") else "features"
        assert len(file[name]) == 0, "the view names no shard that is gone"
    assert extract(command)["encoded"] == 10
    assert is_ok(command, "store")
    np.testing.assert_array_equal(Store.open(store.path).read(store.index.keys), before)


def test_a_good_store_is_left_as_it_is(store: Store, command: Command) -> None:
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    status, result = command("verify", "store", "--repair")
    assert status == 0 and result["ok"] and result["repaired"] == []
    before.pop(store.path / "scan.sqlite")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_the_view_is_made_anew(
    store: Store, command: Command, damage: Callable[[Path], None]
) -> None:
    before = read_view(store)
    damage(store.view_path)
    if store.view_path.exists():
        assert repair(command) == [f"made {Path('store/features.h5')} anew"]
    extract(command)
    assert is_ok(command, "store")
    assert read_view(store) == before


def read_view(store: Store) -> dict[bytes, bytes]:
    """Return the features of each key, as users read them."""
    with h5py.File(store.view_path) as file:
        rows = zip(file["keys"][:], file["features"][:], strict=True)
        return {key: row.tobytes() for key, row in rows}


def test_changed_keys_of_the_view_are_an_error_to_whoever_reads_them(store: Store) -> None:
    data = store.view_path.read_bytes()
    place = data.index(store.index.keys[3])
    flip(store.view_path, place)
    with h5py.File(store.view_path) as file, pytest.raises(OSError, match=r"[Cc]an't|filter"):
        file["keys"][:]
    assert not verify(store.path)["ok"]


def test_an_edited_manifest_is_refused_moved_aside_and_made_again(
    store: Store, command: Command
) -> None:
    path = store.manifest_path
    written = path.read_text()
    path.write_text(written.replace("ant/000.png,ant", "ant/000.png,bee"))
    with pytest.raises(ManifestError, match="as extract wrote it"):
        store.read_manifest()
    status, result = command("train-head", "--store", "store", "--run", "run", *HEADS)
    assert status == 2 and "--manifest" in result["error"]["hint"]
    moved = "moved store/manifest.csv to manifest.csv.damaged; run extract again"
    assert repair(command) == [moved]
    assert "ant/000.png,bee" in Path("store/manifest.csv.damaged").read_text()
    assert extract(command)["encoded"] == 0
    assert path.read_text() == written and is_ok(command, "store")


def test_a_copy_of_the_manifest_may_be_edited(store: Store, command: Command) -> None:
    text_of = store.manifest_path.read_text().replace("ant/000.png,ant", "ant/000.png,bee")
    for place in ("copy.csv", "store/copy.csv"):
        Path(place).write_text(text_of)
        assert store.read_manifest(Path(place)).labels[0] == "bee"


def test_weights_and_copies_of_the_network_are_dropped(store: Store, command: Command) -> None:
    folder = store.encoder_folder
    (folder / ("0" * 64 + ".graph-1.pb")).write_bytes(b"garbage")
    (saved,) = folder.glob("*.h5")
    flip(saved, 0)
    done = repair(command)
    assert sorted(done) == sorted(
        f"removed store/encoder/{name}" for name in ("0" * 64 + ".graph-1.pb", saved.name)
    )
    assert not list(folder.iterdir()) and is_ok(command, "store")


def test_a_record_that_changed_is_an_error_that_says_so(store: Store, command: Command) -> None:
    flip(store.path / "store.json", 30)
    for arguments in (("verify", "store"), ("verify", "store", "--repair"), ("info", "store")):
        status, result = command(*arguments)
        assert status == 2 and "store.json" in result["error"]["message"]
        assert result["error"]["hint"]


def test_a_repair_waits_for_nobody(store: Store, command: Command) -> None:
    with lock(store.path):
        assert is_ok(command, "store"), "a look disturbs nobody"
        status, result = command("verify", "store", "--repair")
    assert status == 2 and "writing into" in result["error"]["message"]


@pytest.fixture(scope="module")
def original_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two heads and its planted store, which stay as they are."""
    folder = tmp_path_factory.mktemp("run")
    planted_store(folder / "store", COUNTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train-head", "--store", "store", "--run", "run", *HEADS, "--quiet"]) == 0
    return folder


@pytest.fixture
def run(tmp_path: Path, original_run: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run in the folder at hand, as it is in a project that was copied."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original_run, tmp_path, dirs_exist_ok=True)
    return Run.open(Path("run"))


def train(command: Command, *more: str) -> Run:
    status, _ = command("train-head", "--store", "store", "--run", "run", *HEADS, *more)
    assert status == 0
    return Run.open(Path("run"))


def test_a_good_run_is_good(run: Run, command: Command) -> None:
    status, result = command("verify", "run")
    assert (status, result["ok"], result["heads"], result["rows"]) == (0, True, 2, 42)
    assert find("verify").text(result) == ["2 good heads, 42 rows: every byte is right"]
    assert verify_run(run.path, repair=True)["repaired"] == []


@pytest.mark.slow
@pytest.mark.parametrize("file", ["head.json", "arrays.npz", "probabilities.npy"])
@pytest.mark.parametrize("damage", ["flip", "gone", "folder"])
def test_a_bad_head_is_dropped_and_only_that_is_trained_again(
    run: Run, command: Command, file: str, damage: str
) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("heads/*/*")}
    scores = {name: head.test for name, head in run.record.heads.items()}
    path = run.path / "heads/logreg" / file
    if damage == "flip":
        flip(path)
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    with pytest.raises(RunError):
        run.load_head("logreg")
        run.probabilities("logreg")
    assert repair(command, "run") == ["dropped the head logreg from run; train it again"]
    assert list(Run.open(run.path).record.heads) == ["centroid"]
    assert Run.open(run.path).record.best == "centroid"
    assert is_ok(command, "run")
    again = train(command)
    assert {name: head.test for name, head in again.record.heads.items()} == scores
    assert is_ok(command, "run")
    assert {path: path.read_bytes() for path in before} == before


def test_rows_and_predictions_are_made_again(run: Run, command: Command) -> None:
    names = ("manifest.csv", "predictions.csv")
    before = {name: (run.path / name).read_bytes() for name in names}
    for name in names:
        flip(run.path / name)
    with pytest.raises(RunError, match="as it was written"):
        run.manifest()
    assert len(verify_run(run.path)["problems"]) == 2
    repair(command, "run")
    assert not (run.path / "manifest.csv").exists()
    train(command)
    assert is_ok(command, "run")
    assert {name: (run.path / name).read_bytes() for name in names} == before
    flip(run.path / "predictions.csv")
    assert repair(command, "run") == [f"wrote {Path('run/predictions.csv')} again"]
    assert (run.path / "predictions.csv").read_bytes() == before["predictions.csv"]


def test_heads_that_changed_places_are_found(run: Run, command: Command) -> None:
    for file in ("head.json", "arrays.npz"):
        shutil.copy(run.path / "heads/logreg" / file, run.path / "heads/centroid" / file)
    with pytest.raises(RunError, match="other content"):
        run.load_head("centroid")
    repair(command, "run")
    assert list(Run.open(run.path).record.heads) == ["logreg"]


def test_a_run_whose_record_changed_is_not_added_to(run: Run, command: Command) -> None:
    flip(run.path / "run.json", 200)
    status, result = command("train-head", "--store", "store", "--run", "run", "--head", "ridge")
    assert status == 2 and "run.json" in result["error"]["message"]
    with pytest.raises(StoreError):
        verify_run(run.path)


def test_runs_and_stores_of_the_version_before_are_read(run: Run, command: Command) -> None:
    as_before(run.path / "run.json", lambda record: None)
    as_before(Path("store/store.json"), lambda record: record.pop("features_sha256", None))
    assert is_ok(command, "run") and is_ok(command, "store")
    status, _ = command("train-head", "--store", "store", "--run", "run", "--head", "ridge")
    assert status == 0
    assert json.loads((run.path / "run.json").read_text())["schema_version"] == 3
    assert is_ok(command, "run")


def test_a_kept_network_is_checked_and_kept(command: Command, store: Store) -> None:
    (Path("own.keras")).write_bytes(b"a network")
    kept_file.keep(store.encoder_folder, Path("own.keras"))
    kept = kept_file.find(store.encoder_folder)
    assert kept is not None and is_ok(command, "store")
    assert command("prune", "store")[0] == 0
    assert kept.exists()
    flip(kept, -1)
    found = command("verify", "store")[1]
    assert [item["shard"] for item in found["problems"]] == [kept.name]
    assert "--backbone FILE.keras" in found["problems"][0]["fix"]
    assert repair(command) == [f"removed store/encoder/{kept.name}"]
    assert not kept.exists() and is_ok(command, "store")
