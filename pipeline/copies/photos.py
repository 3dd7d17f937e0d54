"""What the image files say: size, colours, sharpness, camera, and a small grey copy of each.

Read once for all that looks at them. Files that are gone or changed are counted, and what needs
them says so.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.copies.at_hand import FilesAtHand
from pipeline.copies.distinct import DistinctImages
from pipeline.copies.pixels import SIDE, Greys
from pipeline.errors import DecodeError
from pipeline.images import reading
from pipeline.images.decoder import decode
from pipeline.images.header import read_header
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

# Side that images are decoded at: sharpness is compared at one size.
_DECODED: Final = 128
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True)
class Photo:
    """What one file says.

    Attributes:
        file_bytes: Its size.
        width: Pixels.
        height: Pixels.
        colour: Mean red, green and blue, from 0 to 255.
        darkest: The level of grey that 1 % of the pixels are below.
        brightest: The level of grey that 99 % of the pixels are below.
        sharpness: Variance of the Laplacian of the grey image.
        camera: Maker and model by EXIF; empty where it says none.
    """

    file_bytes: int
    width: int
    height: int
    colour: tuple[float, float, float]
    darkest: float
    brightest: float
    sharpness: float
    camera: str


@dataclass(frozen=True, slots=True)
class Photos:
    """What the files of images say.

    Attributes:
        images: Numbers of the images that were read, ascending, ``(k,)``.
        photos: What each of them says.
        greys: Their small grey copies, uint8 ``(k, SIDE, SIDE)``.
        missing: Images whose file is gone, bad, or not the one that was encoded.
        unseen: Of these, images that were not at hand when their features were imported.
        lost: Why images at addresses were no longer asked for; empty where they were.
    """

    images: NDArray[np.intp]
    photos: Sequence[Photo]
    greys: Greys
    missing: int
    unseen: int = 0
    lost: str = ""


_Measured: TypeAlias = tuple[Photo, NDArray[np.uint8]]


def read_photos(images: DistinctImages, reporter: Reporter) -> Photos:
    """Read every image once; the first file that has the bytes that were encoded counts.

    A storage that is out of reach is no error: its images are missing.
    """
    files = FilesAtHand(images.manifest)
    asked = [
        image
        for image, rows in enumerate(images.rows_of)
        if any(files.was_seen(row) for row in rows.tolist())
    ]
    if asked:
        reporter.say(f"Reading {counted(len(asked), 'image file')}")
    read: list[int] = []
    photos: list[Photo] = []
    greys = np.empty((len(asked), SIDE, SIDE), np.uint8)
    found = reading.in_threads(
        lambda image: _photo(files, images.rows_of[image].tolist()),
        asked,
        reading.num_threads(images.manifest),
    )
    with reporter.bar(len(asked), "img") as bar:
        for image, future in found:
            measured = future.result()
            bar.advance()
            if measured is not None:
                photo, greys[len(read)] = measured
                read.append(image)
                photos.append(photo)
    return Photos(
        np.array(read, np.intp),
        photos,
        greys[: len(read)],
        missing=len(images) - len(read),
        unseen=len(images) - len(asked),
        lost=files.lost,
    )


def _photo(files: FilesAtHand, rows: Sequence[int]) -> _Measured | None:
    for row in rows:
        measured = _of_row(files, row)
        if measured is not None:
            return measured
    return None


def _of_row(files: FilesAtHand, row: int) -> _Measured | None:
    try:
        content = files.read(row)
        header = read_header(content.data)
        pixels = decode(content.data, _DECODED)
    except DecodeError:
        return None
    return _measured(len(content.data), header.width, header.height, header.camera, pixels)


def _measured(
    file_bytes: int, width: int, height: int, camera: str, pixels: NDArray[np.uint8]
) -> _Measured:
    """Return what a file says, and the small grey copy of its image."""
    # As floats first: of whole numbers the product would take ten times as long.
    grey = pixels.astype(np.float32) @ _LUMA
    centre = grey[1:-1, 1:-1]
    # Variance of the Laplacian (Pech-Pacheco et al. 2000; Pertuz et al. 2013, "Analysis of focus
    # measure operators").
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre
    step = _DECODED // SIDE
    small = grey.reshape(SIDE, step, SIDE, step).mean(axis=(1, 3))
    red, green, blue = (float(value) for value in pixels.mean(axis=(0, 1)))
    darkest, brightest = np.quantile(small, (0.01, 0.99))
    photo = Photo(
        file_bytes=file_bytes,
        width=width,
        height=height,
        colour=(red, green, blue),
        darkest=float(darkest),
        brightest=float(brightest),
        sharpness=float(laplacian.var()),
        camera=sys.intern(camera),
    )
    return photo, np.rint(small).astype(np.uint8)
