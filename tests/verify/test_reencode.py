"""Whether stored features are those of their images, told by encoding rows again."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import Command, FakeEncoder, write_classes, write_image

from pipeline.files.hdf5 import text_of
from pipeline.store.shard import write
from pipeline.store.store import Store

FLAGS = ("--weights", "random", "--image-size", 32, "--store", "store")


@pytest.fixture
def store(
    command: Command, tmp_path: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.engines.resolve", lambda name, form: ("fake", ""))
    write_classes(tmp_path / "photos", {"cat": 10, "dog": 10})
    assert command("extract", "photos", *FLAGS, "--views", "flip")[0] == 0
    return Path("store")


def swap_rows(store: Path, folder: str = "shards") -> None:
    """Give the last four rows the features of the four before, with every checksum right."""
    opened = Store.open(store)
    item = opened.plain if folder == "shards" else opened.views["flip"]
    (shard,) = item.index.shards
    features = item.read_shard(shard)
    features[-4:] = features[-8:-4]
    with h5py.File(shard.path) as file:
        identity = text_of(file, "identity")
    shard.path.unlink()
    write(item.folder, shard.keys, [features], dim=opened.dim, identity=identity)
    opened = Store.open(store)
    opened.refresh_view()
    opened.save_record()


def verified(command: Command, *more: object) -> tuple[int, dict[str, Any]]:
    return command("verify", "store", *more)


def test_right_rows_are_right(command: Command, store: Path, fake_network: FakeEncoder) -> None:
    before = fake_network.images
    status, result = verified(command, "--reencode", 100)
    assert (status, result["ok"], result["reencoded"], result["unavailable"]) == (0, True, 40, 0)
    assert fake_network.images == before + 8 + 40
    status, result = verified(command, "--reencode", 3)
    assert (status, result["reencoded"]) == (0, 6)
    assert "reencoded" not in verified(command)[1]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["shards", "views"])
def test_rows_of_other_images_are_found_and_dropped(
    command: Command, store: Path, fake_network: FakeEncoder, folder: str
) -> None:
    swap_rows(store, folder)
    status, result = verified(command)
    assert status == 0 and result["ok"], "the bytes are as they were written"
    status, result = verified(command, "--reencode", 100)
    assert status == 2 and not result["ok"]
    (problem,) = result["problems"]
    assert "4 of 20 rows" in problem["problem"] and "--repair" in problem["fix"]
    status, result = verified(command, "--reencode", 100, "--repair")
    assert result["repaired"]
    status, result = command("extract", "photos", *FLAGS, "--views", "flip")
    assert status == 0
    status, result = verified(command, "--reencode", 100)
    assert (status, result["reencoded"]) == (0, 40)


def test_images_that_are_gone_or_changed_are_counted(command: Command, store: Path) -> None:
    files = sorted(Path("photos").rglob("*.png"))
    files[0].unlink()
    write_image(files[1], 999)
    status, result = verified(command, "--reencode", 100)
    assert (status, result["reencoded"], result["unavailable"]) == (0, 36, 4)


def test_damage_is_mended_first(command: Command, store: Path) -> None:
    (shard,) = (store / "shards").glob("*.h5")
    shard.write_bytes(shard.read_bytes()[:-9])
    status, result = verified(command, "--reencode", 5)
    assert (status, result["reencoded"]) == (2, 0)


def test_a_store_of_an_earlier_release_says_how_to_check_it(
    command: Command, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli.main import main

    record = json.loads((store / "store.json").read_text())
    del record["record_sha256"]
    (store / "store.json").write_text(json.dumps({**record, "schema_version": 1}))
    arguments = ["extract", "photos", *map(str, FLAGS)]
    for _ in range(2):
        assert main(arguments) == 0
        assert "verify store --reencode" in capsys.readouterr().err
    assert verified(command, "--reencode", 2)[0] == 0
    assert Store.unchecked(store).is_unproven, "two rows a shard prove nothing"
    assert verified(command, "--reencode", 8192)[0] == 0
    assert main(arguments) == 0
    assert "reencode" not in capsys.readouterr().err
    assert not Store.unchecked(store).is_unproven
    assert "unproven" in json.loads((store / "store.json").read_text())


def test_what_is_no_store_holds_no_features(command: Command, store: Path) -> None:
    assert command("train-head", "--store", "store", "--run", "run", "--head", "majority")[0] == 0
    status, result = command("verify", "run", "--reencode", 5)
    assert status == 2 and "store" in result["error"]["message"]
    shutil.rmtree("photos")
    assert verified(command, "--reencode", 5)[1]["unavailable"] == 10
    assert np.isfinite(Store.open(store).read(Store.open(store).index.keys)).all()
