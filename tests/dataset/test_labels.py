"""Labels that look alike: pointed out, whatever hides the difference, and merged when asked."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.labels import look_alikes, merged, notes_of, tidy

ALIKE = [
    ("cat", "cat ", "in blanks"),
    ("cat", " cat", "in blanks"),
    ("cat", "cat\u00a0", "in blanks"),
    ("black cat", "black  cat", "in blanks"),
    ("black cat", "black\u00a0cat", "in blanks"),
    ("cat", "cat\t", "in blanks"),
    ("cat", "c\u200bat", "in blanks"),
    ("cat", "\ufeffcat", "in blanks"),
    ("cat", "cat\u00ad", "in blanks"),
    ("caf\u00e9", "cafe\u0301", "in the encoding of characters"),
    ("\ufb01sh", "fish", "in the encoding of characters"),
    ("Cat", "cat", "in capitals"),
    ("stra\u00dfe", "STRASSE", "in capitals"),
    ("1", "1.0", "in how a number is written"),
    ("1", "001", "in how a number is written"),
    ("black_cat", "black cat", "in underscores and hyphens"),
    ("Cat ", "cat", "in spelling"),
]


@pytest.mark.parametrize(("first", "second", "reason"), ALIKE)
def test_alike(first: str, second: str, reason: str) -> None:
    assert look_alikes([first, second, "dog", first]) == [tuple(sorted((first, second)))]
    (note,) = notes_of([first, second, "dog"])
    assert f"(differ only {reason})" in note and "--merge-labels" in note
    # Both spellings can be told apart where they are shown.
    shown = note.partition(": ")[2].partition(" (differ")[0].split(" and ")
    assert len(set(shown)) == 2 and note.isprintable()


@pytest.mark.parametrize(
    "labels",
    [("2", "-2"), ("1", "1.5"), ("1", "10"), ("a", "b"), ("cat", "cats"), ("1-2", "12"),
     ("u\u0308", "u"), ("", "a")],
)  # fmt: skip
def test_not_alike(labels: tuple[str, ...]) -> None:
    assert look_alikes(labels) == [] and notes_of(labels) == []


def test_blanks_around_a_label_are_pointed_out_without_another_spelling() -> None:
    (note,) = notes_of([" cat", "dog"])
    assert "' cat'" in note and "kept" in note


def test_many_groups_are_one_line() -> None:
    letters = [chr(ord("a") + number) for number in range(26)]
    (note,) = notes_of([*letters, *map(str.upper, letters)])
    assert "'A' and 'a'" in note and "and 21 more" in note and "\n" not in note


@pytest.mark.parametrize(("first", "second", "_"), ALIKE)
def test_merged_is_one_class_of_the_commonest_spelling(first: str, second: str, _: str) -> None:
    labels, notes = merged([first, second, first, "dog", ""])
    assert labels == [tidy(first)] * 3 + ["dog", ""]
    assert len(notes) == 1 and "Labels merged: " in notes[0]
    assert look_alikes(labels) == [] and merged(labels) == (labels, [])


@pytest.mark.slow
@given(st.lists(st.text(max_size=6), max_size=12))
def test_merging_leaves_nothing_alike_and_keeps_the_unlabelled(labels: list[str]) -> None:
    found, _ = merged(labels)
    assert len(found) == len(labels)
    assert all(new == "" for old, new in zip(labels, found, strict=True) if not old)
    alike = {label: group for group in look_alikes(labels) for label in group}
    new_of = dict(zip(labels, found, strict=True))
    for label, group in alike.items():
        assert len({new_of[other] for other in group}) == 1, label


@given(st.text(min_size=1, max_size=8))
def test_both_forms_of_a_name_are_alike(name: str) -> None:
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    assert look_alikes(forms) == ([tuple(sorted(forms))] if len(forms) > 1 else [])


@pytest.mark.parametrize("label", ["-1", "NaN", " none", "null", "N/A"])
def test_what_often_stands_for_no_label_is_pointed_out(label: str) -> None:
    notes = notes_of(["cat", label, "dog"])
    assert f"are classes as others are: {label!r}" in notes[-1]
    assert not [note for note in notes_of(["cat", "dog", "nantes", "1", ""]) if "stand for" in note]


def test_classes_that_are_all_named_as_splits_are_pointed_out() -> None:
    (note,) = notes_of(["train", "val", ""])
    assert "Every class has the name of a split: 'train', 'val'" in note
    assert notes_of(["train", "bus"]) == notes_of(["train"]) == []
