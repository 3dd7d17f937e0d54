"""Folders as classes and splits: what is ignored, what is refused, what is said."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, ManifestError, UnreadableImageError
from pipeline.images import reading, sources
from pipeline.images.sources.below import walk
from pipeline.images.sources.folder_tree import IGNORED_FILES, IGNORED_FOLDERS

CLASSES = ("cat/1.jpg", "dog/2.jpg")
SPLITS = ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "test/dog/4.jpg")
CLASS_ROWS = [("cat/1.jpg", "cat", ""), ("dog/2.jpg", "dog", "")]
SPLIT_ROWS = [
    ("test/dog/4.jpg", "dog", "test"), ("train/cat/1.jpg", "cat", "train"),
    ("train/dog/2.jpg", "dog", "train"), ("val/cat/3.jpg", "cat", "val"),
]  # fmt: skip


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def rows(root: Path, layout: str = "auto") -> list[tuple[str, str, str]]:
    found = sources.scan(root, layout=layout)
    return list(zip(found.paths, found.labels, found.splits, strict=True))


def notes(root: Path, layout: str = "auto") -> str:
    return "\n".join(sources.scan(root, layout=layout).notes)


@pytest.mark.parametrize(("files", "expected"), [(CLASSES, CLASS_ROWS), (SPLITS, SPLIT_ROWS)])
def test_plain_layouts_need_no_word(
    tmp_path: Path, files: tuple[str, ...], expected: list[tuple[str, str, str]]
) -> None:
    touch(tmp_path, *files)
    assert rows(tmp_path) == expected and notes(tmp_path) == ""


@pytest.mark.parametrize("files", [CLASSES, SPLITS])
@pytest.mark.parametrize(
    "name",
    ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", ".git",
     "#recycle", "__pycache__", "@Recycle"],
)  # fmt: skip
def test_folders_of_the_system_change_nothing(
    tmp_path: Path, name: str, files: tuple[str, ...]
) -> None:
    touch(tmp_path, *files)
    before = sources.scan(tmp_path)
    touch(
        tmp_path, f"{name}/x/1.jpg", f"{name}/2.jpg", f"{files[0].rpartition('/')[0]}/{name}/t.jpg"
    )
    after = sources.scan(tmp_path)
    assert (after.paths, after.labels, after.splits) == (before.paths, before.labels, before.splits)
    assert after.notes == ()


EXTRAS = st.lists(
    st.one_of(
        st.sampled_from(sorted(IGNORED_FILES)),
        st.sampled_from(
            ["Desktop.INI", "Icon\r", "._1.jpg", ".DS_Store", "Thumbs.db", "1.jpg:Zone.Identifier"]
        ),
        st.sampled_from(sorted(IGNORED_FOLDERS)).map(lambda name: f"{name}/deep/1.jpg"),
        st.sampled_from(["docs", "empty"]).map(lambda name: f"{name}/"),
    ),
    max_size=6,
)


@given(st.sampled_from([CLASSES, SPLITS]), EXTRAS, st.sampled_from(["", "cat/", "train/"]))
@settings(max_examples=60, deadline=None)
def test_what_is_ignored_never_changes_the_listing(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[str, ...], extras: list[str], where: str
) -> None:
    root = touch(tmp_path_factory.mktemp("d"), *files)
    before = rows(root)
    where = where if (root / where).is_dir() else ""
    for extra in extras:
        if extra.endswith("/"):
            (root / where / extra).mkdir(exist_ok=True)
        else:
            touch(root, where + extra)
    assert rows(root) == before


@pytest.mark.parametrize("files", [CLASSES, SPLITS])
def test_folders_without_an_image_are_left_out_and_named(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    touch(tmp_path, *files, "docs/readme.txt", "docs/deep/LICENSE", "labels.csv")
    (tmp_path / "empty").mkdir()
    assert len(rows(tmp_path)) == len(files)
    said = notes(tmp_path)
    for name in ("'docs'", "'empty'", "'labels.csv'"):
        assert name in said
    assert said.startswith("Left out: ") and "\n" not in said


def test_packed_files_beside_class_folders_are_left_out_with_their_reason(tmp_path: Path) -> None:
    touch(tmp_path, *CLASSES, "bird.zip", "more/s-0.tar", "labels.csv")
    assert rows(tmp_path) == CLASS_ROWS
    why = "packed, and not entered: unpack it"
    expected = f"Left out: 'more' ({why}), 'bird.zip' ({why}), 'labels.csv' (no image)"
    assert notes(tmp_path) == expected


def test_a_packed_file_in_a_class_folder_is_a_bad_image_that_is_not_read(tmp_path: Path) -> None:
    touch(tmp_path, *CLASSES, "dog/more.tar.gz")
    listing = sources.scan(tmp_path)
    assert listing.paths[2] == "dog/more.tar.gz"
    with pytest.raises(UnreadableImageError, match="a packed file, which is not entered: unpack"):
        reading.read(listing, 2)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("s-0.tar", "s-1.tar", "preview.png"), "'s-0.tar', 's-1.tar' beside 'preview.png'"),
        ((*SPLITS, "val/1.zip", "val/1.jpg"), "'val/1.zip' beside 'val/1.jpg'"),
    ],
)
def test_images_and_packed_files_beside_each_other_are_refused(
    tmp_path: Path, files: tuple[str, ...], said: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ManifestError, match=f"Expected images or packed files in .*{said}"):
        sources.scan(tmp_path)


def test_very_many_folders_in_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *CLASSES)
    monkeypatch.chdir(tmp_path / "cat")
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    Path("1.jpg").touch()
    try:
        assert len(rows(tmp_path)) == 3
    finally:  # what pytest removes folders with is recursive
        subprocess.run(["rm", "-r", tmp_path / "cat/d"], check=True)


def test_a_class_folder_without_an_image_in_a_split_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, *SPLITS, "train/notes/a.txt")
    assert rows(tmp_path) == SPLIT_ROWS and "'train/notes'" in notes(tmp_path)


def test_what_may_be_an_image_is_never_left_out(tmp_path: Path) -> None:
    """Names need no suffix, and a text within a class is a bad image, not nothing."""
    touch(tmp_path, "cat/0001", "dog/2.unknown", "dog/bad.txt")
    assert [path for path, _, _ in rows(tmp_path)] == ["cat/0001", "dog/2.unknown", "dog/bad.txt"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("training", "testing"), True),
        (("train", "dev", "test"), True),
        (("seg_train", "seg_test"), True),
        (("train_set", "val_set", "test_set"), True),
        (("Train", "Test"), False),
        (("train", "valid"), True),
        (("train2017", "val2017"), True),
    ],
)
def test_usual_names_of_splits(tmp_path: Path, names: tuple[str, ...], said: bool) -> None:
    touch(tmp_path, *(f"{name}/{label}/1.jpg" for name in names for label in ("cat", "dog")))
    found = rows(tmp_path)
    assert {label for _, label, _ in found} == {"cat", "dog"}
    assert "" not in {split for _, _, split in found}
    assert len({(path.partition("/")[0], split) for path, _, split in found}) == len(names)
    assert ("Folders used as splits" in notes(tmp_path)) == said


MIXED = [("train/cat/1.jpg", "train/dog/1.jpg", "test/cat/2.jpg", "other/cat/3.jpg"),
         ("train/1.jpg", "bus/2.jpg"), ("test/1.jpg", "cat/1.jpg", "dog/1.jpg")]  # fmt: skip


@pytest.mark.parametrize("files", MIXED)
def test_a_mixture_of_splits_and_others_is_refused(tmp_path: Path, files: tuple[str, ...]) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ManifestError, match="Received both") as caught:
        sources.scan(tmp_path)
    assert "--layout splits" in caught.value.hint and "--layout classes" in caught.value.hint
    tops = {path.partition("/")[0] for path in files}
    assert all(repr(top) in caught.value.message for top in tops)
    assert {label for _, label, _ in rows(tmp_path, "classes")} == tops


def test_layouts_that_are_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, *MIXED[0])
    assert {label for _, label, _ in rows(tmp_path, "splits")} == {"cat", "dog"}
    assert {split for _, _, split in rows(tmp_path, "splits")} == {"train", "test"}
    assert not any("other" in path for path, _, _ in rows(tmp_path, "splits"))
    assert "'other' (names no split)" in notes(tmp_path, "splits")
    touch(tmp_path / "plain", *SPLITS)
    assert {label for _, label, _ in rows(tmp_path / "plain", "classes")} == {
        "train", "val", "test",
    }  # fmt: skip
    touch(tmp_path / "classes", *CLASSES)
    with pytest.raises(ManifestError, match=r"named as splits.*'cat', 'dog'"):
        sources.scan(tmp_path / "classes", layout="splits")


def test_layout_of_a_table_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    (tmp_path / "d.csv").write_text("path,label\n1.jpg,a\n")
    with pytest.raises(ConfigError, match="--layout"):
        sources.scan(tmp_path / "d.csv", layout="splits")


@pytest.mark.parametrize("wrapper", ["archive", "archive/data", "train"])
@pytest.mark.parametrize("files", [CLASSES, SPLITS])
def test_a_lone_folder_around_the_data_is_entered(
    tmp_path: Path, wrapper: str, files: tuple[str, ...]
) -> None:
    touch(tmp_path / "plain", *files)
    touch(tmp_path / "zip" / wrapper, *files)
    touch(tmp_path / "zip", "__MACOSX/train/._1.jpg", "README.md")
    inner = [(path.removeprefix(f"{wrapper}/"), *more) for path, *more in rows(tmp_path / "zip")]
    assert inner == rows(tmp_path / "plain")
    assert f"All images are in '{wrapper}'" in notes(tmp_path / "zip")


def test_a_split_wrapped_in_a_folder_of_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "seg_train/seg_train/sea/1.jpg", "seg_train/seg_train/ice/2.jpg",
          "seg_test/seg_test/sea/3.jpg")  # fmt: skip
    assert [(label, split) for _, label, split in rows(tmp_path)] == [
        ("sea", "test"), ("ice", "train"), ("sea", "train"),
    ]  # fmt: skip


def test_one_class_in_a_split_is_no_wrapper(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/deep/3.jpg")
    assert ("test/cat/deep/3.jpg", "cat", "test") in rows(tmp_path)


def test_a_lone_class_with_images_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/deep/2.jpg")
    assert {label for _, label, _ in rows(tmp_path)} == {"cat"}


def test_folders_within_classes_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, "cat/tabby/1.jpg", "cat/2.jpg", "dog/3.jpg")
    assert "'cat/tabby' (as 'cat')" in notes(tmp_path)
    assert "splits are told" not in notes(tmp_path)


def test_splits_below_the_classes_are_not_used_and_that_is_said(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{label}/{split}/1.jpg" for label in ("cat", "dog")
                      for split in ("train", "test")))  # fmt: skip
    assert {split for _, _, split in rows(tmp_path)} == {""}
    assert "splits are told from folders above" in notes(tmp_path)


def test_images_outside_class_folders_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, *SPLITS, "loose.jpg", "train/flat.jpg")
    found = {path: (label, split) for path, label, split in rows(tmp_path)}
    assert found["loose.jpg"] == ("", "") and found["train/flat.jpg"] == ("", "train")
    assert "no class folder" in notes(tmp_path) and notes(tmp_path).endswith("on: 2")


def test_a_flat_test_keeps_its_split_and_has_no_label(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/8.jpg", "test/9.jpg")
    assert rows(tmp_path)[:2] == [("test/8.jpg", "", "test"), ("test/9.jpg", "", "test")]


OWN = {
    "stores/d": ("store.json", "manifest.csv", "features.h5", "shards/0.h5", "encoder/1.pb"),
    "runs/d": ("run.json", "manifest.csv", "heads/logreg/head.json", "tensorboard/events.1.host"),
    "shipped": ("model.json", "head/head.json", "encoder/weights.h5"),
    "saved": ("saved_model.pb", "variables/variables.data-00000-of-00001"),
}


@pytest.mark.parametrize("files", [CLASSES, SPLITS])
def test_outputs_of_this_package_are_left_out_and_named(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    touch(tmp_path, *files)
    before = rows(tmp_path)
    for folder, written in OWN.items():
        touch(tmp_path / folder, *written)
    touch(tmp_path, "found.csv", "model.onnx", "model.keras")
    assert rows(tmp_path) == before
    said = notes(tmp_path)
    assert "and 2 more" in said and "\n" not in said
    below = walk(tmp_path).paths
    assert below[:2] == sorted([*files, "found.csv", "model.keras", "model.onnx"])[:2]
    assert not any(path.startswith(("stores", "runs", "ship", "sav")) for path in below)


def test_a_class_with_a_file_of_such_a_name_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, *CLASSES, "cat/model.json", "dog/run.json")
    assert {label for _, label, _ in rows(tmp_path)} == {"cat", "dog"}


@pytest.mark.parametrize("name", ["notes.txt", "cat/notes.txt"])
def test_no_image_at_all(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=r"image files.*notes\.txt"):
        sources.scan(touch(tmp_path, name))


def test_walk_takes_files_as_they_lie(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "other/2.txt", "3", "Thumbs.db", "@eaDir/4.jpg")
    assert walk(tmp_path).paths == ["3", "other/2.txt", "train/1.jpg"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ManifestError, match="no files") as caught:
        walk(tmp_path / "none")
    assert "class" not in str(caught.value)


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.pdf").touch()
    with pytest.raises(ManifestError, match=r"Received: 1 file of other kinds, such as 'a/notes"):
        sources.scan(tmp_path)


def unlabelled(root: Path, *names: str, layout: str = "auto") -> dict[str, tuple[str, str]]:
    found = sources.scan(root, layout=layout, unlabelled=names)
    return dict(
        zip(found.paths, zip(found.labels, found.splits, strict=True), strict=True)
    )  # fmt: skip


def test_a_named_folder_beside_the_classes_has_no_label(tmp_path: Path) -> None:
    touch(tmp_path, *CLASSES, "new/3.jpg", "new/deep/4.jpg", "dog/new/5.jpg")
    found = unlabelled(tmp_path, "new")
    assert found["new/3.jpg"] == found["new/deep/4.jpg"] == ("", "")
    # A folder within a class is that class.
    assert found["dog/new/5.jpg"] == ("dog", "") and found["cat/1.jpg"] == ("cat", "")
    said = "\n".join(sources.scan(tmp_path, unlabelled=["new"]).notes)
    assert "Images in 'new' have no label and are never trained or scored on: 2" in said
    assert "'new/deep'" not in said


@pytest.mark.parametrize("layout", ["auto", "splits"])
def test_a_named_folder_beside_splits_or_within_one_has_no_label(
    tmp_path: Path, layout: str
) -> None:
    touch(tmp_path, *SPLITS, "new/5.jpg", "train/new/6.jpg")
    found = unlabelled(tmp_path, "new", layout=layout)
    assert found["new/5.jpg"] == ("", "") and found["train/new/6.jpg"] == ("", "train")
    assert found["train/cat/1.jpg"] == ("cat", "train")


def test_only_unlabelled_images_and_a_lone_split_beside_them(tmp_path: Path) -> None:
    touch(tmp_path / "alone", "new/a/1.jpg", "new/b/2.jpg")
    assert set(unlabelled(tmp_path / "alone", "new").values()) == {("", "")}
    touch(tmp_path / "train", "train/cat/1.jpg", "train/dog/2.jpg", "new/3.jpg")
    assert unlabelled(tmp_path / "train", "new") == {
        "new/3.jpg": ("", ""), "train/cat/1.jpg": ("cat", "train"),
        "train/dog/2.jpg": ("dog", "train"),
    }  # fmt: skip


def test_what_is_not_there_to_be_unlabelled_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, *CLASSES)
    with pytest.raises(ManifestError, match=r"Received: 'new'; there are 'cat', 'dog'"):
        unlabelled(tmp_path, "new")
    (tmp_path / "table.csv").write_text("path,label\ncat/1.jpg,cat\n")
    with pytest.raises(ConfigError, match=r"--unlabelled: expected none for a table"):
        unlabelled(tmp_path / "table.csv", "new")


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled", "un_labelled"])
def test_a_class_that_is_called_unlabelled_is_pointed_out(tmp_path: Path, name: str) -> None:
    touch(tmp_path, *CLASSES, f"{name}/3.jpg")
    assert f"--unlabelled {name}" in notes(tmp_path)
    assert (f"{name}/3.jpg", name, "") in rows(tmp_path)
    assert "is a class" not in "\n".join(sources.scan(tmp_path, unlabelled=[name]).notes)
