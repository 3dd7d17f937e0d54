"""The join of manifest and store: which rows, in which order, under which numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import planted_store

import pipeline
from pipeline.dataset.examples import SplitRule, prepare, usable_rows
from pipeline.errors import ManifestError
from pipeline.images import manifest
from pipeline.images.manifest import Manifest


def rows(labels: list[str], splits: list[str] | None = None) -> Manifest:
    keys = np.array([f"{number:064x}".encode() for number in range(len(labels))], dtype="S64")
    paths = [f"{number}.png" for number in range(len(labels))]
    statuses = ["ok"] * len(labels)
    return Manifest(Path(), paths, labels, splits or [""] * len(labels), keys, statuses)


def test_load_gives_manifest_order_and_sorted_names(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "s", {"zebra": 6, "ant": 5})
    X, y, names = pipeline.load(tmp_path / "s")
    assert (X.dtype, y.dtype, names) == (np.float32, np.int64, ["ant", "zebra"])
    assert y.tolist() == [1] * 6 + [0] * 5
    np.testing.assert_array_equal(X, store.read(store.read_manifest().keys))


def test_splits_of_load_are_those_of_a_default_run(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "s", {"a": 40, "b": 40})
    examples = prepare(store.read_manifest(), SplitRule())
    for name in ("train", "val", "test"):
        X, y, names = pipeline.load(tmp_path / "s", split=name)
        np.testing.assert_array_equal(X, store.read(examples.keys[examples.rows(name)]))
        assert len(y) == examples.counts()[name] and names == ["a", "b"]
    with pytest.raises(ManifestError, match="train, val, test"):
        pipeline.load(tmp_path / "s", split="validation")


def test_edited_copy_of_the_manifest(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "s", {"a": 5, "b": 5})
    full = store.read_manifest()
    manifest.write(tmp_path / "copy.csv", replace(full, labels=["c", *full.labels[1:]]))
    assert pipeline.load(tmp_path / "s", manifest=tmp_path / "copy.csv")[2] == ["a", "b", "c"]


def test_rows_that_are_left_out_are_counted() -> None:
    given = rows(["a", "b", "", "a", "b"])
    keys = given.keys.copy()
    keys[1] = keys[0]  # one image under two labels
    statuses = ["ok", "ok", "ok", "truncated", "ok"]
    used, dropped = usable_rows(replace(given, keys=keys, statuses=statuses))
    assert used == [4]
    assert dropped == {"conflicting label": 2, "no label": 1, "bad image": 1}


def test_examples_are_grouped_by_split_and_keep_their_labels() -> None:
    given = rows(["a", "b", "c"] * 40)
    examples = prepare(given, SplitRule(seed=3))
    assert sum(examples.counts().values()) == 120
    for name, count in examples.counts().items():
        part = examples.rows(name)
        assert set(examples.splits[part]) == {name} and part.stop - part.start == count
    label_of = dict(zip(given.keys, given.labels, strict=True))
    assert [label_of[key] for key in examples.keys] == list(examples.labels)
    assert [examples.names[number] for number in examples.y] == list(examples.labels)


def test_rare_classes_are_named_or_left_out() -> None:
    given = rows(["a"] * 10 + ["b"] * 10 + ["rare"] * 2)
    with pytest.raises(ManifestError, match=r"rare \(2\).*--rare drop"):
        prepare(given, SplitRule())
    assert prepare(given, SplitRule(rare="drop")).names == ("a", "b")
    assert prepare(given, SplitRule(min_per_class=2)).names == ("a", "b", "rare")


def test_copies_of_one_image_do_not_make_a_class_larger() -> None:
    given = rows(["a"] * 10 + ["b"] * 4)
    keys = given.keys.copy()
    keys[10:] = keys[10]
    with pytest.raises(ManifestError, match=r"b \(1\)"):
        prepare(replace(given, keys=keys), SplitRule())


def test_declared_val_without_test_is_test_unless_shares_are_given(tmp_path: Path) -> None:
    given = rows(["a", "b"] * 20, ["train"] * 32 + ["val"] * 8)
    found = prepare(given, SplitRule())
    assert found.counts()["test"] == 8 and found.counts()["val"] >= 2
    assert set(found.keys[found.rows("test")]) == set(given.keys[32:])
    assert any("val is the test split" in note for note in found.notes)
    filled = prepare(given, SplitRule(ratios="70/15/15"))
    assert filled.counts()["val"] == 8 and filled.counts()["test"] >= 2
    assert set(filled.keys[filled.rows("val")]) == set(given.keys[32:])


def test_a_test_without_labels_is_for_predict_and_no_split() -> None:
    """As Kaggle has it: train and val with classes, test as files."""
    said = ["train"] * 32 + ["val"] * 8 + ["test"] * 10
    found = prepare(rows(["a", "b"] * 20 + [""] * 10, said), SplitRule())
    alone = prepare(rows(["a", "b"] * 20, said[:40]), SplitRule())
    assert list(found.splits) == list(alone.splits) and (found.keys == alone.keys).all()
    assert found.dropped == {"no label": 10}
    assert any("declared test have no label, all 10" in note and "predict" in note
               for note in found.notes)  # fmt: skip
    assert not any("declared test" in note for note in alone.notes)


def test_classes_that_a_split_lacks_are_named_before_training() -> None:
    labels = ["a", "b"] * 9 + ["late", "early", "mid"]
    said = ["train", "train", "val", "val", "test", "test"] * 3 + ["test", "train", "val"]
    found = prepare(rows(labels, said), SplitRule(min_per_class=1))
    unseen = next(note for note in found.notes if "train lacks" in note)
    assert "'late' (0 in val, 1 in test)" in unseen and "'mid' (1 in val, 0 in test)" in unseen
    assert "'early'" not in unseen
    unscored = next(note for note in found.notes if "not scored" in note)
    assert "'early', 'mid'" in unscored and "'late'" not in unscored
    assert prepare(rows(["a", "b"] * 20), SplitRule()).notes == ()


def test_one_class_in_train_is_refused() -> None:
    labels = ["a"] * 10 + ["a", "b"] * 6
    said = ["train"] * 10 + ["val", "val", "test", "test"] * 3
    with pytest.raises(ManifestError, match=r"two or more classes in train.*'a' alone"):
        prepare(rows(labels, said), SplitRule())


def test_labels_that_look_alike_are_named_with_the_examples() -> None:
    found = prepare(rows(["cat", "cat ", "dog"] * 12), SplitRule())
    assert found.names == ("cat", "cat ", "dog")
    assert any("'cat' and 'cat ' (differ only in blanks)" in note for note in found.notes)


def test_a_rare_class_that_looks_like_another_is_named_so() -> None:
    with pytest.raises(ManifestError, match=r"'cat' and 'cat ' .differ only in blanks"):
        prepare(rows(["cat", "dog"] * 10 + ["cat "]), SplitRule())


def test_notes_of_the_manifest_come_with_the_examples() -> None:
    given = replace(rows(["a", "b"] * 12), notes=("columns not used: 'group'",))
    assert prepare(given, SplitRule()).notes == ("columns not used: 'group'",)


def test_groups_are_said_and_kept_with_the_rows() -> None:
    given = replace(rows(["a", "b"] * 30), groups=[f"p{number // 4}" for number in range(60)])
    (unused,) = prepare(given, SplitRule()).notes
    assert "column 'group', which is not used: --group group keeps" in unused
    assert prepare(given, SplitRule()).groups == ()
    found = prepare(given, SplitRule(by_group=True))
    assert "15 groups of 60 images, of 60" in found.notes[0]
    name_of = dict(zip(given.paths, given.groups, strict=True))
    assert [name_of[path] for path in found.paths] == list(found.groups) == found.together.tolist()
    (empty,) = prepare(rows(["a", "b"] * 30), SplitRule(by_group=True)).notes
    assert "--group is empty" in empty


@pytest.mark.parametrize("labels", [["a"] * 10, [""] * 10])
def test_fewer_than_two_classes_cannot_be_learned(labels: list[str]) -> None:
    with pytest.raises(ManifestError, match="two or more classes"):
        prepare(rows(labels), SplitRule())


def test_rare_classes_that_leave_one_class() -> None:
    with pytest.raises(ManifestError, match=r"two or more classes.*too small: 'b \(2\)'"):
        prepare(rows(["a"] * 10 + ["b"] * 2), SplitRule(rare="drop"))
    with pytest.raises(ManifestError, match=r"'a \(1\)', 'b \(2\)'.*--min-per-class"):
        prepare(rows(["a"] + ["b"] * 2), SplitRule(rare="drop"))


def test_what_is_left_out_is_told_with_the_examples() -> None:
    said = ["train", "train", "val", "val", "test"] * 4 + ["", ""]
    given = rows(["a", "b"] * 10 + ["rare", ""], said)
    keys = given.keys.copy()
    keys[4] = keys[0]  # the same image in train and test
    statuses = [*given.statuses]
    statuses[9] = "truncated"
    found = prepare(replace(given, keys=keys, statuses=statuses), SplitRule(rare="drop"))
    assert found.dropped == {
        "bad image": 1, "no label": 1, "rare class": 1, "in two declared splits": 1,
    }  # fmt: skip
    assert len(found) == 18


def test_a_split_without_rows_is_an_empty_slice() -> None:
    found = prepare(rows(["a", "b"] * 20), SplitRule())
    assert found.rows("none") == slice(0, 0)


def test_load_keeps_the_order_of_the_manifest_it_is_given(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "s", {"a": 5, "b": 5})
    full = store.read_manifest()
    back = list(range(len(full)))[::-1]
    turned = replace(
        full, paths=[full.paths[i] for i in back], labels=[full.labels[i] for i in back],
        keys=full.keys[back],
    )  # fmt: skip
    manifest.write(tmp_path / "turned.csv", turned)
    X, y, _ = pipeline.load(tmp_path / "s")
    X_turned, y_turned, _ = pipeline.load(tmp_path / "s", manifest=tmp_path / "turned.csv")
    np.testing.assert_array_equal(X_turned, X[::-1])
    np.testing.assert_array_equal(y_turned, y[::-1])


def test_load_without_a_label_is_empty(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "s", {"a": 3})
    manifest.write(tmp_path / "m.csv", replace(store.read_manifest(), labels=[""] * 3))
    X, y, names = pipeline.load(tmp_path / "s", manifest=tmp_path / "m.csv")
    assert X.shape == (0, store.dim) and (y.dtype, len(y), names) == (np.int64, 0, [])
