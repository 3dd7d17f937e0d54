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
                if value.HasField("tensor"):
                    continue
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def texts(folder: Path) -> dict[str, str]:
    """Read the text of each tag."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    found = {}
    for path in sorted(folder.glob("*tfevents*")):
        for item in tf.data.TFRecordDataset(str(path)):
            for value in event_pb2.Event.FromString(item.numpy()).summary.value:
                if value.metadata.plugin_data.plugin_name == "text":
                    (text,) = tf.make_ndarray(value.tensor).tolist()
                    found[value.tag] = text.decode()
    return found
