"""The only decoder: the bytes of an image file become uint8 RGB of one square shape.

Every stage that looks at an image calls ``decode``, so that training and serving see the same
pixels. ``docs/decoder.md`` states the rule and the measurements behind it; a change of the rule
is a change of the decoder's name (``resizing``), because features made the other way no longer
compare.
"""

import ctypes
import io
import logging
import math
import os
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
from pipeline.images import containers, netpbm, resizing
from pipeline.images import formats as image_formats
from pipeline.images.memory_budget import MemoryBudget, OverBudgetError
from pipeline.images.resizing import Placement, Square

Pixels = NDArray[np.uint8]

MAX_BYTES: Final = 512 * 2**20
# Pillow's own error line with its default settings (twice its warning line), kept here as a
# number, so that the rule does not depend on a setting that other code can change.
MAX_PIXELS: Final = 178_956_970
# Pillow's weights for a resize take up to 40 bytes for each pixel of a side: 3.6 GB for one
# picture of 1 x 178,956,970.
MAX_SIDE: Final = 2**20
# What a pass over a progressive JPEG costs grows with the pixels. This allows 24 scans of the
# largest image; encoders write up to 14.
_MAX_SCAN_PIXELS: Final = 2**32
# Of formats that Pillow decodes in Python, a pixel at a time: some seconds.
_MAX_SLOW_PIXELS: Final = 2**22
_SLOW_CODECS: Final = frozenset({"qoi"})
# Raised when more files are read than before, so that files that failed are tried again.
_REVISION: Final = 2

# Bytes for each value of a pixel that a decoder takes beside the image that it fills.
_BESIDE: Final[Mapping[str, int]] = MappingProxyType(
    {"AVIF": 3, "HEIF": 3, "JPEG2000": 6, "PPM": 8, "QOI": 2, "SGI": 2, "WEBP": 5}
)
_JPEG: Final = ("JPEG", "MPO")
BUDGET: Final = MemoryBudget()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BUDGET.forget)

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
_TIFF_TILE_SIDES: Final = (322, 323)
_TIFF_PHOTOMETRIC: Final = 262
_WHITE_IS_ZERO: Final = 0
_REASON_LENGTH: Final = 120
# Of what no pixel of the image covers, also under its alpha.
_BACKGROUND: Final = "white"

_QUIET: Final = ("ignore", None, Warning, re.compile(r"(PIL|pillow_heif)\b"), 0)
_QUIET_LOCK: Final = threading.Lock()
_NO_LOG: Final = logging.NullHandler()
# Of up to 16 MiB each; a photo of 500 x 375 takes one.
_MEMORY_BLOCKS: Final = 8


def decode(data: bytes, size: int, resize: str = "squash", *, is_wide: bool = False) -> Pixels:
    """Decode an image file into a square.

    Safe to call from many threads at once.

    Args:
        data: The file's bytes.
        size: Side of the square, in pixels.
        resize: How an image of another shape becomes one: ``squash``, ``crop`` or ``pad``.
        is_wide: Whether to return the larger square from which windows are cut.

    Returns:
        uint8 RGB, shape ``(size, size, 3)``; of the larger square ``resizing.wide(size)``.

    Raises:
        ConfigError: There is no such rule.
        DecodeError: The bytes give no image; the message is a short reason for the manifest.
    """
    return _decoded_somehow(data, Square(resizing.find(resize), size, is_wide))


def thumbnail(data: bytes, side: int) -> Pixels:
    """Decode an image file for people to look at, in its own proportions.

    Args:
        data: The file's bytes.
        side: Length of the longer side, in pixels; a smaller image keeps its own.

    Returns:
        uint8 RGB, shape ``(height, width, 3)``.

    Raises:
        DecodeError: The bytes give no image.
    """
    return _decoded_somehow(data, Square(resizing.find("pad"), side, is_trimmed=True))


def _decoded_somehow(data: bytes, square: Square) -> Pixels:
    """Decode a file; where its metadata stand in the way, without them."""
    if not data:
        raise DecodeError("empty file")
    _silence_pillow()
    if containers.is_littered(data):
        data = containers.without_metadata(data) or data
    try:
        return _decoded(data, square)
    except _BrokenImageError as error:
        mended = containers.without_metadata(data)
        if mended is None:
            raise
        try:
            return _decoded(mended, square)
        except _BrokenImageError:
            raise error from None


def environment() -> str:
    """Return what decides whether a file can be decoded, as one text.

    A file that failed is tried again when this changes: more formats read than before, a newer
    Pillow, or ``pillow-heif`` installed since.
    """
    reader = f"reader {_REVISION}, pillow {PIL.__version__}"
    try:
        return f"{reader}, heif {metadata.version('pillow_heif')}"
    except metadata.PackageNotFoundError:
        return reader


class _BrokenImageError(DecodeError):
    """Pillow made no sense of the bytes; without their metadata it may."""


