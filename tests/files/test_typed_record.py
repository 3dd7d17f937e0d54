"""Typed records: every field is checked, and what is read and written again says the same."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files.typed_record import MisfitError, Record, first_difference, lenient


@dataclass(frozen=True, kw_only=True)
class Part(Record):
    size: int
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Thing(Record):
    name: str
    part: Part
    parts: Mapping[str, Part]
    names: Sequence[str]
    best: str | None
    is_new: bool = field(metadata=lenient(False))
    anything: object = field(metadata=lenient(None))
    counts: Mapping[str, int] | None = None
    other_part: Part | None = None


SAID: dict[str, Any] = {
    "names": ["a"],
    "unknown": {"b": [1, None]},
    "part": {"weight": None, "size": 3, "more": True},
    "parts": {"z": {"size": 1}, "a": {"size": 2, "weight": 0.5}},
    "best": None,
    "name": "x",
}
OPTIONAL: dict[str, Any] = {
    "is_new": True,
    "anything": [1, {"a": "b"}],
    "counts": {"a": 1},
    "other_part": {"size": 4},
}


@given(st.permutations([*SAID.items(), *OPTIONAL.items()]), st.sets(st.sampled_from([*OPTIONAL])))
def test_what_is_read_is_said_again_in_the_same_order(
    items: list[tuple[str, Any]], left_out: set[str]
) -> None:
    said = {name: value for name, value in items if name not in left_out}
    assert json.dumps(Thing.of(said).as_json()) == json.dumps(said)


def test_a_new_record_says_its_fields_in_their_order() -> None:
    thing = Thing(
        name="x", part=Part(size=1), parts={}, names=("a",), best=None, is_new=False, anything=None
    )
    assert json.dumps(thing.as_json()) == json.dumps(
        {"name": "x", "part": {"size": 1}, "parts": {}, "names": ["a"], "best": None,
         "is_new": False, "anything": None}
    )  # fmt: skip
    assert [*replace(thing, counts={}).as_json()][-1] == "counts"


def test_fields_that_come_and_go() -> None:
    thing = Thing.of({**SAID, "counts": {"a": 1}, "last": 0})
    assert list(thing.as_json()) == [*SAID, "counts", "last"]
    gone = thing.without("counts")
    assert list(gone.as_json()) == [*SAID, "last"]
    assert list(replace(gone, counts={}).as_json()) == [*SAID, "last", "counts"]
    assert gone.naming("counts").as_json() == {**SAID, "last": 0, "counts": None}
    assert list(replace(thing, is_new=True).as_json()) == [*SAID, "counts", "last", "is_new"]


def test_records_are_equal_that_say_the_same_in_another_order() -> None:
    assert Thing.of(SAID) == Thing.of(dict(reversed(SAID.items())))
    assert Thing.of(SAID) != Thing.of({**SAID, "unknown": 1})
    assert Part(size=1) == Part.of({"size": 1, "weight": None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 3}, "name = 3"),
        ({"name": None}, "name = None"),
        ({"best": 3}, "best = 3"),
        ({"names": "a"}, "names = 'a'"),
        ({"names": ["a", 1]}, "names = ['a', 1]"),
        ({"part": []}, "part = []"),
        ({"part": {}}, "no 'size'"),
        ({"part": {"size": True}}, "size = True"),
        ({"part": {"size": 1.0}}, "size = 1.0"),
        ({"part": {"size": 1, "weight": True}}, "weight = True"),
        ({"part": {"size": 1, "weight": "1"}}, "weight = '1'"),
        ({"parts": {"z": 3}}, "z = 3"),
        ({"parts": {"z": {"size": "1"}}}, "size = '1'"),
        ({"is_new": 1}, "is_new = 1"),
        ({"counts": {"a": "b"}}, "counts = {'a': 'b'}"),
        ({"other_part": 3}, "other_part = 3"),
        ({"name": ["x" * 500]}, "name = ['" + "x" * 191),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MisfitError) as caught:
        Thing.of({**SAID, **changes})
    assert str(caught.value) == words


@pytest.mark.parametrize("name", ["name", "part", "parts", "names", "best"])
def test_a_field_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(MisfitError, match=f"^no '{name}'$"):
        Thing.of({other: value for other, value in SAID.items() if other != name})


def test_a_whole_number_is_a_number() -> None:
    assert Part.of({"size": 1, "weight": 2}).weight == 2


def test_the_first_difference() -> None:
    assert first_difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None
    assert first_difference({"a": None}, {}) is None
    assert first_difference({"b": 2, "a": 1}, {"a": 0, "b": 3}) == ("b", 2, 3)
    assert first_difference({"a": 1}, {"a": 1, "c": 4}) == ("c", None, 4)
