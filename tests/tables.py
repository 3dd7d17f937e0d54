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
