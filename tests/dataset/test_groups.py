"""Groups: what belongs together gets one split, whatever else there is."""

from collections import Counter, defaultdict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.dataset import splits
from pipeline.dataset.checks import check_shares
from pipeline.dataset.groups import united
from pipeline.errors import ConfigError

RATIOS = (0.7, 0.15, 0.15)
NUMBERS = st.integers(0, 2**30)


def key_of(number: int) -> str:
    return f"{number:064x}"


def assign(rows: list[tuple[str, str, str]], groups: dict[str, str], seed: int) -> list[str]:
    """Return the splits of rows of key, label and declared split."""
    keys, labels, declared = zip(*rows, strict=True)
    return list(
        splits.assign(keys, labels, declared, ratios=RATIOS, seed=seed, groups=groups).splits
    )


@st.composite
def grouped(draw: st.DrawFn, least: int = 3) -> tuple[list[str], dict[str, str]]:
    """Draw keys and groups of them by a column and by near duplicates."""
    keys = [key_of(number) for number in draw(st.sets(NUMBERS, min_size=least, max_size=40))]
    names = draw(st.lists(st.sampled_from(["", "", "p1", "p2", "p3"]), min_size=len(keys),
                          max_size=len(keys)))  # fmt: skip
    copies = draw(st.lists(st.lists(st.sampled_from(keys), min_size=2, max_size=4), max_size=5))
    return keys, united(keys, names, copies)


DECLARED = st.sampled_from(["", "train", "val", "test"])


@given(grouped(), st.data(), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_no_group_is_in_two_splits_whatever_is_declared(
    drawn: tuple[list[str], dict[str, str]], data: st.DataObject, seed: int
) -> None:
    keys, groups = drawn
    declared = data.draw(st.lists(DECLARED, min_size=len(keys), max_size=len(keys)))
    rows = [(key, "ab"[int(key, 16) % 2], said) for key, said in zip(keys, declared, strict=True)]
    rows += [(key_of(2**31), "a", "train"), (key_of(2**31 + 1), "b", "test")]
    found = assign(rows, groups, seed)
    places = defaultdict(set)
    for (key, _, said), split in zip(rows, found, strict=True):
        places[groups.get(key, key)].add(split)
        # What is declared stays there, or is in none: train may feed splits that are not declared.
        assert not said or split in (said, "") or said == "train"
    assert all(len(found - {""}) == 1 for found in places.values())


@pytest.mark.slow
@given(st.sets(NUMBERS, min_size=3, max_size=60), st.integers(0, 50), st.data())
@settings(max_examples=40, deadline=None)
def test_without_groups_places_are_those_of_keys(
    numbers: set[int], seed: int, data: st.DataObject
) -> None:
    keys = [key_of(number) for number in numbers]
    label_of = {key: data.draw(st.sampled_from("abc")) for key in keys}
    found = assign([(key, label_of[key], "") for key in keys], {}, seed)
    assert united(keys, ()) == {}
    by_hash = {
        key: splits._by_hash(
            splits.position(key, seed), dict(zip(splits.SPLITS, RATIOS, strict=True))
        )
        for key in keys
    }
    complete = {
        label for label in label_of.values()
        if {by_hash[key] for key in keys if label_of[key] == label} == set(splits.SPLITS)
    }  # fmt: skip
    for key, split in zip(keys, found, strict=True):
        assert split == by_hash[key] or label_of[key] not in complete


def by_class(rows: list[tuple[str, str, str]], found: list[str]) -> dict[str, set[str]]:
    classes = defaultdict(set)
    for (_, label, _), split in zip(rows, found, strict=True):
        classes[label].add(split)
    return classes


@pytest.mark.slow
@given(grouped(least=20), st.integers(1, 10), st.integers(0, 20), st.data())
@settings(max_examples=40, deadline=None)
def test_images_of_other_groups_and_other_labels_move_none(
    drawn: tuple[list[str], dict[str, str]], added: int, seed: int, data: st.DataObject
) -> None:
    keys, groups = drawn
    hashed = {
        key: splits._by_hash(splits.position(groups.get(key, key), seed),
                             dict(zip(splits.SPLITS, RATIOS, strict=True)))
        for key in keys
    }  # fmt: skip
    assume(set(hashed.values()) == set(splits.SPLITS))
    rows = [(key, "a", "") for key in keys]
    found = assign(rows, groups, seed)
    assert found == [hashed[key] for key in keys]
    more = [(key_of(2**31 + number), "a", "") for number in range(added)]
    others = {key: "other" for key, _, _ in more[: added // 2]}
    assert assign(more + rows, {**groups, **others}, seed)[added:] == found
    relabelled = [(key, data.draw(st.sampled_from("ab")), "") for key in keys]
    assume(all(len(places) == 3 for places in by_class(relabelled, found).values()))
    assert assign(relabelled, groups, seed) == found


@given(st.lists(st.sampled_from("abc"), min_size=3, max_size=30), st.integers(0, 50), st.randoms())
@settings(max_examples=40, deadline=None)
def test_filling_an_empty_split_moves_whole_groups_and_empties_none(
    labels: list[str], seed: int, random: object
) -> None:
    """Groups of three neighbouring rows, of one class or of several."""
    rows = [(key_of(number), label, "") for number, label in enumerate(labels)]
    groups = united([row[0] for row in rows], [f"g{number // 3}" for number in range(len(rows))])
    found = splits.assign(*map(list, zip(*rows, strict=True)), ratios=RATIOS, seed=seed,
                          groups=groups)  # fmt: skip
    place = dict(zip([row[0] for row in rows], found.splits, strict=True))
    shares = dict(zip(splits.SPLITS, RATIOS, strict=True))
    before = {key: splits._by_hash(splits.position(groups[key], seed), shares) for key in groups}
    assert {item.key for item in found.moved} == {
        key for key in groups if place[key] != before[key]
    }
    assert all((item.source, item.target) == (before[item.key], place[item.key])
               for item in found.moved)  # fmt: skip
    assert all(len({place[key] for key in groups if groups[key] == name}) == 1
               for name in groups.values())  # fmt: skip
    then = by_class(rows, [before[row[0]] for row in rows])
    now = by_class(rows, list(found.splits))
    assert all(then[label] <= now[label] for label in now)
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert assign(rows, groups, seed) == [place[key] for key, _, _ in rows]


def test_groups_have_the_name_of_the_column_or_of_the_smallest_key() -> None:
    a, b, c, d, e = (key_of(number) for number in range(5))
    assert united([a, b, c], ["", "p", ""]) == {b: "p"}
    assert united([b, c, d], (), [[d, c]]) == {c: c, d: c}
    # A copy of an image of each of two patients makes them one group.
    assert united([a, b, c, d, e], ["q", "", "p", "p", ""], [[a, b, d]]) == dict.fromkeys(
        (a, b, c, d), "p"
    )
    # One key with two groups.
    assert united([a, a, b, c], ["p", "q", "q", "r"]) == {a: "p", b: "p", c: "r"}


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["", "p", "q", "r"])), max_size=20),
       st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=3), max_size=6))  # fmt: skip
