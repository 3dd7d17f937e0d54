"""The store: rows by key, the view, damage, compaction, and who may write."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pytest
from fakes import IDENTITY
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import (
    CorruptShardError,
    ManifestError,
    MissingFeaturesError,
    StaleFeaturesError,
    StoreError,
)
from pipeline.images.manifest import Manifest
from pipeline.store import features_file, shard_set
from pipeline.store import shard as shards
from pipeline.store.lock import lock
from pipeline.store.shard_set import MAX_SMALL_SHARDS
from pipeline.store.store import Store
from pipeline.store.writer import ShardWriter
from pipeline.verify.store import verify

DIM = 4


def keys_of(numbers: list[int]) -> np.ndarray:
    return np.array([f"{number:064x}".encode() for number in numbers], dtype="S64")


def features_of(numbers: list[int]) -> np.ndarray:
    return np.array([[number + 1, -number, 0.5, number**0.5] for number in numbers], dtype="f4")


def make(path: Path, *shards: list[int]) -> Store:
    store = Store.create(path, identity=IDENTITY, dim=DIM, root=path)
    for numbers in shards:
        store.plain.add_shard(keys_of(numbers), features_of(numbers))
    with store.scan_cache() as cache:
        store.reindex(cache)
    store.refresh_view()
    return store


@pytest.mark.slow
@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=10, unique=True), min_size=1,
             max_size=5),
    st.randoms(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_rows_come_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], random: object
) -> None:
    path = tmp_path_factory.mktemp("s") / "store"
    store = make(path, *shards)
    numbers = sorted({number for shard in shards for number in shard})
    asked = random.choices(numbers, k=2 * len(numbers))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(store.read(keys_of(asked)), features_of(asked))
    with h5py.File(path / "features.h5") as file:
        keys, features = file["keys"][:], file["features"][:]
    assert sorted(keys) == list(keys_of(numbers))
    np.testing.assert_array_equal(features, store.read(keys))


def test_view_survives_a_move_and_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "store", [1, 2], [3])
    shutil.move(tmp_path / "store", tmp_path / "moved")
    monkeypatch.chdir("/")
    with h5py.File(tmp_path / "moved/features.h5") as file:
        assert np.isfinite(file["features"][:]).all()


def test_deleted_shard_reads_as_nan_and_never_as_zeros(tmp_path: Path) -> None:
    store = make(tmp_path / "store", [1, 2, 3], [4])
    gone = store.index.shards[0]
    gone.path.unlink()
    with h5py.File(tmp_path / "store/features.h5") as file:
        keys, features = file["keys"][:], file["features"][:]
    lost = np.isin(keys, gone.keys)
    assert np.isnan(features[lost]).all() and np.isfinite(features[~lost]).all()
    with pytest.raises(CorruptShardError, match="gone"):
        store.read(keys_of([1]))
    with pytest.raises(MissingFeaturesError) as caught:
        Store.open(tmp_path / "store").read(keys_of([1, 4]))
    assert caught.value.keys == (keys_of([1])[0].decode(),)
    result = verify(tmp_path / "store")
    assert not result["ok"] and result["problems"][0]["shard"] == gone.name


@pytest.mark.slow
def test_low_limit_of_open_files_gives_nan_or_an_error(tmp_path: Path) -> None:
    make(tmp_path / "store", *[[number] for number in range(120)])
    code = """
import resource, sys, h5py, numpy as np
from pathlib import Path
from pipeline.store.store import Store
path = Path(sys.argv[1])
keys = Store.open(path).index.keys
truth = Store.open(path).read(keys)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
assert (Store.open(path).read(keys) == truth).all()
try:
    with h5py.File(path / "features.h5") as file:
        features = file["features"][:][np.argsort(file["keys"][:])]
except OSError:
    sys.exit()
