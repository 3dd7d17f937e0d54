"""What the header of an image file says, without decoding a pixel."""

from dataclasses import dataclass

from PIL import ExifTags

from pipeline.images.decoder import opened


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says.

    Attributes:
        width: In pixels, as stored: before EXIF turns the image.
        height: The same.
        camera: Maker and model by EXIF; empty where it says none.
    """

    width: int
    height: int
    camera: str


def read_header(data: bytes) -> Header:
    """Read the header of an image file.

    Raises:
        DecodeError: The bytes are no image that is read.
    """
    image = opened(data)
    try:
        exif = image.getexif()
        said = [exif.get(tag) for tag in (ExifTags.Base.Make, ExifTags.Base.Model)]
    except Exception:
        # Pillow's answers to broken metadata are many; the image may be good all the same.
        said = []
    names = [str(text).replace("\0", " ").strip() for text in said if text]
    return Header(image.width, image.height, " ".join(name for name in names if name))
