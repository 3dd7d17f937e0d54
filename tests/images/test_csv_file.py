"""Tables as people write them: read as they are meant, or refused by line; nothing in silence."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from fakes import Command, FakeEncoder, write_classes
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.errors import ManifestError
from pipeline.images import manifest, sources
from pipeline.images.manifest import CONFLICT, Manifest, cells
from pipeline.store.store import Store

PLAIN = "path,label,split\nimg/1.jpg,cat,train\nimg/2.jpg,dog,test\n"
ROWS = [("img/1.jpg", "cat", "train"), ("img/2.jpg", "dog", "test")]


def write(folder: Path, data: str | bytes, name: str = "d.csv") -> Path:
    (folder / "img").mkdir(exist_ok=True)
    for number in range(1, 5):
        (folder / f"img/{number}.jpg").touch()
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder / name


def rows(found: Manifest) -> list[tuple[str, str, str]]:
    return list(zip(found.paths, found.labels, found.splits, strict=True))


def spelled(name: str) -> st.SearchStrategy[str]:
    """Return ways in which people write a header."""
    cased = st.sampled_from([name, name.upper(), name.title()])
    around = st.sampled_from(["{}", " {}", "{} ", "\t{}", "\u00a0{}", '"{}"', '" {} "'])
    return st.builds(lambda text, frame: frame.format(text), cased, around)


@given(
    st.tuples(spelled("path"), spelled("label"), spelled("split")),
    st.permutations([0, 1, 2]),
    st.sampled_from(["", "\ufeff"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([",", ";", "|"]),
    st.integers(0, 2),
)
@settings(max_examples=80, deadline=None)
def test_any_spelling_of_the_header_gives_the_same_manifest(
    tmp_path_factory: pytest.TempPathFactory,
    header: tuple[str, ...],
    order: list[int],
    mark: str,
    end: str,
    delimiter: str,
    blank_rows: int,
) -> None:
    table = [header, *ROWS]
    lines = [delimiter.join(row[place] for place in order) for row in table]
    text = mark + end.join([*lines, *[delimiter * 2] * blank_rows]) + end
    found = sources.scan(write(tmp_path_factory.mktemp("d"), text))
    assert rows(found) == ROWS
    assert len(found.notes) == (delimiter != ",")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32"])
def test_encodings_with_a_mark(tmp_path: Path, encoding: str) -> None:
    """As Excel's "Unicode text": UTF-16 and tabs."""
    marks = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}
    text = marks.get(encoding, "") + "Path\tLabel\nimg/1.jpg\tcaf\u00e9\nimg/2.jpg\t\u732b\n"
    found = sources.scan(write(tmp_path, text.encode(encoding)))
    assert list(found.labels) == ["caf\u00e9", "\u732b"]
    assert any("read as UTF" in note for note in found.notes) == (encoding != "utf-8-sig")
    assert any("tabs" in note for note in found.notes)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(ManifestError, match="UTF-16 without a byte order mark"):
        sources.scan(write(tmp_path, PLAIN.encode(encoding)))


def test_utf_16_that_is_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        sources.scan(write(tmp_path, PLAIN.encode("utf-16")[:-1]))


def test_windows_text_is_read_and_said(tmp_path: Path) -> None:
    text = "path,label\nimg/1.jpg,caf\u00e9 \u20ac\nimg/2.jpg,dog\n"
    found = sources.scan(write(tmp_path, text.encode("cp1252")))
    assert list(found.labels) == ["caf\u00e9 \u20ac", "dog"]
    (note,) = found.notes
    assert "Windows-1252" in note and "'caf\u00e9 \u20ac'" in note and "UTF-8" in note


