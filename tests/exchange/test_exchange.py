"""Features from and to plain files: round trips, keys, and what is refused or said of files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import PLANTED_DIM, Command, planted_store, write_image
from numpy.typing import NDArray
from object_store import ObjectStore

import pipeline
from pipeline.cli.commands import import_features
from pipeline.copies import scratch
from pipeline.exchange import checks, exporting, hdf5, importing, npy, parquet, room
from pipeline.files import remote
from pipeline.files.location import Remote
from pipeline.images.manifest import read as read_manifest
from pipeline.store.path_keys import key_of_path
from pipeline.store.store import Store

COUNTS = {"ant": 14, "bee": 14, "cow": 14}
SUFFIXES = ["h5", "hdf5", "npy", "parquet"]
Features = NDArray[np.float32]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Several blocks of every file.
    for module in (checks, exporting, hdf5, npy, parquet):
        monkeypatch.setattr(module, "BLOCK_ROWS", 10)
    return tmp_path


def drawn(rows: int, dim: int = 8, seed: int = 0) -> Features:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def save_npy(path: Path, features: Any, lines: list[str]) -> None:
    """Write an array and its list."""
    np.save(path, features)
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")


def table_of(count: int) -> list[str]:
    return ["path,label", *(f"{row:03}.jpg,{'ab'[row % 2]}" for row in range(count))]


def rows_of(path: Path) -> tuple[Any, Features]:
    """Return the manifest of a store and the features of its rows."""
    store = Store.open(path)
    manifest = store.read_manifest()
    return manifest, store.read(manifest.keys)


# Round trips


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_exported_is_imported_again(folder: Path, command: Command, suffix: str) -> None:
    splits = [("train", "val", "test")[row % 3] for row in range(42)]
    planted_store(folder / "store", COUNTS, splits=splits)
    status, result = command("export-features", "store", f"out/features.{suffix}")
    assert status == 0
    assert (result["images"], result["dim"], result["labelled"]) == (42, PLANTED_DIM, 42)
    status, result = command("import-features", f"out/features.{suffix}")
    assert (status, result["imported"], result["skipped"]) == (0, 42, 0)
    assert result["keys"] == {"given": 42, "content": 0, "paths": 0}
    before, features = rows_of(folder / "store")
    after, imported = rows_of(Path(result["store"]))
    np.testing.assert_array_equal(features, imported)
    np.testing.assert_array_equal(before.keys, after.keys)
    for column in ("paths", "labels", "splits", "statuses"):
        assert list(getattr(before, column)) == list(getattr(after, column))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_odd_names_and_groups_come_back(folder: Path, command: Command, suffix: str) -> None:
    names = ['a,"b".jpg', "\udcff.jpg", "ü ü.jpg", " c.jpg"]
    lines = ["path,label,group", '"a,""b"".jpg",x y,p1', "\udcff.jpg,,p1", "ü ü.jpg,x y,",
             '" c.jpg",ö,p2']  # fmt: skip
    np.save("in.npy", drawn(4))
    Path("in.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    assert command("import-features", "in.npy", "--store", "first")[0] == 0
    assert command("export-features", "first", f"out.{suffix}")[0] == 0
    status, result = command("import-features", f"out.{suffix}", "--store", "second")
    assert status == 0, result
    (before, features), (after, imported) = rows_of(Path("first")), rows_of(Path("second"))
    assert list(before.paths) == list(after.paths) == names
    assert list(before.groups) == list(after.groups) == ["p1", "p1", "", "p2"]
    assert list(before.labels) == list(after.labels)
    np.testing.assert_array_equal(features, imported)


def test_all_writes_what_no_row_has_too(folder: Path, command: Command) -> None:
    store = planted_store(folder / "store", COUNTS)
    store.save_manifest(folder / "some.csv", store.read_manifest().take([2, 0]))
    status, result = command("export-features", "store", "some.h5", "--manifest", "some.csv")
    assert (status, result["images"]) == (0, 2)
    status, result = command(
        "export-features", "store", "all.h5", "--manifest", "some.csv", "--all"
    )
    assert (status, result["images"], result["labelled"]) == (0, 42, 2)
    with h5py.File("all.h5") as file:
        paths, keys = file["paths"].asstr()[:], file["keys"].asstr()[:]
        assert list(paths[:2]) == ["ant/0002.png", "ant/0000.png"]
        assert list(paths[2:]) == list(keys[2:])
        np.testing.assert_array_equal(file["features"][:], store.read(keys.astype("S64")))
    assert command("import-features", "all.h5", "--store", "again")[1]["imported"] == 42


def test_a_view_is_exported(folder: Path, command: Command) -> None:
    store = planted_store(folder / "store", COUNTS)
    assert "has no view" in command("export-features", "store", "a.h5", "--view", "flip")[1][
        "error"
    ]["message"]  # fmt: skip
    store.add_view("flip", "flip-1")
    store.views["flip"].add_shard(store.index.keys, store.read(store.index.keys) + 1)
    assert command("export-features", "store", "a.h5", "--view", "flip")[0] == 0
    with h5py.File("a.h5") as file:
        expected = store.read(file["keys"][:]) + 1
        np.testing.assert_array_equal(file["features"][:], expected)
        assert json.loads(file.attrs["made_with"])["view"] == "flip"


def test_an_export_replaces_nothing_unless_told(folder: Path, command: Command) -> None:
    planted_store(folder / "store", COUNTS)
    Path("a.csv").write_text("mine")
    status, result = command("export-features", "store", "a.npy")
    assert status == 2 and "'a.csv'" in result["error"]["message"]
    assert Path("a.csv").read_text() == "mine" and not Path("a.npy").exists()
    assert command("export-features", "store", "a.npy", "--force")[0] == 0
    assert np.load("a.npy").shape == (42, PLANTED_DIM)


def test_a_failed_export_leaves_what_was_there(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_store(folder / "store", COUNTS)
    assert command("export-features", "store", "a.npy")[0] == 0
    before = Path("a.npy").read_bytes(), Path("a.csv").read_bytes()

    def fail(path: Path, rows: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.exchange.exporting.write_csv", fail)
    assert command("export-features", "store", "a.npy", "--force")[0] == 2
    assert (Path("a.npy").read_bytes(), Path("a.csv").read_bytes()) == before
    assert not list(folder.glob(".tmp-*"))


# Heads, and what needs an encoder


@pytest.mark.slow
def test_heads_audit_report_and_compare_work_on_imported_features(
    folder: Path, command: Command
) -> None:
    planted_store(folder / "store", COUNTS)
    for number, suffix in enumerate(["npy", "h5"]):
        command("export-features", "store", f"v{number}.{suffix}")
        command("import-features", f"v{number}.{suffix}")
        status, result = command(
            "train-head", "--store", f"stores/v{number}", "--head", "ridge", "--head", "logreg"
        )
        assert status == 0 and result["heads"]["ridge"]["test"]["accuracy"] > 0.8
    status, result = command("compare", "runs/v0", "runs/v1")
    assert status == 0 and len(result["groups"]) == 1  # the same keys: one test set
    assert command("report", "runs/v0")[0] == 0
    status, result = command("audit", "stores/v0", "--run", "runs/v0")
    assert status == 0 and result["images"] == 42
    assert command("verify", "stores/v0")[0] == command("verify", "runs/v0")[0] == 0
    assert command("prune", "stores/v0")[1]["rows"] == 42
    status, result = command("info", "stores/v0")
    assert result["identity"]["backbone"] == "imported:v0"


def test_what_needs_an_encoder_says_that_there_is_none(folder: Path, command: Command) -> None:
    save_npy(Path("clip.npy"), drawn(40), table_of(40))
    assert command("import-features", "clip.npy")[0] == 0
    assert command("train-head", "--store", "stores/clip", "--head", "logreg")[0] == 0
    write_image(Path("photos/a/1.png"), 1)
    for arguments in (
        ("predict", "runs/clip", "photos"),
        ("evaluate", "runs/clip", "photos"),
        ("export", "runs/clip", "model.onnx"),
        ("finetune", "runs/clip"),
        ("verify", "stores/clip", "--reencode", "1"),
    ):
        status, result = command(*arguments)
        assert status == 2, arguments
        assert "imported features 'clip'" in result["error"]["message"], arguments
        assert "extract the images" in result["error"]["hint"]
    status, result = command(
        "extract", "photos", "--weights", "random", "--image-size", "32", "--store", "stores/clip"
    )
    assert status == 2 and "imported features 'clip'" in result["error"]["message"]


# Keys


def test_keys_are_contents_where_images_are_at_hand(folder: Path, command: Command) -> None:
    content = write_image(Path("photos/a.png"), 1)
    Path("photos/folder").mkdir()
    save_npy(Path("x.npy"), drawn(3), ["path,label", "a.png,a", "./gone.png,b", "folder,b"])
    status, result = command("import-features", "x.npy", "--data", "photos")
    assert (status, result["keys"]) == (0, {"given": 0, "content": 1, "paths": 2})
    assert any("No image at hand of 2 of 3 rows" in note for note in result["notes"])
    manifest, _ = rows_of(Path("stores/x"))
    assert manifest.keys[0].decode() == hashlib.sha256(content).hexdigest()
    assert manifest.keys[1].decode() == key_of_path("gone.png")
    assert manifest.root == folder / "photos"


@pytest.mark.slow
def test_images_in_a_bucket_are_asked_for_together(
    folder: Path, command: Command, bucket: str, object_store: ObjectStore
) -> None:
    names = [f"{number:02}.png" for number in range(25)]
    for number, name in enumerate(names[1:]):
        write_image(Path("photos") / name, number)
        remote.upload(Remote(f"{bucket}/photos/{name}"), Path("photos") / name)
    object_store.reset()
    save_npy(Path("x.npy"), drawn(25), ["path,label", *(f"{name},a" for name in names)])
    status, result = command("import-features", "x.npy", "--data", f"{bucket}/photos")
    assert (status, result["keys"]) == (0, {"given": 0, "content": 24, "paths": 1})
    # A listing tells which are there; only those that are read are looked at.
    assert object_store.count("HEAD", "00.png") == 0
    assert object_store.count("GET") == 25


def test_the_key_of_a_path_is_no_images_and_stays_the_same() -> None:
    assert key_of_path("a.png") == (
        hashlib.sha256(b"\0features imported without their image:a.png").hexdigest()
    )
    assert len({key_of_path(name) for name in ("a", "b", "\udcff", "ÿ")}) == 4


def test_copies_of_an_image_are_one_row_of_features(folder: Path, command: Command) -> None:
    write_image(Path("a.png"), 1)
    write_image(Path("b.png"), 1)
    features = drawn(3)
    features[1] = features[0] * 1.0001
    lines = ["path,label", "a.png,x", "b.png,x", "c.png,y"]
    save_npy(Path("x.npy"), features, lines)
    status, result = command("import-features", "x.npy")
    assert (status, result["imported"], result["reused"]) == (0, 2, 1)
    _, stored = rows_of(Path("stores/x"))
    np.testing.assert_array_equal(stored, features[[0, 0, 2]])
    features[1] = -features[0]
    save_npy(Path("y.npy"), features, lines)
    status, result = command("import-features", "y.npy")
    assert status == 2 and "'a.png' and 'b.png'" in result["error"]["message"]
    assert not Path("stores/y").exists()


def test_a_list_that_holds_everything_twice_takes_no_memory_for_it(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = drawn(24)
    twice = np.concatenate([features, features * np.float32(1.0001)])
    keys = [f"{row % 24:064x}" for row in range(48)]
    save_npy(Path("x.npy"), twice, ["path,key", *(f"{row}.png,{keys[row]}" for row in range(48))])
    monkeypatch.setattr("pipeline.system.machine.free_memory", lambda: 0)
    tables, make = [], scratch.table

    def remember(*arguments: Any, **beside: int) -> Features:
        tables.append(make(*arguments, **beside))
        return tables[-1]

    monkeypatch.setattr(scratch, "table", remember)
    status, result = command("import-features", "x.npy")
    assert (status, result["imported"], result["reused"]) == (0, 24, 24)
    (table,) = tables
    assert table.shape == (24, 8) and isinstance(table.base, np.memmap)
    assert not list(folder.glob(".tmp-*"))
    twice[47] = -twice[23]
    save_npy(Path("y.npy"), twice, ["path,key", *(f"{row}.png,{keys[row]}" for row in range(48))])
    status, result = command("import-features", "y.npy")
    assert status == 2 and "'23.png' and '47.png'" in result["error"]["message"]


# Again, and others


def test_importing_the_same_again_changes_nothing(folder: Path, command: Command) -> None:
    save_npy(Path("x.npy"), drawn(30), table_of(30))
    first = command("import-features", "x.npy")[1]
    files = {path: path.read_bytes() for path in Path("stores/x").rglob("*") if path.is_file()}
    status, again = command("import-features", "x.npy")
    assert (status, again["imported"], again["reused"]) == (0, 0, 30)
    assert again["digest"] == first["digest"]
    kept = [path for path in files if path.suffix == ".h5" or path.name == "manifest.csv"]
    assert len(kept) == 3 and all(path.read_bytes() == files[path] for path in kept)


def test_other_labels_of_the_same_features_are_the_same_features(
    folder: Path, command: Command
) -> None:
    save_npy(Path("x.npy"), drawn(4), ["path,label", "1,a", "2,a", "3,b", "4,b"])
    first = command("import-features", "x.npy")[1]
    Path("x.csv").write_text("path,label,split\n1,a,train\n2,c,train\n3,b,test\n4,b,test\n")
    status, again = command("import-features", "x.npy")
    assert (status, again["imported"], again["digest"]) == (0, 0, first["digest"])
    assert rows_of(Path("stores/x"))[0].labels == ["a", "c", "b", "b"]


def test_other_features_are_refused_and_replace_with_force(folder: Path, command: Command) -> None:
    save_npy(Path("x.npy"), drawn(30), table_of(30))
    save_npy(Path("y.npy"), drawn(30, seed=1), table_of(30))
    command("import-features", "x.npy")
    status, result = command("import-features", "y.npy", "--store", "stores/x")
    assert (
        status == 2 and "'x'" in result["error"]["message"] and "'y'" in result["error"]["message"]
    )
    assert "--force" in result["error"]["hint"]
    status, result = command("import-features", "y.npy", "--store", "stores/x", "--force")
    assert (status, result["imported"]) == (0, 30)
    np.testing.assert_array_equal(rows_of(Path("stores/x"))[1], np.load("y.npy"))


def test_an_import_that_was_interrupted_goes_on(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = drawn(40)
    save_npy(Path("x.npy"), features, table_of(40))
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(importing, "_require_unchanged", interrupt)
        assert command("import-features", "x.npy")[0] == 2
    (shard,) = Path("stores/x/shards").glob("*.h5")
    status, result = command("import-features", "x.npy")
    assert (status, result["imported"], result["reused"]) == (0, 0, 40)
    shard.unlink()
    assert command("import-features", "x.npy")[1]["imported"] == 40
    np.testing.assert_array_equal(rows_of(Path("stores/x"))[1], features)


def test_an_edited_manifest_is_not_overwritten(folder: Path, command: Command) -> None:
    save_npy(Path("x.npy"), drawn(4), table_of(4))
    command("import-features", "x.npy")
    with Path("stores/x/manifest.csv").open("a") as file:
        file.write("\n")
    status, result = command("import-features", "x.npy")
    assert status == 2 and "edited" in result["error"]["message"]
    assert command("import-features", "x.npy", "--force")[0] == 0


# What files hold


def test_rows_that_are_not_finite_are_skipped_and_listed(folder: Path, command: Command) -> None:
    features = drawn(6).astype(np.float64)
    features[1, 3], features[2, 0], features[4] = np.nan, np.inf, 0
    features[5, 0] = 1e39  # not in float32
    save_npy(Path("x.npy"), features, table_of(6))
    status, result = command("import-features", "x.npy")
    assert (status, result["imported"], result["skipped"]) == (0, 3, 3)
    reason = "features that are not finite"
    assert result["errors"] == [{"path": f"00{n}.jpg", "reason": reason} for n in (1, 2, 5)]
    assert "Rows of zeros alone, 1: '004.jpg'" in result["notes"]
    assert "The features are float64 and are kept as float32" in result["notes"]
    statuses = read_manifest(Path("stores/x/manifest.csv"), root=folder).statuses
    assert [status == "ok" for status in statuses] == [True, False, False, True, True, False]
    assert command("import-features", "x.npy", "--on-error", "raise")[0] == 2
    assert command("import-features", "x.npy", "--max-errors", "2")[0] == 2
    assert command("import-features", "x.npy", "--max-errors", "3")[0] == 0
    assert command("import-features", "x.npy", "--strict")[0] == 1


def test_a_path_that_comes_twice(folder: Path, command: Command) -> None:
    features = drawn(3)
    features[2] = features[0]
    same = ["path,label", "a,x", "b,y", "./a,x"]
    save_npy(Path("same.npy"), features, same)
    status, result = command("import-features", "same.npy")
    assert (status, result["images"], result["imported"]) == (0, 2, 2)
    assert any("one with it: 1" in note for note in result["notes"])
    save_npy(Path("labels.npy"), features, [*same[:3], "a,z"])
    assert "as 'x' and as 'z'" in command("import-features", "labels.npy")[1]["error"]["message"]
    save_npy(Path("vectors.npy"), drawn(3), same)
    message = command("import-features", "vectors.npy")[1]["error"]["message"]
    assert "'a' with two that differ, rows 1 and 3" in message


def test_labels_of_white_space_are_none_and_padded_ones_are_said(
    folder: Path, command: Command
) -> None:
    save_npy(Path("x.npy"), drawn(4), ["path,label", "1,a", "2,a ", "3,  ", "4,b"])
    status, result = command("import-features", "x.npy")
    assert status == 0 and any("look alike" in note for note in result["notes"])
    assert rows_of(Path("stores/x"))[0].labels == ["a", "a ", "", "b"]
    assert command("import-features", "x.npy", "--merge-labels")[0] == 0
    assert set(rows_of(Path("stores/x"))[0].labels) == {"a", "", "b"}


def test_a_list_may_be_a_text_of_paths(folder: Path, command: Command) -> None:
    np.save("x.npy", drawn(3))
    Path("x.txt").write_bytes("\ufeffa,1.jpg\r\nb.jpg\r\nc.jpg\r\n\r\n".encode())
    status, result = command("import-features", "x.npy")
    assert (status, result["imported"]) == (0, 3)
    assert any("No row has a label" in note for note in result["notes"])
    assert rows_of(Path("stores/x"))[0].paths == ["a,1.jpg", "b.jpg", "c.jpg"]
    Path("gap.txt").write_text("a\n\nc\n")
    status, result = command("import-features", "x.npy", "--paths", "gap.txt", "--store", "s")
    assert status == 2 and "line 2" in result["error"]["message"]


def write_hdf5(file_path: Path, /, **datasets: Any) -> None:
    with h5py.File(file_path, "w") as file:
        for name, values in datasets.items():
            file[name] = values


def test_hdf5_of_other_programs(folder: Path, command: Command) -> None:
    features = drawn(25)
    with h5py.File("x.h5", "w") as file:
        file.create_dataset("embeddings", data=features, chunks=(4, 8), compression="gzip")
        file["path"] = [f"{row}.jpg" for row in range(25)]
        file["labels"] = np.arange(25) % 3
        file["other"] = [1.0]
    status, result = command("import-features", "x.h5", "--name", "dino")
    assert (status, result["imported"], result["name"]) == (0, 25, "dino")
    manifest, stored = rows_of(Path("stores/x"))
    np.testing.assert_array_equal(stored, features)
    assert manifest.labels[:4] == ["0", "1", "2", "0"]


def test_keys_alone_name_the_rows(folder: Path, command: Command) -> None:
    keys = [f"{row:064x}" for row in range(5)]
    write_hdf5(Path("x.h5"), features=drawn(5), keys=np.array(keys, "S64"))
    status, result = command("import-features", "x.h5")
    assert (status, result["keys"]["given"]) == (0, 5)
    assert list(rows_of(Path("stores/x"))[0].paths) == keys


def test_a_view_of_a_store_is_not_imported(folder: Path, command: Command) -> None:
    planted_store(folder / "store", COUNTS).refresh_view()
    status, result = command("import-features", "store/features.h5", "--store", "other")
    assert status == 2 and "export-features" in result["error"]["hint"]


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "tensor"])
def test_parquet_of_other_programs(folder: Path, command: Command, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = drawn(25).astype(np.float64)
    values: Any = [None if row == 7 else list(features[row]) for row in range(25)]
    types = {
        "list": pa.list_(pa.float64()),
        "large_list": pa.large_list(pa.float64()),
        "fixed": pa.list_(pa.float64(), 8),
        "tensor": pa.list_(pa.float64(), 8),
    }
    column = pa.array(values, types[kind])
    if kind == "tensor":
        tensor = pa.fixed_shape_tensor(pa.float64(), [8])
        column = pa.ExtensionArray.from_storage(tensor, column)
    labels = pa.array(["a", None, "b", "a", "b"] * 5).dictionary_encode()
    table = pa.table({"ID": range(25), "Path": [f"{n}.jpg" for n in range(25)],
                      "emb": column, "Label": labels})  # fmt: skip
    pq.write_table(table, "x.parquet", row_group_size=9)
    status, result = command("import-features", "x.parquet")
    assert (status, result["imported"], result["skipped"]) == (0, 24, 1)
    assert result["errors"][0]["path"] == "7.jpg"
    store = Store.open(Path("stores/x"))
    manifest = store.read_manifest()
    assert manifest.labels[:3] == ["a", "", "b"]
    kept = [row for row in range(25) if row != 7]
    np.testing.assert_array_equal(store.read(manifest.keys[kept]), features[kept].astype("f4"))


def parquet_file(file_path: str, /, **columns: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file_path)


def bad_lengths() -> str:
    parquet_file("x.parquet", path=["a", "b"], v=[[1.0, 2.0], [1.0]])
    return "expected 2 features in every row. Received: 1 in row 2"


def two_columns() -> str:
    parquet_file("x.parquet", path=["a"], v=[[1.0]], w=[[1.0]])
    return "expected one column of lists of numbers. Received: 'v', 'w'"


def no_column() -> str:
    parquet_file("x.parquet", path=["a"], v=["text"])
    return "Received: none of the columns 'path', 'v'"


def no_vector_at_all() -> str:
    import pyarrow as pa

    parquet_file("x.parquet", path=["a"], v=pa.array([None], pa.list_(pa.float32())))
    return "expected numbers of shape (rows, features)"


def no_parquet() -> str:
    Path("x.parquet").write_text("nothing of the kind")
    return "cannot be read"


def no_paths() -> str:
    np.save("x.npy", drawn(2))
    return "no x.csv or x.txt beside it"


def fewer_paths() -> str:
    save_npy(Path("x.npy"), drawn(3), table_of(2))
    return "as many paths as there are rows of features, 3. Received: 2"


def one_dimension() -> str:
    save_npy(Path("x.npy"), np.ones(3), table_of(3))
    return "expected numbers of shape (rows, features). Received: float64 of shape (3,)"


def complex_numbers() -> str:
    save_npy(Path("x.npy"), np.ones((3, 2), complex), table_of(3))
    return "Received: complex128"


def pickled() -> str:
    save_npy(Path("x.npy"), np.array([[{}]], object), table_of(1))
    return "cannot be read"


def cut_short() -> str:
    save_npy(Path("x.npy"), drawn(30), table_of(30))
    data = Path("x.npy").read_bytes()
    Path("x.npy").write_bytes(data[:-100])
    return "cannot be read"


def several_arrays() -> str:
    np.savez("x.npz", drawn(3))
    Path("x.npz").rename("x.npy")
    return "it holds several arrays"


def no_number_is_finite() -> str:
    save_npy(Path("x.npy"), np.full((3, 2), np.nan), table_of(3))
    return "None of 3 files could be used"


def keys_of_another_kind() -> str:
    write_hdf5(Path("x.h5"), features=drawn(2), keys=["a", "b"])
    return "Expected a key of 64 hexadecimal digits"


def no_dataset() -> str:
    write_hdf5(Path("x.h5"), paths=["a"])
    return "expected a dataset 'features', or one table of numbers. Received: 'paths'"


def a_link() -> str:
    with h5py.File("x.h5", "w") as file:
        file["features"] = h5py.ExternalLink("other.h5", "features")
    return "Received a link (ExternalLink)"


def twice_the_paths() -> str:
    write_hdf5(Path("x.h5"), features=drawn(1), paths=["a"], path=["a"])
    return "expected one dataset of paths"


def numbers_for_paths() -> str:
    write_hdf5(Path("x.h5"), features=drawn(1), paths=[1.5])
    return "expected texts or whole numbers, one a row, in 'paths'"


def an_empty_path() -> str:
    write_hdf5(Path("x.h5"), features=drawn(2), paths=["a", " "])
    return "row 2 has no path"


def another_split() -> str:
    save_npy(Path("x.npy"), drawn(1), ["path,label,split", "a,b,monday"])
    return "Received: 'monday'"


BAD: list[Callable[[], str]] = [
    bad_lengths, two_columns, no_column, no_vector_at_all, no_parquet, no_paths, fewer_paths,
    one_dimension, complex_numbers, pickled, cut_short, several_arrays, no_number_is_finite,
    keys_of_another_kind, no_dataset, a_link, twice_the_paths, numbers_for_paths, an_empty_path,
    another_split,
]  # fmt: skip


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_files_are_one_line_and_leave_nothing(
    folder: Path, command: Command, make: Callable[[], str]
) -> None:
    expected = make()
    (path,) = [item for item in folder.glob("x.*") if item.suffix not in (".csv", ".txt")]
    status, result = command("import-features", path)
    assert status == 2
    assert expected in result["error"]["message"]
    assert result["error"]["type"] != "TypeError"
    assert not Path("stores/x").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("x.txt",), "expected a name that ends in .h5, .hdf5, .npy, .parquet"),
        (("gone.npy",), "There is no file of features at 'gone.npy'"),
        (("x.npy", "--name", "a b"), "--name: expected"),
        (("x.npy", "--column", "a"), "--column: expected none for .npy"),
        (("x.npy", "--paths", "gone.csv"), "The list 'gone.csv' cannot be read"),
        (("x.h5", "--paths", "x.csv"), "--paths: expected none"),
        (("x.h5", "--column", "none"), "expected a dataset 'none'"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(
    folder: Path, command: Command, arguments: tuple[str, ...], expected: str
) -> None:
    save_npy(Path("x.npy"), drawn(3), table_of(3))
    write_hdf5(Path("x.h5"), features=drawn(3), paths=["a", "b", "c"])
    status, result = command("import-features", *arguments)
    assert status == 2 and expected in result["error"]["message"]


def test_parquet_needs_pyarrow(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_store(folder / "store", COUNTS)
    Path("x.parquet").write_bytes(b"PAR1")

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(parquet, "import_module", absent)
    for arguments in (("import-features", "x.parquet"), ("export-features", "store", "y.parquet")):
        status, result = command(*arguments)
        assert status == 2 and "embedding-pipeline[parquet]" in result["error"]["hint"]
    assert not Path("y.parquet").exists()


def test_a_full_disk_is_told_before(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_store(folder / "store", COUNTS)
    save_npy(Path("x.npy"), drawn(3), table_of(3))
    usage = room.shutil.disk_usage(folder)._replace(free=10)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: usage)
    for arguments in (("import-features", "x.npy"), ("export-features", "store", "y.h5")):
        status, result = command(*arguments)
        assert status == 2 and "of disk space" in result["error"]["message"]
    assert not Path("stores/x").exists() and not Path("y.h5").exists()


def test_python(folder: Path) -> None:
    save_npy(Path("x.npy"), drawn(30), table_of(30))
    made = pipeline.import_features("x.npy", quiet=True)
    assert "30 imported" in str(made)
    X, y, names = pipeline.load(str(made["store"]))
    np.testing.assert_array_equal(X, drawn(30))
    assert names == ["a", "b"] and list(y[:3]) == [0, 1, 0]
    written = pipeline.export_features(str(made["store"]), "y.parquet", quiet=True)
    assert written["images"] == 30 and "30 rows of 8 features" in str(written)


def test_what_is_not_at_an_address_is_not_named() -> None:
    result = {"imported": 1, "reused": 0, "skipped": 0, "images": 1, "dim": 2, "seconds": 1.0,
              "errors": [], "conflicting": 0, "name": "x", "digest": "d",
              "store": "s3://b/x", "manifest": "s3://b/x/manifest.csv"}  # fmt: skip
    assert "features.h5" not in "\n".join(map(str, import_features.text(result)))
    assert "x/features.h5" in str(import_features.text({**result, "store": "x"}))


def test_files_at_an_address_are_refused_as_such(folder: Path, command: Command) -> None:
    planted_store(folder / "store", COUNTS)
    table = ("--manifest", "s3://bucket/photos.csv")
    for arguments in (
        ("train-head", "--store", "store", *table),
        ("audit", "store", *table),
        ("suggest", "store", *table),
        ("export-features", "store", "out.npy", *table),
        ("import-features", "s3://bucket/clip.npy"),
        ("import-features", "clip.npy", "--paths", "s3://bucket/photos.csv"),
    ):
        status, result = command(*arguments)
        message = result["error"]["message"]
        assert status == 2 and "expected a file of this machine" in message, arguments
        assert "'s3://bucket/" in message
