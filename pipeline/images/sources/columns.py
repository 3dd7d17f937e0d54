"""Which columns of a Parquet or Arrow table are images, labels, splits and groups.

What the types and Hugging Face's own description leave open is refused, with the option that says
it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError, ManifestError, mention
from pipeline.files.table import folded
from pipeline.images.manifest import GROUP
from pipeline.images.packed.table_members import arrow, image_columns, is_text

if TYPE_CHECKING:
    import pyarrow as pa

_PATH, _LABEL, _SPLIT = "path", "label", "split"
_SHOWN: Final = 60
# Kinds of Hugging Face's columns that are stored as images are.
_NO_IMAGES: Final = ("Audio", "Pdf", "Video")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table that are read.

    Attributes:
        image: The images, or their paths.
        has_paths: Whether they are paths.
        label: The labels; empty for none.
        names: Class names by number; None where labels are what they are.
        split: Declared splits; empty for none.
        group: Groups; empty for none.
        unused: The others.
    """

    image: str
    has_paths: bool
    label: str = ""
    names: tuple[str, ...] | None = None
    split: str = ""
    group: str = ""
    unused: list[str] = field(default_factory=list, compare=False)

    def described(self) -> str:
        """Return which columns are images and labels, for a note."""
        images = f"{'paths' if self.has_paths else 'images'} in the column {self.image!r}"
        if not self.label:
            return f"{images}, and no column of labels: --label-column names one"
        names = "" if self.names is None else f" ({len(self.names):,} class names)"
        return f"{images}, labels in {self.label!r}{names}"

    @property
    def kind(self) -> tuple[object, ...]:
        """What must be equal in all files of a data set."""
        return (
            self.image, self.has_paths, self.label, self.names is None, self.split, self.group,
        )  # fmt: skip


def features_of(schema: "pa.Schema") -> Mapping[str, Any]:
    """Return how Hugging Face's libraries describe columns; nothing of other tables."""
    metadata = schema.metadata or {}
    try:
        found = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def split_name(schema: "pa.Schema") -> str:
    """Return the column that says splits; empty where there is none."""
    return next((name for name in schema.names if folded(name) == _SPLIT), "")