wrong = ~(np.isnan(features).all(axis=1) | (features == truth).all(axis=1))
assert not wrong.any()
assert np.isnan(features).any()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "renamed"])
def test_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    store = make(tmp_path / "store", list(range(50)))
    path = store.index.shards[0].path
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-10] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "renamed":
        path = path.rename(path.with_name("0" * 64 + ".h5"))
    else:
        other = Store.create(
            tmp_path / "o", identity=replace(IDENTITY, pooling="max"), dim=DIM, root=tmp_path
        )
        shard = other.plain.add_shard(keys_of([99]), features_of([99]))
        path = Path(shutil.copy(shard.path, path.parent))
    with pytest.raises(CorruptShardError) as caught:
        Store.open(tmp_path / "store")
    assert caught.value.shard == path.stem and "extract" in caught.value.hint
    problem = next(item for item in verify(tmp_path / "store")["problems"]
                   if item["shard"] == path.stem)  # fmt: skip
    assert problem["problem"] and "Delete" in problem["fix"]


def test_byte_that_rots_under_old_times_is_found_by_verify(tmp_path: Path) -> None:
    store = make(tmp_path / "store", list(range(50)))
    path = store.index.shards[0].path
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not verify(tmp_path / "store")["ok"]


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    features = features_of([1, 2])
    features[1, 1] = np.nan
    store.plain.add_shard(keys_of([1, 2]), features)
    with store.scan_cache() as cache:
        store.reindex(cache)
    with pytest.raises(CorruptShardError, match="not finite"):
        store.read(keys_of([1, 2]))


