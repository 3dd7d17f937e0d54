"""What makes features comparable: the identity of a backbone, and whether it can be had again."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from pipeline import backbones
from pipeline.backbones import Backbone, forms, weights_file
from pipeline.backbones import weights as weight_files
from pipeline.backbones.forms import KERAS, ONNX, Form
from pipeline.config.extracting import ExtractOptions
from pipeline.errors import ConfigError, RunError, StaleFeaturesError
from pipeline.files.location import Location
from pipeline.files.typed_record import Difference, Record, first_difference
from pipeline.images import resizing

# What names a file, in no other folder.
_DIGEST: Final = re.compile(r"[\w-]+", re.ASCII)
# Of a digest, in a message.
_SHOWN: Final = 12
# In the identity of imported features, for what a network has.
_NONE: Final = "none"
# Of an image: beyond it a batch of one fits into no memory.
_MAX_SIDE: Final = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Identity(Record):
    """What makes features comparable: equal, or the features must not be mixed.

    Attributes:
        backbone: Name of the network in the table, or one that begins with the prefix of a form.
        weights_sha256: Digest of its weights; of a network in ONNX that of its file.
        image_size: Side of its input in pixels.
        pooling: How positions become one row.
        preprocessing: What is done to pixels before the first layer.
        decoder: What decodes images, with its version and its rule of ``--resize``.
        precision: What the network computes in.
        engine: What ran it; None in float32, in which every engine agrees.
        output: Which output of a network in ONNX they are; None of others, which have one.
        quantized: Digest of the network in int8; None in other precisions.

    Of features that were made elsewhere the backbone is ``imported:NAME`` and the digest is that of
    the features with their keys; what only a network has is ``none``, or 0.
    """

    backbone: str
    weights_sha256: str
    image_size: int
    pooling: str
    preprocessing: str
    decoder: str
    precision: str
    engine: str | None = None
    output: str | None = None
    quantized: str | None = None

    @property
    def is_imported(self) -> bool:
        """Whether the features were made elsewhere, by nothing that is at hand."""
        return self.backbone.startswith(forms.IMPORTED)

    @property
    def described(self) -> str:
        """What the features are, in a few words for a message."""
        if not self.is_imported:
            return f"features of {self.backbone}"
        name = self.backbone.removeprefix(forms.IMPORTED)
        return f"the imported features {name!r} (digest {self.weights_sha256[:_SHOWN]})"

    @property
    def is_from_file(self) -> bool:
        """Whether the network is in no table, but in a file."""
        return forms.of_identity(self.backbone) is not None

    @property
    def form(self) -> Form:
        """The form of the network."""
        return forms.of_identity(self.backbone) or KERAS

    @property
    def resize(self) -> str:
        """The rule by which images become squares, as ``--resize`` has it.

        Raises:
            StaleFeaturesError: This release has no such decoder.
        """
        return resizing.resize_of(self.decoder)

    def in_float32(self) -> "Identity":
        """Return the identity of the same features made in float32, which is of no engine."""
        return replace(self.without("engine").without("quantized"), precision="float32")


def source_token(spec: Backbone, *, weights: str, seed: int) -> str:
    """Return a text that is equal when the weights are; see ``weights.source_token``.

    Raises:
        ConfigError: Weights are asked for beside those of a network's file.
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
    resize: str,
    pooling: str,
    precision: str,
    engine: str,
    quantized: str | None = None,
) -> Identity:
    """Return what makes features comparable; equal, or the features must not be mixed.

    Every float32 engine agrees with Keras, so the engine counts only at other precisions.
    """
    return Identity(
        backbone=spec.name,
        weights_sha256=weights_sha256,
        image_size=image_size,
        pooling=pooling,
        preprocessing=spec.preprocessing,
        decoder=resizing.find(resize).decoder,
        precision=precision,
        engine=None if precision == "float32" else engine,
        output=spec.output,
        quantized=quantized,
    )


def imported(name: str, digest: str) -> Identity:
    """Return the identity of features that were made elsewhere.

    Args:
        name: What they are called.
        digest: SHA-256 of the features with their keys.
    """
    return Identity(
        backbone=f"{forms.IMPORTED}{name}",
        weights_sha256=digest,
        image_size=0,
        pooling=_NONE,
        preprocessing=_NONE,
        decoder=_NONE,
        precision="float32",
    )


