"""Which image formats are read, and why others are not."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Raster formats with a signature at the start, whose pixels are a picture by the format's own
# definition, as Pillow names them.
READ: Final = (
    "AVIF",
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "SUN",
    "TIFF",
    "WEBP",
)

_ICON: Final = "an icon in several sizes, not a picture"
_PROGRAM: Final = "a page that a program has to draw"
_TEXTURE: Final = "a texture, whose channels mean what its program wants"
_NUMBERS: Final = "measurements that do not say which value is white"
_OLD: Final = "too rare, and its decoder too seldom tried on hostile files"
_FILM: Final = "a film"
_NO_SIGNATURE: Final = "most have no signature, so that any bytes could be one"

# How a file of a format that is not read starts, and why it is not.
_UNREAD: Final[Mapping[str, tuple[re.Pattern[bytes], str]]] = MappingProxyType(
    {
        name: (re.compile(start, re.DOTALL), why)
        for name, start, why in (
            ("BLP", rb"BLP[12]", _TEXTURE),
            ("BUFR", rb"BUFR", _NUMBERS),
            ("CUR", rb"\0\0\x02\0[^\0]", _ICON),
            ("DCX", rb"\xb1\x68\xde\x3a", _OLD),
            ("DDS", rb"DDS ", _TEXTURE),
            ("DIB", rb"[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0.{8}\x01\0", _OLD),
            ("EPS", rb"%!PS|\xc5\xd0\xd3\xc6", _PROGRAM),
            ("FITS", rb"SIMPLE", _NUMBERS),
            ("FLI", rb".{4}[\x11\x12]\xaf", _FILM),
            ("FTEX", rb"FTEX|FTU", _TEXTURE),
            ("GBR", rb".{20}GIMP", _OLD),
            ("GRIB", rb"GRIB", _NUMBERS),
            ("HDF5", rb"\x89HDF\r\n\x1a\n", _NUMBERS),
            ("ICNS", rb"icns", _ICON),
            ("ICO", rb"\0\0\x01\0[^\0]", _ICON),
            ("IM", rb"Image type:", _OLD),
            ("IMT", rb"(\*[^\n]*\n)*width \d", _OLD),
            ("JPEG XL", rb"\xff\n|\0\0\0\x0cJXL \r\n\x87\n", "Pillow has no decoder for it"),
            ("MCIDAS", rb"\0{7}\x04", _NUMBERS),
            ("MPEG", rb"\0\0\x01[\xb3\xba]|.{4}ftyp(isom|mp4|iso|qt  |M4V)", _FILM),
            ("MSP", rb"DanM|LinS", _OLD),
            ("PCD", rb".{2048}PCD_", _OLD),
            ("PCX", rb"\n[\0\x02\x03\x05][\0\x01][\x01\x02\x04\x08]", _OLD),
            ("PDF", rb"%PDF", _PROGRAM),
            ("PIXAR", rb"\x80\xe8\0\0", _OLD),
            ("PSD", rb"8BPS", "its merged picture may be missing or blank"),
            ("SVG", rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", _PROGRAM),
            ("WMF", rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", _PROGRAM),
            ("XBM", rb"\s*#define \S+_width", _OLD),
            ("XPM", rb"/\* XPM \*/", _OLD),
            ("XV thumbnail", rb"P7 332", _OLD),
        )
    }
)
_WEB_PAGE: Final = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
_TGA_FOOTER: Final = b"TRUEVISION-XFILE.\0"
_TGA_KINDS: Final = frozenset({1, 2, 3, 9, 10, 11})
_TGA_DEPTHS: Final = frozenset({8, 15, 16, 24, 32})
_SAMPLE: Final = 4096


def why_unread(data: bytes) -> str:
    """Return why bytes that no reader took for an image are none, as a reason for the manifest."""
    start = data[:_SAMPLE]
    if _WEB_PAGE.match(start):
        return "a web page, not an image"
    for name, (pattern, why) in _UNREAD.items():
        if pattern.match(start):
            return f"{name} is not read ({why}): save it as PNG"
    if data.endswith(_TGA_FOOTER) or _looks_like_tga(start):
        return f"TGA is not read ({_NO_SIGNATURE}): save it as PNG"
    return "not an image that Pillow can read"


def _looks_like_tga(start: bytes) -> bool:
    """Tell whether a header makes sense as one of TGA; chance makes it so once in 10,000."""
    if len(start) < 18:
        return False
    return (
        start[1] in (0, 1)
        and start[2] in _TGA_KINDS
        and start[16] in _TGA_DEPTHS
        and not start[17] & 0xC0
        and min(int.from_bytes(start[12:14], "little"), int.from_bytes(start[14:16], "little")) > 0
    )
