"""Event files as TensorBoard reads them."""

from pathlib import Path


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
