"""The probe images: eight small files of the package, by which a changed decoder is noticed.

They are of the kinds that decoders differ in: JPEG with and without halved colours, progressive,
grey, larger than twice the usual size, and lying on its side; PNG plain, with alpha, and of 16
bits. ``engines.probing`` encodes them; ``tests/draw_probe.py`` is how they were drawn.
"""

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Final

import numpy as np
import PIL
from PIL import features

from pipeline.errors import DecodeError, PipelineError
from pipeline.images import decoder
from pipeline.images.decoder import Pixels

NAMES: Final = (
    "alpha.png",
    "grey.jpg",
    "grey16.png",
    "large.jpg",
    "photo.jpg",
    "plain.png",
    "progressive.jpg",
    "turned.jpg",
)
_ROOM: Final = "pipeline.images"
_FOLDER: Final = "probe"
_HINT: Final = "Install the package again, and Pillow with JPEG and PNG."


def contents() -> dict[str, bytes]:
    """Return the bytes of the files by name, in the order of ``NAMES``.

    Raises:
        PipelineError: The package was installed without one of them.
    """
    folder = resources.files(_ROOM) / _FOLDER
    try:
        return {name: (folder / name).read_bytes() for name in NAMES}
    except OSError as error:
        raise PipelineError(
            f"Expected {len(NAMES)} probe images in the package. Received: {error}.", hint=_HINT
        ) from error


def digest() -> str:
    """Return the SHA-256 of all files: only what was made of the same ones can be compared."""
    return hashlib.sha256(b"".join(contents().values())).hexdigest()


def pixels(size: int, resize: str) -> Pixels:
    """Decode the images as those of a data set.

    Args:
        size: Side of the encoder's input in pixels.
        resize: How an image of another shape becomes a square.

    Returns:
        uint8 RGB, shape ``(8, size, size, 3)``, in the order of ``NAMES``.

    Raises:
        PipelineError: One is missing, or Pillow cannot decode it.
    """
    decoded = []
    for name, data in contents().items():
        try:
            decoded.append(decoder.decode(data, size, resize))
        except DecodeError as error:
            raise PipelineError(
                f"Expected the probe image {name} to be decoded. Received: {error}.", hint=_HINT
            ) from error
    return np.stack(decoded)


def codecs() -> Mapping[str, str]:
    """Return the versions of what decodes JPEG and PNG, by name."""
    turbo = features.version("libjpeg_turbo")
    zlib_ng = features.version("zlib_ng")
    found = {
        "Pillow": PIL.__version__,
        "libjpeg-turbo" if turbo else "libjpeg": turbo or features.version("jpg"),
        "zlib-ng" if zlib_ng else "zlib": zlib_ng or features.version("zlib"),
    }
    return {name: str(version) for name, version in found.items() if version}
