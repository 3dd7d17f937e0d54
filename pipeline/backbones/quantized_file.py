"""A network in int8, kept in a store by the digest of its file.

Quantizing is done once: its outcome depends on images, and on versions of libraries. So features in
int8 are those of one file, which every later command reads, and whose digest is part of their
identity. The file is an archive of the network as OpenVINO writes it, and of what it was calibrated
on.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.errors import WeightsUnavailableError
from pipeline.files.atomic import write_atomically

SUFFIX: Final = ".int8"
_NAME: Final = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}")
_NETWORK: Final = "network.xml"
_WEIGHTS: Final = "network.bin"
_CALIBRATION: Final = "calibration.json"


def pack(network: bytes, weights: bytes, calibration: Mapping[str, object]) -> bytes:
    """Return the content of a file: the same for the same arguments.

    Args:
        network: OpenVINO's description of the network.
        weights: Its weights.
        calibration: What it was calibrated on, and by which versions.
    """
    parts = {
        _CALIBRATION: json.dumps(calibration, indent=2, sort_keys=True).encode(),
        _NETWORK: network,
        _WEIGHTS: weights,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # whose date is always the same
    return content.getvalue()


def digest(content: bytes) -> str:
    """Return what a file of some content is known by."""
    return hashlib.sha256(content).hexdigest()


def path_of(folder: Path, sha256: str) -> Path:
    """Return where a folder keeps the network of a digest."""
    return folder / f"{sha256}{SUFFIX}"


def of_store(folder: Path, sha256: str | None) -> Path | None:
    """Return where a folder keeps the network of an identity; None of one that has none."""
    return None if sha256 is None else path_of(folder, sha256)


def keep(folder: Path, content: bytes) -> Path:
    """Write what ``pack`` returned into a folder, and return its place."""
    path = path_of(folder, digest(content))

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write)
    return path


def is_one(path: Path) -> bool:
    """Tell whether a file's name is that of a kept network in int8."""
    return _NAME.fullmatch(path.name) is not None


def read(path: Path) -> tuple[bytes, bytes]:
    """Return a network as OpenVINO reads it, description and weights.

    Raises:
        WeightsUnavailableError: The file is gone, or not what its name says.
    """
    with zipfile.ZipFile(io.BytesIO(_content(path))) as archive:
        return archive.read(_NETWORK), archive.read(_WEIGHTS)


def calibration(path: Path) -> Mapping[str, object]:
    """Return what a network was calibrated on: ``images``, their keys, and ``versions``.

    Raises:
        WeightsUnavailableError: The file is gone, or not what its name says.
    """
    with zipfile.ZipFile(io.BytesIO(_content(path))) as archive:
        found: Mapping[str, object] = json.loads(archive.read(_CALIBRATION))
        return found


def require_as_kept(path: Path) -> None:
    """Refuse a file that is not what its name says.

    Raises:
        WeightsUnavailableError: It is damaged, or cannot be read.
    """
    _content(path)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        received = digest(content)
    except OSError as error:
        content, received = b"", f"nothing: {error.strerror}"
    if received != path.name.removesuffix(SUFFIX):
        raise WeightsUnavailableError(
            f"Expected the network in int8 that was kept in {str(path)!r}, by the SHA-256 in its "
            f"name. Received: {received}.",
            hint="Put it back from a copy of the store, or calibrate anew, which makes every "
            "feature again: extract with --precision int8 --force.",
        )
    return content
