"""Event files for TensorBoard: numbers by epoch, scores of heads, and features to look at.

A file is complete if it exists, none is written to twice, and TensorBoard, which reads the files of
a folder in order of their names, shows it at once. TensorFlow writes them, whatever backend Keras
runs on; it computes nothing here, so that it takes no GPU.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.files.atomic import remove_leftovers, write_atomically, write_text
from pipeline.files.records import canonical_json
from pipeline.heads.rows import taken
from pipeline.images import decoder, reading
from pipeline.images.manifest import Manifest
from pipeline.runs.record import HeadRecord
from pipeline.system.keras_setup import import_tensorflow, tensorflow_writing

if TYPE_CHECKING:
    from pipeline.dataset.features import Features

# Images whose features the embedding projector gets: a browser holds them all in memory.
PROJECTED: Final = 2000
PROJECTOR: Final = "projector"

# A step, and what is said of it: numbers, or a text.
Event: TypeAlias = tuple[int, Mapping[str, float | str]]

_PREFIX: Final = "events.out.tfevents."
_VERSION: Final = "brain.Event:2"
_SCORES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
_SPRITE_SIDE: Final = 32
_GREY: Final = 128
# What would end a cell or a row of a table.
_CONTROLS: Final = {number: 0x2400 + number for number in range(32)}


def keep(folder: Path, epochs: Sequence[Mapping[str, object]]) -> None:
    """Make a folder hold the numbers of these epochs and of no others.

    Epochs that have a file keep it, so that nothing is there twice, whenever training was killed.

    Args:
        folder: Where event files go.
        epochs: Numbers by name, with the number of the ``epoch``; None is left out.
    """
    _keep(folder, {f"{row['epoch']:06}": [_of_epoch(row)] for row in epochs})


def keep_heads(folder: Path, heads: Mapping[str, HeadRecord]) -> None:
    """Write what is known of heads, each in a folder of its own; what is there already is kept.

    Args:
        folder: Where these folders go.
        heads: What a run records of its heads, by name.
    """
    for name, head in heads.items():
        events = [*series(head), *_settings(head)]
        _keep(
            folder / name,
            {hashlib.sha256(canonical_json(events).encode()).hexdigest()[:16]: events},
        )


def series(head: HeadRecord) -> list[Event]:
    """Return the numbers of a head by step.

    These are the ``loss`` of each epoch; with the last epoch, or 0 of a head without, the scores by
    split; and of each setting that a sweep tried, by its number, how it did where it was chosen.
    """
    losses = head.losses or ()
    trials = head.trials or ()
    scores = {
        f"{split}_{score}": value
        for split in ("train", "val", "test")
        for score in _SCORES
        if (value := getattr(getattr(head, split), score)) is not None
    }
    return [
        *((number, {"loss": loss}) for number, loss in enumerate(losses, 1)),
        (len(losses), scores),
        *((number, _of_trial(trial)) for number, trial in enumerate(trials, 1)),
    ]


def keep_projector(folder: Path, rows: Manifest, features: "Features") -> int:
    """Write features for the embedding projector, with names and pictures; return of how many.

    Of more than ``PROJECTED`` images, those are taken that come first in the order of their keys,
    which are hashes: the same ones each time.

    Args:
        folder: Where ``tensors.tsv``, ``metadata.tsv``, ``sprite.png`` and their configuration go.
        rows: What the images are.
        features: Of each row, float32 ``(n, dim)``, in memory or on disk.
    """
    chosen = np.sort(np.argsort(rows.keys, kind="stable")[:PROJECTED])
    table = [
        "\t".join(text.translate(_CONTROLS) for text in (rows.labels[row], rows.splits[row], path))
        for row, path in ((row, rows.paths[row]) for row in chosen)
    ]
    write_text(folder / "metadata.tsv", "\n".join(["label\tsplit\tpath", *table]) + "\n")
    write = partial(np.savetxt, X=taken(features, chosen), fmt="%.5g", delimiter="\t")
    write_atomically(folder / "tensors.tsv", write)
    write_atomically(folder / "sprite.png", partial(_write_sprite, rows=rows, chosen=chosen))
    side = f"single_image_dim: {_SPRITE_SIDE}"
    write_text(
        folder / "projector_config.pbtxt",
        'embeddings {\n  tensor_name: "features"\n  tensor_path: "tensors.tsv"\n'
        '  metadata_path: "metadata.tsv"\n'
        f'  sprite {{ image_path: "sprite.png" {side} {side} }}\n}}\n',
    )
    # The projector looks into folders of event files alone.
    _keep(folder, {"projector": [(0, {"images": float(len(chosen))})]})
    return len(chosen)


def _keep(folder: Path, files: Mapping[str, Sequence[Event]]) -> None:
    """Make a folder hold these event files, by the ends of their names, and no others."""
    wanted = {folder / f"{_PREFIX}{name}": events for name, events in files.items()}
    remove_leftovers(folder)
    for path in folder.glob(f"{_PREFIX}*"):
        if path not in wanted:
            path.unlink()
    for path, events in wanted.items():
        if not path.exists():
            write_atomically(path, partial(_write, events=events))


def _of_epoch(row: Mapping[str, Any]) -> Event:
    numbers = {name: value for name, value in row.items() if name != "epoch" and value is not None}
    return row["epoch"], numbers


def _of_trial(trial: Mapping[str, Any]) -> dict[str, float | str]:
    found = {f"sweep_{name}": trial[name] for name in ("accuracy", "log_loss")}
    return {name: value for name, value in found.items() if value is not None}


def _settings(head: HeadRecord) -> Iterator[Event]:
    """Yield the settings that a sweep tried as a table in Markdown, which TensorBoard shows."""
    if not head.trials:
        return
    names = list(dict.fromkeys(name for trial in head.trials for name in _setting(trial)))
    lines: list[list[object]] = [["step", *names, "accuracy", "log loss"]]
    lines.append(["--"] * (len(names) + 3))
    for number, trial in enumerate(head.trials, 1):
        values = [_setting(trial).get(name, "") for name in names]
        scores = (trial["accuracy"], trial["log_loss"])
        lines.append(
            [number, *values, *("-" if score is None else f"{score:.4f}" for score in scores)]
        )
    yield 0, {"sweep_settings": "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)}


def _setting(trial: Mapping[str, Any]) -> Mapping[str, object]:
    found: Mapping[str, object] = trial["setting"]
    return found


def _write(path: Path, events: Sequence[Event]) -> None:
    """Write one event file."""
    tf = import_tensorflow()

    now, proto = time.time(), tf.compat.v1
    with tensorflow_writing(), tf.io.TFRecordWriter(str(path)) as file:
        file.write(proto.Event(wall_time=now, file_version=_VERSION).SerializeToString())
        for step, said in events:
            summary = proto.Summary(value=[_value(tf, tag, value) for tag, value in said.items()])
            file.write(proto.Event(wall_time=now, step=step, summary=summary).SerializeToString())


def _value(tf: Any, tag: str, value: float | str) -> Any:
    """Return a number or a text as TensorBoard's protocol has it."""
    if not isinstance(value, str):
        return tf.compat.v1.Summary.Value(tag=tag, simple_value=value)
    found = tf.compat.v1.Summary.Value(tag=tag, tensor=tf.make_tensor_proto([value.encode()]))
    found.metadata.plugin_data.plugin_name = "text"
    return found


def _write_sprite(path: Path, rows: Manifest, chosen: NDArray[np.intp]) -> None:
    """Write small pictures of rows side by side; one that cannot be had is grey."""
    from PIL import Image

    columns = int(np.ceil(np.sqrt(len(chosen))))
    sprite = Image.new("RGB", (columns * _SPRITE_SIDE,) * 2, (_GREY,) * 3)
    pictures = reading.in_threads(
        partial(_thumbnail, rows), chosen.tolist(), reading.num_threads(rows)
    )
    for place, (_, made) in enumerate(pictures):
        picture = made.result()
        if picture is not None:
            top, left = divmod(place, columns)
            sprite.paste(Image.fromarray(picture), (left * _SPRITE_SIDE, top * _SPRITE_SIDE))
    sprite.save(path, "PNG")


def _thumbnail(rows: Manifest, row: int) -> NDArray[np.uint8] | None:
    """Return a small picture, uint8 ``(height, width, 3)``; None without one."""
    try:
        content = reading.read(rows, row)
        is_same = content.key.encode() == rows.keys[row]
        return decoder.thumbnail(content.data, _SPRITE_SIDE) if is_same else None
    except DecodeError:
        return None
