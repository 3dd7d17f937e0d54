"""Augmented views: the pixels, their storage, and their use in stage 2."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import FakeEncoder, write_classes, write_image

import pipeline
from pipeline.errors import ConfigError, DecodeError, MissingFeaturesError, StoreError
from pipeline.images import views
from pipeline.images.decoder import decode
from pipeline.store.store import Store
from pipeline.verify.store import verify

Command = Callable[..., tuple[int, dict[str, Any]]]


def pixels(
    data: bytes, *names: str, size: int = 32, resize: str = "squash"
) -> dict[str, views.Pixels]:
    return views.pixels(data, hashlib.sha256(data).hexdigest(), names, size, resize)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", {"cat": 20, "dog": 20})
    return tmp_path / "data"


def extract(command: Command, data: Path, *more: str) -> dict[str, Any]:
    status, result = command("extract", data, "--weights", "random", "--image-size", 32,
                             "--store", "store", *more)  # fmt: skip
    assert status == 0, result
    return result


# Pixels


def test_the_flip_is_the_mirror_image(tmp_path: Path) -> None:
    made = pixels(write_image(tmp_path / "a.png", 1), views.PLAIN, "flip")
    np.testing.assert_array_equal(made["flip"], made[views.PLAIN][:, ::-1])


def test_crops_are_windows_of_a_larger_decoding(tmp_path: Path) -> None:
    data = write_image(tmp_path / "a.png", 1, size=80)
    large = decode(data, round(56 * 8 / 7))
    margin = len(large) - 56 + 1
    for name, crop in pixels(data, *(f"crop{number}" for number in range(1, 9)), size=56).items():
        assert any(
            np.array_equal(crop, window) or np.array_equal(crop, window[:, ::-1])
            for top in range(margin)
            for left in range(margin)
            for window in [large[top : top + 56, left : left + 56]]
        ), name


def test_views_are_the_same_every_time_and_differ_by_name_and_image(tmp_path: Path) -> None:
    first, second = (write_image(tmp_path / f"{seed}.png", seed, size=80) for seed in (1, 2))
    names = list(views.VIEWS)
    again, made = pixels(first, *names, size=56), pixels(first, *names, size=56)
    assert all(np.array_equal(made[name], again[name]) for name in names)
    assert len({made[name].tobytes() for name in names}) > 6
    offsets = {
        pixels(first, "crop1")["crop1"].tobytes(),
        pixels(second, "crop1")["crop1"].tobytes(),
    }
    assert len(offsets) == 2


def test_each_view_alone_equals_all_of_them_at_once(tmp_path: Path) -> None:
    data = write_image(tmp_path / "a.png", 1)
    together = pixels(data, views.PLAIN, *views.VIEWS)
    for name, made in together.items():
        np.testing.assert_array_equal(made, pixels(data, name)[name])
        assert made.shape == (32, 32, 3)
        assert made.dtype == np.uint8


def test_bytes_that_give_no_image_are_an_error() -> None:
    with pytest.raises(DecodeError):
        pixels(b"nothing", "flip")


def test_unknown_and_repeated_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'flip'"):
        views.check(["flop"])
    with pytest.raises(ConfigError, match="once"):
        views.check(["flip", "flip"])


# Storage


def test_adding_a_view_encodes_that_view_alone(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    assert extract(command, data)["encoded"] == 40
    probe, before = 8, fake_network.images
    result = extract(command, data, "--views", "flip")
    assert (result["encoded"], result["reused"], result["views"]) == (40, 0, {"flip": 40})
    assert fake_network.images - before == 40 + probe
    result = extract(command, data, "--views", "flip")
    assert (result["encoded"], result["reused"], result["views"]) == (0, 40, {"flip": 0})
    assert fake_network.images - before == 40 + probe


def test_one_pass_makes_all_views_and_each_row_is_right(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    result = extract(command, data, "--views", "flip", "--views", "crop2")
    assert (result["encoded"], result["views"]) == (40, {"flip": 40, "crop2": 40})
    store = Store.open(Path("store"))
    manifest = store.read_manifest()
    for index in (0, 17, 39):
        made = pixels(manifest.file(index).read_bytes(), views.PLAIN, "flip", "crop2")
        for name, picture in made.items():
            row = store.read(manifest.keys[index : index + 1], name or None)[0]
            np.testing.assert_allclose(row, fake_network(picture[np.newaxis])[0], rtol=1e-6)


def test_the_plain_shards_do_not_depend_on_views(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    extract(command, data)
    before = {path.name for path in Path("store/shards").iterdir()}
    extract(command, data, "--views", "crop1")
    assert {path.name for path in Path("store/shards").iterdir()} == before


def test_users_read_views_from_features_h5(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    extract(command, data, "--views", "flip")
    store = Store.open(Path("store"))
    with h5py.File("store/features.h5") as file:
        group = file["views/flip"]
        np.testing.assert_array_equal(group["features"][:], store.read(group["keys"][:], "flip"))
        assert set(group["keys"][:]) == set(file["keys"][:])


def test_new_images_without_a_view_name_the_flag(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    extract(command, data, "--views", "flip")
    write_image(data / "cat/new.png", 999)
    assert extract(command, data)["encoded"] == 1
    store = Store.open(Path("store"))
    with pytest.raises(MissingFeaturesError, match="--views flip"):
        store.read(store.read_manifest().keys, "flip")
    with pytest.raises(StoreError, match="no view 'crop1'"):
        store.read(store.read_manifest().keys, "crop1")


def test_prune_and_verify_know_views(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    extract(command, data, "--views", "flip")
    assert verify(Path("store"))["rows"] == 80
    (data / "cat/000.png").unlink()
    extract(command, data, "--views", "flip")
    assert command("prune", "store")[1]["dropped"] == 1
    store = Store.open(Path("store"))
    assert (len(store), len(store.views["flip"])) == (39, 39)
    shard = store.views["flip"].shard_paths()[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert [problem["shard"] for problem in verify(Path("store"))["problems"]] == [shard.stem]


def test_a_dry_run_counts_views_and_writes_nothing(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    extract(command, data)
    result = extract(command, data, "--views", "flip", "--dry-run")
    assert (result["new"], result["estimated_bytes"]) == (40, 40 * (4 * 16 + 64))
    assert not Path("store/views").exists()


# Stage 2


def test_views_augment_training_and_average_scores(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    extract(command, data, "--views", "flip")
    arguments = ("train-head", "--store", "store", "--head", "logreg")
    plain = command(*arguments, "--run", "plain")[1]["heads"]["logreg"]
    augmented = command(*arguments, "--run", "augmented", "--augment", "flip")[1]
    averaged = command(*arguments, "--run", "averaged", "--average", "flip")[1]
    assert augmented["heads"]["logreg"]["train"]["n"] == plain["train"]["n"]
    losses = {plain["test"]["log_loss"], augmented["heads"]["logreg"]["test"]["log_loss"],
              averaged["heads"]["logreg"]["test"]["log_loss"]}  # fmt: skip
    assert len(losses) == 3
    status, result = command(*arguments, "--run", "plain", "--augment", "flip")
    assert status == 2
    assert "augment" in result["error"]["message"]


def test_averaged_probabilities_are_the_mean(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    from pipeline import heads
    from pipeline.runs.run import Run

    extract(command, data, "--views", "flip")
    command("train-head", "--store", "store", "--head", "logreg", "--run", "r",
            "--average", "flip")  # fmt: skip
    run, store = Run.open(Path("r")), Store.open(Path("store"))
    rows = run.manifest()
    scored = rows.keys[[split != "train" for split in rows.splits]]
    head = heads.load(Path("r/heads/logreg"))
    expected = (head.predict_proba(store.read(scored)) +
                head.predict_proba(store.read(scored, "flip"))) / 2  # fmt: skip
    np.testing.assert_allclose(run.probabilities("logreg"), expected, atol=1e-6)


def test_load_gives_a_view(command: Command, data: Path, fake_network: FakeEncoder) -> None:
    extract(command, data, "--views", "flip")
    plain, labels, _ = pipeline.load("store")
    flipped, same, _ = pipeline.load("store", view="flip")
    np.testing.assert_array_equal(labels, same)
    assert plain.shape == flipped.shape
    assert not np.array_equal(plain, flipped)
