"""The manifest: scanning folders and CSV files, and the round trip through a file."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ManifestError
from pipeline.images import manifest, sources
from pipeline.images.manifest import CONFLICT, KEY_DTYPE, Manifest


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def rows(found: Manifest) -> list[tuple[str, str, str]]:
    return list(zip(found.paths, found.labels, found.splits, strict=True))


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "a/deep/er/2.jpg", "a/.hidden", ".git/x", "a/Thumbs.db", "loose.jpg")
    assert rows(sources.scan(tmp_path)) == [
        ("a/deep/er/2.jpg", "a", ""), ("b/1.jpg", "b", ""), ("loose.jpg", "", ""),
    ]  # fmt: skip


def test_split_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "valid/a/2.jpg", "test/b/x/3.jpg", "test/4.jpg")
    assert rows(sources.scan(tmp_path)) == [
        ("test/4.jpg", "", "test"), ("test/b/x/3.jpg", "b", "test"),
        ("train/a/1.jpg", "a", "train"), ("valid/a/2.jpg", "a", "val"),
    ]  # fmt: skip


def test_links_are_followed_and_loops_refused(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").symlink_to(tmp_path / "elsewhere")
    assert rows(sources.scan(tmp_path / "data")) == [("a/1.jpg", "a", "")]
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "data")
    with pytest.raises(ManifestError, match="loop") as caught:
        sources.scan(tmp_path / "data")
    # The link itself, not where the system gives up after forty turns.
    assert repr(str(tmp_path / "data/a/up")) in str(caught.value)


def test_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(ManifestError, match="loop"):
        sources.scan(tmp_path)


ODD_NAMES = (
    b"-rf", b" two  spaces ", b"it's \"quoted\", with commas", "caf\u00e9 \u732b".encode(),
    b"line\nbreak", b"carriage\rreturn", b"latin\xe9", b"back\\slash",
)  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_survive_scan_write_and_read(tmp_path: Path, name: bytes) -> None:
    text = os.fsdecode(name)
    touch(tmp_path / "data", f"{text}/{text}.jpg")
    found = sources.scan(tmp_path / "data")
    assert rows(found) == [(f"{text}/{text}.jpg", text, "")]
    assert found.file(0).is_file()
    keys = np.array([b"0" * 64], dtype=KEY_DTYPE)
    manifest.write(tmp_path / "m.csv", replace(found, keys=keys, statuses=["ok"]))
    assert rows(manifest.read(tmp_path / "m.csv", root=found.root)) == rows(found)
    manifest.write(tmp_path / "data/d.csv", found, columns=("path", "label"))
    assert rows(sources.scan(tmp_path / "data/d.csv")) == rows(found)


def test_scan_leaves_keys_and_statuses_open(tmp_path: Path) -> None:
    found = sources.scan(touch(tmp_path, "a/1.jpg", "b/2.jpg"))
    assert found.keys.dtype == KEY_DTYPE and found.keys.tolist() == [b"", b""]
    assert list(found.statuses) == ["", ""]


def test_one_link_in_two_places_is_no_loop(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    assert rows(sources.scan(tmp_path / "data")) == [("a/1.jpg", "a", ""), ("b/1.jpg", "b", "")]


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_no_data(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("")
    with pytest.raises(ManifestError):
        sources.scan(path)


def write_csv(folder: Path, text: str) -> Path:
    touch(folder, "img/1.jpg", "img/2.jpg")
    (folder / "d.csv").write_bytes(text.encode())
    return folder / "d.csv"


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv(tmp_path: Path, bom: str) -> None:
    path = write_csv(
        tmp_path, bom + "path,extra,label,split\n./img/2.jpg,x,b,Valid\nimg/1.jpg,y,,\n"
    )
    assert rows(sources.scan(path)) == [("img/1.jpg", "", ""), ("img/2.jpg", "b", "val")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,class\nimg/1.jpg,a\n", "expected the columns path,label"),
        ("path;class\nimg/1.jpg;a\n", "expected the columns path,label"),
        ("", "expected the columns path,label"),
        ("path,label\n", "no rows"),
        ("path,label\nimg/9.jpg,a\n", "img/9.jpg"),
        ("path,label,split\nimg/1.jpg,a,train\nimg/1.jpg,a,test\n", "one label"),
        ("path,label,split\nimg/1.jpg,a,fold1\n", "'fold1'"),
        ("path,label\n,a\n", "no path"),
        (f"path,label\n{'x' * 300}.jpg,a\n", "do not exist"),
    ],
)
def test_csv_that_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ManifestError, match=expected):
        sources.scan(write_csv(tmp_path, text))


def test_csv_rows_that_repeat_count_once(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "path,label\nimg/1.jpg,a\n./img/1.jpg,a\n")
    found = sources.scan(path)
    assert len(found) == 1
    assert f"{path}: rows that repeat others count once, 1: 'img/1.jpg'" in found.notes


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=8, unique_by=lambda row: row[0]))
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("m") / "manifest.csv"
    keys = np.array([f"{number:064x}".encode() for number in range(len(table))], dtype=KEY_DTYPE)
    written = Manifest(
        path.parent, [name for name, _ in table], [label for _, label in table],
        ["val"] * len(table), keys, ["ok"] * len(table),
        groups=manifest.group_column([label for _, label in table]),
    )  # fmt: skip
    manifest.write(path, written)
    found = manifest.read(path, root=path.parent)
    assert rows(found) == rows(written)
    assert (found.keys == keys).all() and list(found.statuses) == ["ok"] * len(table)
    assert list(found.groups) == list(written.groups)
    assert manifest.read(path, root=path.parent).take([0]).paths == [table[0][0]]


def test_names_that_are_no_unicode_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    keys = np.array([b"0" * 64], dtype=KEY_DTYPE)
    manifest.write(tmp_path / "m.csv", Manifest(tmp_path, [name], ["a"], [""], keys, ["ok"]))
    assert manifest.read(tmp_path / "m.csv", root=tmp_path).paths == [name]


@pytest.mark.parametrize("key", ["", "xyz", "A" * 64])
def test_malformed_keys_are_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "m.csv").write_text(f"path,label,key\nx.jpg,a,{key}\n")
    with pytest.raises(ManifestError, match="64 hexadecimal"):
        manifest.read(tmp_path / "m.csv", root=tmp_path)


def test_conflicts_take_every_copy_and_nothing_else(tmp_path: Path) -> None:
    keys = np.array([b"a" * 64, b"a" * 64, b"b" * 64, b"b" * 64, b"c" * 64], dtype=KEY_DTYPE)
    given_rows = Manifest(
        tmp_path, list("12345"), ["x", "y", "x", "x", ""], [""] * 5, keys, ["ok"] * 5
    )
    marked = manifest.mark_conflicts(given_rows)
    assert list(marked.statuses) == [CONFLICT, CONFLICT, "ok", "ok", "ok"]
    assert list(manifest.mark_conflicts(marked).statuses) == list(marked.statuses)


def test_one_path_with_two_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"path,label,key\nx.jpg,a,{'1' * 64}\nx.jpg,a,{'2' * 64}\n")
    with pytest.raises(ManifestError, match="one key per path"):
        manifest.read(tmp_path / "m.csv", root=tmp_path)
