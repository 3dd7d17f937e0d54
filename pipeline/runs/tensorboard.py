"""Event files of numbers by epoch, which TensorBoard shows.

Every epoch has a file of its own: it is complete if it exists, none is written to twice, and
TensorBoard, which reads the files of a folder in order of their names, shows it at once. TensorFlow
writes them, whatever backend Keras runs on; it computes nothing here, so that it takes no GPU.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.files.atomic import remove_leftovers, write_atomically
from pipeline.system.keras_setup import import_tensorflow, tensorflow_writing

_PREFIX: Final = "events.out.tfevents."
_VERSION: Final = "brain.Event:2"


def keep(folder: Path, epochs: Sequence[Mapping[str, object]]) -> None:
    """Make a folder hold the numbers of these epochs and of no others.

    Epochs that have a file keep it, so that nothing is there twice, whenever training was killed.

    Args:
        folder: Where event files go.
        epochs: Numbers by name, with the number of the ``epoch``; None is left out.
    """
    wanted = {folder / f"{_PREFIX}{row['epoch']:06}": row for row in epochs}
    remove_leftovers(folder)
    for path in folder.glob(f"{_PREFIX}*"):
        if path not in wanted:
            path.unlink()
    for path, row in wanted.items():
        if not path.exists():
            write_atomically(path, partial(_write, row=row))


def _write(path: Path, row: Mapping[str, object]) -> None:
    """Write the numbers of one epoch."""
    tf = import_tensorflow()

    now, proto = time.time(), tf.compat.v1
    values = [
        proto.Summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if name != "epoch" and value is not None
    ]
    summary = proto.Summary(value=values)
    with tensorflow_writing(), tf.io.TFRecordWriter(str(path)) as file:
        file.write(proto.Event(wall_time=now, file_version=_VERSION).SerializeToString())
        event = proto.Event(wall_time=now, step=row["epoch"], summary=summary)
        file.write(event.SerializeToString())
