"""What makes features comparable: the identity of a backbone, and whether it can be had again."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from pipeline import backbones
from pipeline.backbones import Backbone, weights_file
from pipeline.backbones import weights as weight_files
from pipeline.backbones.keras_file import PREFIX
from pipeline.config.options import ExtractOptions
from pipeline.errors import ConfigError, RunError, StaleFeaturesError
from pipeline.files.records import Kind, misfit
from pipeline.images.decoder import DECODER

# What names a file, in no other folder.
_DIGEST: Final = re.compile(r"[\w-]+", re.ASCII)
# Of an image: beyond it a batch of one fits into no memory.
_MAX_SIDE: Final = 1 << 14


def source_token(spec: Backbone, *, weights: str, seed: int) -> str:
    """Return a text that is equal when the weights are; see ``weights.source_token``.

    Raises:
        ConfigError: Weights are asked for beside those of a ``.keras`` file.
        WeightsUnavailableError: ``weights`` is neither a keyword nor a readable file.
    """
    if spec.file is None:
        weight_files.require_source(weights)
        return weight_files.source_token(weights, seed=seed, backbone=spec.name)
    if weights != weights_file.KEYWORDS[0]:
        raise ConfigError(
            f"--weights: {str(spec.file)!r} brings its own weights. Received: {weights!r}.",
            hint="Leave it out.",
        )
    return weight_files.source_token(str(spec.file), seed=seed, backbone=spec.name)


def of(
    spec: Backbone,
    *,
    weights_sha256: str,
    image_size: int,
    pooling: str,
    precision: str,
    engine: str,
) -> dict[str, object]:
    """Return what makes features comparable; equal, or the features must not be mixed.

    Every float32 engine agrees with Keras, so the engine counts only at other precisions.
    """
    fields: dict[str, object] = {
        "backbone": spec.name,
        "weights_sha256": weights_sha256,
        "image_size": image_size,
        "pooling": pooling,
        "preprocessing": spec.preprocessing,
        "decoder": DECODER,
        "precision": precision,
    }
    return fields if precision == "float32" else {**fields, "engine": engine}


def require_reproducible(identity: Mapping[str, Any]) -> None:
    """Refuse features that this release makes in another way.

    Raises:
        StaleFeaturesError: Names the first field that differs, with both values.
        ConfigError: The backbone is unknown.
        RunError: A field has a value that none can have.
    """
    wrong = _wrong_in(identity)
    if wrong is not None:
        raise RunError(
            f"Expected the identity of features. Received: {wrong}.",
            hint="Train again with train-head, or export again.",
        )
    require_equal(identity, _identity_here(identity), "in this release")


def is_from_file(identity: Mapping[str, Any]) -> bool:
    """Tell whether features are of a network that is in no table, but in a ``.keras`` file."""
    return str(identity["backbone"]).startswith(PREFIX)


def require_equal(identity: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    """Refuse features that were made in another way.

    Raises:
        StaleFeaturesError: Names the first field that differs, with both values.
    """
    for name in (*identity, *other):
        if identity.get(name) != other.get(name):
            raise StaleFeaturesError(
                f"The run is on features of {name} = {identity.get(name)!r}. "
                f"Received: {name} = {other.get(name)!r} {where}.",
                hint="Use what made them: release, store and weights (--weights PATH).",
            )


def _identity_here(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the identity of features made now with what an identity asks for."""
    name = identity["backbone"]
    is_file = is_from_file(identity)
    spec = Backbone(identity["preprocessing"], name=name) if is_file else backbones.find(name)
    return of(
        spec,
        weights_sha256=identity["weights_sha256"],
        image_size=identity["image_size"],
        pooling=identity["pooling"],
        precision=identity["precision"],
        engine=identity.get("engine", ""),
    )


def _wrong_in(identity: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the fields of an identity; None where each can be."""
    kinds: Mapping[str, Kind] = {
        **dict.fromkeys(("backbone", "weights_sha256", "preprocessing", "decoder"), str),
        "image_size": int,
    }
    options = {item.name: item.metadata["option"] for item in fields(ExtractOptions)}
    wrong = misfit(identity, kinds)
    for name in ("pooling", "precision", "preprocessing"):
        is_open = name == "preprocessing" and not is_from_file(identity)
        if wrong is None and not is_open and identity.get(name) not in options[name].choices:
            wrong = f"{name} = {identity.get(name)!r}"
    if wrong is None and not _DIGEST.fullmatch(identity["weights_sha256"]):
        wrong = f"weights_sha256 = {identity['weights_sha256']!r}"
    if wrong is None and not options["image_size"].minimum <= identity["image_size"] <= _MAX_SIDE:
        wrong = f"image_size = {identity['image_size']!r}"
    if wrong is None and identity["precision"] != "float32":
        wrong = misfit(identity, {"engine": str})
    return wrong