def test_windows_text_in_paths_is_read_where_the_file_is(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label\nimg/\u00e9.jpg,\u00e9\n".encode("cp1252"))
    (tmp_path / "img/\u00e9.jpg").touch()
    assert rows(sources.scan(path)) == [("img/\u00e9.jpg", "\u00e9", "")]


@pytest.mark.parametrize("line", ["sep=;", "SEP=;", '"sep=;"'])
def test_separator_line_of_a_spreadsheet(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"{line}\n" + PLAIN.replace(",", ";"))
    if line.startswith('"'):
        with pytest.raises(ManifestError, match="expected the columns"):
            sources.scan(path)
    else:
        assert rows(sources.scan(path)) == ROWS


@pytest.mark.parametrize("name", ["d.tsv", "d.txt", "D.CSV"])
def test_names_of_tables(tmp_path: Path, name: str) -> None:
    assert rows(sources.scan(write(tmp_path, PLAIN.replace(",", "\t"), name))) == ROWS


def test_columns_that_are_not_used_are_named(tmp_path: Path) -> None:
    text = ",Path,label,Group,photographer,\n0,img/1.jpg,cat,a,me,\n1,img/2.jpg,dog,b,you,\n"
    found = sources.scan(write(tmp_path, text))
    assert list(found.labels) == ["cat", "dog"]
    (note,) = found.notes
    assert "columns not used: 'photographer'" in note
    assert list(found.groups) == ["a", "b"]
    bare = ",Path,label,Group\n0,img/1.jpg,cat, \n1,img/2.jpg,dog,\n"
    assert sources.scan(write(tmp_path, bare)).groups == ()
    twice = "path,label,group\nimg/1.jpg,cat,a\nimg/1.jpg,cat,b\n"
    with pytest.raises(ManifestError, match=r"one group per path.*'img/1.jpg' with two"):
        sources.scan(write(tmp_path, twice))


@pytest.mark.slow
def test_a_path_with_two_labels_is_in_no_split_and_the_others_go_on(
    tmp_path: Path, command: Command, fake_network: FakeEncoder
) -> None:
    write_classes(tmp_path, {"cat": 8, "dog": 8})
    (tmp_path / "dog/copy.png").write_bytes((tmp_path / "cat/000.png").read_bytes())
    (tmp_path / "cat/same.png").write_bytes((tmp_path / "cat/001.png").read_bytes())
    paths = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.glob("*/*.png"))]
    lines = [f"{path},{path[:3]}" for path in paths]
    text = "\n".join(["path,label", *lines, "cat/001.png,dog", "dog/001.png, dog"])
    data = write(tmp_path, text)
    found = sources.scan(data)
    assert found.notes[-1] == (
        "Images with two labels are in no split, 2: 'cat/001.png' as 'cat' and as 'dog', "
        "'dog/001.png' as 'dog' and as ' dog'"
    )
    store = tmp_path / "store"
    status, result = command("extract", data, "--store", store, "--weights", "random")
    # The copy stands under two labels as well, and so does what it is a copy of.
    assert status == 0 and (result["images"], result["conflicting"]) == (18, 5)
    rows = Store.open(store).read_manifest()
    told = dict(zip(rows.paths, rows.statuses, strict=True))
    assert told["cat/001.png"] == told["cat/000.png"] == told["dog/copy.png"] == CONFLICT
    assert told["dog/001.png"] == CONFLICT
    # A table to edit leaves the label open, whatever becomes of it.
    edited = tmp_path / "edited.csv"
    manifest.write_csv(edited, [rows.columns, *(cells(rows, row) for row in range(len(rows)))])
    again = Store.open(store).read_manifest(edited)
    assert [path for path, label in zip(again.paths, again.labels, strict=True) if not label] == [
        "cat/001.png", "cat/same.png", "dog/001.png",
    ]  # fmt: skip
    assert sorted(pipeline.load(store)[1]) == [0] * 6 + [1] * 7
    head = ("train-head", "--store", store, "--run", tmp_path / "run", "--head", "centroid")
    status, result = command(*head)
    assert status == 0 and result["dropped"] == {"conflicting label": 5}
    told = tmp_path / "told.csv"
    status, result = command("evaluate", tmp_path / "run", data, "--csv", told)
    assert status == 0 and (result["conflicting"], result["scored"]) == (5, 13)
    assert "cat/001.png" in told.read_text()
    other = ("extract", data, "--store", tmp_path / "other", "--weights", "random")
    status, result = command(*other, "--on-error", "raise")
    assert status == 2 and "'cat/001.png' with two" in result["error"]["message"]


