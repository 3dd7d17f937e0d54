"""Whether an encoder still makes the features that it made: eight images of the package tell.

A store holds features of one decoder and one network, in whatever versions these had. Whoever
loads an encoder for such features has it encode the probe images first, and compares them with
what is kept of them. No image of the user is needed, and what changed is named.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones.identity import Identity
from pipeline.backbones.probe import FILE, Probe
from pipeline.engines.base import cpu_device
from pipeline.engines.encoder import DRIFT_TOLERANCE, Encoder, Features, Images, drift
from pipeline.errors import PipelineError, StaleFeaturesError
from pipeline.images import probe_images
from pipeline.system import machine
from pipeline.system.keras_setup import gpu_name
from pipeline.system.provenance import provenance

# Libraries that run networks, by their names as packages.
_LIBRARIES: Final = ("jax", "keras", "onnxruntime", "openvino", "tensorflow", "tf2onnx")
_HINT: Final = (
    "Go back to the versions that made the features, or extract into another --store and train "
    "again."
)


class ModelEncoder(Encoder):
    """A Keras model as it stands, compiled by no engine: for stages that change or export it."""

    engine = "keras"
    batch_size = len(probe_images.NAMES)

    def __init__(self, function: Callable[[Images], NDArray[np.floating]], dim: int) -> None:
        gpu = gpu_name()
        self.device = f"GPU ({gpu})" if gpu else cpu_device()
        self.dim = dim
        self._function = function

    def __call__(self, images: Images) -> Features:
        """Encode images; see ``Encoder``."""
        return np.array(self._function(images), dtype=np.float32)


def make(encoder: Encoder, identity: Identity) -> Probe:
    """Decode and encode the probe images.

    Args:
        encoder: The network on its engine.
        identity: How its features are made.

    Raises:
        PipelineError: Features are not finite, or an image cannot be decoded.
    """
    pixels = probe_images.pixels(identity.image_size, identity.resize)
    starts = range(0, len(pixels), encoder.batch_size)
    parts = [encoder(pixels[start : start + encoder.batch_size]) for start in starts]
    features: Features = np.concatenate(parts)
    finite = np.array([np.isfinite(row).all() for row in features])
    if not finite.all():
        raise PipelineError(
            "Expected finite features. Received: infinity or not-a-number for the probe image "
            f"{_named(~finite)}.",
            hint="The weights are unusable for images; use others with --weights.",
        )
    return Probe(
        identity=identity,
        pixels=tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in pixels),
        features=features,
        decoder=probe_images.codecs(),
        network=_network(encoder),
    )


def check(encoder: Encoder, kept: Probe | None) -> Sequence[str]:
    """Have an encoder encode the probe images, and compare with what is kept of them.

    Args:
        encoder: The network on its engine.
        kept: The probe that is kept with the features; of None nothing is compared.

    Returns:
        Notes on what changed without consequence.

    Raises:
        StaleFeaturesError: Features changed; names decoder or network, and versions.
        PipelineError: See ``make``.
    """
    return [] if kept is None else compare(kept, make(encoder, kept.identity))


def compare(kept: Probe, now: Probe) -> Sequence[str]:
    """Compare two probes of the same features; see ``check``.

    Pixels may change by a level where libraries round in another way: what counts is what becomes
    of them. Where the features of an image changed and its pixels did not, the network did.
    """
    differences = drift(kept.features, now.features)
    moved = ~(differences <= DRIFT_TOLERANCE)
    redrawn = np.array([one != other for one, other in zip(kept.pixels, now.pixels, strict=True)])
    by = f"{differences.max():.1e} of the largest value (allowed: {DRIFT_TOLERANCE:.0e})"
    where = str((kept.folder or Path()) / FILE)
    decoders = _then_and_now(kept.decoder, now.decoder)
    if (moved & ~redrawn).any():
        raise StaleFeaturesError(
            f"The network makes other features than {where!r} keeps: {_named(moved & ~redrawn)} "
            f"of the probe images, decoded to the same pixels, by {by}. "
            f"{_then_and_now(kept.network, now.network)}.",
            hint=_HINT,
        )
    if moved.any():
        raise StaleFeaturesError(
            f"The decoder gives other pixels, and so other features than {where!r} keeps: "
            f"{_named(moved)} of the probe images by {by}. {decoders}.",
            hint=_HINT,
        )
    if not redrawn.any():
        return []
    return [
        f"Note: {_named(redrawn)} of the probe images are decoded to other pixels than when "
        f"{where!r} was made, which moves features by {by}. {decoders}."
    ]


def _network(encoder: Encoder) -> Mapping[str, str]:
    """Return what runs a network, by name."""
    packages = provenance()["packages"]
    installed = packages if isinstance(packages, Mapping) else {}
    driver = machine.gpu_driver() if encoder.device.startswith("GPU") else None
    found = {name: installed.get(name) for name in _LIBRARIES} | {"driver": driver}
    versions = {name: str(version) for name, version in found.items() if version}
    return {"engine": encoder.engine, "device": encoder.device, **versions}


def _named(chosen: NDArray[np.bool_]) -> str:
    """Name the first of some images, and how many more there are."""
    names = [name for name, is_chosen in zip(probe_images.NAMES, chosen, strict=True) if is_chosen]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _then_and_now(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say which versions changed; all of them where none did."""
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if not changed:
        return f"Then and now: {_listed(now, now)}"
    return f"Then: {_listed(then, changed)}; now: {_listed(now, changed)}"


def _listed(versions: Mapping[str, str], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {versions.get(name, 'none')}" for name in names)
