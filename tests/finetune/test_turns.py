"""Fine-tuning on views of the images: whose turn it is, what is cached, and what is trained on."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from event_files import scalars
from fakes import FakeEncoder
from finetuning import FLAGS, QUICK, SIZE, Notes, bars, photo_rows, run_finetune
from numpy.typing import NDArray

from pipeline.backbones import weights
from pipeline.cli.main import main
from pipeline.errors import ConfigError, RunError
from pipeline.finetune import source as finetune_source
from pipeline.finetune.cache import BoundaryCache, CachedViews
from pipeline.finetune.photos import Photos
from pipeline.finetune.turns import Turns
from pipeline.images import views
from pipeline.images.decoder import decode
from pipeline.images.manifest import Manifest
from pipeline.images.views import PLAIN
from pipeline.runs import tensorboard
from pipeline.runs.run import Run
from pipeline.store import activations
from pipeline.store.store import Store
from pipeline.system import machine
from pipeline.verify.store import verify

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ("flip", "crop1")
# Losses on cached activations against those on images, of the loss.
LOSS_TOLERANCE = 1e-4


# Turns


def test_every_row_shows_every_view_once_before_any_again() -> None:
    turns, rows = Turns.drawn(NAMES, seed=5, rows=40), np.arange(40)
    assert turns.names == (PLAIN, *NAMES)
    for first in (0, 3, 6, 1):
        shown = np.array([turns.shown(rows, first + epoch) for epoch in range(3)])
        for column in shown.T:
            assert sorted(column) == sorted(turns.names)


def test_every_epoch_shows_every_view() -> None:
    turns = Turns.drawn(NAMES, seed=5, rows=3000)
    for epoch in range(3):
        counts = np.unique(turns.shown(np.arange(3000), epoch), return_counts=True)[1]
        assert len(counts) == 3 and counts.min() > 850


def test_turns_are_a_function_of_seed_epoch_and_row() -> None:
    turns, rows = Turns.drawn(NAMES, seed=5, rows=40), np.arange(40)
    assert turns.shown(rows, 2) == Turns.drawn(NAMES, seed=5, rows=40).shown(rows, 2)
    assert turns.shown(rows, 2) != Turns.drawn(NAMES, seed=6, rows=40).shown(rows, 2)
    assert turns.shown(rows[[7, 3]], 2) == [turns.shown(rows, 2)[row] for row in (7, 3)]


def test_what_is_not_trained_on_is_shown_as_it_is() -> None:
    assert Turns.drawn(NAMES, seed=5, rows=9).shown(np.arange(9), None) == [PLAIN] * 9
    assert Turns.drawn((), seed=5, rows=9).shown(np.arange(9), 4) == [PLAIN] * 9


# Images


def test_photos_show_the_views_of_stage_one_in_turn(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path)
    turns = Turns.drawn(NAMES, seed=1, rows=len(rows))
    order = np.array([4, 0, 5, 4])
    with Photos(rows, SIZE, "squash", augment_seed=None, turns=turns) as photos:
        for epoch in (0, 1, 2, 0):
            made = photos.batch(order, epoch)
            for pixels, row, name in zip(made, order, turns.shown(order, epoch), strict=True):
                data, key = rows.file(row).read_bytes(), rows.keys[row].decode()
                expected = views.pixels(data, key, [name], SIZE, "squash")[name]
                np.testing.assert_array_equal(pixels, expected)
        plain = photos.batch(order, None)
        np.testing.assert_array_equal(plain, photos.view(order, PLAIN))
    np.testing.assert_array_equal(plain[1], decode(rows.file(0).read_bytes(), SIZE))


def test_views_that_do_not_fit_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, turns = photo_rows(tmp_path), Turns.drawn(NAMES, seed=1, rows=6)
    plain_bytes = 3 * SIZE * SIZE * 6
    # Room for the images as they are, not for two views beside them.
    monkeypatch.setattr(machine, "free_memory", lambda: 4 * 2 * plain_bytes)
    for kept, given in ((False, turns), (True, None)):
        photos = Photos(rows, SIZE, "squash", augment_seed=None, turns=given)
        photos.batch(np.arange(6), 0)
        assert bool(photos._kept) == kept


# The cache


def caches(folder: Path, rows: Manifest, turns: Turns, train: int = 4) -> CachedViews:
    """Return caches of the images and of the views of the first rows."""
    made = {
        name: BoundaryCache(
            folder,
            {"weights": "w", "view": name},
            rows.keys,
            shape=(2, 2, 4),
            precision="float32",
            rows=None if name == PLAIN else np.arange(train),
        )
        for name in turns.names
    }
    return CachedViews(made, turns)


def fill(folder: Path, rows: Manifest, turns: Turns, notes: Notes | None = None) -> FakeEncoder:
    """Fill caches; return the encoder, which knows how many images it saw."""
    encoder = FakeEncoder(batch_size=4)
    with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
        caches(folder, rows, turns).fill(photos, lambda: encoder, notes or Notes())
    return encoder


def test_the_cache_holds_what_images_of_the_epoch_would_give(tmp_path: Path) -> None:
    rows, turns = photo_rows(tmp_path / "photos"), Turns.drawn(NAMES, seed=3, rows=6)
    fill(tmp_path / "boundary", rows, turns)
    source, order = caches(tmp_path / "boundary", rows, turns), np.array([3, 0, 1, 2, 0])
    source.open()
    with Photos(rows, SIZE, "squash", augment_seed=None, turns=turns) as photos:
        for epoch in (0, 1, 2, 7, None):
            expected = FakeEncoder()(photos.batch(order, epoch)).reshape(5, 2, 2, 4)
            np.testing.assert_array_equal(source.batch(order, epoch), expected)
        val = np.array([5, 4])
        expected = FakeEncoder()(photos.batch(val, None)).reshape(2, 2, 2, 4)
        np.testing.assert_array_equal(source.batch(val, None), expected)
    source.close()


def test_views_are_made_of_train_alone_and_of_what_is_missing(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    folder = tmp_path / "boundary"
    assert fill(folder, rows, Turns.drawn((), seed=0, rows=6)).images == 6
    assert fill(folder, rows, Turns.drawn(("flip",), seed=0, rows=6)).images == 4
    assert fill(folder, rows, Turns.drawn(NAMES, seed=9, rows=6)).images == 4
    assert fill(folder, rows, Turns.drawn(NAMES, seed=9, rows=6)).images == 0


def test_what_is_there_needs_no_encoder(tmp_path: Path) -> None:
    rows, turns = photo_rows(tmp_path / "photos"), Turns.drawn(NAMES, seed=0, rows=6)
    fill(tmp_path / "boundary", rows, turns)

    def make() -> FakeEncoder:
        raise AssertionError("a network was made for nothing")

    notes = Notes()
    with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
        caches(tmp_path / "boundary", rows, turns).fill(photos, make, notes)
    assert not notes.lines


def test_room_is_needed_for_all_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, turns, notes = (
        photo_rows(tmp_path / "photos"),
        Turns.drawn(NAMES, seed=0, rows=6),
        Notes(),
    )
    needed = (6 + 2 * 4) * 2 * 2 * 4 * 4
    fill(tmp_path / "a", rows, turns, notes)
    assert f"{needed / 1e6:,.2f} MB of disk" in notes.lines[0]
    assert "14 images and views of them" in notes.lines[0]
    for free, is_enough in ((needed / 0.9 - 1, False), (needed / 0.9 + 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if is_enough:
            assert fill(tmp_path / "b", rows, turns).images == 14
        else:
            with pytest.raises(RunError, match="fewer --views"):
                fill(tmp_path / "b", rows, turns)


def test_a_copy_of_an_image_is_made_once(tmp_path: Path) -> None:
    rows = photo_rows(tmp_path / "photos")
    shutil.copy(tmp_path / "photos/a/000.png", tmp_path / "photos/a/001.png")
    rows.keys[1] = rows.keys[0]
    turns = Turns.drawn(("flip",), seed=0, rows=6)
    assert fill(tmp_path / "boundary", rows, turns).images == 5 + 3
    source = caches(tmp_path / "boundary", rows, turns)
    source.open()
    for epoch in (0, 1):
        # Each of the copies has a turn of its own.
        for row in (0, 1):
            (name,) = turns.shown(np.array([row]), epoch)
            with Photos(rows, SIZE, "squash", augment_seed=None) as photos:
                expected = FakeEncoder()(photos.view(np.array([0]), name)).reshape(1, 2, 2, 4)
            np.testing.assert_array_equal(source.batch(np.array([row]), epoch), expected)
    source.close()


# What is refused


def test_views_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'flip'"):
        run_finetune(tmp_path, views=("flop",))
    with pytest.raises(ConfigError, match="every view once"):
        run_finetune(tmp_path, views=("flip", "flip"))


def test_views_and_augmentation_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--views: expected none with --augment.*crop1"):
        run_finetune(tmp_path, views=NAMES, augment=True)


def test_the_preset_has_no_views(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Received: --views"):
        run_finetune(tmp_path, views=NAMES, preset="tutorial")


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    """A folder with photos, their store, and a run of stage 2."""
    folder = tmp_path_factory.mktemp("views")
    bars(folder / "photos", 40)
    for arguments in (
        ("extract", folder / "photos", "--store", folder / "store", *FLAGS),
        ("train-head", "--store", folder / "store", "--run", folder / "run", "--head", "logreg",
         "--head", "majority", "--split", "50/25/25"),
    ):  # fmt: skip
        assert main([str(argument) for argument in (*arguments, "--quiet")]) == 0
    return folder


def start(folder: Path, name: str, notes: Notes | None = None, **changes: Any) -> dict[str, Any]:
    options = {**QUICK, "epochs": 3, "views": NAMES, "run": str(folder / name), **changes}
    return run_finetune(folder / "run", notes=notes, **options)


@pytest.fixture(scope="module")
def uninterrupted(trained: Path) -> dict[str, Any]:
    notes = Notes()
    return {**start(trained, "whole", notes), "notes": notes.lines}


def loss_by_epoch(result: dict[str, Any]) -> NDArray[np.float64]:
    return np.array([row["loss"] for row in result["finetune"]["epochs"]])


@pytest.mark.slow
def test_training_on_cached_views_is_training_on_their_images(
    trained: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_source, "_why_not_cached", lambda *_: "a test")
    images = loss_by_epoch(start(trained, "images"))
    plain = loss_by_epoch(start(trained, "plain", views=()))
    cached = loss_by_epoch(uninterrupted)
    np.testing.assert_allclose(cached, images, rtol=LOSS_TOLERANCE)
    assert np.abs(cached - plain).max() > 10 * LOSS_TOLERANCE * cached.max(), "no view was shown"


@pytest.mark.slow
def test_the_cache_of_views_is_part_of_a_sound_store(
    trained: Path, uninterrupted: dict[str, Any]
) -> None:
    store, train = Store.open(trained / "store"), uninterrupted["split"]["train"]
    folders = [path for path in store.boundary_folder.iterdir() if path.is_dir()]
    assert len(folders) == 3
    assert f"{40 + 2 * train} images and views of them" in " ".join(uninterrupted["notes"])
    assert not store.views, "the store needs no features of views"
    found = verify(trained / "store")
    assert found["ok"] and found["boundary_shards"] >= 3
    with store.scan_cache() as cache:
        paths = activations.all_paths(store.boundary_folder)
        assert all(cache.is_checked(path.stem, path.stat()) for path in paths), "a resume hashes"
    inputs = Run.open(trained / "whole").record.inputs
    assert inputs["views"] == list(NAMES)
    with pytest.raises(RunError, match=r"views = \['flip', 'crop1'\].*views = None"):
        start(trained, "whole", views=())


@pytest.mark.slow
def test_what_can_be_gained_is_said_and_recorded_before_training(
    trained: Path, uninterrupted: dict[str, Any]
) -> None:
    found = uninterrupted["finetune"]["head_room"]
    val = Run.open(trained / "run").record.heads["majority"].val
    assert [row["share"] for row in found["curve"]] == [0.25, 0.5, 1.0]
    assert found["curve"][-1]["error"] == pytest.approx(1 - val.accuracy)
    assert found["curve"][-1]["n_train"] == uninterrupted["split"]["train"]
    said = [found["text"] in line for line in uninterrupted["notes"]]
    epochs = ["epoch 1 of" in line for line in uninterrupted["notes"]]
    assert said.index(True) < epochs.index(True)
    assert found["seconds"] < 60


@pytest.mark.slow
def test_a_cut_inside_a_block_shows_views_without_a_cache(trained: Path) -> None:
    notes = Notes()
    options = {"unfreeze_from": "conv5_block3_2_conv", "epochs": 1}
    results = [
        start(trained, "inside", notes, **options),
        start(trained, "inside-plain", views=(), **options),
    ]
    assert any("is inside a block" in line for line in notes.lines)
    # Train is one step here, whose own loss is that of the start.
    shown, plain = (result["finetune"]["epochs"][0]["val_loss"] for result in results)
    assert abs(shown - plain) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_training_killed_before_its_log_goes_on_and_logs_every_epoch_once(
    trained: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """After 0, 1 and 2 epochs: the checkpoint is there, its numbers are in no log yet."""
    keep = tensorboard.keep

    def killed(folder: Path, epochs: list[dict[str, Any]]) -> None:
        if len(epochs) == moment:
            raise KeyboardInterrupt
        keep(folder, epochs)

    name = f"killed{moment}"
    logs = trained / name / "finetune/tensorboard"
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            start(trained, name)
    assert len(list(logs.glob("*"))) == max(moment - 1, 0)
    assert Run.open(trained / name).record.finetuned().head_room, "recorded before training"
    notes = Notes()
    result = start(trained, name, notes)
    assert (f"Going on after epoch {moment}" in notes.lines) == (moment > 0)
    for key in ("weights_sha256", "backbone_sha256"):
        assert result["finetune"][key] == uninterrupted["finetune"][key]
    expected = uninterrupted["finetune"]["epochs"]
    found = scalars(logs)
    for tag in ("loss", "val_loss", "val_accuracy", "learning_rate"):
        assert found[tag] == [(row["epoch"], pytest.approx(row[tag])) for row in expected]
    assert [step for step, _ in found["seconds"]] == [1, 2, 3]
    # One step an epoch: warm-up, the top of the cosine, half-way down.
    rates = [value for _, value in found["learning_rate"]]
    rate = QUICK["learning_rate"]
    assert rates == pytest.approx([rate, rate, rate / 2])
    assert weights.load(trained / name / "finetune" / f"{result['finetune']['weights_sha256']}.h5")


@pytest.mark.slow
def test_force_begins_a_new_log(trained: Path) -> None:
    start(trained, "forced", epochs=2)
    logs = trained / "forced/finetune/tensorboard"
    assert len(list(logs.iterdir())) == 2
    run_finetune(trained / "run", force=True, run=str(trained / "forced"), **{**QUICK, "epochs": 1})
    assert [step for step, _ in scalars(logs)["loss"]] == [1]
