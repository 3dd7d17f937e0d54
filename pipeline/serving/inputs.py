"""What a classifier takes for an image: a path, a file's bytes, pixels; read when its turn comes.

Pixels become a PNG, which keeps every value, so that there is one decoder for all of them.
"""

import io
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, ImageTypeError, UnreadableImageError
from pipeline.files.arrays import AnyArray
from pipeline.files.location import Remote, locate
from pipeline.images import packed
from pipeline.images.reading import Content, Reference

if TYPE_CHECKING:
    from PIL.Image import Image

# What PNG holds as it is.
_PNG_MODES: Final = frozenset({"1", "I;16", "L", "LA", "P", "RGB", "RGBA"})
# Of a path; one input is one result.
_PACKED: Final = "a packed file: name images in it, as pipeline predict calls them, such as {}/..."
# Pillow reads pixels at the first look, into the image, which may stand in a list twice.
_LOADING: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image.

    Attributes:
        name: The path as it was given; of others, the place in the list, such as ``[0]``.
        read: Returns what an image file holds; raises ``DecodeError`` where there is nothing.
        is_remote: Whether it is at an address.
    """

    name: str
    read: Callable[[], Content]
    is_remote: bool = False


def refused(name: str, reason: str) -> ImageInput:
    """Return an image of which it is known that it cannot be read, and why."""
    return ImageInput(name, partial(_refuse, reason))


def listed(images: object) -> list[ImageInput]:
    """Return the images that an argument names; none is opened yet.

    Args:
        images: A path (text or ``Path``), the bytes of an image file, a PIL image, a uint8 array
            ``(H, W, 3)`` or ``(H, W)``; an iterable of these, or a uint8 array ``(n, H, W, 3)``.
            Whatever is an input already stays one.

    Raises:
        ImageTypeError: It is, or holds, something else; says what and where.
    """
    if _is_one(images):
        return [_input(images, 0)]
    # The lines of an open file and the keys of a table are no images.
    if not isinstance(images, Iterable) or isinstance(images, dict) or hasattr(images, "read"):
        raise _mistyped("", images)
    return [_input(image, place) for place, image in enumerate(images)]


def _is_one(value: object) -> bool:
    """Tell one image from many; an array of images has an axis more."""
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim in (2, 3)
    return isinstance(value, str | bytes | os.PathLike | bytearray) or _is_pil(value)


def _is_pil(value: object) -> "TypeGuard[Image]":
    from PIL.Image import Image

    return isinstance(value, Image)


def _input(value: object, place: int) -> ImageInput:
    name = f"[{place}]"
    if isinstance(value, ImageInput):
        return value
    if isinstance(value, str | os.PathLike):
        path = locate(os.fspath(value))
        if packed.kind_of(path.name) and (isinstance(path, Remote) or path.is_file()):
            return refused(str(value), _PACKED.format(value))
        return ImageInput(str(value), Reference(path), isinstance(path, Remote))
    if isinstance(value, bytes | bytearray):
        return ImageInput(name, partial(_of_bytes, value))
    if isinstance(value, np.ndarray) and _is_one(value) and (value.ndim == 2 or _has_rgb(value)):
        return ImageInput(name, partial(_of_pixels, value))
    if _is_pil(value):
        return ImageInput(name, partial(_of_pil, value))
    raise _mistyped(f" at place {place}", value)


def _refuse(reason: str) -> Content:
    raise UnreadableImageError(reason)


def _has_rgb(pixels: AnyArray) -> bool:
    return bool(pixels.shape[2] == 3)


def _mistyped(where: str, value: object) -> ImageTypeError:
    received = type(value).__name__
    if isinstance(value, np.ndarray):
        received = f"an array of {value.dtype}, shape {value.shape}"
    return ImageTypeError(
        "Expected paths, bytes of image files, PIL images, or uint8 arrays of shape (H, W, 3) or "
        f"(H, W). Received{where}: {received}.",
        hint="Give one image or a list of images.",
    )


def _of_bytes(data: bytes | bytearray) -> Content:
    return Content(bytes(data))


def _of_pixels(pixels: NDArray[np.uint8]) -> Content:
    from PIL import Image

    if not pixels.size:
        raise DecodeError("no pixels")
    return _png(Image.fromarray(np.ascontiguousarray(pixels)))


def _of_pil(image: "Image") -> Content:
    """Return a PIL image as a file; one that PNG does not hold is converted as the decoder does."""
    with _LOADING:
        try:
            image.load()
        except Exception as error:  # whatever Pillow's plugins answer a broken file with
            raise DecodeError(f"truncated or corrupt {image.format}: {error}") from error
    if image.mode in ("F", "I"):
        raise DecodeError(f"pixels of mode {image.mode} have no fixed white: convert them first")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode not in _PNG_MODES:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return _png(image)


def _png(image: "Image") -> Content:
    file = io.BytesIO()
    # With its orientation, which the decoder applies; compressing would cost more than it saves.
    image.save(file, "PNG", compress_level=0, exif=image.getexif())
    return Content(file.getvalue())
