"""Augmented views: the images that an encoder is given beside the plain one.

A view is a rule from an image file's bytes and key to pixels, the same on every machine: what is
random about it is drawn from the key. ``extract`` stores the features of views on request; stage 2
trains on them or averages over them.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from pipeline.errors import ConfigError, unknown_name
from pipeline.images import decoder
from pipeline.images.decoder import Pixels

PLAIN: Final = ""
CROPS: Final = 8


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at an image.

    Attributes:
        scheme: Name of the rule; another rule needs another name.
        is_wide: Whether a window is cut from the larger square of ``resizing``.
        transform: Makes ``(S, S, 3)`` of the decoded pixels, given S and the digest of view and
            key, from which everything random is taken.
    """

    scheme: str
    is_wide: bool
    transform: Callable[[Pixels, int, bytes], Pixels]


def check(names: Sequence[str]) -> None:
    """Refuse unknown views and repeated ones.

    Raises:
        ConfigError: Suggests the nearest name.
    """
    for name in names:
        if name not in VIEWS:
            raise unknown_name("view", name, VIEWS)
    if len(set(names)) < len(names):
        raise ConfigError(f"Expected every view once. Received: {', '.join(names)}.")


def pixels(
    data: bytes, key: str, names: Iterable[str], size: int, resize: str
) -> dict[str, Pixels]:
    """Decode a file into views; those of one square share one decoding.

    Args:
        data: The file's bytes.
        key: Their SHA-256 in hexadecimal.
        names: Views, ``PLAIN`` for the image as it is.
        size: Side of the encoder's input in pixels.
        resize: How an image of another shape becomes a square.

    Returns:
        uint8 ``(size, size, 3)`` by view.

    Raises:
        DecodeError: The bytes give no image.
    """
    decoded: dict[bool, Pixels] = {}
    made = {}
    for name in names:
        view = _PLAIN if name == PLAIN else VIEWS[name]
        if view.is_wide not in decoded:
            decoded[view.is_wide] = decoder.decode(data, size, resize, is_wide=view.is_wide)
        seed = hashlib.sha256(f"{name}:{key}".encode()).digest()
        made[name] = view.transform(decoded[view.is_wide], size, seed)
    return made


def _unchanged(pixels: Pixels, size: int, seed: bytes) -> Pixels:
    return pixels


def _flipped(pixels: Pixels, size: int, seed: bytes) -> Pixels:
    return np.ascontiguousarray(pixels[:, ::-1])


def _cropped(pixels: Pixels, size: int, seed: bytes) -> Pixels:
    """Cut a window at a random place, and mirror every second one."""
    margin = len(pixels) - size + 1
    top = int.from_bytes(seed[0:8], "big") % margin
    left = int.from_bytes(seed[8:16], "big") % margin
    window = pixels[top : top + size, left : left + size]
    return np.ascontiguousarray(window[:, ::-1] if seed[16] % 2 else window)


_PLAIN: Final = View("plain-1", False, _unchanged)
VIEWS: Final[Mapping[str, View]] = MappingProxyType(
    {
        **{f"crop{number}": View("crop-1", True, _cropped) for number in range(1, CROPS + 1)},
        "flip": View("flip-1", False, _flipped),
    }
)