def test_another_identity_names_field_and_both_values(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    with pytest.raises(StaleFeaturesError, match="image_size = 32") as caught:
        store.require_identity(replace(IDENTITY, image_size=64))
    assert "image_size = 64" in caught.value.message


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(StoreError, match=r"letters\.txt"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_a_store_that_a_kill_left_at_its_first_write_is_made_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()
    for name in (".lock", ".tmp-store.json-abcdefgh.json", ".tmp-5xk2_q1z.json"):
        (path / name).write_text("half")
    make(path, [1, 2])
    assert sorted(item.name for item in path.iterdir()) == [
        *(".lock", "features.h5", "scan.sqlite", "shards", "store.json")
    ]


def test_a_store_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        (tmp_path / "store/.tmp-abcdefgh.json").touch()  # as of a process that was killed
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "save_record", fail)
    with pytest.raises(OSError, match="No space"), lock(tmp_path / "store"):
        make(tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_a_replaced_store_is_removed_whole_or_not_at_all(tmp_path: Path) -> None:
    store = make(tmp_path / "store", [1, 2])
    (tmp_path / "store/scan.sqlite-journal").touch()
    (tmp_path / "store/.tmp-abcdefgh.json").touch()
    (tmp_path / "store/letters.txt").write_text("dear")
    with pytest.raises(StoreError, match=r"also 'letters\.txt'") as caught:
        store.remove_features()
    assert "Move that elsewhere" in caught.value.hint
    assert len(Store.open(tmp_path / "store")) == 2
    (tmp_path / "store/letters.txt").unlink()
    store.remove_features()
    make(tmp_path / "store", [3])
    assert len(Store.open(tmp_path / "store")) == 1


def test_a_manifest_stays_known_however_often_writing_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = make(tmp_path / "store", [1]), tmp_path / "mine/list.csv"

    def manifest(number: int) -> Manifest:
        return Manifest(tmp_path, [f"{number}.png"], ["a"], [""], keys_of([number]), ["ok"])

    store.save_manifest(path, manifest(0))
    with monkeypatch.context() as killed:
        killed.setattr("pipeline.store.storage.rename_durably", lambda *_: sys.exit())
        for number in (1, 2, 3):
            with pytest.raises(SystemExit):
                store.save_manifest(path, manifest(number))
            store = Store.open(tmp_path / "store")
            store.require_own_manifest(path)
    (tmp_path / "mine/.list.csv.next").touch()  # of an earlier release
    (tmp_path / "mine/.tmp-list.csv-abcdefgh.csv").touch()
    store.save_manifest(path, manifest(4))
    assert [item.name for item in path.parent.iterdir()] == ["list.csv"]
    path.write_text(path.read_text().replace("4.png", "5.png"))
    with pytest.raises(ManifestError, match="edited"):
        store.require_own_manifest(path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with (
        lock(tmp_path / "store"),
        pytest.raises(StoreError, match="writing"),
        lock(tmp_path / "store"),
    ):
        pass


def test_small_shards_are_merged_and_nothing_is_lost(tmp_path: Path) -> None:
    numbers = list(range(MAX_SMALL_SHARDS + 4))
    store = make(tmp_path / "store", *[[number] for number in numbers])
    with store.scan_cache() as cache:
        assert store.compact(cache) == 0
    assert len(store.index.shards) == 1
    reopened = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(reopened.read(keys_of(numbers)), features_of(numbers))


def test_merging_reads_each_shard_once_and_keeps_the_order_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [[number + 3, number, number + 6] for number in range(0, 90, 9)]
    store = make(tmp_path / "store", *parts)
    reads, read_into = [], shards.read_into
    monkeypatch.setattr(
        shards, "read_into", lambda part, *rest: (reads.append(part.name), read_into(part, *rest))
    )
    monkeypatch.setattr(shard_set, "SHARD_ROWS", 9)
    keys_of_old = {one.name: one.keys.tolist() for one in store.index.shards}
    with store.scan_cache() as cache:
        store.compact(cache, everything=True)
    assert sorted(reads) == sorted(keys_of_old)
    assert sorted(map(len, store.index.shards)) == [3, 9, 9, 9]
    merged = [one.keys.tolist() for one in store.index.shards]
    written = [keys_of_old[name] for name in reads]
    assert sorted(merged) == sorted([*chain(*written[at : at + 3])] for at in range(0, 10, 3))
    numbers = [*chain(*parts)]
    np.testing.assert_array_equal(store.read(keys_of(numbers)), features_of(numbers))


def test_nearly_full_shards_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_set, "SHARD_ROWS", 4)
    monkeypatch.setattr(shard_set, "SMALL_ROWS", 2)
    parts = [[3 * number, 3 * number + 1, 3 * number + 2] for number in range(MAX_SMALL_SHARDS + 4)]
    store = make(tmp_path / "store", *parts)
    before = sorted(shard.name for shard in store.index.shards)
    with store.scan_cache() as cache:
        store.compact(cache)
    assert sorted(shard.name for shard in store.index.shards) == before


def test_killed_while_merging_leaves_a_store_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "store", [1, 2], [3], [4])
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), store.scan_cache() as cache:
        store.compact(cache, everything=True)
    monkeypatch.undo()
    reopened = Store.open(tmp_path / "store")
    assert len(reopened.index.shards) == 4 and len(reopened) == 4
    np.testing.assert_array_equal(reopened.read(keys_of([4, 1])), features_of([4, 1]))


def test_compacting_drops_what_is_not_kept(tmp_path: Path) -> None:
    store = make(tmp_path / "store", [1, 2, 3], [4])
    with store.scan_cache() as cache:
        assert store.compact(cache, keep=keys_of([2, 4]), everything=True) == 2
    assert list(store.index.keys) == list(keys_of([2, 4]))
    assert verify(tmp_path / "store")["rows"] == 2


@pytest.mark.parametrize(("rows", "seconds", "shards"), [(4, 1e9, 3), (100, 0.0, 5), (100, 1e9, 1)])
def test_writer_fills_shards_by_rows_and_by_time(
    tmp_path: Path, rows: int, seconds: float, shards: int
) -> None:
    store = make(tmp_path / "store")
    written = []
    with ShardWriter(store.plain, rows=rows, seconds=seconds, on_shard=written.append) as writer:
        for first in range(0, 10, 2):
            numbers = [first, first + 1]
            writer.add([key.decode() for key in keys_of(numbers)], features_of(numbers))
    assert len(written) == shards
    np.testing.assert_array_equal(
        Store.open(tmp_path / "store").read(keys_of(list(range(10)))), features_of(list(range(10)))
    )