def _decoded(data: bytes, square: Square) -> Pixels:
    image = opened(data)
    try:
        _check_size(image)
        coefficients = _coefficients(image, data)
        if image.format in _JPEG:
            # Only for JPEG: for HEIC the same call takes an embedded thumbnail for the image.
            # It need not be upright: a rule treats width and height alike.
            width, height = square.place(image.size).whole
            image.draft(None, (2 * width, 2 * height))
        copies = 2 * len(data) if image.format == "PPM" else 0
        with BUDGET.draw(coefficients + copies + _memory(image, square.side)):
            upright = _upright_rgb(image, data)
            return _placed(upright, square.place(upright.size))
    except (DecodeError, OverBudgetError):
        raise
    except MemoryError as error:
        raise DecodeError(f"too large: no memory for {_dimensions(image)} pixels") from error
    except Exception as error:
        # Pillow's plugins answer hostile bytes with whatever the line at hand raises: OSError,
        # SyntaxError, struct.error, KeyError, AssertionError and more.
        raise _BrokenImageError(f"truncated or corrupt {image.format}: {_reason(error)}") from error


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


def opened(data: bytes) -> ImageFile.ImageFile:
    """Read an image's header; no pixel is decoded yet."""
    formats: tuple[str, ...] = image_formats.READ
    if _is_heif(data):
        _register_heif()
        formats = ("HEIF",)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise _BrokenImageError(image_formats.why_unread(data)) from error
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too large: more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:
        raise _BrokenImageError(f"corrupt or unsupported header: {_reason(error)}") from error


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


def _check_size(image: ImageFile.ImageFile) -> None:
    """Refuse what would take too much memory or time, by the header alone."""
    dimensions, pixels = _dimensions(image), image.width * image.height
    if pixels > MAX_PIXELS:
        raise DecodeError(f"too large: {dimensions} is more than {MAX_PIXELS:,} pixels")
    if max(image.size) > MAX_SIDE:
        raise DecodeError(f"too elongated: {dimensions} has a side over {MAX_SIDE:,} pixels")
    if _tile_pixels(image) > MAX_PIXELS:
        raise DecodeError(f"too large: its tiles have more than {MAX_PIXELS:,} pixels")
    if pixels > _MAX_SLOW_PIXELS and image.tile and image.tile[0].codec_name in _SLOW_CODECS:
        raise DecodeError(
            f"too slow: {image.format} of {dimensions} is more than {_MAX_SLOW_PIXELS:,} pixels: "
            "save it as PNG"
        )


def _tile_pixels(image: Image.Image) -> int:
    """Return the pixels of a TIFF's tiles, which are decoded whole whatever the image's size."""
    if image.format != "TIFF":
        return 0
    tags = getattr(image, "tag_v2", {})
    sides = [tags.get(tag, 0) for tag in _TIFF_TILE_SIDES]
    return math.prod(max(side, 0) if isinstance(side, int) else MAX_SIDE for side in sides)


def _coefficients(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the bytes that a JPEG of several scans takes at full scale, whatever its reduction.

    Raises:
        DecodeError: It asks for more passes over its pixels than any encoder writes.
    """
    if image.format not in _JPEG or _is_one_scan(image, data):
        return 0
    pixels, scans = image.width * image.height, containers.jpeg_scans(data)
    if scans * pixels > _MAX_SCAN_PIXELS:
        raise DecodeError(f"too slow: JPEG of {scans:,} scans of {_dimensions(image)} pixels")
    return 2 * pixels * len(image.getbands()) if scans > 1 else 0


def _is_one_scan(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Tell a plain JPEG from what Pillow has read: its first scan holds all its colours."""
    if image.fp is None or "progressive" in image.info:
        return False
    layers = getattr(image, "layers", 0)
    # Pillow stops behind the scan's header: marker, length, number of colours, two bytes each.
    at = image.fp.tell() - 2 * layers - 8
    return at > 0 and data[at : at + 2] == b"\xff\xda" and data[at + 4] == layers


def _memory(image: ImageFile.ImageFile, side: int) -> int:
    """Estimate from the header the bytes that decoding and resizing take at their peak."""
    bands = len(image.getbands())
    beside = bands * _BESIDE.get(image.format or "", 0)
    # The image as it is decoded, as RGB, and a copy of that: over white, or turned.
    pixels = image.width * image.height * (beside + 4 + 4 + 4)
    # The resize: its weights, what its first pass leaves, and the result three times.
    resize = 40 * sum(image.size) + 4 * side * (max(image.size) + 3 * side)
    return pixels + resize + bands * _tile_pixels(image)


def _upright_rgb(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    if image.format == "TIFF":
        _silence_libtiff()
    if image.format == "PPM" and (converted := netpbm.read(image, data)) is not None:
        return _rgb(converted)
    _widen_key(image)
    image.load()
    method = _transposition(image)
    rgb = _rgb(image)
    return rgb if method is None else rgb.transpose(method)


def _placed(image: Image.Image, placement: Placement) -> Pixels:
    """Put an RGB image into its square; what is cut off counts at the edge and is never made."""
    box = placement.box(*image.size)
    resized = image.resize(placement.kept, Image.Resampling.BILINEAR, box)
    if placement.is_trimmed or placement.kept == (placement.side, placement.side):
        return np.array(resized)
    square = Image.new("RGB", (placement.side, placement.side), _BACKGROUND)
    square.paste(resized, placement.corner)
    return np.array(square)


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
        return _over_white(image if image.mode == "RGBA" else image.convert("RGBA"))
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
    white = Image.new("RGB", rgba.size, _BACKGROUND)
    white.paste(rgba, mask=rgba)
    return white


def _dimensions(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def _reason(error: Exception) -> str:
    """Return an error's first line, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:_REASON_LENGTH] if lines else type(error).__name__
