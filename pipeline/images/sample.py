"""The embedded sample: scikit-learn's handwritten digits as PNG files in ten class folders.

The files are the same bytes everywhere and always, so that splits, which depend on bytes alone, and
the scores printed in the documentation can be repeated.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, mention

CLASSES: Final = 10

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def write_sample(out: Path, *, force: bool = False) -> dict[str, object]:
    """Write the 1,797 digits as ``OUT/<class>/digit_<index>.png``, 8 x 8 pixels, 8-bit grey.

    Files that are as they should be are left untouched, those that are missing or cut short by
    a killed run are written. Nothing is ever deleted.

    Args:
        out: The folder; made if it does not exist.
        force: Write also where the folder holds other files, and over files of the sample's
            names that hold something else.

    Returns:
        ``images``, ``classes``, ``written`` (files written now) and ``out``.

    Raises:
        ConfigError: ``out`` holds other files and ``force`` is off, or cannot be written to.
    """
    files = _files()
    try:
        foreign = [] if force else _foreign(out, files)
        if foreign:
            raise _not_ours(out, foreign)
        written = sum(_write(out / name, data) for name, data in files.items())
    except OSError as error:
        raise ConfigError(
            f"The sample cannot be written to {str(out)!r}: {error.strerror}.",
            hint="Give a folder that can be written to.",
        ) from error
    return {"images": len(files), "classes": CLASSES, "written": written, "out": str(out)}


def _files() -> dict[str, bytes]:
    """Return the sample: path relative to its folder -> PNG file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 levels of ink, 0 to 16, spread over 0 to 255 and rounded.
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return {
        f"{label}/digit_{index:04d}.png": _png(pixels)
        for index, (label, pixels) in enumerate(zip(digits.target, grey, strict=True))
    }


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode grey pixels, shape (height, width), without compression.

    Pillow's bytes change with the zlib it was built with. A stored deflate block has one form.
    """
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    stored = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows
    stream = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _foreign(out: Path, files: Mapping[str, bytes]) -> list[str]:
    """List what is in the folder and not the sample's, by path, hidden files left out."""
    found = (path for path in sorted(out.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = ((path, path.relative_to(out)) for path in found)
    return [
        name.as_posix()
        for path, name in names
        if not any(part.startswith(".") for part in name.parts)
        and not _is_ours(path, files.get(name.as_posix()))
    ]


def _is_ours(path: Path, expected: bytes | None) -> bool:
    """Tell whether a file is the sample's, whole or as a killed run left it."""
    return expected is not None and path.is_file() and expected.startswith(path.read_bytes())


def _write(path: Path, data: bytes) -> bool:
    """Write a file unless it holds these bytes; a file cut short is repaired by the next run."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return True


def _not_ours(out: Path, foreign: list[str]) -> ConfigError:
    return ConfigError(
        f"Expected an empty folder or the sample in {str(out)!r}. "
        f"Received: other files, {mention(foreign)}.",
        hint="Give another folder, or --force to write among them; nothing is deleted.",
    )