def test_blocks_that_do_not_fit_are_split_so_that_shards_are_full(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    written: list[shards.Shard] = []
    with ShardWriter(store.plain, rows=4, seconds=1e9, on_shard=written.append) as writer:
        for numbers in ([0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [], [13]):
            keys = [f"{number:064x}" for number in numbers]
            writer.add(keys, features_of(numbers).reshape(-1, DIM))
    assert [len(shard) for shard in written] == [4, 4, 4, 2]
    assert [int(key, 16) for shard in written for key in shard.keys] == list(range(14))
    numbers = list(range(14))
    np.testing.assert_array_equal(
        Store.open(tmp_path / "store").read(keys_of(numbers)), features_of(numbers)
    )


def test_writer_keeps_what_it_has_when_an_error_comes(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    with pytest.raises(RuntimeError), ShardWriter(store.plain, on_shard=lambda _: None) as writer:
        writer.add([keys_of([5])[0].decode()], features_of([5]))
        raise RuntimeError
    assert len(Store.open(tmp_path / "store")) == 1


@pytest.mark.slow
def test_file_size_limit_leaves_no_half_shard(tmp_path: Path) -> None:
    make(tmp_path / "store", [1])
    code = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from pipeline.store.store import Store
store = Store.open(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
keys = np.array([f"{n:064x}".encode() for n in range(5000)], dtype="S64")
try:
    store.plain.add_shard(keys, np.ones((5000, 4), "f4"))
except OSError:
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert len(list((tmp_path / "store/shards").iterdir())) == 1
    assert verify(tmp_path / "store")["ok"]


def test_scattered_rows_are_read_without_what_lies_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows read from the file, counted: pieces with narrow gaps, nothing across wide ones."""
    store = make(tmp_path / "store", list(range(2000)))
    wanted = [*range(10), *range(40, 50), *range(1500, 1510)]
    read = []
    original = shards._read_piece

    def counted(dataset: object, rows: np.ndarray, *more: object) -> object:
        read.append(int(rows[-1]) - int(rows[0]) + 1)
        return original(dataset, rows, *more)

    monkeypatch.setattr(shards, "_read_piece", counted)
    features = store.read(keys_of(wanted))
    np.testing.assert_array_equal(features, features_of(wanted))
    assert sum(read) <= 70


@pytest.mark.slow
def test_a_view_of_many_shards_opens_none_of_them(tmp_path: Path) -> None:
    store = make(tmp_path / "store", *[[number] for number in range(200)])
    kept = {shard.name: shard for shard in store.index.shards}
    with h5py.File(store.view_path) as file:
        features, keys = file["features"], file["keys"][:]
        assert len(features.virtual_sources()) == len(kept) == 200
    expected = store.read(keys[:1])
    for number, shard in enumerate(store.index.shards):
        if number:
            shard.path.unlink()
    with h5py.File(store.view_path) as file:
        assert file["features"].shape == (200, store.dim)
        np.testing.assert_array_equal(file["features"][:1], expected)
        assert np.isnan(file["features"][1:]).all()


def test_more_shards_than_files_that_can_be_opened_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features_file.resource, "getrlimit", lambda _: (1024, 1024))
    assert features_file.notes_of(1000) == []
    assert "reads from 5,000 shards" in features_file.notes_of(5000)[0]
    unlimited = features_file.resource.RLIM_INFINITY
    monkeypatch.setattr(features_file.resource, "getrlimit", lambda _: (unlimited, unlimited))
    assert features_file.notes_of(5000) == []
