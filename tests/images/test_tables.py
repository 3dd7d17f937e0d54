"""Parquet and Arrow files as sources: columns, labels, splits, bad rows, damaged files."""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tables
from fakes import Command, FakeEncoder, write_image
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, ManifestError, UnreadableImageError
from pipeline.images import manifest, packed, reading, sources
from pipeline.images.manifest import Manifest
from pipeline.images.packed import row_groups, table_members
from pipeline.images.packed.kinds import ChangedPackError

LIMIT = 1 << 30
BYTES = [{"bytes": b"%d" % number, "path": f"of/{number}.png"} for number in range(10)]


def hub(count: int = 10, labels: Sequence[int | None] | None = None) -> pa.Table:
    numbers = [row % 2 for row in range(count)] if labels is None else labels
    return tables.hub_table(BYTES[:count], numbers, ("cat", "dog"))


def parquet(folder: Path, columns: dict[str, Any], name: str = "t.parquet") -> Path:
    return tables.write_parquet(folder / name, pa.table(columns))


def listed(data: Path, **options: Any) -> list[tuple[str, str, str]]:
    found = sources.scan(data, **options)
    return list(zip(found.paths, found.labels, found.splits, strict=True))


def said(listing: Manifest) -> str:
    return "\n".join(listing.notes)


def read_all(listing: Manifest) -> list[bytes | str]:
    found: list[bytes | str] = []
    for row in range(len(listing)):
        try:
            found.append(reading.read(listing, row).data)
        except UnreadableImageError as error:
            found.append(str(error))
    return found


WRITERS = {
    "parquet": lambda path, table: tables.write_parquet(path.with_suffix(".parquet"), table),
    "arrow": lambda path, table: tables.write_stream(path.with_suffix(".arrow"), table),
}


