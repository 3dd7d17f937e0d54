"""Pictures of a page: small copies of images, as data URIs, within a number of bytes.

The number is shared out evenly, so that what a page weighs does not depend on the images.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from pipeline.copies.at_hand import FilesAtHand
from pipeline.errors import DecodeError
from pipeline.images import decoder, reading
from pipeline.images.decoder import Pixels
from pipeline.images.manifest import Manifest

# WebP of these, the first that fits; then half the size.
_QUALITIES: Final = (75, 50, 20)
_METHOD: Final = 2  # of 0 to 6: a fifth larger than the slowest, in a fifth of its time
_SMALLEST: Final = 8
_PREFIX: Final = "data:image/webp;base64,"


@dataclass(frozen=True, slots=True)
class Pictures:
    """Small copies of images.

    Attributes:
        uris: Data URIs by row of the manifest; a row without has no picture.
        missing: How many have none, by reason.
    """

    uris: Mapping[int, str]
    missing: Mapping[str, int]


def pictures(
    manifest: Manifest, rows: Sequence[int], *, side: int, budget: int, workers: int | None = None
) -> Pictures:
    """Make small copies of images; what cannot be had is counted.

    Args:
        manifest: What the images are; a file of another content than its key says has no picture.
        rows: Rows of it, each once.
        side: Length of the longer side, in pixels.
        budget: Bytes that all data URIs together may have.
        workers: Decoding threads; by default as ``reading.num_threads`` says.
    """
    limit = budget // max(1, len(rows))
    uris, missing = {}, Counter[str]()
    files = FilesAtHand(manifest)

    def make(row: int) -> tuple[str, str]:
        return _picture(files, row, side, limit)

    for row, made in reading.in_threads(make, rows, reading.num_threads(manifest, workers)):
        uri, reason = made.result()
        if uri:
            uris[row] = uri
        else:
            missing[reason] += 1
    return Pictures(uris, dict(missing.most_common()))


def _picture(files: FilesAtHand, row: int, side: int, limit: int) -> tuple[str, str]:
    """Return a data URI, or the reason why there is none."""
    try:
        content = files.read(row)
        pixels = decoder.thumbnail(content.data, side)
    except DecodeError as error:
        return "", str(error)
    room = (limit - len(_PREFIX)) * 3 // 4 - 2
    data = encoded(pixels, room)
    return (_PREFIX + base64.b64encode(data).decode(), "") if data else ("", "no room in the page")


def encoded(pixels: Pixels, limit: int) -> bytes:
    """Return an image as WebP of at most some bytes; nothing where even the smallest is larger.

    Args:
        pixels: uint8 RGB ``(height, width, 3)``.
        limit: Bytes that it may have.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    while max(image.size) >= _SMALLEST:
        for quality in _QUALITIES:
            buffer = BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=_METHOD)
            if buffer.tell() <= limit:
                return buffer.getvalue()
        width, height = image.size
        image = image.resize((max(1, width // 2), max(1, height // 2)))
    return b""
