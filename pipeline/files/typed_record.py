"""Typed records: frozen dataclasses of JSON objects, read with the type of every field checked.

What an object says beyond the fields of its record is kept, and so is the order in which it says
it: a file that is read and written again says the same.

Example:
    @dataclass(frozen=True, kw_only=True)
    class Thing(Record):
        name: str
        sizes: Mapping[str, int] = field(metadata=lenient({}))
        note: str | None = None

    Thing.of({"name": "a", "colour": "red"}).as_json()  # {"name": "a", "colour": "red"}
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, NamedTuple, Self, get_args, get_origin, get_type_hints

# Letters of a wrong value that a message shows.
_SHOWN: Final = 200
_LENIENT: Final = "lenient"
_OWN: Final = ("other", "order")


class MisfitError(ValueError):
    """A JSON object lacks a field of its record, or has a value of another type in it."""


class Difference(NamedTuple):
    """A field in which two objects differ, with both values; None where one lacks it."""

    name: str
    first: object
    second: object


def lenient(value: object) -> Mapping[str, object]:
    """Return the metadata of a field that files may lack, with its value where they do.

    Whoever makes a record has to give it, and then it is written.
    """
    return MappingProxyType({_LENIENT: value})


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object with typed fields; see the module.

    A field may be a text, a number, a truth value, ``object`` (anything), a record, a sequence, a
    mapping from texts, or one of these and None. A field whose default is None is optional: it is
    left out of the object while it is None, unless the object that was read had it, or ``naming``.

    Attributes:
        other: What the object says beyond the fields.
        order: The names in the order in which the object had them; None of one that was made.
    """

    other: Mapping[str, object] = field(default_factory=dict)
    order: tuple[str, ...] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, said: Mapping[str, object]) -> Self:
        """Return the record of a JSON object.

        Raises:
            MisfitError: It lacks a field, or a value is of another type; says which.
        """
        kind: type = cls
        known = _fields(kind)
        values: dict[str, Any] = {}
        for name, (item, hint) in known.items():
            if name in said:
                values[name] = _field(name, said[name], hint)
            elif _must_be_said(item):
                raise MisfitError(f"no {name!r}")
            else:
                values[name] = _where_unsaid(item)
        other = {name: value for name, value in said.items() if name not in known}
        return cls(**values, other=other, order=tuple(said))

    def as_json(self) -> dict[str, object]:
        """Return the JSON object, as new dicts and lists."""
        kind: type = type(self)
        values = {
            name: getattr(self, name)
            for name, (item, _) in _fields(kind).items()
            if self._says(name, item)
        }
        values |= self.other
        names = dict.fromkeys((*(self.order or ()), *values))
        return {name: _plain(values[name]) for name in names if name in values}

    def naming(self, *names: str) -> Self:
        """Return this record with fields that its object has even while they are None."""
        return replace(self, order=tuple(dict.fromkeys((*self.as_json(), *names))))

    def without(self, name: str) -> Self:
        """Return this record without an optional field, and without its place in the object."""
        order = tuple(other for other in self.as_json() if other != name)
        cleared: dict[str, Any] = {name: None}
        return replace(self, order=order, **cleared)

    def _says(self, name: str, item: "Field[object]") -> bool:
        if name in (self.order or ()):
            return True
        value = getattr(self, name)
        if item.default is None:
            return value is not None
        return self.order is None or bool(value != _where_unsaid(item))


def first_difference(
    first: Mapping[str, object], second: Mapping[str, object]
) -> Difference | None:
    """Return the first field in which two JSON objects differ; None where they are equal.

    Fields come in the order of the first, then those that only the second has. One that is None is
    equal to one that is not there.
    """
    for name in (*first, *second):
        if first.get(name) != second.get(name):
            return Difference(name, first.get(name), second.get(name))
    return None


@cache
def _fields(kind: type) -> Mapping[str, tuple["Field[object]", object]]:
    """Return the fields of a kind of record by name, with their types."""
    hints = get_type_hints(kind)
    return {item.name: (item, hints[item.name]) for item in fields(kind) if item.name not in _OWN}


def _must_be_said(item: "Field[object]") -> bool:
    return item.default is MISSING and _LENIENT not in item.metadata


def _where_unsaid(item: "Field[object]") -> object:
    """Return the value of a field that an object lacks."""
    return item.metadata.get(_LENIENT, item.default)


def _field(name: str, value: object, hint: object) -> object:
    """Return the value of one field.

    Raises:
        MisfitError: It is of another type; what is wrong within a record is said of that.
    """
    try:
        return _parsed(value, hint)
    except _OtherTypeError:
        raise MisfitError(f"{name} = {value!r}"[:_SHOWN]) from None


class _OtherTypeError(Exception):
    """A value is not of the type that its field has."""


def _parsed(value: object, hint: object) -> object:
    """Return a JSON value as the type of its field has it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        if value is None and NoneType in inner:
            return None
        (hint,) = (item for item in inner if item is not NoneType)
        return _parsed(value, hint)
    if origin is Sequence:
        return [_parsed(item, inner[0]) for item in _required(value, list)]
    if origin is Mapping:
        found = _required(value, dict)
        if _is_record(inner[1]):
            return {name: _field(name, item, inner[1]) for name, item in found.items()}
        return {name: _parsed(item, inner[1]) for name, item in found.items()}
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.of(_required(value, dict))
    kinds = (int, float) if hint is float else hint
    # To Python, true and false are numbers.
    if isinstance(value, bool) and kinds not in (bool, object):
        raise _OtherTypeError
    return _required(value, kinds)


def _required(value: Any, kinds: Any) -> Any:
    if not isinstance(value, kinds):
        raise _OtherTypeError
    return value


def _is_record(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Record)


def _plain(value: object) -> object:
    """Return a value as JSON has it."""
    if isinstance(value, Record):
        return value.as_json()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