@pytest.mark.parametrize(
    "header", ["path,label,Label", "Path,label,path ", "path,label,split,SPLIT"]
)
def test_a_column_twice_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(ManifestError, match="expected one column"):
        sources.scan(write(tmp_path, f"{header}\nimg/1.jpg,a,b,c\n"))


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ('img/1.jpg,"cat\nimg/2.jpg,dog\nimg/3.jpg,dog\n', 2),  # to the end of the file
        ('img/1.jpg,cat\nimg/2.jpg,"dog\nimg/3.jpg,dog\nimg/4.jpg,"cat\n', 3),
        ('img/1.jpg,"cat\nimg/2.jpg,dog\nimg/3.jpg,dog"\nimg/4.jpg,cat\n', 2),  # closed later
        ('img/1.jpg,"cat\nimg/gone.jpg,dog"\nimg/4.jpg,cat\n', 2),
        ('img/1.jpg,"cat"s\nimg/2.jpg,dog\n', 2),
        ('img/1.jpg,cat\n\nimg/2.jpg,"' + "x" * 200_000, 4),
        ('"img/1.jpg,cat\nimg/2.jpg,dog\n', 2),
    ],
)
def test_an_open_quote_is_an_error_that_names_its_line(
    tmp_path: Path, body: str, line: int
) -> None:
    with pytest.raises(ManifestError, match=f"line {line}: expected every quote") as caught:
        sources.scan(write(tmp_path, "path,label\n" + body))
    assert f"line {line}" in caught.value.hint and len(caught.value.message) < 400


def test_quotes_that_are_right(tmp_path: Path) -> None:
    text = 'path,label\nimg/1.jpg,"a ""b"", c"\nimg/2.jpg,"two\nlines, or so"\nimg/3.jpg,5" disk\n'
    assert list(sources.scan(write(tmp_path, text)).labels) == [
        'a "b", c', "two\nlines, or so", '5" disk',
    ]  # fmt: skip


def test_a_row_with_too_many_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"line 3: expected 2 cells.*3") as caught:
        sources.scan(write(tmp_path, "path,label\nimg/1.jpg,a\nimg/2.jpg,Smith, John\n"))
    assert "quotes" in caught.value.hint
    found = sources.scan(write(tmp_path, "path,label\nimg/1.jpg,a,,\nimg/2.jpg\n"))
    assert list(found.labels) == ["a", ""]


def test_blank_rows_and_labels_of_blanks_are_none(tmp_path: Path) -> None:
    text = "path,label\n,\nimg/1.jpg,cat\n\n  , \nimg/2.jpg,  \n,,\n,\n"
    assert rows(sources.scan(write(tmp_path, text))) == [
        ("img/1.jpg", "cat", ""), ("img/2.jpg", "", ""),
    ]  # fmt: skip


def test_a_blank_after_each_comma_is_no_part_of_a_label(tmp_path: Path) -> None:
    text = 'path, label, split\nimg/1.jpg, cat, train\nimg/2.jpg, "dog, big", test\n'
    assert rows(sources.scan(write(tmp_path, text))) == [
        ("img/1.jpg", "cat", "train"), ("img/2.jpg", "dog, big", "test"),
    ]  # fmt: skip


def test_blanks_in_labels_stay_where_the_header_has_none(tmp_path: Path) -> None:
    found = sources.scan(write(tmp_path, "path,label\nimg/1.jpg, cat\nimg/2.jpg,cat\n"))
    assert list(found.labels) == [" cat", "cat"]


