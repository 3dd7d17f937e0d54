"""Fine-tuning: surgery, batches, the boundary cache, training that resumes, and what it records."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import FakeEncoder, Notes, edit_record, on_jax, planted_store, write_classes
from numpy.typing import NDArray
from PIL import Image

from pipeline import heads
from pipeline.backbones import frozen as backbone
from pipeline.backbones import weights
from pipeline.backbones.variables import variables_of
from pipeline.cli.commands import find
from pipeline.cli.main import main
from pipeline.config.options import CommonOptions, FinetuneOptions
from pipeline.errors import (
    ConfigError,
    CorruptShardError,
    HeadNotTrainableError,
    ManifestError,
    MissingFeaturesError,
    PipelineError,
    RunError,
    StaleFeaturesError,
    StoreError,
    WeightsUnavailableError,
)
from pipeline.files.atomic import exclusive, sha256_file
from pipeline.finetune import cache as finetune_cache
from pipeline.finetune import stage as finetune_command
from pipeline.finetune import steps
from pipeline.finetune import surgery as surgery_of
from pipeline.finetune.batches import class_weights, order_of, parts_of, read_ahead, unique_rows
from pipeline.finetune.cache import BoundaryCache
from pipeline.finetune.checks import check_start
from pipeline.finetune.cut import cut_at, find_cut
from pipeline.finetune.origin import Origin, open_origin
from pipeline.finetune.photos import Photos, augmented
from pipeline.finetune.stage import finetune
from pipeline.finetune.training import FineTuning, Recipe, Rows
from pipeline.heads import layers as head_layers
from pipeline.heads.calibration import probabilities
from pipeline.images.manifest import Manifest
from pipeline.runs import checkpoint
from pipeline.runs.run import Run
from pipeline.store import activations
from pipeline.store.scan_cache import ScanCache
from pipeline.store.store import Store
from pipeline.system import machine
from pipeline.system.keras_setup import import_keras
from pipeline.system.progress import Silence

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 32
# Of a gradient on cached activations, of the largest one.
GRADIENT_TOLERANCE = 1e-5
ROOT = Path(__file__).parent.parent
Command = Callable[..., tuple[int, dict[str, Any]]]


def run_finetune(source: Path, *, force: bool = False, notes: Notes | None = None, **options: Any
                 ) -> dict[str, Any]:  # fmt: skip
    return finetune(
        FinetuneOptions(source=str(source), **options), CommonOptions(force=force), notes or Notes()
    )


def photo_rows(folder: Path, count: int = 6) -> Manifest:
    """Write images and return their manifest, with keys."""
    write_classes(folder, {"a": count // 2, "b": count - count // 2})
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    keys = [hashlib.sha256((folder / path).read_bytes()).hexdigest().encode() for path in paths]
    labels = [path.partition("/")[0] for path in paths]
    return Manifest(folder, paths, labels, ["train"] * count, np.array(keys, "S64"), ["ok"] * count)


# Rates, order, augmentation, weights


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_along_a_cosine() -> None:
    recipe = Recipe(epochs=20, batch_size=8, learning_rate=1.0, seed=0, patience=5)
    rates = [recipe.rate(step, 10) for step in range(200)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert np.all(np.diff(rates[10:]) < 0) and rates[105] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3


def test_the_warm_up_of_a_short_training_is_a_tenth_of_it() -> None:
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=1.0, seed=0, patience=5)
    assert [recipe.rate(step, 10) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert Recipe(epochs=1, batch_size=8, learning_rate=1.0, seed=0, patience=1).rate(0, 1) == 1.0


def test_the_tutorial_has_one_rate() -> None:
    recipe = Recipe(2, 32, 1e-3, 0, 5, is_tutorial=True)
    assert {recipe.rate(step, 7) for step in range(14)} == {1e-3}


def test_order_is_a_function_of_seed_and_epoch() -> None:
    rows = np.arange(5, 45)
    first = order_of(0, 3, rows)
    np.testing.assert_array_equal(first, order_of(0, 3, rows))
    assert sorted(first) == rows.tolist()
    assert not np.array_equal(first, order_of(0, 4, rows))
    assert not np.array_equal(first, order_of(1, 3, rows))


def test_parts_cover_every_row_once() -> None:
    parts = parts_of(np.arange(10), 4)
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(10))


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    assert list(read_ahead(lambda part: part * 2, range(4))) == [(0, 0), (1, 2), (2, 4), (3, 6)]

    def fail(part: int) -> int:
        raise StaleFeaturesError("gone")

    with pytest.raises(StaleFeaturesError, match="gone"):
        list(read_ahead(fail, [1]))


def test_an_augmented_image_is_a_function_of_its_generator() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8)
    made = [augmented(pixels, 32, np.random.default_rng([7, 3, epoch, 0])) for epoch in (0, 0, 1)]
    assert made[0].shape == (32, 32, 3) and made[0].dtype == np.uint8
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_augmentation_moves_mirrors_and_colours() -> None:
    pixels = np.zeros((37, 37, 3), np.uint8)
    pixels[:, :18] = (200, 120, 40)
    made = [augmented(pixels, 32, np.random.default_rng([0, epoch])) for epoch in range(40)]
    bright_left = [int(item[:, :8].sum()) > int(item[:, -8:].sum()) for item in made]
    assert 8 < sum(bright_left) < 32  # mirrored about half of the time
    assert len({item.max() for item in made}) > 10


def test_balanced_weights_give_every_class_the_same_sum() -> None:
    y = np.array([0, 0, 0, 2, 2, 5])
    found = class_weights(y, "balanced")
    sums = [found[y == label].sum() for label in (0, 2, 5)]
    assert sums == pytest.approx([2.0, 2.0, 2.0]) and found.dtype == np.float32
    np.testing.assert_array_equal(class_weights(y, None), np.ones(6))


def test_rows_of_one_key_count_once() -> None:
    assert unique_rows([b"b", b"a", b"b", b"c"]).tolist() == [0, 1, 3]


# Images


def test_photos_are_those_of_the_decoder_whatever_their_company(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    with Photos(rows, SIZE, augment_seed=None) as photos:
        together = photos.batch(np.array([4, 1]), 0)
        np.testing.assert_array_equal(together[1], photos.batch(np.array([1]), None)[0])
    assert together.shape == (2, SIZE, SIZE, 3) and together.dtype == np.uint8


def test_augmentation_follows_seed_epoch_and_row(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    with Photos(rows, SIZE, augment_seed=1) as photos, Photos(rows, SIZE, augment_seed=1) as again:
        first = photos.batch(np.array([2, 3]), 5)
        np.testing.assert_array_equal(again.batch(np.array([3]), 5)[0], first[1])
        assert not np.array_equal(photos.batch(np.array([2]), 6)[0], first[0])
        plain = Photos(rows, SIZE, augment_seed=None)
        np.testing.assert_array_equal(
            photos.batch(np.array([2]), None), plain.batch(np.array([2]), None)
        )


def test_images_that_do_not_fit_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = photo_rows(tmp_path)
    kept = Photos(rows, SIZE, augment_seed=None)
    monkeypatch.setattr(machine, "free_memory", lambda: 0)
    read = Photos(rows, SIZE, augment_seed=None)
    for photos in (kept, read):
        photos.batch(np.arange(6), None)
    shutil.rmtree(tmp_path / "a")
    kept.batch(np.arange(6), None)
    with pytest.raises(StaleFeaturesError, match=r"a/000\.png"):
        read.batch(np.arange(6), None)


def test_images_that_fill_a_cache_are_not_kept(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    with Photos(rows, SIZE, augment_seed=None) as photos:
        cache_of(tmp_path / "boundary", rows).fill(photos, FakeEncoder(batch_size=4), Silence())
        shutil.rmtree(tmp_path / "photos")
        with pytest.raises(StaleFeaturesError, match=r"a/000\.png"):
            photos.batch(np.arange(6), None)


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    (tmp_path / "b/001.png").unlink()
    photos = Photos(rows, SIZE, augment_seed=None)
    with pytest.raises(ManifestError, match=r"1 of 6 are gone: 'b/001\.png'"):
        photos.require()
    with pytest.raises(StaleFeaturesError, match=r"b/001\.png"):
        photos.batch(np.array([4]), None)


def test_an_image_that_changed_is_named(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    shutil.copy(tmp_path / "a/000.png", tmp_path / "b/000.png")
    with (
        Photos(rows, SIZE, augment_seed=None) as photos,
        pytest.raises(StaleFeaturesError, match=r"b/000\.png.*its content changed"),
    ):
        photos.batch(np.array([3]), None)


# The boundary cache


def cache_of(folder: Path, rows: Manifest, **changes: Any) -> BoundaryCache:
    options: dict[str, Any] = {"shape": (2, 2, 4), "precision": "float32", **changes}
    identity = options.pop("identity", {"weights": "w"})
    return BoundaryCache(folder, identity, rows.keys, **options)


def filled(folder: Path, rows: Manifest, **changes: Any) -> BoundaryCache:
    cache = cache_of(folder, rows, **changes)
    with Photos(rows, SIZE, augment_seed=None) as photos:
        cache.fill(photos, FakeEncoder(batch_size=4), Silence())
    return cache


def test_the_cache_gives_the_activations_of_each_row(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    cache = filled(tmp_path / "boundary", rows)
    cache.open()
    with Photos(rows, SIZE, augment_seed=None) as photos:
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
    with Photos(rows, SIZE, augment_seed=None) as photos:
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
        Photos(rows, SIZE, augment_seed=None) as photos,
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


# What can be refused without a network


@pytest.fixture
def planted(tmp_path: Path, command: Command) -> Callable[..., Path]:
    """Train heads on planted features; there are no images and no weights."""
    planted_store(tmp_path / "store", {"a": 40, "b": 40})

    def train(*arguments: object) -> Path:
        name = f"run{len(list(tmp_path.glob('run*')))}"
        status, _ = command(
            "train-head", "--store", tmp_path / "store", "--run", tmp_path / name, *arguments
        )
        assert status == 0
        return tmp_path / name

    return train


def test_the_preset_refuses_what_it_fixes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--epochs, --augment"):
        run_finetune(tmp_path, preset="seed", epochs=3, augment=True)


def test_a_run_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no run"):
        run_finetune(tmp_path / "nowhere")


def test_a_head_that_is_no_network_is_refused(planted: Callable[..., Path]) -> None:
    run = planted("--head", "knn")
    with pytest.raises(HeadNotTrainableError, match="dense, linear, logreg"):
        run_finetune(run)
    with pytest.raises(HeadNotTrainableError, match="logreg"):
        run_finetune(run, head="knn")
    with pytest.raises(ConfigError, match="Did you mean 'knn'"):
        run_finetune(run, head="kn")
    assert not run.with_name(f"{run.name}-finetune").exists()


def test_the_best_network_is_the_default(planted: Callable[..., Path]) -> None:
    run = planted("--head", "knn", "--head", "logreg", "--head", "linear")
    records = Run.open(run).record["heads"]
    origin = open_origin(FinetuneOptions(source=str(run)))
    other = {"logreg": "linear", "linear": "logreg"}[origin.name]
    best, second = records[origin.name]["val"], records[other]["val"]
    assert (best["accuracy"], -best["log_loss"]) >= (second["accuracy"], -second["log_loss"])


def test_a_run_whose_val_was_trained_on_is_refused(planted: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="without --refit"):
        run_finetune(planted("--head", "logreg", "--refit"))


def test_a_store_that_is_gone_or_another_is_named(planted: Callable[..., Path]) -> None:
    run = planted("--head", "logreg")
    store = run.parent / "store"
    edit_record(store / "store.json", lambda it: it["identity"].update(precision="bfloat16"))
    with pytest.raises(StoreError, match="precision = 'bfloat16'"):
        run_finetune(run)
    shutil.rmtree(store)
    with pytest.raises(RunError, match=str(store)):
        run_finetune(run)


# The start: what is about to be trained against the head on stored features


@pytest.fixture
def unsure(tmp_path: Path, command: Command) -> Origin:
    """A run of twenty classes whose probabilities are all about a twentieth."""
    planted_store(tmp_path / "store", {f"class{number:02}": 15 for number in range(20)})
    arguments = ("--store", tmp_path / "store", "--run", tmp_path / "run", "--head", "logreg")
    assert command("train-head", *arguments)[0] == 0
    origin = open_origin(FinetuneOptions(source=str(tmp_path / "run")))
    head: Any = origin.head
    head.coef_, head.intercept_, head.temperature_ = head.coef_ / 1e3, head.intercept_ / 1e3, 1.0
    return origin


def started(origin: Origin, logits: NDArray[np.floating], **options: Any) -> float:
    training: Any = SimpleNamespace(logits=lambda rows: logits)
    return check_start(FinetuneOptions(**options), origin, training)


def val_scores(origin: Origin) -> NDArray[np.floating]:
    keys = origin.examples.keys[origin.rows("val")]
    scores: NDArray[np.floating] = origin.head.scores(origin.store.read(keys))
    return scores


def test_it_starts_where_probabilities_and_answers_are_the_same(unsure: Origin) -> None:
    scores = val_scores(unsure)
    noise = np.random.default_rng(0).normal(size=scores.shape)
    assert started(unsure, scores) == 0
    assert 0 < started(unsure, scores + 1e-7 * noise) < 1e-7


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_answers_of_unsure_classes_are_refused(unsure: Origin, precision: str) -> None:
    permuted = np.roll(val_scores(unsure), 1, axis=1)
    differences = probabilities([permuted], 1.0) - probabilities([val_scores(unsure)], 1.0)
    assert np.abs(differences).max() < 1e-3  # which by itself would pass
    with pytest.raises(StaleFeaturesError, match="another answer for"):
        started(unsure, permuted, precision=precision)


def test_a_row_with_another_answer_is_allowed_in_16_bits_alone(unsure: Origin) -> None:
    logits = val_scores(unsure)
    logits[3] = logits[3, ::-1]
    path = unsure.examples.paths[unsure.rows("val")[3]]
    with pytest.raises(StaleFeaturesError, match=rf"another answer for 1 of .*{path}"):
        started(unsure, logits)
    for options in ({"precision": "bfloat16"}, {"cache_precision": "float16"}):
        assert started(unsure, logits, **options) < 1e-3


def test_ties_may_be_broken_in_another_way(unsure: Origin) -> None:
    head: Any = unsure.head
    head.coef_, head.intercept_ = np.zeros_like(head.coef_), np.zeros_like(head.intercept_)
    noise = np.random.default_rng(0).normal(size=val_scores(unsure).shape)
    assert started(unsure, 1e-6 * noise) < 1e-6


def test_probabilities_are_compared_at_the_temperature_of_the_head(unsure: Origin) -> None:
    head: Any = unsure.head
    scores = val_scores(unsure)
    answers = np.eye(20)[scores.argmax(axis=1)]
    raised = scores + 1e-4 * answers  # the same answers, by less than 1e-5 more probable
    assert started(unsure, raised) < 1e-5
    head.temperature_ = 1e-3
    with pytest.raises(StaleFeaturesError, match="probabilities that differ by"):
        started(unsure, raised)


# A small network of Keras, for what any network shows


def small_network(keras: Any) -> Any:
    """Two single-tensor cuts, a block with a shortcut, and a BatchNorm in each part."""
    layers = keras.layers
    pixels = keras.Input((8, 8, 3), name="pixels")
    low = layers.Conv2D(6, 3, padding="same", name="conv2_block1_conv")(pixels)
    low = layers.BatchNormalization(name="conv2_block1_bn")(low)
    low = layers.Activation("relu", name="conv2_block1_out")(low)
    high = layers.Conv2D(6, 3, padding="same", name="conv3_block1_1_conv")(low)
    high = layers.BatchNormalization(name="conv3_block1_1_bn")(high)
    high = layers.Conv2D(6, 1, name="conv3_block1_2_conv")(high)
    high = layers.Add(name="conv3_block1_add")([low, high])
    high = layers.Activation("relu", name="conv3_block1_out")(high)
    return keras.Model(pixels, layers.GlobalAveragePooling2D(name="pool")(high), name="small")


def small_backbone(seed: int = 0) -> backbone.FrozenBackbone:
    keras = import_keras()
    network = small_network(keras)
    drawn = weights.draw(variables_of(network), seed=seed)
    backbone.assign(network, drawn)
    network.trainable = False
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    pixels = keras.ops.divide(keras.ops.cast(images, "float32"), 255.0)
    model = keras.Model(images, network(pixels, training=False))
    return backbone.FrozenBackbone(lambda: model, name="small", image_size=8, pooling="avg", dim=6,
                                   weights_sha256=weights.digest(drawn))  # fmt: skip


def small_batch(count: int = 12) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return images, (np.arange(count) % 3).astype(np.int32)


def operated(unfreeze_from: str) -> surgery_of.Surgery:
    loaded = small_backbone()
    head = surgery_of.seed_head(3, 6, seed=1)
    return surgery_of.operate(loaded, head, find_cut(loaded.network, unfreeze_from))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "below"),
    [
        ("conv3", "conv3_block1_1_conv", "conv2_block1_out"),
        ("conv3_block1", "conv3_block1_1_conv", "conv2_block1_out"),
        ("conv3_block1_2_conv", "conv3_block1_2_conv", ""),  # inside the block, beside its shortcut
        ("conv2", "conv2_block1_conv", ""),  # nothing is frozen
        ("all", "pixels", ""),
        ("pool", "pool", "conv3_block1_out"),
    ],
)
def test_a_part_is_found_by_name(name: str, layer: str, below: str) -> None:
    cut = find_cut(small_backbone().network, name)
    assert (cut.layer, cut.below) == (layer, below)
    assert (cut.boundary is not None) == bool(below)


def test_a_layer_that_is_used_twice_is_cut_with_all_its_uses() -> None:
    keras = import_keras()
    layers = keras.layers
    pixels = keras.Input((8, 8, 3), name="pixels")
    low = layers.Conv2D(4, 1, name="low")(pixels)
    frozen, trained = (layers.Conv2D(4, 1, name=name) for name in ("frozen", "trained"))
    once = frozen(low)
    again = trained(trained(once))
    beside = layers.Add(name="beside")([again, trained(low)])
    below = trained(frozen(again))
    for output, expected in ((again, once), (beside, None), (below, None)):
        cut = find_cut(keras.Model(pixels, output), "trained")
        assert cut.boundary is expected
    top = keras.Model(once, again)
    kernel = np.asarray(trained.kernel)[0, 0]
    made = np.asarray(top(np.ones((1, 8, 8, 4), np.float32)))[0, 0, 0]
    np.testing.assert_allclose(made, np.ones(4) @ kernel @ kernel, atol=1e-5)


def test_the_preset_needs_more_layers_than_it_freezes() -> None:
    network = small_backbone().network
    with pytest.raises(ConfigError, match=r"more than 15 layers.* Received: one of 10\."):
        cut_at(network, surgery_of.SEED_FROZEN)


@pytest.mark.slow
def test_an_unknown_part_lists_the_stages() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'conv3'.*Stages: conv2, conv3; or all"):
        find_cut(small_backbone().network, "conv6")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv3", "conv3_block1_2_conv", "all"])
def test_exactly_what_is_above_the_cut_is_trained(name: str) -> None:
    surgery = operated(name)
    fixed = surgery.fixed(trains_statistics=False)
    before, changed = surgery_of.digest_of(fixed), surgery_of.values_of(surgery.state)
    images, classes = small_batch()
    variables = surgery.whole.trainable_variables
    optimizer = steps.adamw(variables, [1.0] * len(variables))
    step = steps.compile_step(surgery.whole, surgery.head, optimizer, training=False)
    optimizer.learning_rate.assign(1e-2)
    for _ in range(3):
        step(images, classes, np.ones(12, np.float32))
    assert surgery_of.digest_of(fixed) == before
    trained = surgery.whole.trainable_variables
    for variable, old, new in zip(
        surgery.state, changed, surgery_of.values_of(surgery.state), strict=True
    ):
        is_trained = any(variable is item for item in trained)
        assert np.array_equal(old, new) != is_trained, variable.path
    names = {variable.path.split("/")[-2] for variable in trained}
    assert ("conv2_block1_conv" in names) == (name == "all")
    assert {"hidden_1", "logits"} <= names


@pytest.mark.slow
def test_updates_on_the_boundary_equal_those_on_images() -> None:
    surgery = operated("conv3")
    assert surgery.bottom is not None
    images, classes = small_batch()
    boundary = np.asarray(surgery.bottom.model(images)).reshape(-1, *surgery.boundary_shape)
    start, gradients = surgery_of.values_of(surgery.state), []
    row_weights = np.linspace(0.5, 2, 12).astype(np.float32)
    for model, inputs in ((surgery.whole, images), (surgery.top, boundary)):
        surgery_of.assign(surgery.state, start)
        # Steepest descent at a rate of one changes weights by their gradients.
        optimizer = import_keras().optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
        step = steps.compile_step(model, surgery.head, optimizer, training=False)
        step(inputs, classes, row_weights)
        made = surgery_of.values_of(surgery.state)
        gradients.append([old - new for old, new in zip(start, made, strict=True)])
    largest = max(np.abs(array).max() for array in gradients[0])
    assert largest > 1e-3
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=GRADIENT_TOLERANCE * largest, rtol=0)


@pytest.mark.slow
def test_a_step_equals_that_of_keras() -> None:
    keras = import_keras()
    surgery = operated("all")
    images, classes = small_batch()
    row_weights = np.linspace(0.5, 2, 12).astype(np.float32)
    start = surgery_of.values_of(surgery.state)
    optimizer = steps.adam(surgery.whole.trainable_variables)
    optimizer.learning_rate.assign(1e-3)
    step = steps.compile_step(surgery.whole, surgery.head, optimizer, training=True)
    ours = [float(step(images, classes, row_weights)) for _ in range(3)]
    made = surgery_of.values_of(surgery.state)
    surgery_of.assign(surgery.state, start)
    plain = keras.Model(surgery.whole.input, surgery.whole.outputs[1])
    plain.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    theirs = []
    for _ in range(3):
        plain.reset_metrics()  # else Keras reports a mean over calls
        theirs.append(float(plain.train_on_batch(images, classes, sample_weight=row_weights)))
    assert ours == pytest.approx(theirs, rel=1e-3)
    for one, other in zip(made, surgery_of.values_of(surgery.state), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_tutorial_moves_statistics_above_the_cut_only() -> None:
    surgery = operated("conv3")
    fixed = surgery.fixed(trains_statistics=True)
    before = surgery_of.digest_of(fixed)
    moving = [item for item in surgery.state if "moving" in item.path]
    statistics = surgery_of.digest_of(moving)
    images, classes = small_batch()
    optimizer = steps.adam(surgery.whole.trainable_variables)
    step = steps.compile_step(surgery.whole, surgery.head, optimizer, training=True)
    step(images, classes, np.ones(12, np.float32))
    assert surgery_of.digest_of(fixed) == before
    assert surgery_of.digest_of(moving) != statistics


@pytest.mark.slow
def test_a_precision_holds_for_what_is_compiled_after_it() -> None:
    surgery, images = operated("conv3"), small_batch()[0]
    found = []
    for precision in ("float32", "bfloat16", "float32"):
        surgery_of.set_precision(surgery, precision)
        found.append(steps.compile_forward(surgery.whole)(images)[0])
    largest = np.abs(found[0]).max()
    assert 1e-4 * largest < np.abs(found[1] - found[0]).max() < 5e-2 * largest
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.slow
def test_float32_is_multiplied_as_float32_on_jax() -> None:
    keras = import_keras()
    if keras.backend.backend() != "jax":
        pytest.skip("what JAX calls float32 is a setting of JAX")
    import jax

    found: list[Any] = []

    class Probe(keras.layers.Layer):  # type: ignore[misc]
        """Tells in which arithmetic it is compiled."""

        def call(self, inputs: Any) -> Any:
            found.append(jax.config.jax_default_matmul_precision)
            return inputs

    inputs = keras.Input((6,))
    head = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    features = Probe()(inputs)
    model = keras.Model(inputs, [features, head(features)])
    optimizer = steps.adam(model.trainable_variables)
    rows, classes = np.ones((4, 6), np.float32), np.zeros(4, np.int32)
    found.clear()
    with jax.default_matmul_precision("tensorfloat32"):
        steps.compile_forward(model)(rows)
        step = steps.compile_step(model, head, optimizer, training=False)
        step(rows, classes, np.ones(4, np.float32))
    assert len(found) == 2 and set(found) == {"highest"}


# Training on the small network


class Arrays:
    """Inputs in memory, as a source; may fail in an epoch, or give what is no number."""

    def __init__(self, inputs: NDArray[Any], *, fails_in: int = -1) -> None:
        self.inputs, self.fails_in = inputs, fails_in

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> NDArray[Any]:
        if epoch == self.fails_in:
            raise KeyboardInterrupt
        return self.inputs[rows]


def small_training(path: Path, source: Any, **changes: Any) -> tuple[FineTuning, Any]:
    surgery = operated("conv3")
    options = {"epochs": 4, "batch_size": 5, "learning_rate": 1e-2, "seed": 3, "patience": 9}
    recipe = Recipe(**{**options, **changes})
    y = (np.arange(18) % 3).astype(np.int64)
    rows = Rows(source, y, np.arange(3), np.arange(12), np.arange(12, 18), np.ones(12, np.float32))
    training = FineTuning(
        surgery.whole, surgery, recipe, rows, checkpoint=path, identity={"seed": 3}
    )
    return training, surgery


@pytest.mark.slow
@pytest.mark.parametrize("is_tutorial", [False, True])
def test_an_interrupted_training_ends_in_the_same_weights(
    tmp_path: Path, is_tutorial: bool
) -> None:
    images = small_batch(18)[0]
    whole, surgery = small_training(tmp_path / "whole.h5", Arrays(images), is_tutorial=is_tutorial)
    whole.run(Notes())
    expected = surgery_of.digest_of(surgery.state)
    for moment in (1, 3):
        source = Arrays(images, fails_in=moment)
        first, _ = small_training(tmp_path / f"{moment}.h5", source, is_tutorial=is_tutorial)
        with pytest.raises(KeyboardInterrupt):
            first.run(Notes())
        again, other = small_training(
            tmp_path / f"{moment}.h5", Arrays(images), is_tutorial=is_tutorial
        )
        assert again.resume() and again.progress.epoch == moment
        again.estimate()
        again.run(Notes())
        assert surgery_of.digest_of(other.state) == expected
        assert again.progress.best_loss == whole.progress.best_loss
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.slow
def test_an_estimate_leaves_no_trace(tmp_path: Path) -> None:
    training, surgery = small_training(tmp_path / "c.h5", Arrays(small_batch(18)[0]))
    variables = [*surgery.state, *training._optimizer.variables]
    before = surgery_of.digest_of(variables)
    seconds = training.estimate()
    assert seconds is not None and seconds > 0
    assert surgery_of.digest_of(variables) == before
    assert not (tmp_path / "c.h5").exists()


class SlowArrays(Arrays):
    """Inputs that take a while to load."""

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> NDArray[Any]:
        time.sleep(0.2)
        return super().batch(rows, epoch)


@pytest.mark.slow
def test_an_estimate_counts_val_and_loads_while_it_trains(tmp_path: Path) -> None:
    images = small_batch(18)[0]
    training, _ = small_training(tmp_path / "c.h5", SlowArrays(images), batch_size=4)
    inner = training._step

    def step(*batch: Any) -> Any:
        time.sleep(0.2)
        return inner(*batch)

    training._step = step
    seconds = training.estimate()
    # Three steps, each of which hides a loading, and six rows of val at 0.2 s for four.
    assert seconds is not None and 0.85 < seconds < 1.2  # in series: 1.5


@pytest.mark.slow
def test_nothing_is_estimated_where_nothing_is_left(tmp_path: Path) -> None:
    source = Arrays(small_batch(18)[0])
    training, _ = small_training(tmp_path / "c.h5", source, epochs=3)
    assert training.epochs_left == 3
    training.one_epoch(Notes())
    assert training.epochs_left == 2
    training.run(Notes())
    assert training.epochs_left == 0 and training.estimate() is None


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_keeps_the_last_good_weights(tmp_path: Path) -> None:
    images, notes = small_batch(18)[0], Notes()
    training, surgery = small_training(tmp_path / "c.h5", Arrays(images), is_tutorial=True)
    inner = training._step

    def step(inputs: Any, classes: Any, row_weights: Any) -> Any:
        # Three steps an epoch: the last of the second epoch breaks the weights first.
        calls.append(1)
        loss = inner(inputs, classes, row_weights)
        if len(calls) == 6:
            surgery.state[0].assign(np.full(surgery.state[0].shape, np.nan, np.float32))
            return np.nan
        if len(calls) == 3:
            good.append(surgery_of.digest_of(surgery.state))
        return loss

    calls: list[int] = []
    good: list[str] = []
    training._step = step
    training.run(notes)
    assert surgery_of.digest_of(surgery.state) == good[0]
    assert training.is_over and training.progress.epoch == 1
    assert "not a number in epoch 2" in training.progress.stopped
    assert any("--learning-rate" in line for line in notes.lines)
    again, other = small_training(tmp_path / "c.h5", Arrays(images), is_tutorial=True)
    assert again.resume() and again.is_over
    again.run(Notes())
    assert surgery_of.digest_of(other.state) == good[0]


@pytest.mark.slow
@pytest.mark.parametrize("is_tutorial", [False, True])
def test_weights_that_the_last_step_of_an_epoch_breaks_are_not_kept(
    tmp_path: Path, is_tutorial: bool
) -> None:
    # The one step of an epoch has a good loss and makes weights that no float32 can multiply.
    training, surgery = small_training(
        tmp_path / "c.h5", Arrays(small_batch(18)[0]), is_tutorial=is_tutorial, batch_size=12,
        learning_rate=1e38,
    )  # fmt: skip
    before = surgery_of.digest_of(surgery.state)
    losses = spied_losses(training)
    training.run(Notes())
    assert np.isfinite(losses).all() and len(losses) == 1
    assert surgery_of.digest_of(surgery.state) == before
    assert training.progress.epochs == [] and training.progress.best_epoch == 0
    assert "not a number in epoch 1" in training.progress.stopped


def spied_losses(training: FineTuning) -> list[float]:
    """Return a list that the loss of each step is appended to."""
    inner, losses = training._step, []

    def step(*batch: Any) -> Any:
        losses.append(float(inner(*batch)))
        return losses[-1]

    training._step = step
    return losses


@pytest.mark.slow
def test_training_that_does_not_help_ends_at_the_start(tmp_path: Path) -> None:
    images = small_batch(18)[0]
    training, surgery = small_training(
        tmp_path / "c.h5", Arrays(images), learning_rate=0.9, epochs=9, patience=2
    )
    before = surgery_of.digest_of(surgery.state)
    training._judge = lambda: (1.0, 0.5)  # as good as the start, never better
    training.run(Notes())
    assert training.progress.epoch == 2 and training.progress.best_epoch == 0
    assert surgery_of.digest_of(surgery.state) == before


@pytest.mark.slow
def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    training, _ = small_training(path, Arrays(small_batch(18)[0]), epochs=1)
    training.run(Notes())
    other, _ = small_training(path, Arrays(small_batch(18)[0]))
    other._identity = {"seed": 4}
    with pytest.raises(RunError, match="of another training"):
        other.resume()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match="cannot be read"):
        training.resume()


def reshaped(file: Any, name: str) -> None:
    """Turn an array into one of another shape."""
    values = file[name][()]
    del file[name]
    file[name] = np.concatenate([values, values])


def said_of(file: Any, **changes: Any) -> None:
    """Change what a checkpoint says of progress; None takes a field away."""
    record = json.loads(file["record"][()])
    said = {**record["progress"], **changes}
    record["progress"] = {name: value for name, value in said.items() if value is not None}
    del file["record"]
    file["record"] = json.dumps(record)


def sealed(file: Any) -> None:
    """Give a checkpoint the digest of what is in it now."""
    if "record" in file:
        groups = {
            name: [values[()] for values in file[name].values()]
            for name in checkpoint.Arrays.__slots__
        }
        del file["sha256"]
        file["sha256"] = np.bytes_(checkpoint._digest(file["record"][()].decode(), groups).encode())


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    small_training(path, Arrays(small_batch(18)[0]), epochs=1)[0].run(Notes())
    whole = path.read_bytes()
    training, surgery = small_training(path, Arrays(small_batch(18)[0]))
    variables = [*surgery.state, *training._optimizer.variables]
    before = surgery_of.digest_of(variables)
    damages: list[Callable[[Any], None]] = [
        lambda file: said_of(file, best_loss=None),
        lambda file: said_of(file, rounds=3),
        lambda file: said_of(file, epoch="one"),
        lambda file: file.pop("record"),
        lambda file: reshaped(file, "state/00000"),
        lambda file: reshaped(file, "optimizer/00002"),
        lambda file: file["state"].pop("00001"),
        lambda file: file["best"].create_dataset("99999", data=[1.0]),
    ]
    for damage, seal in itertools.product(damages, (lambda file: None, sealed)):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            damage(file)
            seal(file)
        with pytest.raises(RunError, match="cannot be read") as raised:
            training.resume()
        assert "Delete it to begin anew" in raised.value.hint
    assert surgery_of.digest_of(variables) == before and training.progress.epoch == 0
    path.write_bytes(whole)
    assert training.resume()


@pytest.mark.slow
def test_rows_of_a_class_that_train_lacks_are_wrong(tmp_path: Path) -> None:
    training, _ = small_training(tmp_path / "c.h5", Arrays(small_batch(18)[0]))
    _, before = training._judge()
    y = training._rows.y.copy()
    y[12:18] = [0, 1, 7, 7, 7, 7]
    training._rows = dataclasses.replace(training._rows, y=y)
    training._columns = np.searchsorted(training._rows.classes, y).astype(np.int32)
    loss, accuracy = training._judge()
    assert np.isfinite(loss) and accuracy <= 2 / 6 and 0 <= before <= 1


@pytest.mark.slow
def test_outputs_of_many_rows_take_the_room_of_one_array(tmp_path: Path) -> None:
    images = small_batch(18)[0]
    training, surgery = small_training(tmp_path / "c.h5", Arrays(images), batch_size=4000)
    features, logits = (np.asarray(item) for item in surgery.whole(images, training=False))
    rows = np.tile(np.arange(18), 20_000)
    for made, expected in ((training.features, features), (training.logits, logits)):
        made(rows[:1])  # compiles
        tracemalloc.start()
        found = made(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Beside the array no more than a few batches of images.
        assert peak < found.nbytes + 5 * 4000 * images[0].nbytes
        assert found.dtype == np.float32 and found.shape == (len(rows), expected.shape[1])
        np.testing.assert_allclose(found, expected[rows], atol=1e-5)


@pytest.mark.slow
def test_jax_makes_the_same_steps() -> None:
    names = (
        "updates_on_the_boundary or exactly_what or interrupted_training or step_equals "
        "or a_precision_holds or multiplied_as_float32 or room_of_one or last_step_of"
    )
    assert "12 passed" in on_jax(__file__, names)


@pytest.mark.slow
def test_missing_memory_names_the_batch_size_to_try(tmp_path: Path) -> None:
    training, _ = small_training(tmp_path / "c.h5", Arrays(small_batch(18)[0]), batch_size=8)

    def fail(*_: Any) -> Any:
        raise MemoryError

    training._step = fail
    with pytest.raises(PipelineError, match="--batch-size 4"):
        training.run(Notes())


# The command, on the real network with random weights


FLAGS = ("--weights", "random", "--image-size", SIZE, "--engine", "keras", "--batch-size", 16)
# From a head that knows the classes' shares alone, so that every epoch is better than the start.
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "unfreeze_from": "conv5_block3",
                         "head": "majority", "learning_rate": 1e-4}  # fmt: skip


def bars(path: Path, count: int) -> None:
    """Write images of an upright or a lying bar in noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(60, 140, (SIZE, SIZE, 3), dtype=np.uint8)
        place = int(rng.integers(4, 20))
        region = np.s_[:, place : place + 8] if number % 2 else np.s_[place : place + 8]
        pixels[region] += 60
        file = path / f"class{number % 2}" / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, their store, and a run of stage 2."""
    folder = tmp_path_factory.mktemp("finetune")
    bars(folder / "photos", 60)
    for arguments in (
        ("extract", folder / "photos", "--store", folder / "store", *FLAGS),
        ("train-head", "--store", folder / "store", "--run", folder / "run", "--head", "logreg",
         "--head", "majority", "--head", "knn", "--split", "60/20/20"),
    ):  # fmt: skip
        assert main([str(argument) for argument in (*arguments, "--quiet")]) == 0
    return folder


@pytest.fixture(scope="module")
def uninterrupted(trained: Path) -> dict[str, Any]:
    notes = Notes()
    result = run_finetune(trained / "run", run=str(trained / "whole"), notes=notes, **QUICK)
    assert result["finetune"]["kept_epoch"] == 2  # else the weights are those of the start
    return {**result, "notes": notes.lines}


@pytest.mark.slow
def test_the_result_has_the_keys_of_stage_two(trained: Path, uninterrupted: dict[str, Any]) -> None:
    assert set(uninterrupted["heads"]) == {"finetune", "majority"}
    record = Run.open(trained / "run").record["heads"]["majority"]
    assert uninterrupted["heads"]["finetune"].keys() == uninterrupted["heads"]["majority"].keys()
    assert uninterrupted["heads"]["majority"]["test"] == record["test"]
    assert uninterrupted["split"] == Run.open(trained / "run").record["split"]
    (pair,) = uninterrupted["pairs"]
    assert {pair["a"], pair["b"]} == {"finetune", "majority"}
    verdict = uninterrupted["finetune"]["verdict"]
    assert verdict["n"] == pair["n"] and verdict["recommended"] == uninterrupted["best"]
    assert "is recommended" in verdict["text"]
    assert verdict["text"] in find("finetune").text(uninterrupted)
    assert any("s an epoch" in line for line in uninterrupted["notes"])


@pytest.mark.slow
def test_it_starts_at_the_answers_of_stage_two(uninterrupted: dict[str, Any]) -> None:
    assert uninterrupted["finetune"]["start_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_saved_gives_the_recorded_answers_of_images(
    trained: Path, uninterrupted: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    path = trained / "whole"
    if precision == "float16":
        path = tmp_path / "half"
        run_finetune(trained / "run", run=str(path), cache_precision="float16", **QUICK)
    run = Run.open(path)
    record = run.record["finetune"]
    saved = weights.load(path / "finetune" / f"{record['weights_sha256']}.h5")
    changed = {
        name.removeprefix("backbone/"): value
        for name, value in saved.items()
        if name.startswith("backbone/")
    }
    assert changed and all(name.startswith("conv5_block3") for name in changed)
    assert not [name for name in changed if "moving" in name]
    digest = run.record["inputs"]["identity"]["weights_sha256"]
    loaded = load_network(trained / "store" / "encoder" / f"{digest}.h5")
    backbone.assign(loaded.network, {**loaded.arrays(), **changed})
    assert weights.digest(loaded.arrays()) == record["backbone_sha256"]
    rows = run.manifest()
    scored = [index for index, split in enumerate(rows.splits) if split != "train"]
    with Photos(rows, SIZE, augment_seed=None) as photos:
        features = np.asarray(loaded.model(photos.batch(np.array(scored), None), training=False))
    head = heads.load(path / "heads/finetune")
    np.testing.assert_allclose(
        head.predict_proba(features), run.probabilities("finetune"), atol=1e-4
    )


def load_network(saved: Path) -> backbone.FrozenBackbone:
    return backbone.load(
        "resnet50", weights="random", seed=0, image_size=SIZE, pooling="avg", saved=saved
    )


@pytest.mark.slow
def test_the_same_command_keeps_what_is_there_and_others_are_refused(
    trained: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "load", None)  # nothing is loaded
    options = {"run": str(trained / "whole"), **QUICK}
    again = run_finetune(trained / "run", **options)
    assert again["finetune"] == uninterrupted["finetune"]
    with pytest.raises(RunError, match=r"learning_rate = 0\.0001\..*learning_rate = 0\.01"):
        run_finetune(trained / "run", **{**options, "learning_rate": 0.01})


def finetune_process(folder: Path, run: str) -> subprocess.Popen[str]:
    code = (
        "from pipeline.finetune.stage import finetune\n"
        "from pipeline.config.options import CommonOptions, FinetuneOptions\n"
        "from pipeline.system.progress import Silence\n"
        f"options = FinetuneOptions(source='run', run={run!r}, **{QUICK!r})\n"
        "finetune(options, CommonOptions(), Silence())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_weights(
    trained: Path, uninterrupted: dict[str, Any]
) -> None:
    process, checkpoint = finetune_process(trained, "killed"), trained / "killed/finetune"
    while process.poll() is None and not (checkpoint / "checkpoint.h5").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "verdict" not in Run.open(trained / "killed").record["finetune"]
    notes = Notes()
    result = run_finetune(trained / "run", run=str(trained / "killed"), notes=notes, **QUICK)
    assert "Going on after epoch 1" in notes.lines
    assert any("s for the 1 left" in line for line in notes.lines)
    for name in ("weights_sha256", "backbone_sha256"):
        assert result["finetune"][name] == uninterrupted["finetune"][name]
    np.testing.assert_array_equal(
        Run.open(trained / "killed").probabilities("finetune"),
        Run.open(trained / "whole").probabilities("finetune"),
    )
    assert not list((trained / "killed").rglob(".tmp-*"))
    assert not (checkpoint / "checkpoint.h5").exists()


@pytest.mark.slow
def test_augmented_training_needs_no_cache_and_repeats(trained: Path) -> None:
    notes, found = Notes(), []
    for name in ("one", "two"):
        options = {"run": str(trained / name), "augment": True, "epochs": 1, "batch_size": 16,
                   "unfreeze_from": "conv5_block3", "head": "logreg"}  # fmt: skip
        result = run_finetune(trained / "run", notes=notes, **options)
        found.append(
            [result["finetune"]["epochs"][0]["loss"], result["finetune"]["weights_sha256"]]
        )
        assert result["finetune"]["start_difference"] < 1e-4
    assert found[0] == found[1]
    assert any("augmented images differ" in line for line in notes.lines)


@pytest.mark.slow
def test_the_preset_runs_to_its_end(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {**finetune_command.SEED_PRESET, "epochs": 2, "batch_size": 16}
    assert finetune_command.SEED_PRESET == {
        "epochs": 10, "batch_size": 32, "learning_rate": 1e-3, "optimizer": "adam"
    }  # fmt: skip
    monkeypatch.setattr(finetune_command, "SEED_PRESET", short)
    notes = Notes()
    result = run_finetune(trained / "run", run=str(trained / "seed"), preset="seed", notes=notes)
    assert [row["epoch"] for row in result["finetune"]["epochs"]] == [1, 2]
    assert result["finetune"]["kept_epoch"] == 2
    assert any("inside a block" in line for line in notes.lines)
    saved = weights.load(trained / "seed/finetune" / f"{result['finetune']['weights_sha256']}.h5")
    assert saved["head/hidden_1/kernel"].shape == (2048, 1024)
    assert "backbone/conv5_block3_3_bn/moving_mean" in saved
    frozen = {layer.name for layer in network_layers(trained)[: surgery_of.SEED_FROZEN]}
    assert not frozen & {path.split("/")[1] for path in saved}


def network_layers(folder: Path) -> list[Any]:
    digest = Store.unchecked(folder / "store").identity["weights_sha256"]
    layers: list[Any] = load_network(folder / "store/encoder" / f"{digest}.h5").network.layers
    return layers


@pytest.mark.slow
def test_what_cannot_begin_leaves_nothing_behind(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    with pytest.raises(ConfigError, match="Stages: conv2, conv3, conv4, conv5; or all"):
        run_finetune(trained / "run", run=str(target), unfreeze_from="conv6")
    with pytest.raises(ConfigError, match="on a processor"):
        run_finetune(trained / "run", run=str(target), precision="bfloat16")
    assert not target.exists()
    for force in (False, True):
        with pytest.raises(RunError, match="another --run"):
            run_finetune(trained / "run", run=str(trained / "run"), force=force)
    assert Run.open(trained / "run").record["heads"]


@pytest.mark.slow
def test_force_replaces_a_run(trained: Path, tmp_path: Path) -> None:
    options = {**QUICK, "epochs": 1, "run": str(tmp_path / "run")}
    first = run_finetune(trained / "run", **options)
    second = run_finetune(trained / "run", force=True, **{**options, "seed": 1})
    assert first["finetune"]["weights_sha256"] != second["finetune"]["weights_sha256"]
    (kept,) = (tmp_path / "run/finetune").glob("*.h5")
    assert kept.stem == second["finetune"]["weights_sha256"]


@pytest.mark.slow
def test_prune_refuses_from_the_first_image_to_the_last_epoch(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    refused: dict[str, bool] = {}

    class Pruning(Notes):
        def bar(self, total: int, unit: str) -> Any:
            status, result = command("prune", trained / "store")
            refused[unit] = status == 2 and "finetune" in result["error"]["message"]
            return super().bar(total, unit)

    options = {**QUICK, "epochs": 1, "run": str(tmp_path / "run")}
    # A cut of its own, so that its cache is to be filled.
    options["unfreeze_from"] = "conv5_block2"
    run_finetune(trained / "run", notes=Pruning(), **options)
    assert refused == {"img": True, "step": True}
    assert command("prune", trained / "store")[0] == 0


@pytest.mark.slow
def test_a_network_that_disagrees_with_stage_two_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = head_layers.head_network

    def swapped(head: Any) -> Any:
        head = heads.load(trained / "run/heads/logreg")
        head.coef_, head.intercept_ = head.coef_[::-1].copy(), head.intercept_[::-1].copy()
        return make(head)

    monkeypatch.setattr(head_layers, "head_network", swapped)
    options = {**QUICK, "head": "logreg", "run": str(tmp_path / "run")}
    with pytest.raises(PipelineError, match="network to fine-tune differs from the cached path"):
        run_finetune(trained / "run", **options)
    # Activations in a cache may be wrong where images are right.
    monkeypatch.setattr(finetune_command, "check_network", lambda *_: None)
    with pytest.raises(StaleFeaturesError, match="start at the answers of logreg"):
        run_finetune(trained / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_starting_head_is_another_training(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    options = {**QUICK, "head": "logreg"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "one_epoch", stop_after(1, FineTuning.one_epoch))
        with pytest.raises(KeyboardInterrupt):
            run_finetune(tmp_path / "run", **options)
    (tmp_path / "other.toml").write_text("[heads.logreg]\ngrid = [0.001]\n")
    again = ["train-head", "--store", trained / "store", "--run", tmp_path / "run", "--head",
             "logreg", "--split", "60/20/20", "--config", tmp_path / "other.toml",
             "--force"]  # fmt: skip
    assert main([*map(str, again), "--quiet"]) == 0
    with pytest.raises(RunError, match="was made with starting_head_sha256"):
        run_finetune(tmp_path / "run", **options)


def stop_after(count: int, epoch: Callable[..., float]) -> Callable[..., float]:
    """Return a training's epoch that is interrupted before one more."""

    def stopped(self: FineTuning, reporter: Any) -> float:
        if self.progress.epoch == count:
            raise KeyboardInterrupt
        return epoch(self, reporter)

    return stopped