def choose(
    schema: "pa.Schema",
    features: Mapping[str, Any],
    where: str,
    *,
    image: str | None = None,
    label: str | None = None,
) -> Columns:
    """Return the columns to read.

    Args:
        schema: The columns.
        features: What Hugging Face's libraries say of them.
        where: What the table is called in messages.
        image: The column of images that was asked for.
        label: The column of labels that was asked for.

    Raises:
        ManifestError: None holds images, several may, or one is of a type that cannot be used.
        ConfigError: A column that was asked for is not there.
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ManifestError(
            f"{where}: expected one column per name. Received: {mention(twice)} twice.",
            hint="Remove or rename the others.",
        )
    for option, name in (("--image-column", image), ("--label-column", label)):
        if name is not None and name not in schema.names:
            raise ConfigError(
                f"{option}: expected a column of {where}. Received: {name!r}; there are "
                f"{mention(schema.names)}.",
                hint="Name one of these.",
            )
    found = image or _image(schema, features, where)
    chosen = {
        "image": found,
        "label": label or _label(schema, features, where),
        "split": _named(schema, _SPLIT, where),
        "group": _named(schema, GROUP, where),
    }
    kind = schema.field(found).type
    if found not in image_columns(schema) and not is_text(kind):
        raise _wrong_type(where, found, "images or of their paths", kind)
    names = _label_names(schema, features, where, chosen["label"])
    unused = [name for name in schema.names if name not in chosen.values()]
    return Columns(has_paths=is_text(kind), names=names, unused=unused, **chosen)


def image_names(schema: "pa.Schema", features: Mapping[str, Any]) -> list[str]:
    """Return the columns of images; several where it is open which is meant."""
    parts = {
        name: parts
        for name, parts in image_columns(schema).items()
        if _kind(features.get(name)) not in _NO_IMAGES
    }
    # As described, or as Hugging Face writes them; else plain bytes, which may be anything.
    described = [name for name in parts if _kind(features.get(name)) == "Image"]
    return described or [name for name in parts if parts[name]] or list(parts)


def _image(schema: "pa.Schema", features: Mapping[str, Any], where: str) -> str:
    found = image_names(schema, features)
    if len(found) > 1:
        raise _several(where, "images", found, "--image-column")
    if found:
        return found[0]
    named = _named(schema, _PATH, where)
    if named:
        return named
    raise _no_images(schema, {name: _kind(features.get(name)) for name in schema.names}, where)


def _no_images(schema: "pa.Schema", kinds: Mapping[str, str], where: str) -> ManifestError:
    listed = [f"{item.name!r} ({kinds[item.name] or item.type})" for item in schema]
    vectors = [item.name for item in schema if _is_list(item.type)]
    hint = "If a column of texts holds paths of images, name it by --image-column."
    if vectors:
        hint += f" Vectors, as {vectors[0]!r} may hold, are for import-features."
    return ManifestError(
        f"Expected a column of images, or of paths named 'path', in {where}. Received: "
        f"{mention(listed, quoted=False) or 'no columns'}.",
        hint=hint,
    )


def _label(schema: "pa.Schema", features: Mapping[str, Any], where: str) -> str:
    found = [
        name
        for name in schema.names
        if folded(name) == _LABEL or _kind(features.get(name)) == "ClassLabel"
    ]
    if len(found) > 1:
        raise _several(where, "labels", found, "--label-column")
    return found[0] if found else ""


def _label_names(
    schema: "pa.Schema", features: Mapping[str, Any], where: str, label: str
) -> tuple[str, ...] | None:
    """Return the class names of a column of labels, after a look at its type.

    Raises:
        ManifestError: It holds several labels per image, or what is no label.
    """
    if not label:
        return None
    types, kind = arrow().types, schema.field(label).type
    if _is_list(kind):
        raise ManifestError(
            f"Expected one label per image in {where}. Received: {label!r}, which holds lists "
            f"({kind}).",
            hint="Name another column by --label-column; several labels per image are not learned.",
        )
    known = (types.is_boolean, types.is_integer, types.is_null, is_text)
    if not any(is_known(kind) for is_known in known):
        raise _wrong_type(where, label, "labels, texts or whole numbers", kind)
    described = features.get(label)
    names = described.get("names") if isinstance(described, Mapping) else None
    if not names or not types.is_integer(kind):
        return None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ManifestError(
            f"Expected the names of classes of {label!r} in {where} to be a list of texts. "
            f"Received: {str(names)[:_SHOWN]!r}.",
            hint="Correct them in the metadata, or in dataset_info.json beside it.",
        )
    return tuple(names)


def _named(schema: "pa.Schema", wanted: str, where: str) -> str:
    """Return the column of a name as headers of tables are compared; empty for none.

    Raises:
        ManifestError: There are two, or it is of a type that cannot be used.
    """
    found = [name for name in schema.names if folded(name) == wanted]
    if len(found) > 1:
        raise ManifestError(
            f"{where}: expected one column {wanted!r}. Received: {mention(found)}.",
            hint="Remove or rename the others.",
        )
    if not found:
        return ""
    kind = schema.field(found[0]).type
    numbers = wanted == GROUP and arrow().types.is_integer(kind)
    if not (is_text(kind) or numbers or arrow().types.is_null(kind)):
        raise ManifestError(
            f"Expected a column of texts in {where}. Received: {found[0]!r} of type {kind}.",
            hint="Write it as texts, or rename it.",
        )
    return str(found[0])


def _kind(described: object) -> str:
    """Return what Hugging Face calls a kind of column."""
    return str(described.get("_type", "")) if isinstance(described, Mapping) else ""


def _is_list(kind: "pa.DataType") -> bool:
    types = arrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _several(where: str, what: str, found: Sequence[str], option: str) -> ManifestError:
    return ManifestError(
        f"Expected one column of {what} in {where}. Received: {mention(found)}.",
        hint=f"Name one by {option}.",
    )


def _wrong_type(where: str, name: str, what: str, kind: "pa.DataType") -> ManifestError:
    return ManifestError(
        f"Expected a column of {what} in {where}. Received: {name!r} of type {kind}.",
        hint="Name another one by --image-column or --label-column, or write it as another type.",
    )
