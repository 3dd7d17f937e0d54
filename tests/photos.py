"""Image files of every kind as bytes, made from a seed; imported by tests and benchmarks.

``GOOD`` and ``BAD`` name makers ``seed -> bytes`` of files that do and do not decode. All files
of one seed show the same small picture, so that what they decode to can be compared.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]
Maker = Callable[[int], bytes]

WIDTH: Final = 48
HEIGHT: Final = 32
ORIENTATION: Final = 0x0112


def natural(width: int, height: int, seed: int = 0) -> Pixels:
    """Draw a picture with a photo's statistics: 1/f noise, occluding edges, sensor noise.

    Returns:
        uint8 RGB, shape ``(height, width, 3)``; the same for the same arguments.
    """
    rng = np.random.default_rng(seed)
    picture = _leaves(width, height, rng).astype(np.float32)
    picture += 28 * _pink(width, height, rng)[..., np.newaxis]
    picture += rng.normal(scale=2, size=picture.shape).astype(np.float32)
    return np.rint(picture).clip(0, 255).astype(np.uint8)


def strokes(path: Path, count: int) -> None:
    """Write images of a faint diagonal stroke, rising or falling, on coloured squares.

    Features of an untrained network do not tell the two; a network that is trained does.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        squares = rng.integers(88, 168, (4, 4, 3))
        pixels = np.kron(squares, np.ones((8, 8, 1), np.int64))
        top, left = rng.integers(0, 16, 2)
        level = 75 * rng.choice([-1, 1])
        for step in range(16):
            place = left + (step if number % 2 else 15 - step)
            pixels[top + step, max(place - 1, 0) : place + 2] += level
        file = path / f"class{number % 2}" / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


def _leaves(width: int, height: int, rng: np.random.Generator) -> Pixels:
    """Overlap discs of power-law radii: the edges of a natural scene at every scale."""
    image = Image.new("RGB", (width, height), (120, 130, 140))
    draw = ImageDraw.Draw(image)
    for _ in range(600):
        radius = min(width, height) * 0.01 / np.sqrt(rng.uniform(0.0004, 1))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        colour = tuple(int(value) for value in rng.normal(120, 50, 3).clip(0, 255))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(image)


def _pink(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return noise of amplitude 1/f, mean 0 and standard deviation 1, shape (height, width)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32)) / frequency
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return np.asarray(noise / noise.std(), dtype=np.float32)


def picture(seed: int = 0) -> Image.Image:
    """Return a small RGB picture without any symmetry."""
    return Image.fromarray(natural(WIDTH, HEIGHT, seed))


def grey16(seed: int = 0) -> NDArray[np.uint16]:
    """Return grey values over the whole 16-bit range, shape ``(HEIGHT, WIDTH)``."""
    grey = np.asarray(picture(seed).convert("L"), dtype=np.uint16)
    fine = np.random.default_rng(seed).integers(0, 257, grey.shape, dtype=np.uint16)
    return np.minimum(grey.astype(np.uint32) * 257 + fine, 65535).astype(np.uint16)


def with_alpha(seed: int = 0) -> Image.Image:
    """Return an RGBA picture whose alpha takes every value from clear to opaque."""
    image = picture(seed)
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    image.putalpha(Image.fromarray(alpha))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    """Return EXIF data that says how to turn the picture."""
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


# What a camera held that way would have stored, so that the tag makes the picture upright.
_TURNED: Final[Mapping[int, Image.Transpose]] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(orientation: int, kind: str, seed: int = 0, **options: Any) -> bytes:
    """Return the picture stored turned, with the EXIF orientation that makes it upright."""
    image = picture(seed)
    if orientation in _TURNED:
        image = image.transpose(_TURNED[orientation])
    return encoded(image, kind, exif=exif(orientation), **options)


def png(
    pixels: NDArray[Any], *, depth: int, colour: int, chunks: Mapping[bytes, bytes] | None = None
) -> bytes:
    """Return a PNG of any depth and colour type, which Pillow alone cannot write.

    Args:
        pixels: Big-endian rows as bytes would lie in the file: uint8 or ``>u2``, any shape whose
            first two axes are height and width; depths under 8 take one value a pixel.
        depth: Bits a value.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        chunks: More chunks before the pixels, such as ``PLTE`` and ``tRNS``.
    """
    height, width = pixels.shape[:2]
    if depth < 8:
        bits = np.unpackbits(pixels.astype(np.uint8)[..., np.newaxis], axis=-1)[..., -depth:]
        rows = np.packbits(bits.reshape(height, -1), axis=-1)
    else:
        kind = ">u2" if depth == 16 else np.uint8
        rows = np.ascontiguousarray(pixels, dtype=kind).view(np.uint8).reshape(height, -1)
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = {b"IHDR": header, **(chunks or {}), b"IDAT": zlib.compress(filtered), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in body.items())


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that promises this many pixels and holds none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"\0" * 8)


