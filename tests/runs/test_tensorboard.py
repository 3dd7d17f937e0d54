"""Event files by epoch and by head, read back by TensorFlow's own reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_files import scalars, texts
from fakes import Command, FakeEncoder, planted_store, write_classes
from PIL import Image

from pipeline.runs import tensorboard
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures

# TensorFlow takes seconds to import.
pytestmark = pytest.mark.slow

VISIBLE = str.maketrans("\t\n", "\u2409\u240a")
TAGS = ("loss", "val_loss", "val_accuracy", "learning_rate", "seconds")


def rows(count: int) -> list[dict[str, Any]]:
    """Return numbers of epochs; val_loss of the second is none."""
    return [
        {"epoch": epoch, "loss": 1 / epoch, "val_loss": None if epoch == 2 else 0.5 / epoch,
         "val_accuracy": epoch / 400, "learning_rate": 1e-4, "seconds": 2.5}
        for epoch in range(1, count + 1)
    ]  # fmt: skip


def test_tensorflow_reads_what_was_written(tmp_path: Path) -> None:
    written = rows(3)
    tensorboard.keep(tmp_path, written)
    found = scalars(tmp_path)
    assert set(found) == set(TAGS)
    for tag in TAGS:
        expected = [(row["epoch"], row[tag]) for row in written if row[tag] is not None]
        assert [step for step, _ in found[tag]] == [step for step, _ in expected]
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in expected])
    assert 2 not in dict(found["val_loss"])


def test_an_epoch_that_was_not_written_follows_and_none_is_there_twice(tmp_path: Path) -> None:
    tensorboard.keep(tmp_path, rows(1))
    first = {path: path.stat() for path in tmp_path.iterdir()}
    tensorboard.keep(tmp_path, rows(4))
    assert len(list(tmp_path.iterdir())) == 4
    for path, before in first.items():
        assert path.stat() == before, "TensorBoard may be reading it"
    # Names are in order of epochs, also beyond nine.
    tensorboard.keep(tmp_path, rows(12))
    steps = [int(path.name.rpartition(".")[2]) for path in sorted(tmp_path.iterdir())]
    assert steps == list(range(1, 13))


def test_epochs_of_a_training_that_began_anew_are_gone(tmp_path: Path) -> None:
    tensorboard.keep(tmp_path, rows(4))
    (tmp_path / ".tmp-killed.000005").touch()
    tensorboard.keep(tmp_path, [])
    assert not list(tmp_path.iterdir())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_heads_log_losses_by_epoch_and_scores(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", {"ant": 30, "bee": 30})
    flags = ("train-head", "--store", "store", "--run", "run", "--tensorboard", "--head")
    status, result = command(*flags, "linear")
    assert status == 0, result
    linear = Run.open(Path("run")).record.heads["linear"]
    found = scalars(Path("run/tensorboard/linear"))
    assert [step for step, _ in found["loss"]] == list(range(1, 41))
    assert [value for _, value in found["loss"]] == pytest.approx(linear.losses)
    for split in ("train", "val", "test"):
        ((step, value),) = found[f"{split}_accuracy"]
        assert (step, value) == (40, pytest.approx(getattr(linear, split).accuracy))
    (path,) = Path("run/tensorboard/linear").iterdir()
    written = path.stat()
    # A head that is added is logged beside the others, and none is written twice.
    assert command(*flags, "majority")[0] == 0
    assert names(Path("run/tensorboard")) == {"linear", "majority"}
    assert path.stat() == written
    assert "loss" not in scalars(Path("run/tensorboard/majority"))
    Run.open(Path("run")).drop_head("majority")
    assert names(Path("run/tensorboard")) == {"linear"}
    # Unless it is asked for again, a run that takes its place has none.
    assert command(*flags[:5], "--head", "majority", "--force")[0] == 0
    assert not Path("run/tensorboard").exists()


def test_a_sweep_logs_what_each_setting_scored(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", {"ant": 30, "bee": 30})
    Path("c.toml").write_text("[grids.ridge]\ngrid = [0.1, 1.0, 10.0]\n")
    status, result = command("sweep", "--store", "store", "--run", "run", "--head", "ridge",
                             "--tensorboard", "--config", "c.toml")  # fmt: skip
    assert status == 0, result
    trials = result["trials"]["ridge"]
    found = scalars(Path("run/tensorboard/ridge"))
    assert [step for step, _ in found["sweep_log_loss"]] == [1, 2, 3]
    losses = [value for _, value in found["sweep_log_loss"]]
    assert losses == pytest.approx([trial["log_loss"] for trial in trials])
    table = texts(Path("run/tensorboard/ridge"))["sweep_settings"].splitlines()
    assert table[0] == "| step | grid | accuracy | log loss |"
    assert [line.split(" | ")[1] for line in table[2:]] == ["[0.1]", "[1.0]", "[10.0]"]


def test_the_projector_gets_features_names_and_pictures(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_network: FakeEncoder,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tensorboard, "PROJECTED", 20)
    write_classes(tmp_path / "photos", {"a\tb\n": 15, "dog": 15})
    assert command("extract", "photos", "--store", "s", "--weights", "random")[0] == 0
    status, result = command("train-head", "--store", "s", "--run", "r", "--head", "majority",
                             "--projector")  # fmt: skip
    assert status == 0, result
    folder = Path("r/tensorboard/projector")
    features = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    first, *lines = (folder / "metadata.tsv").read_text().splitlines()
    assert (first.split("\t"), len(lines)) == (["label", "split", "path"], 20)
    assert {line.split("\t")[0] for line in lines} == {"a\u2409b\u240a", "dog"}
    rows = Run.open(Path("r")).manifest()
    places = [line.split("\t")[2] for line in lines]
    keys = {
        path.translate(VISIBLE): (path, key)
        for path, key in zip(rows.paths, rows.keys, strict=True)
    }
    expected = Store.open(Path("s")).read(np.array([keys[place][1] for place in places]))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    with Image.open(folder / "sprite.png") as sprite:
        assert sprite.size == (5 * 32, 5 * 32)
        # Pictures are in the order of the rows; what is left over is grey.
        with Image.open(rows.root / keys[places[0]][0]) as one:
            assert sprite.getpixel((0, 0)) == one.convert("RGB").getpixel((0, 0))
        assert sprite.getpixel((159, 159)) == (128, 128, 128)
    assert 'tensor_path: "tensors.tsv"' in (folder / "projector_config.pbtxt").read_text()
    assert "majority" in names(Path("r/tensorboard"))
    assert scalars(folder) == {"images": [(0, 20.0)]}


def test_without_files_the_sprite_is_grey(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "store", {"ant": 3})
    rows = store.read_manifest()
    assert tensorboard.keep_projector(tmp_path / "p", rows, store.read(rows.keys)) == 3
    # From disk where they did not fit into memory.
    features = StoredFeatures.of(store.plain, rows.keys)
    assert tensorboard.keep_projector(tmp_path / "d", rows, features) == 3
    assert len({(tmp_path / name / "tensors.tsv").read_text() for name in "pd"}) == 1
    with Image.open(tmp_path / "p/sprite.png") as sprite:
        assert sprite.getcolors() == [(64 * 64, (128, 128, 128))]
