"""How an image of any shape becomes a square: the rules of ``--resize``, as arithmetic.

A rule says what size the whole image gets. Of that, the square keeps the middle; where the image
does not reach, the square is white. ``decoder`` applies this, and nothing else does. Which rule
made stored features is told by the decoder's name in their identity. Pillow is not imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pipeline.errors import StaleFeaturesError, unknown_name

Size = tuple[int, int]
Box = tuple[float, float, float, float]

# How much more than the square is wide from which windows are cut; 256 pixels for 224.
_MARGIN: Final = 8 / 7


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies in a square.

    Attributes:
        whole: Width and height that the whole image gets; the part that is cut off is never made.
        side: Side of the square.
        is_trimmed: Whether what the image does not reach of the square is left out.
    """

    whole: Size
    side: int
    is_trimmed: bool = False

    @property
    def kept(self) -> Size:
        """Width and height of what lies in the square."""
        width, height = self.whole
        return min(width, self.side), min(height, self.side)

    @property
    def corner(self) -> Size:
        """Left and top of the image in the square; (0, 0) where it reaches the edge."""
        width, height = self.kept
        return (self.side - width) // 2, (self.side - height) // 2

    def box(self, width: int, height: int) -> Box:
        """Return what is kept, in pixels of an image of this size: left, top, right, bottom."""
        left, right = _span(width, self.whole[0], self.kept[0])
        top, bottom = _span(height, self.whole[1], self.kept[1])
        return left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Resize:
    """One rule.

    Attributes:
        decoder: What the decoder is called that applies it; another rule needs another name.
        text: What it does, given ``size`` and ``short``, the sides of the square and the wide one.
        whole: Returns the size that an image gets, given its own, the side of the network's input,
            and that of the square, which is larger where windows are to be cut.
    """

    decoder: str
    text: str
    whole: Callable[[Size, int, int], Size]

    def described(self, size: int) -> str:
        """Say what a network is given of an image, for whoever has nothing but the network."""
        return (
            f"uint8 RGB of shape (n, {size}, {size}, 3): upright by EXIF, alpha over white; "
            f"{self.text.format(size=size, short=wide(size))}; antialiased bilinear interpolation"
        )


@dataclass(frozen=True, slots=True)
class Square:
    """What images are put into.

    Attributes:
        rule: How an image is put into it.
        size: Side of the network's input.
        is_wide: Whether it is the larger square from which windows are cut.
        is_trimmed: Whether it is for people to look at: without a margin, and of a small image
            only as large as that.
    """

    rule: Resize
    size: int
    is_wide: bool = False
    is_trimmed: bool = False

    @property
    def side(self) -> int:
        """Its side in pixels."""
        return wide(self.size) if self.is_wide else self.size

    def place(self, image: Size) -> Placement:
        """Return where an image of this width and height lies in it."""
        side = min(self.side, max(image)) if self.is_trimmed else self.side
        return Placement(self.rule.whole(image, self.size, side), side, self.is_trimmed)


def wide(size: int) -> int:
    """Return the side of the larger square from which windows of an image are cut."""
    return round(size * _MARGIN)


def find(resize: str) -> Resize:
    """Return a rule.

    Raises:
        ConfigError: There is none of that name; suggests the nearest.
    """
    if resize not in RESIZES:
        raise unknown_name("resize rule", resize, RESIZES)
    return RESIZES[resize]


def resize_of(decoder: str) -> str:
    """Return the rule that a decoder applies.

    Raises:
        StaleFeaturesError: This release has no such decoder.
    """
    for name, rule in RESIZES.items():
        if rule.decoder == decoder:
            return name
    known = ", ".join(repr(rule.decoder) for rule in RESIZES.values())
    raise StaleFeaturesError(
        f"Expected features of a decoder of this release: {known}. Received: decoder = "
        f"{decoder!r}.",
        hint="Use the release that made them, or extract again into another --store and train.",
    )


def _squashed(image: Size, size: int, side: int) -> Size:
    return side, side


def _cropped(image: Size, size: int, side: int) -> Size:
    """Give the short side its length; the same whether the square is the wide one or not.

    So the plain image is the middle of the wide one, and its windows are at the same scale.
    """
    return _scaled(image, wide(size), min(image))


def _padded(image: Size, size: int, side: int) -> Size:
    return _scaled(image, side, max(image))


def _scaled(image: Size, length: int, of: int) -> Size:
    """Scale an image so that a side of it becomes a length; no side vanishes."""
    width, height = image
    return max(1, round(length * width / of)), max(1, round(length * height / of))


def _span(length: int, whole: int, kept: int) -> tuple[float, float]:
    """Return where the middle of a side begins and ends, in pixels of the image."""
    start = (whole - kept) // 2
    return start * length / whole, (start + kept) * length / whole


RESIZES: Final[Mapping[str, Resize]] = MappingProxyType(
    {
        "crop": Resize(
            "pillow-1-crop",
            "the short side resized to {short} pixels and the middle {size} x {size} kept",
            _cropped,
        ),
        "pad": Resize(
            "pillow-1-pad",
            "the long side resized to {size} pixels and the rest of the square white",
            _padded,
        ),
        # Without an addition, as it was the only rule when stores were first written.
        "squash": Resize(
            "pillow-1", "squashed to {size} x {size} whatever the aspect ratio", _squashed
        ),
    }
)
