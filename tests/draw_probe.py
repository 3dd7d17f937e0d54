"""Draws the eight probe images of the package; run it as ``python tests/draw_probe.py FOLDER``.

The files in the package are the bytes that count: libraries of other versions write others. This
tells how they came to be, and a test compares what they show.
"""

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw

Picture = Image.Image
UPRIGHT_BY_A_QUARTER_TURN: Final = 6


def drawn() -> dict[str, bytes]:
    """Return the files by name."""
    return {name: draw() for name, draw in DRAWN.items()}


def scene(seed: int, width: int, height: int, *, discs: int, grain: float) -> Picture:
    """Draw discs and bars of all sizes before a sky of two colours, with grain as of a sensor."""
    rng = np.random.default_rng(seed)
    across, down = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None, None]
    first, second = rng.integers(40, 216, (2, 3))
    sky = first * (1 - down) + second * down + 30 * np.sin(6 * across)[None, :, None]
    picture = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(discs):
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        radius = int(min(width, height) * 0.3 * rng.random() ** 2) + 2
        x, y = int(rng.integers(width)), int(rng.integers(height))
        shape = pen.ellipse if rng.random() < 0.7 else pen.rectangle
        shape((x - radius, y - radius, x + radius, y + radius // 2), fill=colour)
    noise = rng.normal(0, grain, (height, width, 3)) if grain else 0
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def stripes(width: int, height: int) -> Picture:
    """Draw rings that grow finer to the edge, in colours that change sharply."""
    y, x = np.mgrid[:height, :width]
    distance = (x - width / 2) ** 2 + (y - height / 2) ** 2
    rings = 127.5 + 127.5 * np.cos(distance / 160)
    colours = [rings, rings[::-1, ::-1] * (x > width / 2), 255 - rings * (y > height / 3)]
    return Image.fromarray(np.stack(colours, axis=2).astype(np.uint8))


def jpeg(picture: Picture, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", optimize=True, **options)
    return buffer.getvalue()


def png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def turned() -> bytes:
    """Return a picture that lies on its side, and says so."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = UPRIGHT_BY_A_QUARTER_TURN
    return jpeg(scene(2, 208, 144, discs=14, grain=3), quality=70, subsampling=0, exif=exif)


def alpha() -> bytes:
    """Return a picture whose left is transparent, and whose right is opaque."""
    picture = scene(6, 72, 64, discs=9, grain=0).convert("RGBA")
    picture.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 72).astype(np.uint8), (64, 1))))
    return png(picture)


def grey16() -> bytes:
    """Return a ramp of 16 bits with a bright and a dark patch."""
    y, x = np.mgrid[:48, :64]
    levels: NDArray[np.uint16] = (x * 760 + y * 340).astype(np.uint16)
    levels[8:20, 30:50], levels[26:40, 8:24] = 65000, 900
    return png(Image.fromarray(levels))


DRAWN: Final[Mapping[str, Callable[[], bytes]]] = {
    "photo.jpg": lambda: jpeg(scene(1, 320, 240, discs=30, grain=4), quality=60),
    "turned.jpg": turned,
    "progressive.jpg": lambda: jpeg(stripes(144, 192), quality=45, progressive=True),
    "grey.jpg": lambda: jpeg(scene(4, 240, 200, discs=25, grain=5).convert("L"), quality=70),
    "large.jpg": lambda: jpeg(scene(5, 904, 900, discs=12, grain=0), quality=12),
    "plain.png": lambda: png(scene(7, 56, 84, discs=9, grain=0)),
    "alpha.png": alpha,
    "grey16.png": grey16,
}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in drawn().items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
