"""Making a network in int8 for the OpenVINO engine: post-training quantization by NNCF.

Weights and activations become integers of eight bits, on scales that are measured on images. It
takes NNCF once, when a store is made; what it made runs without.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Final

from pipeline.backbones import quantized_file
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines.encoder import Images
from pipeline.engines.openvino import network_of
from pipeline.errors import ConfigError, EngineUnavailableError
from pipeline.system import machine

PRECISION: Final = "int8"
ENGINE: Final = "openvino"
INSTALL: Final = "pip install 'embedding-pipeline[int8]'"
# Of which the scales are means and extremes; NNCF's own number.
CALIBRATION_IMAGES: Final = 300
# With fewer, extremes are a matter of chance.
FEW_IMAGES: Final = 100


def require(engine: str) -> None:
    """Refuse what cannot compute in int8, before anything is loaded.

    Args:
        engine: What is asked to run the network, or ``auto``.

    Raises:
        ConfigError: Another engine is asked for, or the processor has no instructions for it.
    """
    if engine not in ("auto", ENGINE):
        raise ConfigError(
            f"--precision {PRECISION}: expected --engine {ENGINE}, which alone computes in it. "
            f"Received: {engine!r}.",
            hint=f"Use --engine {ENGINE}, or another precision.",
        )
    if not machine.computes_in(PRECISION):
        raise ConfigError(
            f"--precision {PRECISION}: expected a processor with instructions for it "
            f"({', '.join(machine.instructions(PRECISION))}). Received: "
            f"{machine.processor_name()}, without.",
            hint="Use --precision float32 into another --store, or another machine.",
        )


def require_nncf() -> None:
    """Refuse to make a network in int8 without what makes it.

    Raises:
        EngineUnavailableError: NNCF is not installed.
    """
    if find_spec("nncf") is None:
        raise EngineUnavailableError(
            f"Expected NNCF, which makes the network in {PRECISION} of a new store. "
            "Received: no module 'nncf'.",
            hint=f"Run: {INSTALL}",
        )


def quantize(loaded: FrozenBackbone, images: Images, keys: Sequence[str]) -> bytes:
    """Make a network in int8.

    Args:
        loaded: The network in float32.
        images: What its scales are measured on, uint8 ``(n, S, S, 3)``.
        keys: The keys of these images, which are recorded.

    Returns:
        What ``quantized_file`` keeps.

    Raises:
        EngineUnavailableError: NNCF is not installed, or the network cannot be converted here.
    """
    require_nncf()
    with _silent():
        import nncf
        import openvino

        with network_of(loaded, openvino.Core(), "float32") as model:
            model.reshape([1, loaded.image_size, loaded.image_size, 3])
            made = nncf.quantize(
                model,
                nncf.Dataset([image[None] for image in images]),
                # Activations of networks with more than ReLUs are on both sides of zero.
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images),
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.xml"
            openvino.save_model(made, path, compress_to_fp16=False)
            network, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    versions = {name: version(name) for name in ("nncf", "openvino")}
    calibration = {"images": list(keys), "versions": versions}
    return quantized_file.pack(network, weights, calibration)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep NNCF from reporting its use to its makers, and from writing bars to stdout."""
    logger, before = logging.getLogger("nncf"), os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # read when it is imported
    level = logger.level
    try:
        with redirect_stdout(StringIO()):
            logger.setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
