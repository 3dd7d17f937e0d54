"""Stage 1, as commands: what is encoded, reused and skipped, and what lands on disk."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import photos
import pytest
from fakes import DIM, Command, FakeEncoder, write_classes, write_image

import pipeline
from pipeline.cli.main import main
from pipeline.errors import ClusterError
from pipeline.extract import fill, on_ray
from pipeline.extract.ledger import Ledger
from pipeline.images import decoder, reading_processes
from pipeline.store import scan_cache
from pipeline.store.shard_set import ShardSet
from pipeline.store.store import Store
from pipeline.store.writer import ShardWriter
from pipeline.system import cluster, machine

KEYS = {
    *("images", "encoded", "reused", "skipped", "errors", "seconds", "startup_seconds"),
    *("images_per_second", "engine", "precision", "device", "dim", "store"),
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    write_classes(folder, {"cat": 5, "dog": 6})
    return folder


@pytest.fixture(autouse=True)
def trust_young_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "RACY_NS", 0)


def run(command: Command, data: Path, *more: object) -> dict[str, object]:
    arguments = ("extract", data, "--weights", "random", "--image-size", 32, "--store", "store")
    status, result = command(*arguments, *more)
    assert status == 0, result
    return result


def counts(result: dict[str, object]) -> tuple[object, object, object]:
    return result["encoded"], result["reused"], result["skipped"]


def expected_features(encoder: FakeEncoder, path: Path) -> np.ndarray:
    return encoder(decoder.decode(path.read_bytes(), 32)[np.newaxis])[0]


@pytest.mark.slow
def test_processes_that_read_change_nothing(
    command: Command, data: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(data / "cat/000.png", data / "dog/copy.png")
    (data / "dog/bad.png").write_text("no image")
    here = run(command, data, "--views", "flip", "--on-error", "skip")
    alone = {path.name: path.read_text() for path in Path("store").glob("*.csv")}
    rows = pipeline.load("store")
    shutil.rmtree("store")
    monkeypatch.setattr(machine, "processors", lambda: 6)
    monkeypatch.setattr(machine, "free_memory", lambda: 1 << 34)
    monkeypatch.setattr(reading_processes, "LEAST_IMAGES", 1)
    apart = run(command, data, "--views", "flip", "--on-error", "skip")
    assert counts(here) == counts(apart) == (11, 1, 1)
    assert {path.name: path.read_text() for path in Path("store").glob("*.csv")} == alone
    for made, expected in zip(pipeline.load("store"), rows, strict=True):
        np.testing.assert_array_equal(made, expected)
    busy = apart["bottleneck"]
    assert isinstance(busy, dict) and busy["busy"]["decode"] > 0


def test_result_has_the_keys_that_programs_rely_on(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    result = run(command, data)
    assert set(result) >= KEYS
    assert counts(result) == (11, 0, 0)
    assert (result["engine"], result["precision"], result["dim"]) == ("fake", "float32", DIM)
    assert result["images"] == 11
    json.dumps(result, allow_nan=False)


def test_each_row_is_the_features_of_its_own_image(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    run(command, data, "--batch-size", 4)
    X, y, names = pipeline.load("store")
    manifest = Store.open(Path("store")).read_manifest()
    assert names == ["cat", "dog"]
    for row, label, path in zip(X, y, manifest.paths, strict=True):
        np.testing.assert_array_equal(row, expected_features(fake_network, data / path))
        assert names[label] == path.split("/")[0]


def test_view_holds_the_same_rows_by_key(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    run(command, data)
    store = Store.open(Path("store"))
    with h5py.File("store/features.h5") as file:
        keys, features = file["keys"][:], file["features"][:]
    np.testing.assert_array_equal(features, store.read(keys))
    assert features.dtype == np.float32


def test_rerun_opens_no_image_and_encodes_none(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    run(command, data)
    opened: list[str] = []
    tracing = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if tracing and event == "open" and str(data) in str(arguments[0]):
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    before = fake_network.images
    assert counts(run(command, data)) == (0, 11, 0)
    tracing = False
    assert [path for path in opened if path.endswith(".png")] == []
    assert fake_network.images == before


def test_young_files_are_read_again(
    command: Command, data: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_cache, "RACY_NS", 10**18)
    run(command, data)
    before = fake_network.images
    assert counts(run(command, data)) == (0, 11, 0)
    assert fake_network.images == before


def test_rehash_reads_but_does_not_encode(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    run(command, data)
    assert counts(run(command, data, "--rehash")) == (0, 11, 0)


def test_renamed_moved_relabelled_and_copied_files_are_not_encoded_again(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    run(command, data)
    (data / "cat/000.png").rename(data / "cat/renamed.png")
    (data / "cat/001.png").rename(data / "dog/relabelled.png")
    shutil.copy(data / "dog/000.png", data / "dog/copy.png")
    before = fake_network.images
    assert counts(run(command, data)) == (0, 12, 0)
    assert fake_network.images == before
    _, y, names = pipeline.load("store")
    assert [names[label] for label in y].count("dog") == 8


def test_edited_file_is_encoded_alone_and_deleted_one_leaves_the_manifest(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    run(command, data)
    write_image(data / "cat/000.png", seed=999)
    (data / "dog/000.png").unlink()
    assert counts(run(command, data)) == (1, 9, 0)
    store = Store.open(Path("store"))
    assert "dog/000.png" not in store.read_manifest().paths
    assert len(store) == 12  # the features stay until prune
    assert main(["prune", "store"]) == 0
    assert len(Store.open(Path("store"))) == 10


def test_copies_in_one_run_count_as_reused(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    for number in range(4):
        shutil.copy(data / "cat/000.png", data / f"cat/copy{number}.png")
    result = run(command, data)
    assert counts(result) == (11, 4, 0)
    assert len(Store.open(Path("store"))) == 11


def test_bad_images_are_skipped_counted_and_listed(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    (data / "cat/empty.png").write_bytes(b"")
    (data / "cat/text.jpg").write_text("no image")
    (data / "cat/cut.png").write_bytes((data / "cat/000.png").read_bytes()[:200])
    (data / "cat/gone.png").symlink_to("nowhere")
    os.mkfifo(data / "cat/pipe.png")
    first = run(command, data)
    assert counts(first) == (11, 0, 5)
    reasons = {error["path"]: error["reason"] for error in first["errors"]}
    assert set(reasons) == {f"cat/{name}" for name in (
        "empty.png", "text.jpg", "cut.png", "gone.png", "pipe.png"
    )}  # fmt: skip
    assert "empty" in reasons["cat/empty.png"] and "regular" in reasons["cat/pipe.png"]
    statuses = Store.open(Path("store")).read_manifest()
    assert dict(zip(statuses.paths, statuses.statuses, strict=True))["cat/empty.png"] != "ok"
    assert counts(run(command, data)) == (0, 11, 5)
    assert command("extract", data, "--weights", "random", "--image-size", 32, "--store", "store",
                   "--strict")[0] == 1  # fmt: skip


@pytest.mark.slow
def test_hundred_mixed_files_give_the_right_rows_and_ledger(
    command: Command, tmp_path: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = photos.write_mixed(tmp_path / "mixed")
    result = run(command, tmp_path / "mixed")
    assert result["images"] == 100
    assert {error["path"] for error in result["errors"]} == {
        path for path, good in expected.items() if not good
    }
    store = Store.open(Path("store"))
    manifest = store.read_manifest()
    for index, path in enumerate(manifest.paths):
        if expected[path]:
            row = store.read(manifest.keys[index : index + 1])[0]
            np.testing.assert_array_equal(
                row, expected_features(fake_network, tmp_path / "mixed" / path)
            )


def test_on_error_raise_stops_at_the_first(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    (data / "cat/0bad.png").write_bytes(b"nothing")
    status, result = command("extract", data, "--weights", "random", "--image-size", 32,
                             "--on-error", "raise", "--store", "store")  # fmt: skip
    assert status == 2
    assert result["error"]["type"] == "DecodeError"
    assert "cat/0bad.png" in result["error"]["message"]


def test_max_errors_stops_and_keeps_what_was_done(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    for number in range(3):
        (data / f"dog/z{number}.png").write_bytes(b"bad %d" % number)
    arguments = ("extract", data, "--weights", "random", "--image-size", 32, "--store", "store",
                 "--batch-size", 2)  # fmt: skip
    status, result = command(*arguments, "--max-errors", 2)
    assert status == 2 and "--max-errors" in result["error"]["hint"]
    encoded = len(Store.open(Path("store")))
    assert encoded >= 10
    status, result = command(*arguments, "--max-errors", 3)
    assert status == 0 and result["encoded"] == 11 - encoded


def test_every_image_bad_is_an_error(
    command: Command, tmp_path: Path, fake_network: FakeEncoder
) -> None:
    (tmp_path / "bad/cat").mkdir(parents=True)
    (tmp_path / "bad/cat/a.jpg").write_text("a")
    status, result = command(
        "extract", tmp_path / "bad", "--weights", "random", "--store", tmp_path / "store"
    )
    assert status == 2 and "a.jpg" in result["error"]["message"]


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--image-size", "64"], "image_size"),
        (["--pooling", "max"], "pooling"),
        (["--seed", "1"], "weights_sha256"),
    ],
)
def test_another_identity_is_refused_and_force_replaces(
    command: Command, data: Path, fake_network: FakeEncoder, flags: list[str], field: str
) -> None:
    run(command, data)
    shards = sorted(Path("store/shards").iterdir())
    arguments = ["extract", data, "--weights", "random", "--image-size", 32, "--store", "store"]
    status, result = command(*arguments, *flags)
    assert status == 2
    assert result["error"]["type"] == "StaleFeaturesError"
    assert f"{field} = " in result["error"]["message"] and "--force" in result["error"]["hint"]
    assert sorted(Path("store/shards").iterdir()) == shards
    assert counts(command(*arguments, *flags, "--force")[1]) == (11, 0, 0)


def test_foreign_folder_is_left_as_it_was(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    arguments = ("extract", data, "--weights", "random", "--store", "mine")
    assert command(*arguments)[0] == 2 and command(*arguments, "--force")[0] == 2
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


def test_edited_manifest_is_never_overwritten(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    run(command, data)
    path = Path("store/manifest.csv")
    edited = path.read_text().replace(",cat,", ",lion,")
    path.write_text(edited)
    arguments = ("extract", data, "--weights", "random", "--image-size", 32, "--store", "store")
    status, result = command(*arguments)
    assert status == 2 and "--manifest" in result["error"]["hint"]
    assert path.read_text() == edited
    assert command(*arguments, "--force")[0] == 0
    assert "lion" not in path.read_text()


def test_one_store_serves_several_manifests(
    command: Command, data: Path, tmp_path: Path, fake_network: FakeEncoder
) -> None:
    run(command, data)
    before = Path("store/manifest.csv").read_text()
    other = tmp_path / "other"
    shutil.copytree(data / "cat", other / "kitten")
    write_image(other / "cow/0.png", seed=500)
    assert counts(run(command, other, "--manifest", "other.csv")) == (1, 5, 0)
    assert Path("store/manifest.csv").read_text() == before
    _, _, names = pipeline.load("store", manifest="other.csv")
    assert names == ["cow", "kitten"]
    assert main(["prune", "store"]) == 0  # both manifests count
    assert len(Store.open(Path("store"))) == 12


def test_conflicting_labels_are_in_no_class(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    shutil.copy(data / "cat/000.png", data / "dog/also.png")
    result = run(command, data)
    assert result["conflicting"] == 2
    X, _, _ = pipeline.load("store")
    assert len(X) == 10


def test_dry_run_tells_and_writes_nothing(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    (data / "cat/bad.png").write_bytes(b"bad")
    result = run(command, data, "--dry-run")
    assert (result["images"], result["new"], result["reused"]) == (12, 12, 0)
    assert result["estimated_seconds"] > 0 and result["estimated_bytes"] > 0
    assert not Path("store").exists()
    run(command, data)
    write_image(data / "cat/new.png", seed=321)
    listing = sorted(path.name for path in Path("store").rglob("*"))
    result = run(command, data, "--dry-run")
    assert (result["new"], result["reused"], result["skipped"]) == (1, 11, 1)
    assert sorted(path.name for path in Path("store").rglob("*")) == listing


def test_interrupted_run_keeps_what_was_encoded(
    command: Command, data: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FakeEncoder.__call__

    def stop_at_the_third(self: FakeEncoder, pixels: np.ndarray) -> np.ndarray:
        if self.images >= 8 + 8:  # the probe, and two batches
            raise KeyboardInterrupt
        return original(self, pixels)

    arguments = ["extract", str(data), "--weights", "random", "--image-size", "32", "--store",
                 "store", "--batch-size", "4", "--quiet"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(FakeEncoder, "__call__", stop_at_the_third)
        assert main(arguments) == 130
    assert counts(run(command, data)) == (3, 8, 0)


def test_full_disk_is_an_error_and_keeps_earlier_shards(
    command: Command, data: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardWriter, "__init__", _small_shards(ShardWriter.__init__))
    original = ShardSet.add_blocks
    calls = []

    def fail_at_the_second(self: ShardSet, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(self, *arguments)

    arguments = ("extract", data, "--weights", "random", "--image-size", 32, "--store", "store",
                 "--batch-size", 2)  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(ShardSet, "add_blocks", fail_at_the_second)
        status, result = command(*arguments)
    assert status == 2 and "No space left" in result["error"]["message"]
    kept = len(Store.open(Path("store")))
    assert kept >= 4
    assert command(*arguments)[1]["encoded"] == 11 - kept


def _small_shards(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: ShardWriter, target: ShardSet, **more: object) -> None:
        original(self, target, **{**more, "rows": 4})

    return init


@pytest.mark.parametrize(
    "name", ["with space", "quo'te\"s", "ünïcode ✓", "-leading", "per%cent", "semi;colon,comma"]
)
def test_awkward_names(
    command: Command, tmp_path: Path, fake_network: FakeEncoder, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_classes(Path(name), {f"{name} a": 2, f"{name} b": 2})
    status, result = command("extract", "--weights", "random", "--image-size", 32, "--json",
                             "--quiet", "--store=" + name + " store", f"./{name}")  # fmt: skip
    assert status == 0 and result["encoded"] == 4
    assert pipeline.load(name + " store")[2] == sorted([f"{name} a", f"{name} b"])


def test_name_that_is_no_unicode(
    command: Command, tmp_path: Path, fake_network: FakeEncoder
) -> None:
    write_classes(tmp_path / "d", {"a": 2, "b": 2})
    (tmp_path / "d/a/000.png").rename(tmp_path / "d/a" / os.fsdecode(b"caf\xe9.png"))
    arguments = ("extract", tmp_path / "d", "--weights", "random", "--store", tmp_path / "s")
    assert command(*arguments)[1]["encoded"] == 4
    assert command(*arguments)[1]["reused"] == 4
    assert Store.open(tmp_path / "s").read_manifest().paths[1].encode(
        errors="surrogateescape"
    ) == b"a/caf\xe9.png"  # fmt: skip


def test_unlabelled_images_are_extracted_and_not_loaded(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    write_image(data / "loose.png", seed=4242)
    assert counts(run(command, data)) == (12, 0, 0)
    assert len(pipeline.load("store")[0]) == 11


def test_a_store_that_is_only_read_answers_where_nothing_is_to_be_written(
    command: Command, data: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(command, data)
    names = sorted(path.name for path in Path("store").rglob("*"))
    monkeypatch.setattr("os.access", lambda *_: False)  # root is told that it may write anywhere
    monkeypatch.setattr("pipeline.extract.fill.lock", forbidden)
    assert counts(run(command, data)) == (0, 11, 0)
    assert sorted(path.name for path in Path("store").rglob("*")) == names
    (data / "cat" / "000.png").rename(data / "dog" / "moved.png")
    arguments = ("extract", data, "--weights", "random", "--image-size", 32, "--store", "store")
    status, result = command(*arguments)
    assert status == 2 and "Permission denied" in result["error"]["message"]


def forbidden(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied", "store/.lock")


def test_of_many_moved_images_a_cluster_reads_all_but_the_first(
    command: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(command, data)
    data.rename(data.with_name("moved"))
    left = []

    def encode(ledger: Ledger, *_: object, **__: object) -> None:
        left.append(len(ledger.pending))
        raise ClusterError("No cluster.")

    monkeypatch.setattr(cluster, "_REQUIRED", ())
    monkeypatch.setattr(on_ray, "encode", encode)
    monkeypatch.setattr(fill, "_READ_ALONE", 4)
    arguments = ("extract", "moved", "--weights", "random", "--image-size", 32, "--store", "store")
    assert command(*arguments, "--executor", "ray")[0] == 2
    assert left == [11 - 4]
