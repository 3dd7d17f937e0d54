"""Options from a TOML file: a table per command, and parameters per head."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.config.fields import spelled
from pipeline.config.options import build
from pipeline.errors import ConfigError, unknown_name

# Tables of a configuration file with one table per head: parameters, and what a sweep tries.
_BY_HEAD: Final = ("grids", "heads")


def load_file(path: Path, records: Mapping[str, type]) -> dict[str, dict[str, object]]:
    """Read a TOML file into tables by command name, plus ``heads`` and ``grids``.

    Dashes and underscores are the same in table names and keys.

    Args:
        path: The file.
        records: The option records by command name.

    Raises:
        ConfigError: The file is missing or is no TOML, or a table or key is unknown or given
            in two spellings.
    """
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"The configuration file {str(path)!r} cannot be read: {error.strerror}.",
            hint="Correct --config.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration file {str(path)!r} is not valid TOML: {error}."
        ) from error
    tables: dict[str, dict[str, object]] = {}
    for name, table in _respelled(path, document, "_", "-").items():
        if name not in (*records, *_BY_HEAD):
            raise unknown_name("table", name, (*records, *_BY_HEAD), where=str(path))
        if not isinstance(table, dict):
            raise ConfigError(
                f"{path}: expected a table [{name}]. Received: {name} = {spelled(table)}."
            )
        if name in _BY_HEAD:
            _check_by_head(path, name, table)
            tables[name] = table
            continue
        tables[name] = _respelled(path, table, "-", "_")
        build(records[name], tables[name], where=f"{path}: [{name}]")
    return tables


def _respelled(path: Path, table: Mapping[str, object], old: str, new: str) -> dict[str, object]:
    """Return a table with one spelling of its keys, or raise ConfigError if a key had two."""
    respelled: dict[str, object] = {}
    for name, value in table.items():
        key = name.replace(old, new)
        if key in respelled:
            raise ConfigError(
                f"{path}: expected {key!r} once. Received: it in two spellings.",
                hint="Dashes and underscores are the same; keep one of them.",
            )
        respelled[key] = value
    return respelled


def _check_by_head(path: Path, table: str, heads: Mapping[str, object]) -> None:
    for name, parameters in heads.items():
        if not isinstance(parameters, dict):
            raise ConfigError(
                f"{path}: expected a table [{table}.{name}]. "
                f"Received: {name} = {spelled(parameters)}."
            )
