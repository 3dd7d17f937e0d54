"""Splits: by content, independent of everything else; declared ones win."""

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.dataset import splits
from pipeline.errors import ConfigError, ManifestError

RATIOS = (0.7, 0.15, 0.15)


def keys_of(count: int, first: int = 0) -> list[str]:
    return [f"{number:064x}" for number in range(first, first + count)]


def assign(keys: list[str], labels: list[str], declared: list[str] | None = None, seed: int = 0,
           **more: bool) -> splits.Assignment:  # fmt: skip
    return splits.assign(
        keys, labels, declared or [""] * len(keys), ratios=RATIOS, seed=seed, **more
    )


def test_place_is_pinned() -> None:
    """These numbers are part of the format: another rule would move everyone's test images."""
    assert splits.position("0" * 64, 0) == pytest.approx(0.39027412103198444, abs=1e-15)
    assert splits.position("f" * 64, 7) == pytest.approx(0.6791385895327532, abs=1e-15)


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, 2**40))
def test_place_is_within_the_unit_interval(key: str, seed: int) -> None:
    assert 0 <= splits.position(key, seed) < 1


@given(st.integers(20, 80), st.integers(1, 30), st.integers(0, 50), st.randoms())
@settings(max_examples=40, deadline=None)
def test_no_image_moves_when_others_come_go_or_change(
    count: int, added: int, seed: int, random: object
) -> None:
    keys = keys_of(count)
    labels = ["a" if number % 2 else "b" for number in range(count)]
    before = assign(keys, labels, seed=seed)
    more = keys + keys_of(added, first=1000)
    rows = list(zip(more, labels + ["c"] * added, strict=True))
    random.shuffle(rows)  # type: ignore[attr-defined]
    after = assign([key for key, _ in rows], [label for _, label in rows], seed=seed)
    exceptions = {item.key for item in (*before.moved, *after.moved)}
    place = dict(zip((key for key, _ in rows), after.splits, strict=True))
    assert set(before.splits) <= set(splits.SPLITS)
    for key, split in zip(keys, before.splits, strict=True):
        assert place[key] == split or key in exceptions


def complete_by_hash(keys: list[str], seed: int) -> bool:
    shares = dict(zip(splits.SPLITS, RATIOS, strict=True))
    return {splits._by_hash(splits.position(key, seed), shares) for key in keys} == set(shares)