def require_encoder(identity: Identity) -> None:
    """Refuse features that no network at hand makes of an image.

    Raises:
        RunError: They were imported.
    """
    if identity.is_imported:
        raise RunError(
            f"Expected features of a network, which makes those of other images too. Received: "
            f"{identity.described}; what made them is not here.",
            hint="Heads, audit, report and suggest work on them; for predict, evaluate, export and "
            "finetune, extract the images with a --backbone and train on that store.",
        )


def require_reproducible(identity: Identity) -> None:
    """Refuse features that this release makes in another way.

    Raises:
        RunError: They were imported, or a field has a value that none can have.
        StaleFeaturesError: Names the first field that differs, with both values.
        ConfigError: The backbone is unknown.
    """
    require_encoder(identity)
    wrong = _wrong_in(identity)
    if wrong is not None:
        raise unusable(wrong)
    require_equal(identity.as_json(), _identity_here(identity).as_json(), "in this release")


def unusable(received: str) -> RunError:
    """Return the error for an identity that no features can have."""
    return RunError(
        f"Expected the identity of features. Received: {received}.",
        hint="Train again with train-head, or export again.",
    )


def require_equal(
    expected: Mapping[str, object], received: Mapping[str, object], where: str
) -> None:
    """Refuse what features depend on, if it is not what they were made with.

    Raises:
        StaleFeaturesError: Names the first that differs, with both values.
    """
    found = first_difference(expected, received)
    if found is not None:
        raise StaleFeaturesError(
            f"The run is on features of {found.name} = {found.first!r}. "
            f"Received: {found.name} = {found.second!r} {where}.",
            hint="Use what made them: release, store and weights (--weights PATH).",
        )


def require_same(asked: Identity, stored: Identity, store: Location) -> None:
    """Refuse features that were made in another way than a store's.

    Args:
        asked: How they are to be made.
        stored: How those of the store are.
        store: The store.

    Raises:
        StaleFeaturesError: Names the first field that differs, with both values.
    """
    found = first_difference(asked.as_json(), stored.as_json())
    if found is None:
        return
    if asked.is_imported or stored.is_imported:
        raise StaleFeaturesError(
            f"The store {str(store)!r} holds {stored.described}. Received: {asked.described}.",
            hint="Choose another --store, or replace the store with --force.",
        )
    raise StaleFeaturesError(
        f"The store {str(store)!r} holds features of {found.name} = {found.second!r}. "
        f"Received: {found.name} = {found.first!r}.",
        hint=f"Choose another --store, go back to {_asked_with(found)}, or replace the store with "
        "--force.",
    )


def _asked_with(difference: Difference) -> str:
    """Return how the second value of a field that differs is asked for, for a hint."""
    for name, rule in resizing.RESIZES.items():
        if (difference.name, difference.second) == ("decoder", rule.decoder):
            return f"--resize {name}"
    return "the stored value"


def _identity_here(identity: Identity) -> Identity:
    """Return the identity of features made now with what an identity asks for."""
    name = identity.backbone
    if identity.is_from_file:
        spec = Backbone(identity.preprocessing, name=name, output=identity.output)
    else:
        spec = backbones.find(name)
    return of(
        spec,
        weights_sha256=identity.weights_sha256,
        image_size=identity.image_size,
        resize=identity.resize,
        pooling=identity.pooling,
        precision=identity.precision,
        engine=identity.engine or "",
        quantized=identity.quantized,
    )


def _wrong_in(identity: Identity) -> str | None:
    """Return what is wrong with the values of an identity; None where each can be."""
    options = {item.name: item.metadata["option"] for item in fields(ExtractOptions)}
    values = identity.as_json()
    closed = ("pooling", "precision", *(("preprocessing",) if identity.is_from_file else ()))
    wrong = [name for name in closed if values[name] not in options[name].choices]
    if not _DIGEST.fullmatch(identity.weights_sha256):
        wrong.append("weights_sha256")
    if not options["image_size"].minimum <= identity.image_size <= _MAX_SIDE:
        wrong.append("image_size")
    if wrong:
        return f"{wrong[0]} = {values[wrong[0]]!r}"
    if identity.precision != "float32" and identity.engine is None:
        return "no 'engine'"
    is_quantized = _DIGEST.fullmatch(identity.quantized or "") is not None
    if is_quantized != (identity.precision == "int8"):
        return f"precision = {identity.precision!r} with quantized = {identity.quantized!r}"
    has_output = identity.output is not None
    return None if has_output == (identity.form is ONNX) else f"output = {identity.output!r}"
