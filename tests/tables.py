"""Images as other people's tables hold them, written by pyarrow alone."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# How Hugging Face stores an image.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image(path: Path) -> dict[str, Any]:
    return {"bytes": path.read_bytes(), "path": path.name}


def hub_table(
    images: Iterable[dict[str, Any] | None], labels: Sequence[int | None], names: Sequence[str]
) -> pa.Table:
    """A table with the description that Hugging Face's libraries add."""
    features = {"image": {"_type": "Image"}, "label": {"names": [*names], "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", IMAGE), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = [pa.array(images, IMAGE), pa.array(labels, pa.int64())]
    return pa.Table.from_arrays(columns, schema=schema)


def write_parquet(path: Path, table: pa.Table, *, row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_stream(path: Path, table: pa.Table, *, rows: int = 4) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def save_to_disk(
    folder: Path, table: pa.Table, *, split: str | None = None, shards: int = 1
) -> None:
    """Write what ``Dataset.save_to_disk`` of ``datasets`` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{shard:05}-of-{shards:05}.arrow" for shard in range(shards)]
    for shard, name in enumerate(names):
        start, end = (table.num_rows * place // shards for place in (shard, shard + 1))
        write_stream(folder / name, table.slice(start, end - start))
    described = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "285a9292bed7443b",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    info = {"citation": "", "description": "", "features": described, "homepage": "", "license": ""}
    for name, record in (("state.json", state), ("dataset_info.json", info)):
        (folder / name).write_text(json.dumps(record, indent=2))


def save_splits(folder: Path, splits: dict[str, pa.Table], *, shards: int = 1) -> None:
    """Write what ``DatasetDict.save_to_disk`` of ``datasets`` writes."""
    for split, table in splits.items():
        save_to_disk(folder / split, table, shards=shards)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))


# -- TensorFlow Datasets -----------------------------------------------------------------------


def _varint(number: int) -> bytes:
    found = bytearray()
    number &= (1 << 64) - 1
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def example(**features: bytes | Sequence[int]) -> bytes:
    """A ``tf.train.Example``, byte by byte; numbers of a feature are packed."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        else:
            feature = _field(3, _field(1, b"".join(map(_varint, value))))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def write_records(path: Path, records: Iterable[bytes]) -> Path:
    """Write a TFRecord file, without its checksums, which only TensorFlow looks at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join(
            len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4) for record in records
        )
    )
    return path


def prepare(
    folder: Path, splits: dict[str, Sequence[tuple[bytes, int]]], names: Sequence[str]
) -> None:
    """Write what ``download_and_prepare`` of ``tensorflow_datasets`` writes."""
    kinds = {"image": "image_feature.Image", "label": "class_label_feature.ClassLabel"}
    features = {
        name: {"pythonClassName": f"tensorflow_datasets.core.features.{kind}"}
        for name, kind in kinds.items()
    }
    shards = []
    for split, rows in splits.items():
        records = [example(image=data, label=[number]) for data, number in rows]
        write_records(folder / f"Tiny-{split}.tfrecord-00000-of-00001", records)
        shards.append({"name": split, "shardLengths": [str(len(records))]})
    info = {"fileFormat": "tfrecord", "name": "Tiny", "splits": shards}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    (folder / "label.labels.txt").write_text("\n".join(names), "utf-8")