@pytest.mark.slow
@given(st.data(), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_relabelling_moves_nothing_while_classes_are_complete(
    data: st.DataObject, seed: int
) -> None:
    keys = keys_of(60)
    places = []
    for _ in range(2):
        labels = data.draw(st.lists(st.sampled_from("abc"), min_size=60, max_size=60))
        classes = [[key for key, label in zip(keys, labels, strict=True) if label == name]
                   for name in set(labels)]  # fmt: skip
        assume(all(complete_by_hash(members, seed) for members in classes))
        result = assign(keys, labels, seed=seed)
        assert result.moved == ()
        places.append(result.splits)
    assert places[0] == places[1]


DECLARED = st.sampled_from(["", "train", "val", "test"])


@given(st.lists(st.tuples(st.integers(0, 20), DECLARED), min_size=1, max_size=40), st.randoms())
@settings(max_examples=60, deadline=None)
def test_order_does_not_matter_whatever_is_declared(
    table: list[tuple[int, str]], random: object
) -> None:
    table = [*table, (100, "train"), (101, "test")]
    shuffled = list(table)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = []
    for rows in (table, shuffled):
        keys = [f"{number:064x}" for number, _ in rows]
        result = assign(keys, ["a" if n % 2 else "b" for n, _ in rows], [said for _, said in rows])
        found.append(sorted(zip(keys, (said for _, said in rows), result.splits, strict=True)))
        for key in set(keys):  # copies stand in one split, or in none
            places = {p for other, p in zip(keys, result.splits, strict=True) if other == key}
            assert len(places - {""}) == 1
    assert found[0] == found[1]


@given(st.lists(st.integers(0, 15), min_size=3, max_size=60), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_copies_never_straddle(numbers: list[int], seed: int) -> None:
    keys = [f"{number:064x}" for number in numbers]
    result = assign(keys, ["a"] * len(keys), seed=seed)
    for key in set(keys):
        assert len({split for other, split in zip(keys, result.splits, strict=True)
                    if other == key}) == 1  # fmt: skip


@given(st.integers(3, 12), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_three_images_are_enough_for_all_splits(count: int, seed: int) -> None:
    keys = keys_of(count)
    result = assign(keys, ["a"] * count, seed=seed)
    assert set(result.splits) == set(splits.SPLITS)
    for item in result.moved:
        assert result.splits[keys.index(item.key)] == item.target
        assert splits._by_hash(splits.position(item.key, seed), dict(zip(
            splits.SPLITS, RATIOS, strict=True))) == item.source  # fmt: skip


def test_shares_hold_in_expectation() -> None:
    counts = Counter(assign(keys_of(5000), ["a"] * 5000).splits)
    for name, share in zip(splits.SPLITS, RATIOS, strict=True):
        assert counts[name] / 5000 == pytest.approx(share, abs=0.02)


def test_declared_splits_win_and_straddling_keys_leave_train() -> None:
    keys = [*keys_of(4), keys_of(1)[0]]
    result = assign(keys, ["a"] * 5, ["train", "train", "val", "test", "test"])
    assert result.splits == ("", "train", "val", "test", "test")
    assert result.straddling == 1


def test_a_key_of_val_and_test_counts_for_test_alone() -> None:
    first, second, third = keys_of(3)
    result = assign([first, first, second, third], ["a"] * 4, ["val", "test", "train", "val"])
    assert result.splits == ("", "test", "train", "val") and result.straddling == 1


def test_declared_rows_stay_where_others_declare_nothing() -> None:
    declared = ["train", "test"] * 10 + [""] * 40
    result = assign(keys_of(60), ["a"] * 60, declared)
    assert list(result.splits[:20]) == declared[:20]
    assert list(result.splits[20:]) == list(assign(keys_of(60), ["a"] * 60).splits[20:])


def test_val_that_is_missing_is_taken_from_train() -> None:
    declared = ["train"] * 200 + ["test"] * 50
    result = assign(keys_of(250), ["a"] * 250, declared)
    counts = Counter(result.splits)
    assert counts["test"] == 50
    assert counts["val"] / 200 == pytest.approx(15 / 85, abs=0.08)
    assert "train and test but no val" in result.notes[0] and result.is_declared


@given(st.integers(5, 60), st.integers(2, 30), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_the_only_held_out_split_is_test_whatever_its_name(
    num_train: int, num_held: int, seed: int
) -> None:
    """Of train and val, just what comes of train and test: same images, same splits."""
    keys, labels = keys_of(num_train + num_held), ["a", "b"] * 50
    found = [
        assign(keys, labels[: len(keys)], ["train"] * num_train + [held] * num_held, seed=seed)
        for held in ("val", "test")
    ]
    assert found[0].splits == found[1].splits
    assert found[0].splits[num_train:] == ("test",) * num_held
    assert "val" in found[0].splits[:num_train]
    assert found[0].is_declared and found[0].moved == found[1].moved
    assert "val is the test split, scored once" in found[0].notes[0]


def test_given_shares_leave_val_and_take_test_from_train() -> None:
    declared = ["train"] * 80 + ["val"] * 20
    result = assign(keys_of(100), ["a"] * 100, declared, asked=True)
    counts = Counter(result.splits)
    assert counts["val"] == 20 and 0 < counts["test"] < 40
    assert result.splits[80:] == ("val",) * 20
    assert result.is_declared and "test taken from train by hash" in result.notes[0]


def test_a_copy_in_val_and_test_counts_where_val_is_test() -> None:
    first, *others = keys_of(20)
    declared = ["train", "val", *["train"] * 17, "val", "val"]
    result = assign([first, first, *others], ["a"] * 21, declared)
    assert result.splits[:2] == ("", "test") and result.straddling == 1


def test_train_alone_declares_nothing_that_is_held_out() -> None:
    result = assign(keys_of(60), ["a"] * 60, ["train"] * 60)
    assert result.splits == assign(keys_of(60), ["a"] * 60).splits
    assert not result.is_declared and "no val and no test" in result.notes[0]


def test_what_is_declared_in_full_or_not_at_all_needs_no_word() -> None:
    full = assign(keys_of(30), ["a"] * 30, ["train", "val", "test"] * 10)
    none = assign(keys_of(30), ["a"] * 30)
    part = assign(keys_of(30), ["a"] * 30, ["train", "val", ""] * 10)
    assert (full.notes, none.notes) == ((), ())
    assert (full.is_declared, none.is_declared) == (True, False)
    assert "Only some images declare a split" in part.notes[0]
    assert part.splits[1::3] == ("val",) * 10


def test_train_that_is_missing_is_an_error() -> None:
    with pytest.raises(ManifestError, match="no train"):
        assign(keys_of(4), ["a"] * 4, ["val", "val", "test", "test"])


@pytest.mark.parametrize(
    "text",
    ["70/30", "a/b/c", "0/70/30", "-1/1/1", "", "1/2/inf", "80/10/20", "2/1/1", "7/1.5/1.5",
     "70/15/14", "0.8/0.1/0.2", "nan/15/15"],
)  # fmt: skip
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--split"):
        splits.parse_ratios(text)


def test_shares() -> None:
    assert splits.parse_ratios("70/15/15") == pytest.approx(RATIOS)
    assert splits.parse_ratios("0.7/0.15/0.15") == pytest.approx(RATIOS)
    assert splits.parse_ratios("50/25/25") == (0.5, 0.25, 0.25)
    assert splits.parse_ratios("33.3/33.3/33.4") == pytest.approx((0.333, 0.333, 0.334))
    assert splits.parse_ratios("85/0/15") == pytest.approx((0.85, 0, 0.15))
