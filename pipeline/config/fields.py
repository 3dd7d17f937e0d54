"""What an option is, and its value checked: one mechanism for flags, files and Python.

A value that passes has the type of its field; one that does not is refused with what was expected.
Imports nothing heavy.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pipeline.errors import ConfigError

Kind = Literal["text", "texts", "path", "paths", "integer", "number", "switch"]

# With None, a field may be left empty.
TextDefault = TypeVar("TextDefault", str, str | None)
IntegerDefault = TypeVar("IntegerDefault", int, int | None)

_HOME: Final = "~"


@dataclass(frozen=True, slots=True)
class Option:
    """What an option is, beside its name and default.

    Attributes:
        kind: ``text``, ``path`` (or a keyword in its place), several of these (``texts``,
            ``paths``), ``integer``, ``number`` or ``switch``.
        help: One line for ``--help`` and the documentation.
        metavar: The value's name in ``--help``.
        choices: The valid values, when they are few.
        old_names: What choices were called in earlier releases; still taken for them.
        minimum: The least valid number.
        maximum: The greatest valid number.
        positional: Whether it is an argument rather than a flag.
        required: Whether the command cannot do without it.
    """

    kind: Kind
    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    old_names: Mapping[str, str] = field(default_factory=dict)
    minimum: float = 0
    maximum: float = math.inf
    positional: bool = False
    required: bool = False

    @property
    def is_list(self) -> bool:
        """Whether it may be given several times."""
        return self.kind in ("texts", "paths")


def flag_of(name: str) -> str:
    """Return the command-line flag of a field: ``image_size`` → ``--image-size``."""
    return "--" + name.replace("_", "-")


def spelled(value: object) -> str:
    """Return a value as a configuration file spells it: ``true``, ``"text"``, ``[256]``."""
    return json.dumps(value, ensure_ascii=False, default=str)


def expanded(path: str | os.PathLike[str]) -> str:
    """Return a path with its beginning ``~`` or ``~user`` replaced by the home folder.

    Shells leave a ``~`` alone that is not at the beginning of a word, as in ``--store=~/x``, and
    files and Python know none. A folder that is really called ``~`` is ``./~``.

    Raises:
        ConfigError: There is no such user, and no file of that name.
    """
    text = os.fspath(path)
    if not text.startswith(_HOME):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        if os.path.lexists(text):  # such as ~$draft.png, which shells leave alone, too
            return text
        user = text.partition(os.sep)[0]
        raise ConfigError(
            f"Expected a path. Received: {text!r}, but {user!r} is no user's home folder.",
            hint=f"A folder of that very name is ./{user}.",
        ) from error


def checked(name: str, option: Option, value: object, where: str = "") -> object:
    """Return a value in its field's type, or raise ConfigError with what was expected.

    Args:
        name: The field's name.
        option: What it is.
        value: What was given; None stands for nothing.
        where: The file and table that it stands in; empty for a flag.
    """
    if value is None:
        return None
    try:
        return _checked(option, value)
    except ConfigError:
        raise
    except ValueError as error:
        label = f"{where} {name}" if where else argument_of(name, option)
        received = spelled(value) if where else repr(value)
        raise ConfigError(f"{label}: expected {error}. Received: {received}.") from error


def argument_of(name: str, option: Option) -> str:
    """Return how an option is called on the command line."""
    return option.metavar if option.positional else flag_of(name)


def _checked(option: Option, value: object) -> object:
    """Return a value in its field's type, or raise ValueError with what was expected."""
    if option.is_list:
        return _checked_list(option, value)
    if option.kind == "switch":
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if option.kind == "integer":
        return _checked_integer(option, value)
    if option.kind == "number":
        return _checked_number(option, value)
    if option.kind == "path":
        return _checked_path(value, may_be_empty=option.positional)
    return _checked_text(option, value)


def _checked_list(option: Option, value: object) -> tuple[str, ...]:
    items: list[object] = list(value) if isinstance(value, list | tuple) else [value]
    kinds = (str, os.PathLike) if option.kind == "paths" else str
    if not all(isinstance(item, kinds) for item in items):
        raise ValueError("a list of paths" if option.kind == "paths" else "a list of texts")
    if option.kind == "paths":
        return tuple(_checked_path(item) for item in items)
    return tuple(str(item) for item in items)


def _checked_path(value: object, *, may_be_empty: bool = False) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or "\0" in text or not (text or may_be_empty):
        raise ValueError("a path")
    return expanded(text)


def _checked_text(option: Option, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    meant = option.old_names.get(value, value)
    if option.choices and meant not in option.choices:
        raise ValueError("one of " + ", ".join(option.choices))
    if not value and not option.positional:
        raise ValueError("a text that is not empty")
    return meant


def _checked_integer(option: Option, value: object) -> int:
    expected = f"an integer of {option.minimum} or more"
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(expected) from error
    if isinstance(number, bool) or not isinstance(number, int) or number < option.minimum:
        raise ValueError(expected)
    return number


def _checked_number(option: Option, value: object) -> float:
    expected = f"a number from {option.minimum:g} to {option.maximum:g}"
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(expected) from error
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(expected)
    if not option.minimum <= number <= option.maximum:
        raise ValueError(expected)
    return float(number)


def text(default: TextDefault, help: str, metavar: str = "NAME", **more: Any) -> TextDefault:  # noqa: A002
    """Return the field of a text."""
    return field(
        default=default, metadata={"option": Option("text", help, metavar=metavar, **more)}
    )


def texts(default: tuple[str, ...], help: str, metavar: str, **more: Any) -> tuple[str, ...]:  # noqa: A002
    """Return the field of several texts."""
    return field(
        default=default, metadata={"option": Option("texts", help, metavar=metavar, **more)}
    )


def path(default: TextDefault, help: str, metavar: str, **more: Any) -> TextDefault:  # noqa: A002
    """Return the field of a path; a beginning ``~`` is expanded."""
    return field(
        default=default, metadata={"option": Option("path", help, metavar=metavar, **more)}
    )


def paths(default: tuple[str, ...], help: str, metavar: str, **more: Any) -> tuple[str, ...]:  # noqa: A002
    """Return the field of several paths."""
    return field(
        default=default, metadata={"option": Option("paths", help, metavar=metavar, **more)}
    )


def choice(default: TextDefault, choices: tuple[str, ...], help: str, **more: Any) -> TextDefault:  # noqa: A002
    """Return the field of one of a few texts."""
    return field(
        default=default, metadata={"option": Option("text", help, choices=choices, **more)}
    )


def integer(default: IntegerDefault, help: str, minimum: int) -> IntegerDefault:  # noqa: A002
    """Return the field of an integer with a least value."""
    option = Option("integer", help, metavar="N", minimum=minimum)
    return field(default=default, metadata={"option": option})


def number(default: float, help: str, minimum: float, maximum: float) -> float:  # noqa: A002
    """Return the field of a number with bounds."""
    option = Option("number", help, metavar="X", minimum=minimum, maximum=maximum)
    return field(default=default, metadata={"option": option})


def switch(help: str) -> bool:  # noqa: A002
    """Return the field of a switch, which is off by default."""
    return field(default=False, metadata={"option": Option("switch", help)})
