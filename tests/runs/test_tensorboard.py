"""Event files by epoch, read back by TensorFlow's own reader."""

from pathlib import Path
from typing import Any

import pytest
from event_files import scalars

from pipeline.runs import tensorboard

# TensorFlow takes seconds to import.
pytestmark = pytest.mark.slow

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
