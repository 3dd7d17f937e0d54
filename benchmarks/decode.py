"""What decoding large JPEGs at a reduced scale saves, and what it changes.

Run from the repository's root: ``python benchmarks/decode.py``. Prints one JSON object: for each
picture the milliseconds of a decode at full and at reduced scale (medians of interleaved
repetitions, one thread) and the difference of the two results in levels of 0 to 255.
"""

import argparse
import io
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import photos

from pipeline.images import resizing
from pipeline.images.decoder import decode

Pixels = NDArray[np.uint8]


def checkerboard(width: int, height: int) -> Pixels:
    """Black and white fields of 37 pixels, whose edges fall on no multiple of eight."""
    y, x = np.ogrid[:height, :width]
    return np.repeat(((x // 37 + y // 37) % 2 * 255)[..., np.newaxis], 3, axis=-1).astype(np.uint8)


def text(width: int, height: int) -> Pixels:
    """Draw a page of black letters, 24 pixels high, on white."""
    page = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(24)
    line = "the quick brown fox jumps over the lazy dog 0123456789 " * (width // 500)
    for number, y in enumerate(range(20, height - 30, 34)):
        draw.text((20, y), line[number % 50 :], fill="black", font=font)
    return np.asarray(page)


def zone_plate(width: int, height: int) -> Pixels:
    """Rings that grow finer outwards, up to one pixel: every frequency in every direction."""
    y, x = np.ogrid[:height, :width]
    radius = (x - width / 2) ** 2 + (y - height / 2) ** 2
    rings = np.cos(radius * (np.pi / max(width, height)))
    return np.repeat(np.rint(127.5 * (1 + rings))[..., np.newaxis], 3, axis=-1).astype(np.uint8)


def full_scale(data: bytes, size: int) -> Pixels:
    """Decode every pixel, then resize once."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def interleaved(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the median milliseconds of each call, taken in turns after one call to warm up."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if repeat:
                times.append(time.perf_counter() - start)
    return [round(1000 * statistics.median(times), 2) for times in seconds]


def measure(picture: Pixels, quality: int, *, size: int, repeats: int) -> dict[str, Any]:
    """Encode a picture as JPEG and compare both ways of decoding it."""
    data = photos.encoded(Image.fromarray(picture), "JPEG", quality=quality)
    full, reduced = full_scale(data, size), decode(data, size)
    off = np.abs(full.astype(int) - reduced.astype(int))
    calls = [lambda: full_scale(data, size), lambda: decode(data, size)]
    full_ms, reduced_ms = interleaved(calls, repeats)
    return {
        "width": picture.shape[1],
        "height": picture.shape[0],
        "quality": quality,
        "jpeg_bytes": len(data),
        "full_ms": full_ms,
        "reduced_ms": reduced_ms,
        "speedup": round(full_ms / reduced_ms, 2),
        "mean_difference": round(float(off.mean()), 3),
        "p99_difference": int(np.percentile(off, 99)),
        "max_difference": int(off.max()),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(names) or None,
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
    }


def main() -> None:
    """Measure every picture and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the square, in pixels")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0, help="seed of the photos")
    options = parser.parse_args()
    photo = photos.natural(4000, 3000, options.seed)
    pictures = {
        "photo": (photo, 90),
        "photo, fewer bytes": (photo, 75),
        "small photo": (photos.natural(500, 375, options.seed), 90),
        "checkerboard": (checkerboard(4000, 3000), 90),
        "text": (text(4000, 3000), 90),
        "zone plate": (zone_plate(4000, 3000), 90),
    }
    results = {
        name: measure(picture, quality, size=options.size, repeats=options.repeats)
        for name, (picture, quality) in pictures.items()
    }
    decoder = resizing.find("squash").decoder
    record = {"decoder": decoder, **vars(options), "machine": machine(), "pictures": results}
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