def test_what_is_connected_is_one_group(
    table: list[tuple[int, str]], copies: list[list[int]]
) -> None:
    keys = [key_of(number) for number, _ in table]
    found = united(keys, [name for _, name in table], [[key_of(n) for n in g] for g in copies])
    reached = {key: {key} for key in found}
    links = [[key_of(n) for n in g] for g in copies]
    links += [[key for key, (_, other) in zip(keys, table, strict=True) if other == name]
              for name in "pqr"]  # fmt: skip
    for _ in range(len(found)):
        for link in links:
            whole = set().union(*(reached[key] for key in link))
            for key in whole:
                reached[key] = whole | reached[key]
    for one in found:
        for other in found:
            assert (found[one] == found[other]) == (other in reached[one])


def test_a_group_that_straddles_declared_splits_stays_with_the_one_nearest_to_test() -> None:
    a, b, c, d, e, f, g = (key_of(number) for number in range(7))
    rows = [(a, "x", "train"), (b, "x", "test"), (c, "x", "train"), (d, "x", "val"),
            (e, "x", ""), (f, "x", "train"), (f, "x", "test"), (g, "x", "train")]  # fmt: skip
    result = splits.assign(
        *map(list, zip(*rows, strict=True)), ratios=RATIOS, seed=0,
        groups={a: "g", b: "g", c: "h", d: "h", e: "g"},
    )  # fmt: skip
    assert result.splits == ("", "test", "", "val", "test", "", "test", "train")
    assert result.dropped == {"group in two declared splits": 2, "in two declared splits": 1}
    assert result.straddling == 1


def test_val_that_is_test_is_so_for_groups() -> None:
    rows = [(key_of(number), "x", "train") for number in range(30)]
    rows.append((key_of(30), "x", "val"))
    result = splits.assign(
        *map(list, zip(*rows, strict=True)), ratios=RATIOS, seed=0,
        groups={key_of(0): "g", key_of(30): "g"},
    )  # fmt: skip
    assert result.splits[0] == "" and result.splits[30] == "test"
    assert "val" in result.splits


def test_what_split_asks_for() -> None:
    assert splits.read_split(None) == (False, None)
    assert splits.read_split("80/10/10") == (False, "80/10/10")
    assert splits.read_split("leak-free") == (True, None)
    assert splits.read_split("leak-free:80/10/10") == (True, "80/10/10")
    for text in ("leak-free:", "leakfree", "leak-free/80/10/10"):
        with pytest.raises(ConfigError, match="or leak-free"):
            splits.parse_ratios(splits.read_split(text)[1] or "")
    with pytest.raises(ConfigError, match="or leak-free"):
        splits.read_split("leak-free:")


def test_a_share_that_is_far_off_is_said_with_the_largest_group() -> None:
    counts = Counter(train=300, val=10, test=290)
    rows = [name for name, count in counts.items() for _ in range(count)]
    (note,) = check_shares(rows, ["p"] * 300 + ["q"] * 300, RATIOS)
    assert "50/2/48 % of the images where 70/15/15" in note
    assert "the largest of 2 groups has 300 of 600 images" in note
    even = ["train"] * 70 + ["val"] * 15 + ["test"] * 15
    assert check_shares(even, ["p"] * 100, RATIOS) == []
    # Without groups it is chance, and so it may be in a small data set.
    assert check_shares(rows, [""] * 600, RATIOS) == []
    assert check_shares(["train"] * 8 + ["test"] * 2, ["p"] * 2 + [""] * 8, RATIOS) == []
