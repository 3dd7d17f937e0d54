"""The only decoder: the bytes of an image file become uint8 RGB of one square shape.

Every stage that looks at an image calls ``decode``, so that training and serving see the same
pixels. ``docs/decoder.md`` states the rule and the measurements behind it; a change of the rule
is a change of ``DECODER``, because features made the other way no longer compare.
"""

import ctypes
import io
import logging
import re
import threading
import warnings
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, _imaging

from pipeline.errors import DecodeError

Pixels = NDArray[np.uint8]

DECODER: Final = "pillow-1"
MAX_BYTES: Final = 512 * 2**20
# Pillow's own error line with its default settings (twice its warning line), kept here as a
# number, so that the rule does not depend on a setting that other code can change.
MAX_PIXELS: Final = 178_956_970
# Raster formats with a signature at the start. Left out on purpose: EPS and PDF (they run a
# program), formats without a signature (TGA takes any bytes for an image), and those whose
# pixels are no pictures.
FORMATS: Final = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_HEIF_BRANDS: Final = frozenset(
    {b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1", b"msf1"}
)
_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_UPRIGHT: Final[Mapping[int, Image.Transpose]] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
# PNG gives its transparent grey in the file's own depth; Pillow widens the pixels, not the key.
_KEY_FACTORS: Final[Mapping[str, int]] = MappingProxyType({"L;2": 85, "L;4": 17})
_TIFF_BITS: Final = 258
_TIFF_PHOTOMETRIC: Final = 262
_WHITE_IS_ZERO: Final = 0
_REASON_LENGTH: Final = 120

_QUIET: Final = ("ignore", None, Warning, re.compile(r"(PIL|pillow_heif)\b"), 0)
_QUIET_LOCK: Final = threading.Lock()
_NO_LOG: Final = logging.NullHandler()
# Of up to 16 MiB each; a photo of 500 x 375 takes one.
_MEMORY_BLOCKS: Final = 8


def decode(data: bytes, size: int) -> Pixels:
    """Decode an image file and squash it to a square.

    Safe to call from many threads at once.

    Args:
        data: The file's bytes.
        size: Side of the square, in pixels.

    Returns:
        uint8 RGB, shape ``(size, size, 3)``.

    Raises:
        DecodeError: The bytes give no image; the message is a short reason for the manifest.
    """
    if not data:
        raise DecodeError("empty file")
    _silence_pillow()
    image = _open(data)
    _check_pixels(image)
    try:
        upright = _upright_rgb(image, size)
        return np.array(upright.resize((size, size), Image.Resampling.BILINEAR))
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError(f"too large: no memory for {_dimensions(image)} pixels") from error
    except Exception as error:
        # Pillow's plugins answer hostile bytes with whatever the line at hand raises: OSError,
        # SyntaxError, struct.error, KeyError, AssertionError and more.
        raise DecodeError(f"truncated or corrupt {image.format}: {_reason(error)}") from error


def environment() -> str:
    """Return what decides whether a file can be decoded, as one text.

    A file that failed is tried again when this changes: a newer Pillow, or ``pillow-heif``
    installed since.
    """
    try:
        heif = metadata.version("pillow_heif")
    except metadata.PackageNotFoundError:
        return f"pillow {PIL.__version__}"
    return f"pillow {PIL.__version__}, heif {heif}"


def _silence_pillow() -> None:
    """Put a filter for Pillow's warnings (odd metadata, many pixels) before all others.

    Filters belong to the process, and ``warnings.catch_warnings`` in one thread takes them from
    all others; so this one is set and stays. It is set again when something was put before it:
    under an "error" filter a harmless warning would otherwise turn an image into a bad one.
    The null handler keeps Pillow's log from stderr where a program has set up no logging.
    """
    with _QUIET_LOCK:
        if list(warnings.filters[:1]) != [_QUIET]:
            warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
            logging.getLogger("PIL").addHandler(_NO_LOG)
            _keep_memory()


def _keep_memory() -> None:
    """Let Pillow reuse the memory of one image for the next: a seventh less time a photo.

    Without it every image is new memory from the system, which has to clear it first.
    """
    if hasattr(_imaging, "set_blocks_max"):
        _imaging.set_blocks_max(_MEMORY_BLOCKS)


def _silence_libtiff() -> None:
    """Stop libtiff from printing to stderr; the same failures reach us as exceptions.

    Pillow gives no access to libtiff's error handler, but the library that it has loaded does.
    """
    library = ctypes.CDLL(_imaging.__file__)
    if hasattr(library, "TIFFSetErrorHandler"):
        library.TIFFSetErrorHandler(None)


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read an image's header; no pixel is decoded yet."""
    formats: tuple[str, ...] = FORMATS
    if _is_heif(data):
        _register_heif()
        formats = ("HEIF",)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise DecodeError("not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too large: more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:
        raise DecodeError(f"corrupt or unsupported header: {_reason(error)}") from error


def _is_heif(data: bytes) -> bool:
    """Tell HEIF by the brands of its first box; AVIF shares the container and some brands."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS:
        return False
    end = min(int.from_bytes(data[:4], "big"), 256)
    compatible = {data[start : start + 4] for start in range(16, end, 4)}
    return not compatible & _AVIF_BRANDS


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise DecodeError(
            "HEIC images need an extra: pip install 'embedding-pipeline[heif]'"
        ) from error
    pillow_heif.register_heif_opener()


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError(f"too large: {_dimensions(image)} is more than {MAX_PIXELS:,} pixels")


def _upright_rgb(image: ImageFile.ImageFile, size: int) -> Image.Image:
    if image.format in ("JPEG", "MPO"):
        # Only for JPEG: for HEIC the same call takes an embedded thumbnail for the image.
        image.draft(None, (2 * size, 2 * size))
    if image.format == "TIFF":
        _silence_libtiff()
    _widen_key(image)
    image.load()
    method = _transposition(image)
    rgb = _rgb(image)
    return rgb if method is None else rgb.transpose(method)


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """Return what makes an image upright by its EXIF orientation, if anything."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # The pixels are good; broken metadata only fails to tell how to turn them.
        return None


def _widen_key(image: ImageFile.ImageFile) -> None:
    key = image.info.get("transparency")
    rawmode: Any = image.tile[0].args if image.tile else None
    if isinstance(key, int) and isinstance(rawmode, str):
        image.info["transparency"] = key * _KEY_FACTORS.get(rawmode, 1)


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: alpha over white, 16-bit grey scaled to 8."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _scaled_grey(image)
    if image.mode in ("I", "F"):
        raise DecodeError(
            f"{image.format} of signed, 32-bit or float pixels has no fixed white: "
            "save it with 8 or 16 unsigned bits"
        )
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Scale 12 or 16 bits to 8 with rounding; Pillow's own conversion clips at 255."""
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(_TIFF_BITS) == (12,) else 65535
    levels = np.rint(np.arange(65536) * (255 / white)).clip(0, 255).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        # Pillow inverts such images of up to 8 bits, and leaves those of 16 as negatives.
        levels = 255 - levels
    key = image.info.get("transparency")
    if isinstance(key, int):
        levels[key] = 255
    return Image.fromarray(levels[np.asarray(image)]).convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _dimensions(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def _reason(error: Exception) -> str:
    """Return an error's first line, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:_REASON_LENGTH] if lines else type(error).__name__
