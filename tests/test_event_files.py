"""Event files by epoch, read back by TensorFlow's own reader."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import event_files

TAGS = ("loss", "val_loss", "val_accuracy", "learning_rate", "seconds")


def rows(count: int) -> list[dict[str, Any]]:
    """Return numbers of epochs; val_loss of the second is none."""
    return [
        {"epoch": epoch, "loss": 1 / epoch, "val_loss": None if epoch == 2 else 0.5 / epoch,
         "val_accuracy": epoch / 400, "learning_rate": 1e-4, "seconds": 2.5}
        for epoch in range(1, count + 1)
    ]  # fmt: skip


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read (step, value) by tag; TensorFlow checks lengths and checksums."""
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


@pytest.mark.slow
def test_tensorflow_reads_what_was_written(tmp_path: Path) -> None:
    # Numbers from 128 on take two bytes.
    written = [row for row in rows(300) if row["epoch"] in (1, 2, 127, 128, 300)]
    event_files.keep(tmp_path, written)
    found = scalars(tmp_path)
    assert set(found) == set(TAGS)
    for tag in TAGS:
        expected = [(row["epoch"], row[tag]) for row in written if row[tag] is not None]
        assert [step for step, _ in found[tag]] == [step for step, _ in expected]
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in expected])
    assert 2 not in dict(found["val_loss"])


@pytest.mark.slow
def test_tensorflow_notices_a_changed_byte(tmp_path: Path) -> None:
    """Else the reader above would show nothing about checksums."""
    event_files.keep(tmp_path, rows(1))
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(Exception, match="corrupted record"):
        scalars(tmp_path)


def test_an_epoch_that_was_not_written_follows_and_none_is_there_twice(tmp_path: Path) -> None:
    event_files.keep(tmp_path, rows(1))
    first = {path: path.stat() for path in tmp_path.iterdir()}
    event_files.keep(tmp_path, rows(4))
    assert len(list(tmp_path.iterdir())) == 4
    for path, before in first.items():
        assert path.stat() == before, "TensorBoard may be reading it"
    # Names are in order of epochs, also beyond nine.
    event_files.keep(tmp_path, rows(12))
    steps = [int(path.name.rpartition(".")[2]) for path in sorted(tmp_path.iterdir())]
    assert steps == list(range(1, 13))


def test_epochs_of_a_training_that_began_anew_are_gone(tmp_path: Path) -> None:
    event_files.keep(tmp_path, rows(4))
    (tmp_path / ".tmp-killed.000005").touch()
    event_files.keep(tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_neither_tensorflow_nor_tensorboard_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline import event_files\n"
        f"event_files.keep(Path({str(tmp_path)!r}), [{{'epoch': 1, 'loss': 2.0}}])\n"
        "assert not {'tensorflow', 'tensorboard', 'keras', 'google.protobuf'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 1
