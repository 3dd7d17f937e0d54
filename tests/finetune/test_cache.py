"""The boundary cache: activations computed once, kept on disk, checked."""

import dataclasses
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, Notes
from finetuning import SIZE, cache_of, photo_rows
from numpy.typing import NDArray

from pipeline.errors import (
    CorruptShardError,
    MissingFeaturesError,
    PipelineError,
    RunError,
    StoreError,
)
from pipeline.files.regular import sha256_file
from pipeline.finetune import cache as finetune_cache
from pipeline.finetune.cache import BoundaryCache
from pipeline.finetune.photos import Photos
from pipeline.images.manifest import Manifest
from pipeline.store import activations
from pipeline.store.scan_cache import ScanCache
from pipeline.system import machine
from pipeline.system.progress import Silence

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def filled(folder: Path, rows: Manifest, **changes: Any) -> BoundaryCache:
    cache = cache_of(folder, rows, **changes)
    with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
        cache.fill(photos, FakeEncoder(batch_size=4), Silence())
    return cache


def test_the_cache_gives_the_activations_of_each_row(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    cache = filled(tmp_path / "boundary", rows)
    cache.open()
    with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
        expected = FakeEncoder()(photos.batch(np.array([5, 0]), None)).reshape(2, 2, 2, 4)
    np.testing.assert_array_equal(cache.batch(np.array([5, 0]), 3), expected)
    cache.close()


def test_the_cache_reads_from_disk_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = photo_rows(tmp_path / "photos")
    monkeypatch.setattr(finetune_cache, "SHARD_BYTES", 128)  # two rows a shard
    cache = filled(tmp_path / "boundary", rows)
    assert len(list(cache.folder.glob("*.h5"))) == 3
    cache.open()
    in_memory = cache.batch(np.arange(6), None)
    cache.close()
    monkeypatch.setattr(machine, "free_memory", lambda: 0)
    cache.open()
    np.testing.assert_array_equal(cache.batch(np.arange(6), None), in_memory)
    cache.close()


@pytest.mark.slow
def test_more_shards_than_files_may_be_open_are_read(tmp_path: Path) -> None:
    """In memory and from disk; and a limit is the system's error, no damage to a shard."""
    code = """
import errno, os, resource, sys
from pathlib import Path
import numpy as np
from pipeline.store import activations
from pipeline.system import machine
from pipeline.finetune.cache import BoundaryCache
keys = np.array([f"{n:064x}".encode() for n in range(80)], "S64")
cache = BoundaryCache(Path(sys.argv[1]), {}, keys, shape=(2,), precision="float32")
for n in range(80):
    activations.write(cache.folder, cache._identity, keys[n : n + 1], np.full((1, 2), n, "<f4"))
path = activations.paths(cache.folder)[0]
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
for free in (machine.free_memory(), 0):
    machine.free_memory = lambda: free
    cache.open()
    assert bool(cache._loaded) == bool(free)
    assert cache.batch(np.arange(80), None)[:, 1].tolist() == list(range(80))
    if free:
        cache.close()
files = []
try:
    while True:
        files.append(open(os.devnull))
except OSError:
    pass
check = lambda: activations.checked_keys(path, is_checked=lambda path: False)
for call in (check, lambda: activations.read(path)):
    try:
        call()
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    else:
        raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "boundary")],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_only_shards_that_changed_since_their_last_good_check_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = photo_rows(tmp_path / "photos")
    monkeypatch.setattr(finetune_cache, "SHARD_BYTES", 128)  # two rows a shard
    filled(tmp_path / "boundary", rows)
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr(activations, "sha256_file", counted)

    def opened() -> int:
        hashed.clear()
        cache = cache_of(
            tmp_path / "boundary", rows, scan_cache=partial(ScanCache, tmp_path / "scan.sqlite")
        )
        assert not len(cache.missing())
        cache.open()
        cache.close()
        return len(hashed)

    assert [opened(), opened()] == [3, 0]
    path = sorted((tmp_path / "boundary").rglob("*.h5"))[1]
    data = path.read_bytes()
    path.write_bytes(data)
    assert opened() == 1 and hashed == [path]
    time.sleep(0.02)  # longer than the grain of the clock
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptShardError, match=path.stem):
        opened()
    with pytest.raises(CorruptShardError, match=path.stem):
        opened()
    (tmp_path / "scan.sqlite").unlink()
    path.write_bytes(data)
    assert [opened(), opened()] == [3, 0]


def test_what_was_just_written_is_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, scan = photo_rows(tmp_path / "photos"), partial(ScanCache, tmp_path / "scan.sqlite")
    cache = filled(tmp_path / "boundary", rows, scan_cache=scan)

    def refuse(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(activations, "sha256_file", refuse)
    for each in (cache, cache_of(tmp_path / "boundary", rows, scan_cache=scan)):
        each.open()
        assert each.batch(np.arange(6), None).any()


def test_shards_of_other_images_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = photo_rows(tmp_path / "photos")
    monkeypatch.setattr(finetune_cache, "SHARD_BYTES", 128)  # two rows a shard
    whole = filled(tmp_path / "boundary", rows)
    part = BoundaryCache(tmp_path / "boundary", {"weights": "w"}, rows.keys, shape=(2, 2, 4),
                         precision="float32", rows=np.array([3, 2]))  # fmt: skip
    read: list[Path] = []

    def counted(path: Path, lines: NDArray[np.intp] | None = None) -> NDArray[Any]:
        read.append(path)
        return original(path, lines)

    original = activations.read
    monkeypatch.setattr(activations, "read", counted)
    part.open()
    assert len(read) == 1
    whole.open()
    np.testing.assert_array_equal(
        part.batch(np.array([2, 3]), 0), whole.batch(np.array([2, 3]), None)
    )
    assert len(read) == 4


def test_activations_that_are_gone_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = photo_rows(tmp_path / "photos")
    cache = filled(tmp_path / "boundary", rows)
    with pytest.raises(MissingFeaturesError, match="2 of them are not there"):
        cache.batch(np.array([0, 3]), None)
    monkeypatch.setattr(machine, "free_memory", lambda: 0)
    cache.open()
    (path,) = cache.folder.glob("*.h5")
    path.unlink()
    with pytest.raises(StoreError, match=f"{path.stem}.*is gone"):
        cache.batch(np.array([0]), None)


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    part = dataclasses.replace(rows, keys=rows.keys[:4], paths=rows.paths[:4])
    filled(tmp_path / "boundary", part)
    assert cache_of(tmp_path / "boundary", rows).missing().tolist() == [4, 5]
    cache, encoder = cache_of(tmp_path / "boundary", rows), FakeEncoder(batch_size=4)
    with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
        assert cache.fill(photos, encoder, Silence()) == 2
    assert encoder.images == 2
    assert not len(cache.missing())


@pytest.mark.parametrize("change", [{"identity": {"weights": "v"}}, {"precision": "float16"},
                                    {"shape": (4, 2, 2)}])  # fmt: skip
def test_activations_of_another_kind_do_not_count(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = photo_rows(tmp_path / "photos")
    filled(tmp_path / "boundary", rows)
    assert len(cache_of(tmp_path / "boundary", rows, **change).missing()) == 6


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    cache = filled(tmp_path / "boundary", rows)
    (path,) = cache.folder.glob("*.h5")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptShardError, match=path.stem):
        cache.missing()


def test_float16_takes_half_the_disk_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    whole, half = filled(tmp_path / "w", rows), filled(tmp_path / "h", rows, precision="float16")
    assert whole.row_bytes == 2 * half.row_bytes
    for cache in (whole, half):
        cache.open()
    np.testing.assert_allclose(
        half.batch(np.arange(6), None), whole.batch(np.arange(6), None), rtol=1e-3, atol=1e-3
    )
    too_large = cache_of(tmp_path / "x", rows, precision="float16")
    with (
        Photos(rows, SIZE, "squash", augment_seed=None) as photos,
        pytest.raises(PipelineError, match="--cache-precision float32"),
    ):
        too_large.fill(photos, FakeEncoder(drift=1e6), Silence())
    assert not list(too_large.folder.glob("*.h5"))


def test_a_cache_without_room_is_refused_with_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, notes = cache_of(tmp_path / "boundary", photo_rows(tmp_path / "photos")), Notes()
    cache.require_room(6, notes)
    assert "6 images" in notes.lines[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=400))
    with pytest.raises(RunError, match="--cache-precision float16"):
        cache.require_room(6, notes)