def test_a_folder_of_something_else_is_refused_at_once(
    planted: Callable[..., Path], tmp_path: Path
) -> None:
    run = planted("--head", "logreg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    with pytest.raises(RunError, match="Received: something else"):
        run_finetune(run, run=str(tmp_path / "photos"))
    with pytest.raises(StoreError, match="Another finetune trains into"), held(tmp_path / "busy"):
        run_finetune(run, run=str(tmp_path / "busy"))
    # What cannot begin leaves nothing behind: the images are gone.
    with pytest.raises(ManifestError):
        run_finetune(run, run=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def held(folder: Path) -> AbstractContextManager[None]:
    return exclusive(folder / ".lock", "busy")


@pytest.mark.slow
def test_the_preset_starts_from_a_run_of_any_heads(trained: Path, tmp_path: Path) -> None:
    train = ["train-head", "--store", trained / "store", "--run", tmp_path / "knn", "--head", "knn"]
    assert main([*map(str, train), "--quiet"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_command, "SEED_PRESET", {"epochs": 1})
        result = run_finetune(tmp_path / "knn", preset="seed")
    assert set(result["heads"]) == {"finetune", "knn"}


@pytest.mark.slow
def test_weights_that_are_gone_or_others_are_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "store", tmp_path / "store")
    shutil.copytree(trained / "run", tmp_path / "run")
    path = tmp_path / "run/run.json"
    edit_record(path, lambda record: record["inputs"].update(store=str(tmp_path / "store")))
    edit_record(path, lambda record: record["source"].update(weights="mine.h5"))
    (saved,) = (tmp_path / "store/encoder").glob("*.h5")
    other = tmp_path / "other.h5"
    saved.rename(other)
    with pytest.raises(WeightsUnavailableError, match="--weights PATH"):
        run_finetune(tmp_path / "run", **QUICK)
    arrays = load_network_arrays(other, saved)
    arrays["conv1_conv/bias"] = arrays["conv1_conv/bias"] + 1
    weights.save(other, arrays)
    with pytest.raises(StaleFeaturesError, match="weights_sha256"):
        run_finetune(tmp_path / "run", weights=str(other), **QUICK)


def load_network_arrays(path: Path, name: Path) -> dict[str, NDArray[np.float32]]:
    """Read arrays that ``weights.save`` wrote, from a file that was renamed."""
    shutil.copy(path, name)
    arrays = weights.load(name)
    name.unlink()
    return arrays


def strokes(path: Path, count: int) -> None:
    """Write images of a faint diagonal stroke, rising or falling, on coloured squares."""
    rng = np.random.default_rng(0)
    for number in range(count):
        squares = rng.integers(88, 168, (4, 4, 3))
        pixels = np.kron(squares, np.ones((8, 8, 1), np.int64))
        top, left = rng.integers(0, 16, 2)
        level = 75 * rng.choice([-1, 1])
        for step in range(16):
            place = left + (step if number % 2 else 15 - step)
            pixels[top + step, max(place - 1, 0) : place + 2] += level
        file = path / f"class{number % 2}" / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


@pytest.mark.slow
def test_it_beats_stage_two_where_frozen_features_miss_the_label(tmp_path: Path) -> None:
    strokes(tmp_path / "photos", 900)
    for arguments in (
        ("extract", tmp_path / "photos", "--store", tmp_path / "store", *FLAGS),
        ("train-head", "--store", tmp_path / "store", "--run", tmp_path / "run", "--head",
         "logreg", "--split", "60/10/30"),
    ):  # fmt: skip
        assert main([str(argument) for argument in (*arguments, "--quiet")]) == 0
    result = run_finetune(
        tmp_path / "run", unfreeze_from="conv2", epochs=10, learning_rate=1e-3, patience=10
    )
    verdict = result["finetune"]["verdict"]
    assert verdict["recommended"] == result["best"] == "finetune"
    assert verdict["difference"] > 0 and verdict["p_value"] < 0.01
    assert result["finetune"]["boundary"] == "pool1_pool"