def grey_tiff(
    pixels: NDArray[Any], *, bits: int, photometric: int, sample_format: int = 1
) -> bytes:
    """Return an uncompressed grey TIFF with the byte order of ``pixels``.

    Args:
        pixels: Shape ``(height, width)``, its dtype as it lies in the file.
        bits: Bits a pixel; 12 packs two pixels of uint16 in three bytes.
        photometric: 0 white is zero, 1 black is zero.
        sample_format: 1 unsigned, 2 signed, 3 float.
    """
    height, width = pixels.shape
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    data = _packed_12(pixels) if bits == 12 else pixels.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1}
    tags |= {278: height, 279: len(data), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return (
        mark
        + struct.pack(order + "IH", 8, len(tags))
        + entries
        + struct.pack(order + "I", 0)
        + data
    )


def _packed_12(pixels: NDArray[Any]) -> bytes:
    bits = np.unpackbits(pixels.astype(">u2")[..., np.newaxis].view(np.uint8), axis=-1)
    return np.packbits(bits.reshape(*pixels.shape, 16)[..., 4:]).tobytes()


def animated(kind: str, seed: int = 0) -> bytes:
    """Return an animation whose first frame is the picture and whose second is black."""
    black = Image.new("RGB", (WIDTH, HEIGHT))
    return encoded(picture(seed), kind, save_all=True, append_images=[black], duration=100)


def heic(seed: int = 0, **options: Any) -> bytes:
    """Return a HEIC file; needs ``pillow-heif``."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture(seed)).save(buffer, format="HEIF", **options)
    return buffer.getvalue()


def lab(seed: int = 0) -> Image.Image:
    """Return a picture of mode LAB, with the signed bytes that TIFF has for a and b."""
    values = np.asarray(picture(seed)).copy()
    values[..., 1:] = (values[..., 1:].astype(int) // 3 - 42) % 256
    return Image.frombytes("LAB", (WIDTH, HEIGHT), values.tobytes())


def _saved(mode: str, kind: str, options: Mapping[str, Any], seed: int) -> bytes:
    return encoded(picture(seed).convert(mode), kind, **options)


def _saving(mode: str, kind: str, **options: Any) -> Maker:
    return partial(_saved, mode, kind, options)


def _two_bit_key(seed: int) -> bytes:
    grey = np.asarray(picture(seed).convert("L")) >> 6
    return png(grey, depth=2, colour=0, chunks={b"tRNS": struct.pack(">H", 2)})


def _alpha_palette(seed: int) -> bytes:
    indices = picture(seed).quantize(16)
    alphas = bytes(range(0, 256, 16))
    return encoded(indices, "PNG", transparency=alphas)


def _grey16_key(seed: int) -> bytes:
    grey = grey16(seed)
    return png(grey, depth=16, colour=0, chunks={b"tRNS": struct.pack(">H", grey[0, 0])})


def _premultiplied(seed: int) -> bytes:
    """Return a TIFF that says its colours are multiplied by alpha already, as they are."""
    values = np.asarray(with_alpha(seed).convert("LA")).astype(np.uint16)
    values[..., 0] = values[..., 0] * values[..., 1] // 255
    data = encoded(Image.fromarray(values.astype(np.uint8)), "TIFF")
    return data.replace(_extra_sample(2), _extra_sample(1))


def _extra_sample(kind: int) -> bytes:
    return struct.pack("<HHIHH", 338, 3, 1, kind, 0)


def _text_pixels(seed: int) -> bytes:
    """Return a PPM in text, with a comment amid the pixels."""
    values = [b"%d" % value for value in np.asarray(picture(seed)).flat]
    middle = len(values) // 2
    first, second = b" ".join(values[:middle]), b"\n".join(values[middle:])
    return b"P3 %d %d 255\n%s # half of it\n%s\n" % (WIDTH, HEIGHT, first, second)


def _qoi(seed: int) -> bytes:
    pixels = np.asarray(picture(seed)).reshape(-1, 3)
    each = b"".join(b"\xfe" + pixel.tobytes() for pixel in pixels)
    return struct.pack(">4sIIBB", b"qoif", WIDTH, HEIGHT, 3, 0) + each + bytes(7) + b"\1"


def _sun(seed: int) -> bytes:
    rows = np.asarray(picture(seed))[..., ::-1].tobytes()
    return struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 24, len(rows), 1, 0, 0) + rows


def _grey16_as(kind: str, seed: int) -> bytes:
    return encoded(Image.fromarray(grey16(seed)), kind)


GOOD: Final[Mapping[str, Maker]] = {
    "adobe-cmyk.jpg": _saving("CMYK", "JPEG", quality=95),
    "alpha-palette.png": _alpha_palette,
    "alpha.png": lambda seed: encoded(with_alpha(seed), "PNG"),
    "alpha.tif": lambda seed: encoded(with_alpha(seed), "TIFF"),
    "alpha.webp": lambda seed: encoded(with_alpha(seed), "WEBP", lossless=True, exact=True),
    "animated.gif": partial(animated, "GIF"),
    "animated.png": partial(animated, "PNG"),
    "animated.webp": partial(animated, "WEBP"),
    "bits-1.png": _saving("1", "PNG"),
    "bits-1.tif": _saving("1", "TIFF", compression="group4"),
    "bits-12.tif": lambda seed: grey_tiff(grey16(seed) >> 4, bits=12, photometric=1),
    "bits-16-big.tif": lambda seed: grey_tiff(grey16(seed).astype(">u2"), bits=16, photometric=1),
    "bits-16-key.png": _grey16_key,
    "bits-16-rgb.png": lambda seed: png(
        np.asarray(picture(seed)).astype(np.uint16) * 257, depth=16, colour=2
    ),
    "bits-16-white-is-zero.tif": lambda seed: grey_tiff(grey16(seed), bits=16, photometric=0),
    "bits-16.jp2": partial(_grey16_as, "JPEG2000"),
    "bits-16.pgm": partial(_grey16_as, "PPM"),
    "bits-16.png": partial(_grey16_as, "PNG"),
    "bits-16.tif": partial(_grey16_as, "TIFF"),
    "bits-2-key.png": _two_bit_key,
    "cmyk.tif": _saving("CMYK", "TIFF"),
    "deflate.tif": _saving("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "grey-alpha.png": lambda seed: encoded(with_alpha(seed).convert("LA"), "PNG"),
    "grey.bmp": _saving("L", "BMP"),
    "grey.jpg": _saving("L", "JPEG"),
    "grey.png": _saving("L", "PNG"),
    "jpeg.tif": _saving("RGB", "TIFF", compression="jpeg"),
    "lab.tif": lambda seed: encoded(lab(seed), "TIFF"),
    "lossless.webp": _saving("RGB", "WEBP", lossless=True),
    "lzw.tif": _saving("RGB", "TIFF", compression="tiff_lzw"),
    "palette-key.gif": lambda seed: encoded(picture(seed).quantize(32), "GIF", transparency=3),
    "palette.bmp": _saving("P", "BMP"),
    "palette.png": _saving("P", "PNG"),
    "premultiplied.tif": _premultiplied,
    "progressive.jpg": _saving("RGB", "JPEG", progressive=True),
    "rgb-key.png": lambda seed: encoded(
        picture(seed), "PNG", transparency=picture(seed).getpixel((0, 0))
    ),
    "rgb.avif": _saving("RGB", "AVIF"),
    "rgb.bmp": _saving("RGB", "BMP"),
    "rgb.jp2": _saving("RGB", "JPEG2000"),
    "rgb.jpg": _saving("RGB", "JPEG"),
    "rgb.png": _saving("RGB", "PNG"),
    "rgb.ppm": _saving("RGB", "PPM"),
    "rgb.qoi": _qoi,
    "rgb.ras": _sun,
    "rgb.sgi": _saving("RGB", "SGI"),
    "rgb.tif": _saving("RGB", "TIFF"),
    "rgb.webp": _saving("RGB", "WEBP"),
    "text.ppm": _text_pixels,
    **{f"turned-{way}.jpg": partial(turned, way, "JPEG") for way in range(1, 9)},
    "ycbcr.tif": _saving("YCbCr", "TIFF"),
}


def half(maker: Maker, seed: int) -> bytes:
    """Return the first half of a file, as an interrupted copy leaves it."""
    data = maker(seed)
    return data[: len(data) // 2]


BAD: Final[Mapping[str, Maker]] = {
    "empty.jpg": lambda seed: b"",
    "float.tif": lambda seed: encoded(
        Image.fromarray(np.asarray(picture(seed).convert("L"), dtype=np.float32)), "TIFF"
    ),
    "text.jpg": lambda seed: f"photo number {seed}\n".encode(),
    "truncated.gif": partial(half, GOOD["palette-key.gif"]),
    "truncated.jpg": partial(half, GOOD["rgb.jpg"]),
    "truncated.png": partial(half, GOOD["rgb.png"]),
    "truncated.tif": partial(half, GOOD["lzw.tif"]),
    "truncated.webp": partial(half, GOOD["rgb.webp"]),
}


def write_mixed(folder: Path) -> dict[str, bool]:
    """Write a hundred distinct files of every kind into four class folders.

    Returns:
        Path relative to ``folder``, POSIX -> whether the file decodes. 84 do.
    """
    good, bad = list(GOOD.items()), list(BAD.items())
    makers = [good[number % len(good)] for number in range(84)]
    makers += [bad[number % len(bad)] for number in range(16)]
    expected = {}
    for number, (name, make) in enumerate(makers):
        path = f"class {number % 4}/{number:02d} {name}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(make(number))
        expected[path] = name in GOOD
    return expected