@pytest.mark.parametrize("typed", ["img\\{}.jpg", ".\\img\\{}.jpg", " img/{}.jpg", "img/{}.jpg "])
def test_paths_that_were_changed_on_the_way(tmp_path: Path, typed: str) -> None:
    text = "path,label\n" + "".join(f"{typed.format(number)},a\n" for number in (1, 2))
    found = sources.scan(write(tmp_path, text))
    assert list(found.paths) == ["img/1.jpg", "img/2.jpg"]
    (note,) = found.notes
    assert "files found under another spelling, 2: " in note


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_paths_in_the_other_unicode_form(tmp_path: Path, stored: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[stored]
    name = "caf\u00e9.jpg"
    path = write(tmp_path, f"path,label\n{unicodedata.normalize(other, name)},a\n")
    (tmp_path / unicodedata.normalize(stored, name)).touch()
    found = sources.scan(path)
    assert found.file(0).is_file() and "under another spelling" in found.notes[0]


def test_a_backslash_that_belongs_to_the_name_stays(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label\nimg\\1.jpg,a\n")
    (tmp_path / "img\\1.jpg").touch()
    found = sources.scan(path)
    assert list(found.paths) == ["img\\1.jpg"] and found.notes == ()


def test_a_blank_label_beside_one_says_nothing_and_splits_stay_one(tmp_path: Path) -> None:
    for twice in ("img/1.jpg,\nimg/1.jpg,cat\n", "img/1.jpg,cat\nimg/1.jpg,  \n"):
        found = sources.scan(write(tmp_path, f"path,label\n{twice}"))
        assert rows(found) == [("img/1.jpg", "cat", "")] and list(found.statuses) == [""]
    text = "path,label,split\nimg/1.jpg,cat,train\nimg/1.jpg,dog,test\n"
    with pytest.raises(ManifestError, match="one split per path"):
        sources.scan(write(tmp_path, text))


def test_two_spellings_of_one_path_with_two_labels_are_one(tmp_path: Path) -> None:
    found = sources.scan(write(tmp_path, "path,label\nimg/1.jpg,a\nimg\\1.jpg,b\n"))
    assert list(found.paths) == ["img/1.jpg"] and list(found.statuses) == [CONFLICT]


def test_missing_files_are_rows_and_are_named(tmp_path: Path) -> None:
    found = sources.scan(write(tmp_path, PLAIN + "img/gone.jpg,cat,\n"))
    assert list(found.paths) == ["img/1.jpg", "img/2.jpg", "img/gone.jpg"]
    (note,) = found.notes
    assert "1 of 3 files do not exist" in note and "'img/gone.jpg'" in note
    with pytest.raises(ManifestError, match="1 of 1 files do not exist") as caught:
        sources.scan(write(tmp_path, "path,label\nimg/gone.jpg,cat\n"))
    assert str(tmp_path) in caught.value.hint


def test_absolute_paths_and_those_that_lead_out_are_taken(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path, PLAIN)
    text = f"path,label\n{tmp_path}/img/1.jpg,a\n../img/2.jpg,b\n"
    found = sources.scan(write(tmp_path / "inner", text))
    assert [found.file(index).is_file() for index in range(2)] == [True, True]


def test_a_nul_in_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="NUL"):
        sources.scan(write(tmp_path, "path,label\nimg/1.jpg,a\nimg/\0.jpg,b\n"))


HAND_EDITED = [
    ("{}", "utf-8"),
    ("\ufeff{}", "utf-8"),
    ("{}", "utf-16"),
    ("{}", "cp1252"),
]


@pytest.mark.parametrize(("frame", "encoding"), HAND_EDITED)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_manifest_edited_in_a_spreadsheet(
    tmp_path: Path, frame: str, encoding: str, delimiter: str
) -> None:
    table = [
        ("Status", " Key", "LABEL", "Path", "comment", "split"),
        ("ok", "a" * 64, "caf\u00e9", "x.jpg", "mine", "Training"),
        ("", f" {'b' * 64}", "dog", "y.jpg", "", ""),
        ("truncated", "", "dog", "z.jpg", "", ""),
        ("", "", "", "", "", ""),
    ]
    text = frame.format("\r\n".join(delimiter.join(row) for row in table))
    (tmp_path / "m.csv").write_bytes(text.encode(encoding))
    found = manifest.read(tmp_path / "m.csv", root=tmp_path)
    assert rows(found) == [
        ("x.jpg", "caf\u00e9", "train"), ("y.jpg", "dog", ""), ("z.jpg", "dog", ""),
    ]  # fmt: skip
    assert list(found.statuses) == ["ok", "ok", "truncated"]
    assert np.array_equal(found.keys, np.array([b"a" * 64, b"b" * 64, b""]))
    assert any("'comment'" in note for note in found.notes)


def test_a_manifest_with_an_open_quote_is_refused(tmp_path: Path) -> None:
    lines = [f"{number}.jpg,cat,{number:064x}\n" for number in range(4)]
    lines[1] = lines[1].replace("cat", '"cat')
    lines[2] = lines[2].replace("cat", 'cat"')
    (tmp_path / "m.csv").write_text("path,label,key\n" + "".join(lines))
    with pytest.raises(ManifestError, match="line 3: expected every quote"):
        manifest.read(tmp_path / "m.csv", root=tmp_path)


def test_bytes_of_names_that_are_elsewhere_are_kept_and_said(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"path,label,key\ncaf\xe9.jpg,caf\xe9," + b"a" * 64 + b"\n")
    found = manifest.read(tmp_path / "m.csv", root=tmp_path / "moved")
    assert rows(found) == [("caf\udce9.jpg", "caf\udce9", "")]
    assert "kept as they are" in found.notes[0]
