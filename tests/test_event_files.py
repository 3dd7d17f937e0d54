"""Event files by epoch, read back by TensorFlow's own reader."""

from pathlib import Path
from typing import Any

import pytest

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


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read (step, value) by tag."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("*tfevents*")):
        records = [item.numpy() for item in tf.data.TFRecordDataset(str(path))]
        events = [event_pb2.Event.FromString(record) for record in records]
        assert events[0].file_version == "brain.Event:2"
        assert all(event.wall_time > 1.6e9 for event in events)
        for event in events:
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


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