@pytest.fixture(params=WRITERS)
def table_file(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Write a table; returns its path."""
    return lambda table: WRITERS[request.param](tmp_path / "t", table)


# -- columns -----------------------------------------------------------------------------------


def test_images_and_labels_are_told_by_types_and_hugging_faces_names(table_file: Any) -> None:
    data = table_file(hub())
    listing = sources.scan(data)
    assert listing.paths[:2] == [
        f"{data.name}/image/00000000-0.png",
        f"{data.name}/image/00000001-1.png",
    ]
    assert listing.labels == ["cat", "dog"] * 5
    assert read_all(listing) == [row["bytes"] for row in BYTES]
    assert said(listing) == (
        f"{data.name}: images in the column 'image', labels in 'label' (2 class names)"
    )


def test_several_columns_are_refused_until_one_is_named(tmp_path: Path) -> None:
    columns = {
        "photo": [b"a"], "mask": [b"b"], "label": ["x"], "coarse": pa.array([1]), "text": ["t"],
    }  # fmt: skip
    data = parquet(tmp_path, columns)
    with pytest.raises(ManifestError, match=r"one column of images .*'photo', 'mask'.*--image-col"):
        sources.scan(data)
    listing = sources.scan(data, image_column="mask", label_column="coarse")
    assert listing.labels == ["1"] and read_all(listing) == [b"b"]
    assert "columns not used: 'photo', 'label', 'text'" in said(listing)
    with pytest.raises(ConfigError, match=r"--label-column: .*Received: 'fine'; there are 'photo'"):
        sources.scan(data, image_column="mask", label_column="fine")
    both = hub(1).append_column("fine", pa.array([0]))
    features = json.loads(both.schema.metadata[b"huggingface"])
    features["info"]["features"]["fine"] = {"_type": "ClassLabel", "names": ["tabby"]}
    both = both.replace_schema_metadata({"huggingface": json.dumps(features)})
    data = tables.write_parquet(tmp_path / "both.parquet", both)
    with pytest.raises(ManifestError, match=r"one column of labels .*'label', 'fine'.*--label-col"):
        sources.scan(data)
    assert sources.scan(data, label_column="fine").labels == ["tabby"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "label": ["b"]}, r"a column of images, or of paths named 'path'.*'text'"),
        ({"vector": [[0.1]], "label": ["b"]}, r"'vector' may hold, are for import-features"),
        ({"image": [b"a"], "label": [0.5]}, r"texts or whole numbers.*'label' of type double"),
        ({"image": [b"a"], "label": [["b"]]}, r"one label per image.*'label', which holds lists"),
        ({"image": [b"a"], "split": [1]}, r"column of texts.*'split' of type int64"),
        ({"path": [1], "label": ["b"]}, r"column of texts.*'path' of type int64"),
        ({"image": [b"a"], "Label": ["b"], "label": ["c"]}, r"one column of labels"),
        ({"image": pa.array([], pa.binary())}, r"There are no rows"),
    ],
)  # fmt: skip
def test_columns_of_no_use_are_refused(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=message):
        sources.scan(parquet(tmp_path, columns))


def test_sound_is_stored_as_images_are_and_refused(tmp_path: Path) -> None:
    described = json.dumps({"info": {"features": {"sound": {"_type": "Audio"}}}})
    table = pa.table({"sound": pa.array(BYTES, tables.IMAGE)})
    data = tables.write_parquet(
        tmp_path / "t.parquet", table.replace_schema_metadata({"huggingface": described})
    )
    with pytest.raises(ManifestError, match=r"column of images.*Received: 'sound' \(Audio\)"):
        sources.scan(data)


def test_a_column_called_as_a_part_of_another_is(table_file: Any) -> None:
    table = hub(3).append_column("image.bytes", pa.array([b"x", b"y", b"z"]))
    for place in (2, 0):
        columns = ["image", "label"]
        columns.insert(place, "image.bytes")
        data = table_file(table.select(columns))
        assert read_all(sources.scan(data)) == [b"0", b"1", b"2"]
        assert read_all(sources.scan(data, image_column="image.bytes")) == [b"x", b"y", b"z"]


def test_columns_are_for_tables_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "cat/1.png", 1)
    with pytest.raises(ConfigError, match=r"--image-column.*'x' for a folder"):
        sources.scan(tmp_path, image_column="x")
    with pytest.raises(ConfigError, match="for a table, whose splits a column 'split' says"):
        sources.scan(parquet(tmp_path / "t", {"image": [b"a"]}), layout="classes")
    tables.save_to_disk(tmp_path / "hub", hub())
    tables.prepare(tmp_path / "tfds", {"train": ROWS}, ("cat", "dog"))
    for name, what in (("hub", "Hugging Face datasets"), ("tfds", "TensorFlow Datasets")):
        with pytest.raises(ConfigError, match=f"folder of {what}, which says its splits itself"):
            sources.scan(tmp_path / name, layout="classes")


# -- rows --------------------------------------------------------------------------------------


def test_rows_without_a_label_or_with_a_number_beyond_the_names(table_file: Any) -> None:
    listing = sources.scan(table_file(hub(6, [0, None, -1, 1, 2, -7])))
    assert listing.labels == ["cat", "", "", "dog", "", ""]
    assert "rows without a label, never trained or scored on: 4" in said(listing)
    assert "labels that no class name is for count as none: 2, such as 2 in row 4" in said(listing)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([3, None, -1]), ["3", "", "-1"]),
        (pa.array([True, False, None]), ["true", "false", ""]),
        (pa.array(["a", " ", None]).dictionary_encode(), ["a", "", ""]),
        (pa.nulls(3), ["", "", ""]),
    ],
)
def test_labels_without_names_are_what_they_are(
    labels: Any, expected: list[str], tmp_path: Path
) -> None:
    data = parquet(tmp_path, {"image": [b"a", b"b", b"c"], "label": labels})
    assert sources.scan(data).labels == expected


def test_a_row_without_bytes_is_one_bad_image(table_file: Any) -> None:
    rows = [BYTES[0], None, {"bytes": None, "path": None}, BYTES[3]]
    listing = sources.scan(table_file(tables.hub_table(rows, [0, 0, 1, 1], ("cat", "dog"))))
    missing = "cannot be read: the row has no bytes"
    assert read_all(listing) == [b"0", missing, missing, b"3"]


def test_images_that_were_never_packed_are_where_the_table_says(
    tmp_path: Path, table_file: Any
) -> None:
    (tmp_path / "of").mkdir()
    for row in BYTES[:3]:
        (tmp_path / row["path"]).write_bytes(row["bytes"])
    rows = [{"bytes": None, "path": row["path"]} for row in BYTES[:3]]
    listing = sources.scan(table_file(tables.hub_table(rows, [0, 1, 0], ("cat", "dog"))))
    assert list(listing.paths) == ["of/0.png", "of/1.png", "of/2.png"]
    assert read_all(listing) == [b"0", b"1", b"2"]
    # One of them a second time, as another class.
    listing = sources.scan(
        table_file(tables.hub_table([*rows, rows[1]], [0, 1, 0, 0], ("cat", "dog")))
    )
    assert listing.notes[-1].endswith(", 1: 'of/1.png' as 'dog' and as 'cat'")
    assert list(listing.statuses) == ["", manifest.CONFLICT, ""]


def test_a_row_that_was_not_packed_beside_some_that_were(tmp_path: Path, table_file: Any) -> None:
    (tmp_path / "of").mkdir()
    (tmp_path / "of/5.png").write_bytes(b"of its own")
    rows = [*BYTES[:4], *({"bytes": None, "path": row["path"]} for row in BYTES[4:6])]
    data = table_file(tables.hub_table(rows, [0, 1] * 3, ("cat", "dog")))
    listing = sources.scan(data)
    assert listing.paths[0] == "of/5.png" and listing.labels[0] == "dog"
    assert listing.paths[5] == f"{data.name}/image/00000004-4.png"
    gone = "cannot be read: the row has no bytes, and no file was found at its path, .../4.png"
    assert read_all(listing) == [b"of its own", b"0", b"1", b"2", b"3", gone]


def test_a_row_without_a_path_is_one_bad_image(tmp_path: Path, table_file: Any) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    data = table_file(pa.table({"path": ["1.png", None], "label": ["a", "b"]}))
    listing = sources.scan(data)
    assert listing.paths == ["1.png", f"{data.name}/path/00000001"]
    assert f"count as bad images, 1: '{data.name}/path/00000001'" in said(listing)
    assert str(read_all(listing)[1]).startswith("cannot be read: no image in the ")
    (tmp_path / "1.png").unlink()
    with pytest.raises(ManifestError, match="1 of 1 files do not exist"):
        sources.scan(data)


def test_paths_are_read_as_those_of_a_csv(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"x")
    columns = {
        "Path": ["./1.png", "2.png", "gone.png"], "label": ["a", "b", "b"],
        "split": ["train", "validation", None], "group": pa.array([7, None, 7]),
    }  # fmt: skip
    data = parquet(tmp_path, columns)
    listing = sources.scan(data)
    assert listed(data) == [("1.png", "a", "train"), ("2.png", "b", "val"), ("gone.png", "b", "")]
    assert list(listing.groups) == ["7", "", "7"]
    assert "1 of 3 files do not exist and count as bad images: 'gone.png'" in said(listing)
    data = parquet(tmp_path, {"path": ["1.png", "./1.png"], "label": ["a", "a"]})
    assert "rows that repeat others count once, 1: '1.png'" in said(sources.scan(data))
    data = parquet(tmp_path, {"path": ["1.png", "./1.png"], "label": ["a", "b"]})
    assert "in no split, 1: '1.png' as 'a' and as 'b'" in said(sources.scan(data))


def test_the_rest_goes_on_under_on_error(
    tmp_path: Path, command: Command, fake_network: FakeEncoder
) -> None:
    rows: list[dict[str, Any]] = [
        {"bytes": write_image(tmp_path / "photo.png", number), "path": f"{number}.png"}
        for number in range(4)
    ]
    rows[1] = {"bytes": b"no image", "path": "bad.png"}
    rows[2] = {"bytes": None, "path": None}
    table = tables.hub_table(rows, [0, 0, 1, 1], ("cat", "dog"))
    data = tables.write_parquet(tmp_path / "shards/train.parquet", table).parent
    (data / "test.parquet").write_bytes((data / "train.parquet").read_bytes()[:-20])
    flags = ("--weights", "random", "--image-size", 32, "--store", tmp_path / "store", "--json")
    status, result = command("extract", data, *flags)
    assert status == 0 and (result["encoded"], result["skipped"]) == (2, 3)
    assert [error["path"] for error in result["errors"]] == [
        "test.parquet",
        "train.parquet/image/00000001-bad.png",
        "train.parquet/image/00000002",
    ]
    assert any("'test.parquet' counts as one bad image" in note for note in result["notes"])
    assert command("extract", data, *flags, "--on-error", "raise")[0] == 2


# -- files -------------------------------------------------------------------------------------


def test_splits_go_by_names_of_files_or_of_folders(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/validation"):
        tables.write_parquet(tmp_path / f"a/{name}.parquet", hub(2))
    (tmp_path / "a/README.md").write_text("about")
    assert [split for *_, split in listed(tmp_path / "a")] == ["train"] * 4 + ["val"] * 2
    for name in ("train/0000", "test/0000", "extra/0000"):
        tables.write_parquet(tmp_path / f"b/default/{name}.parquet", hub(2))
    (tmp_path / "b/_SUCCESS").touch()
    with pytest.raises(ManifestError, match=r"and not 'default/extra/0000.parquet'") as refused:
        sources.scan(tmp_path / "b")
    assert "--layout splits leaves the others out" in str(refused.value.hint)
    found = sources.scan(tmp_path / "b", layout="splits")
    assert found.splits == ["test"] * 2 + ["train"] * 2
    assert "Left out, named as no split: 'default/extra/0000.parquet'" in said(found)
    assert "Left out, beside tables: '_SUCCESS'" in said(found)
    assert set(sources.scan(tmp_path / "b", layout="classes").splits) == {""}


def test_names_of_files_that_tell_one_split_or_none(tmp_path: Path) -> None:
    name = "-00000-of-00002-0123456789abcdef.parquet"
    for part in ("test", "x"):
        tables.write_parquet(tmp_path / part / f"{part}{name}", hub(2))
    found = sources.scan(tmp_path / "test")
    assert set(found.splits) == {""} and "All files are named as test" in said(found)
    assert set(sources.scan(tmp_path / "test", layout="splits").splits) == {"test"}
    with pytest.raises(ManifestError, match="Expected files that are named as splits"):
        sources.scan(tmp_path / "x", layout="splits")
    tables.write_parquet(tmp_path / f"test/train{name}", hub(2))
    assert sources.scan(tmp_path / "test").splits == ["test"] * 2 + ["train"] * 2


def test_a_column_of_splits_goes_before_names_of_files(tmp_path: Path) -> None:
    def write(name: str, split: list[str | None]) -> None:
        parquet(tmp_path, {"image": [b"a", b"b"], "split": pa.array(split, pa.string())}, name)

    write("train-0.parquet", ["test", "validation"])
    write("extra.parquet", ["train", "train"])
    found = sources.scan(tmp_path)
    assert found.splits == ["train", "train", "test", "val"]
    assert "Splits are those of the column 'split', not of names of files" in said(found)
    write("extra.parquet", ["train", None])
    with pytest.raises(ManifestError, match="to be named as splits, or none"):
        sources.scan(tmp_path)
    (tmp_path / "extra.parquet").rename(tmp_path / "test-0.parquet")
    found = sources.scan(tmp_path)
    assert found.splits == ["train", "test", "test", "val"]
    note = "of the column 'split' (3 rows), and where it is blank those of files (1 row)"
    assert note in said(found)


def test_a_folder_of_images_with_a_table_in_it_is_a_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "cat/1.png", 1)
    tables.write_parquet(tmp_path / "about.parquet", hub(2))
    assert listed(tmp_path) == [("cat/1.png", "cat", "")]


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    tables.write_parquet(tmp_path / "a.parquet", hub(2))
    parquet(tmp_path, {"image": [b"a"], "label": ["cat"]}, "b.parquet")
    with pytest.raises(ManifestError, match=r"the same columns in all files .*'a.parquet', and"):
        sources.scan(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 100, -20, -9])
def test_a_file_cut_short_is_refused(kept: int, table_file: Any) -> None:
    data = table_file(hub())
    data.write_bytes(data.read_bytes()[:kept] if kept else b"")
    if data.suffix == ".arrow" and kept < 0:
        # What was before the cut is there.
        listing = sources.scan(data)
        assert 4 <= read_all(listing).count(b"0") * (len(listing) - 1) <= 10
        assert "t.arrow' counts as one bad image, in place of those that cannot be" in said(listing)
        return
    with pytest.raises(ManifestError, match=r"Expected an? (Parquet|Arrow) file at "):
        sources.scan(data)


def test_damage_within_a_file_is_bad_images_or_an_error(table_file: Any) -> None:
    """Whatever byte is changed, what is listed can be asked for, and nothing else is raised."""
    data = table_file(hub())
    whole = data.read_bytes()
    for place in range(0, len(whole), 31):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        data.write_bytes(changed)
        try:
            listing = sources.scan(data)
        except ManifestError:
            continue
        read_all(listing)


def test_an_empty_file_beside_a_damaged_one(tmp_path: Path) -> None:
    parquet(tmp_path, {"image": pa.array([], pa.binary())}, "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"no rows in .*\. 'b\.parquet' is damaged: Expected a"):
        sources.scan(tmp_path)


def test_compressed_arrow_is_refused(tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    table = pa.table({"image": [b"a" * 1000] * 9})
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(ManifestError, match=r"without compression .*or as Parquet"):
        sources.scan(tmp_path / "t.arrow")
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert read_all(sources.scan(tmp_path / "t.arrow")) == [b"a" * 1000] * 9


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tables.write_parquet(tmp_path / "t.parquet", hub())
    packed.forget()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipeline\[parquet\]'"):
        sources.scan(data)


# -- folders of Hugging Face datasets ----------------------------------------------------------


def test_one_data_set_and_one_per_split(tmp_path: Path) -> None:
    tables.save_to_disk(tmp_path / "one", hub(5), split="train", shards=2)
    assert [path.rpartition("/")[2] for path, *_ in listed(tmp_path / "one")] == [
        "00000000-0.png", "00000001-1.png", "00000000-2.png", "00000001-3.png", "00000002-4.png",
    ]  # fmt: skip
    assert {split for *_, split in listed(tmp_path / "one")} == {"train"}
    parts = {"train": hub(4), "test": hub(2), "unsupervised": hub(3)}
    tables.save_splits(tmp_path / "dict", parts)
    found = sources.scan(tmp_path / "dict")
    assert found.splits == ["test"] * 2 + ["train"] * 4 + [""] * 3
    assert "none of train, val or test: 'unsupervised'; their images are divided" in said(found)


def test_a_data_set_of_another_split_is_divided_and_that_is_said(tmp_path: Path) -> None:
    tables.save_to_disk(tmp_path / "one", hub(5), split="extra")
    found = sources.scan(tmp_path / "one")
    assert set(found.splits) == {""}
    assert "none of train, val or test: 'extra'; their images are divided by hash" in said(found)


@pytest.mark.parametrize("names", [7, "cat", {"0": "cat"}, [0, 1]])
def test_names_of_classes_that_are_none_are_refused(tmp_path: Path, names: object) -> None:
    tables.save_to_disk(tmp_path / "one", hub(5))
    info = json.loads((tmp_path / "one/dataset_info.json").read_text())
    info["features"]["label"]["names"] = names
    (tmp_path / "one/dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ManifestError, match=r"names of classes of 'label' in .* a list of texts"):
        sources.scan(tmp_path / "one")


def test_a_selection_of_rows_is_refused(tmp_path: Path) -> None:
    """As releases before 2.0 wrote what was filtered."""
    tables.save_to_disk(tmp_path / "old", hub())
    state = json.loads((tmp_path / "old/state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "old/state.json").write_text(json.dumps(state))
    with pytest.raises(ManifestError, match=r"a selection of them .*flatten_indices"):
        sources.scan(tmp_path / "old")


@pytest.mark.parametrize("record", ["{", "[]", "{}", '{"_data_files": [{"filename": "../x"}]}'])
def test_a_folder_with_another_state_is_refused(record: str, tmp_path: Path) -> None:
    tables.save_to_disk(tmp_path / "one", hub())
    (tmp_path / "one/state.json").write_text(record)
    with pytest.raises(ManifestError, match=r"folder of Hugging Face datasets .*'state.json'"):
        sources.scan(tmp_path / "one")


def test_a_file_of_the_folder_that_is_gone_is_one_bad_image(tmp_path: Path) -> None:
    tables.save_to_disk(tmp_path / "one", hub(), shards=2)
    (tmp_path / "one/data-00001-of-00002.arrow").unlink()
    listing = sources.scan(tmp_path / "one")
    assert len(listing) == 6 and "'data-00001-of-00002.arrow' counts as one bad" in said(listing)


# -- folders of TensorFlow Datasets ------------------------------------------------------------

ROWS = [(b"%d" % number, number % 2) for number in range(10)]


def test_records_of_a_prepared_folder(tmp_path: Path) -> None:
    tables.prepare(tmp_path, {"train": ROWS[:6], "unlabelled": [(b"x", -1)]}, ("cat", "dog"))
    listing = sources.scan(tmp_path)
    assert listing.paths[0] == "Tiny-train.tfrecord-00000-of-00001/image/00000000"
    assert listing.labels == ["cat", "dog"] * 3 + [""] and listing.splits == ["train"] * 6 + [""]
    assert read_all(listing) == [data for data, _ in ROWS[:6]] + [b"x"]
    assert "none of train, val or test: 'unlabelled'; their images" in said(listing)
    assert "labels in 'label' (2 class names)" in said(listing)


@pytest.mark.parametrize("kept", [0, 5, 40, -1, -60])
def test_a_prepared_file_cut_short(kept: int, tmp_path: Path) -> None:
    tables.prepare(tmp_path, {"train": ROWS, "test": ROWS[:2]}, ("cat", "dog"))
    file = tmp_path / "Tiny-train.tfrecord-00000-of-00001"
    file.write_bytes(file.read_bytes()[:kept])
    listing = sources.scan(tmp_path)
    before = 0 if kept >= 0 else 9 if kept == -1 else 8
    assert len(listing) == 2 + before + bool(kept)
    assert ("tells of 12 records, and there are" in said(listing)) == (len(listing) != 12)
    assert not kept or f"{file.name!r} counts as one bad image" in said(listing)


def test_records_of_another_kind_are_refused_or_bad_images(tmp_path: Path) -> None:
    tables.prepare(tmp_path, {"train": ROWS}, ("cat", "dog"))
    file = tmp_path / "Tiny-train.tfrecord-00000-of-00001"
    tables.write_records(file, [tables.example(image=b"a", label=[0, 1])])
    with pytest.raises(ManifestError, match=r"one label per image.*'label', which holds lists"):
        sources.scan(tmp_path)
    tables.write_records(file, [b"no example at all"])
    with pytest.raises(ManifestError, match=r"Received: record 0, which is no tf\.train\.Example"):
        sources.scan(tmp_path)
    records = [tables.example(image=b"a", label=[0]), tables.example(label=[1])]
    tables.write_records(file, records)
    missing = "cannot be read: the record has no bytes"
    assert read_all(sources.scan(tmp_path)) == [b"a", missing]


def test_damage_within_a_prepared_file(tmp_path: Path) -> None:
    tables.prepare(tmp_path, {"train": ROWS}, ("cat", "dog"))
    file = tmp_path / "Tiny-train.tfrecord-00000-of-00001"
    whole = file.read_bytes()
    for place in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        file.write_bytes(changed)
        try:
            listing = sources.scan(tmp_path)
        except ManifestError:
            continue
        read_all(listing)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("record", ["{", "[]", '{"fileFormat": "array_record"}'])
def test_a_prepared_folder_with_other_records_is_refused(
    name: str, record: str, tmp_path: Path
) -> None:
    tables.prepare(tmp_path, {"train": ROWS}, ("cat", "dog"))
    (tmp_path / name).write_text(record)
    with pytest.raises(ManifestError, match=r"TensorFlow Datasets in|TFRecord files in"):
        sources.scan(tmp_path)


# -- members -----------------------------------------------------------------------------------


@given(
    column=st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
        lambda text: text not in (".", "..")
    ),
    path=st.none() | st.text(st.characters(exclude_categories=("Cs",))),
    row=st.integers(0, 3),
)
def test_names_lead_back_to_their_row(column: str, path: str | None, row: int) -> None:
    paths = pa.chunked_array([pa.array([path] * 4, pa.string())])
    names = table_members.MemberNames({column: lambda: table_members.short_names(paths)}, 4)
    name = names.name(column, row)
    assert names.find(name) == (column, row) and name in names and names[row] == name
    assert names.of(column) == list(names) and len(set(names)) == 4
    parts = name.split("/")
    assert len(parts) == 2 and not {"", ".", ".."} & set(parts)
    assert f"{name}x" not in names and parts[1] not in names


def test_order_of_names_is_that_of_rows() -> None:
    names = table_members.MemberNames({"image": None}, 12_345).of("image")
    assert names == sorted(names)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=40))
def test_rows_of_a_row_group_in_any_order(rows: list[int]) -> None:
    values = [None if row % 7 == 0 else b"%d" % row for row in range(100)]
    group = row_groups.RowGroup(
        lambda: (pa.array(values[row : row + 9], pa.binary()) for row in range(0, 100, 9))
    )
    assert [group.value(row, limit=LIMIT) for row in rows] == [values[row] for row in rows]


def test_a_row_group_keeps_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "KEPT_BYTES", 1000)
    passes = []

    def decode() -> Any:
        passes.append(1)
        return (pa.array([bytes(100)] * 4, pa.binary()) for _ in range(50))

    group = row_groups.RowGroup(decode)
    for row in range(200):
        group.value(row, limit=LIMIT)
        # At least 16 rows behind, for threads that are late.
        group.value(max(0, row - 12), limit=LIMIT)
    assert len(passes) == 1 and sum(len(array) for _, array in group._arrays) <= 20
    group.value(0, limit=LIMIT)
    assert len(passes) == 2


def test_what_cannot_be_decoded_is_not_tried_for_every_row() -> None:
    passes = []

    def decode() -> Any:
        passes.append(1)
        yield pa.array([b"a"] * 4, pa.binary())
        raise OSError("damaged")

    group = row_groups.RowGroup(decode)
    for row in (3, 5, 6, 7):
        if row < 4:
            assert group.value(row, limit=LIMIT) == b"a"
        else:
            with pytest.raises(OSError, match="damaged"):
                group.value(row, limit=LIMIT)
    assert group.value(0, limit=LIMIT) == b"a" and len(passes) == 2


def test_a_file_that_changes_is_listed_anew(table_file: Any) -> None:
    data = table_file(hub())
    listing = sources.scan(data)
    pack = packed.opened(data)
    turned = hub().take(pa.array(range(9, -1, -1)))
    table_file(turned)
    assert sources.scan(data).states[3] != listing.states[3]
    with pytest.raises(ChangedPackError):
        pack.read("image/00000003-3.png", limit=LIMIT)
    assert packed.read(data, "image/00000003-6.png", limit=LIMIT)[0] == BYTES[6]["bytes"]
    assert not reading.is_there(listing, 3)
    assert read_all(sources.scan(data)) == [row["bytes"] for row in reversed(BYTES)]


def test_too_many_bytes_are_not_read(table_file: Any) -> None:
    pack = packed.opened(table_file(hub()))
    with pytest.raises(UnreadableImageError, match=r"^too large: 1 bytes"):
        pack.read("image/00000003-3.png", limit=0)
    with pytest.raises(UnreadableImageError, match="no image in the"):
        pack.read("image/00000003-4.png", limit=LIMIT)


def test_threads_read_what_one_reads(table_file: Any) -> None:
    listing = sources.scan(table_file(hub()))
    rows = [row % 10 for row in range(0, 700, 7)]
    packed.forget()
    row_groups.forget()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: reading.read(listing, row).data, rows))
    assert found == [b"%d" % row for row in rows]


def _read_in_child(listing: Manifest, queue: Any) -> None:
    queue.put(read_all(listing))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_reads_on(table_file: Any) -> None:
    listing = sources.scan(table_file(hub()))
    expected = read_all(listing)
    with row_groups._lock:  # as if another thread were at it
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_read_in_child, args=(listing, queue))
        child.start()
        assert queue.get() == expected
        child.join()
