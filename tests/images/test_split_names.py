"""Names of splits: the usual ones are known, and a class is not taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.split_names import splits_of

TRAIN = ("train", "training", "trn", "train_set", "Training Set", "train-images", "trainval",
         "train2017", "images_train", "TrainSet", "TRAIN", "train_val")  # fmt: skip
VAL = ("val", "valid", "validation", "dev", "val2017", "Validation_Data", "cross-validation")
TEST = ("test", "testing", "tst", "test_set", "TestImages", "test1")
NONE = ("cat", "train_station", "test tube", "dev_board", "trains", "detrain", "contest",
        "evaluate", "1", "", "valley", "training shoes", "test_val")  # fmt: skip


@pytest.mark.parametrize(("names", "split"), [(TRAIN, "train"), (VAL, "val"), (TEST, "test")])
def test_usual_names(names: tuple[str, ...], split: str) -> None:
    for name in names:
        assert splits_of([name]) == {name: split}, name


@pytest.mark.parametrize("name", NONE)
def test_other_names(name: str) -> None:
    assert splits_of([name, "cat"]) == {name: "", "cat": ""}


def test_an_affix_that_several_splits_share_is_none_of_a_class() -> None:
    assert splits_of(["seg_train", "seg_test", "seg_pred"]) == {
        "seg_train": "train", "seg_test": "test", "seg_pred": "",
    }  # fmt: skip
    assert splits_of(["trainA", "testA"]) == {"trainA": "train", "testA": "test"}
    assert splits_of(["train_station", "test_tube"]) == {"train_station": "", "test_tube": ""}
    assert splits_of(["train_a", "train_b"]) == {"train_a": "", "train_b": ""}
    assert splits_of(["seg_train", "cat"], alone=True) == {"seg_train": "train", "cat": ""}


@pytest.mark.parametrize(
    ("names", "meaning"),
    [
        (("train", "eval"), "test"),
        (("train", "val", "eval"), "test"),
        (("train", "evaluation", "test"), "val"),
    ],
)
def test_eval_is_whichever_held_out_split_is_free(names: tuple[str, ...], meaning: str) -> None:
    found = splits_of(names)
    assert next(found[name] for name in names if name.startswith("eval")) == meaning


@given(st.lists(st.text(max_size=12), max_size=6, unique=True), st.randoms())
def test_order_does_not_matter_and_every_name_has_an_answer(
    names: list[str], random: object
) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = splits_of(names)
    assert found == splits_of(shuffled)
    assert set(found) == set(names) and set(found.values()) <= {"", "train", "val", "test"}


@given(st.sampled_from([*TRAIN, *VAL, *TEST]), st.sampled_from([" ", "\t", "\u00a0"]))
def test_blanks_and_capitals_around_a_name_mean_nothing(name: str, blank: str) -> None:
    assert set(splits_of([f"{blank}{name.upper() if name.islower() else name} "]).values()) == set(
        splits_of([name]).values()
    )
