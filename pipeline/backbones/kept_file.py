"""The file of a network that is in no table, kept in a store by the digest of its bytes.

Kept by ``extract``, so that whatever comes later needs no file beside the store. Like a shard it is
complete if it is there, and never changed.
"""

import re
import shutil
from pathlib import Path
from typing import Final

from pipeline.backbones import forms
from pipeline.errors import WeightsUnavailableError
from pipeline.files.atomic import write_atomically
from pipeline.files.regular import sha256_file

_NAME: Final = re.compile(
    rf"[0-9a-f]{{64}}({'|'.join(re.escape(form.suffix) for form in forms.FORMS)})"
)


def keep(folder: Path, file: Path) -> None:
    """Copy a network's file into a folder, unless the folder has one.

    Args:
        folder: The encoder folder of a store, whose features the network makes.
        file: The file.

    Raises:
        OSError: The file cannot be read, or the folder not be written to.
        WeightsUnavailableError: The file changed while it was copied.
    """
    if find(folder) is not None:
        return
    digest = sha256_file(file)

    def copy(temporary: Path) -> None:
        shutil.copyfile(file, temporary)
        if sha256_file(temporary) != digest:
            raise WeightsUnavailableError(
                f"{file}: expected a file that stays as it is. Received: one that changed while "
                "it was copied.",
                hint="Wait until it is written, and try again.",
            )

    write_atomically(folder / f"{digest}{file.suffix}", copy)


def find(folder: Path) -> Path | None:
    """Return the file that a folder keeps; None of an older release's store."""
    return next((path for path in sorted(folder.glob("*")) if is_one(path)), None)


def is_one(path: Path) -> bool:
    """Tell whether a file's name is that of a kept network."""
    return _NAME.fullmatch(path.name) is not None


def require_as_kept(path: Path) -> None:
    """Refuse a kept file that is not what its name says.

    Raises:
        WeightsUnavailableError: It is damaged, or cannot be read.
    """
    try:
        received = sha256_file(path)
    except OSError as error:
        received = f"nothing: {error.strerror}"
    if received != path.stem:
        raise WeightsUnavailableError(
            f"Expected the network that was kept in {str(path)!r}, by the SHA-256 in its name. "
            f"Received: {received}.",
            hint="Drop it with pipeline verify STORE --repair, and give the network's file with "
            f"--weights PATH{path.suffix}, or to extract, which keeps it again.",
        )
