"""Options: names, types and bounds of records, and the configuration file."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.commands import records
from pipeline.config.extracting import ExtractOptions
from pipeline.config.fields import flag_of
from pipeline.config.options import (
    FinetuneOptions,
    SampleOptions,
    TrainHeadOptions,
    build,
    default_of,
    options_of,
)
from pipeline.config.toml_file import load_file
from pipeline.errors import ConfigError
from pipeline.files.records import canonical_json

INTEGERS = [
    (record, name, option.minimum)
    for record in records().values()
    for name, option in options_of(record).items()
    if option.kind == "integer"
]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "pipeline.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("record", records().values())
def test_defaults_are_valid_values(record: type[Any]) -> None:
    defaults = {name: default_of(record, name) for name in options_of(record)}
    assert build(record, defaults) == build(record, {}) == record()


@pytest.mark.parametrize(
    ("name", "meant"),
    [("batchsize", "batch_size"), ("image_sise", "image_size"), ("wieghts", "weights")],
)
def test_unknown_options_name_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown option '{name}'. Did you mean '{meant}'") as it:
        build(ExtractOptions, {name: 1})
    assert all(valid in it.value.hint for valid in options_of(ExtractOptions))


@pytest.mark.parametrize("record", [FinetuneOptions, TrainHeadOptions])
def test_the_old_name_of_the_preset_is_the_new_one(record: type[Any], tmp_path: Path) -> None:
    assert options_of(record)["preset"].choices == ("tutorial",)
    old, new = (build(record, {"preset": name}) for name in ("seed", "tutorial"))
    assert old == new and old.preset == "tutorial"
    with pytest.raises(ConfigError, match=r"--preset: expected one of tutorial. Received: 'none'"):
        build(record, {"preset": "none"})


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    with pytest.raises(ConfigError) as caught:
        build(SampleOptions, {"zzzzzz": 1})
    assert "Did you mean" not in str(caught.value) and "out" in caught.value.hint


@pytest.mark.parametrize(
    ("record", "name", "value", "expected"),
    [
        (ExtractOptions, "batch_size", 1.0, "an integer of 1 or more"),
        (ExtractOptions, "batch_size", True, "an integer of 1 or more"),
        (ExtractOptions, "batch_size", "many", "an integer of 1 or more"),
        (ExtractOptions, "batch_size", [8], "an integer of 1 or more"),
        (ExtractOptions, "rehash", 1, "true or false"),
        (ExtractOptions, "rehash", "true", "true or false"),
        (ExtractOptions, "pooling", "mean", "one of avg, max"),
        (ExtractOptions, "backbone", 50, "a path"),
        (TrainHeadOptions, "head", ["dense", 3], "a list of texts"),
        (TrainHeadOptions, "head", 3, "a list of texts"),
    ],
)
def test_wrong_types(record: type[Any], name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(record, {name: value})
    assert caught.value.message == f"{flag_of(name)}: expected {expected}. Received: {value!r}."


@given(st.sampled_from(INTEGERS), st.integers(-(10**6), 10**6), st.booleans())
def test_integers_are_taken_from_their_minimum_on(
    option: tuple[type[Any], str, int], value: int, as_text: bool
) -> None:
    record, name, minimum = option
    given_value = str(value) if as_text else value
    if value >= minimum:
        assert getattr(build(record, {name: given_value}), name) == value
    else:
        with pytest.raises(ConfigError, match=f"an integer of {minimum} or more"):
            build(record, {name: given_value})


@pytest.mark.parametrize("value", ["dense", ["dense"], ("dense",)])
def test_one_text_is_a_list_of_one(value: object) -> None:
    assert build(TrainHeadOptions, {"head": value}).head == ("dense",)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build(ExtractOptions, {}).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("spelling", ["train-head", "train_head"])
@pytest.mark.parametrize("key", ["split-seed", "split_seed"])
def test_dashes_and_underscores_are_the_same(tmp_path: Path, spelling: str, key: str) -> None:
    path = write(tmp_path, f"[{spelling}]\n{key} = 4\n[heads.dense]\nunits = 8\n")
    assert load_file(path, records()) == {
        "train-head": {"split_seed": 4},
        "heads": {"dense": {"units": 8}},
    }


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("[extract]\nimage-size = 64\nimage_size = 96\n", "image_size"),
        ("[train-head]\nseed = 1\n[train_head]\nseed = 2\n", "train-head"),
    ],
)
def test_one_name_in_two_spellings_is_refused(tmp_path: Path, text: str, twice: str) -> None:
    with pytest.raises(ConfigError, match=f"'{twice}'.*two spellings"):
        load_file(write(tmp_path, text), records())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[extract\n", "not valid TOML"),
        ("[extract]\nseed = 1\nseed = 2\n", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        ("[extarct]\nseed = 1\n", "Unknown table 'extarct' in .* Did you mean 'extract'"),
        ("seed = 1\n", "Unknown table 'seed'"),
        ("extract = 1\n", r"expected a table \[extract\]"),
        ("[[extract]]\nseed = 1\n", r"expected a table \[extract\]"),
        ("[heads]\ndense = 3\n", r"expected a table \[heads.dense\]"),
        ("heads = 3\n", r"expected a table \[heads\]"),
        ("[extract]\nimage-sise = 64\n", "Did you mean 'image_size'"),
        (
            "[extract]\nimage-size = 31\n",
            r"pipeline.toml: \[extract\] image_size: expected an integer of 32 or more.* 31\.",
        ),
        ("[extract]\nimage-size = 64.0\n", "Received: 64.0"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_file(write(tmp_path, text), records())


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_files_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "none.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(path, records())


def test_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert load_file(write(tmp_path, ""), records()) == {}


def test_canonical_json_is_one_text_a_value() -> None:
    assert canonical_json({"b": [1, 2], "a": "é"}) == r'{"a":"\u00e9","b":[1,2]}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
