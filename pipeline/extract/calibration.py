"""The images that a network in int8 is calibrated on: a fixed sample of a listing."""

from functools import partial

import numpy as np

from pipeline.config.extracting import ExtractOptions
from pipeline.engines.encoder import Images
from pipeline.errors import ManifestError
from pipeline.images import reading
from pipeline.images.manifest import Manifest
from pipeline.images.reading import ReadFile, in_threads
from pipeline.images.views import PLAIN


def sample(listing: Manifest, options: ExtractOptions, count: int) -> tuple[list[str], Images]:
    """Return the images of a listing whose keys come first, which names and places do not change.

    Keys are digests, so that this is a random sample. Every file is read once, for its key.

    Args:
        listing: The images.
        options: How they are decoded.
        count: Most images to return; copies of an image count once, bad ones not at all.

    Returns:
        Keys in order, and pixels, uint8 ``(n, S, S, 3)``.

    Raises:
        ManifestError: No image can be read.
    """
    workers = reading.num_threads(listing, options.workers)
    rows = _rows_by_key(listing, options, workers)
    found: dict[str, Images] = {}
    decode = partial(_read, listing, options, (PLAIN,))
    for _, future in in_threads(decode, [rows[key] for key in sorted(rows)], workers):
        file = future.result()
        if PLAIN in file.pixels:
            found[file.key] = file.pixels[PLAIN]
        if len(found) == count:
            break
    if not found:
        raise ManifestError(
            f"Expected images to calibrate int8 on. Received: none of {len(listing):,} files can "
            "be read.",
            hint="Give a folder of images.",
        )
    return list(found), np.stack(list(found.values()))


def _rows_by_key(listing: Manifest, options: ExtractOptions, workers: int) -> dict[str, int]:
    """Return a row of each image that can be read, by its key."""
    read = partial(_read, listing, options, ())
    files = (
        (row, future.result()) for row, future in in_threads(read, range(len(listing)), workers)
    )
    return {file.key: row for row, file in files if file.key}


def _read(listing: Manifest, options: ExtractOptions, views: tuple[str, ...], row: int) -> ReadFile:
    get = reading.reference(listing, row)
    return reading.decoded(get, lambda key: views, options.image_size, options.resize)
