"""The image files that features were made of, where they are at hand.

Some are not asked for: images that nobody saw, since no file has a key that is made of a path, and
images at addresses once a storage is out of reach, since each question takes long and none helps.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from pipeline.errors import ConfigError, StorageError, UnreadableImageError
from pipeline.files.location import Remote, is_address
from pipeline.images import reading
from pipeline.images.manifest import Manifest
from pipeline.images.reading import Content, Found
from pipeline.store.path_keys import key_of_path

_UNSEEN: Final = "not at hand when its features were imported"
_CHANGED: Final = "another content than was encoded"


class FilesAtHand:
    """The files of a manifest; any number of threads may ask for them.

    Attributes:
        lost: Why images at addresses are no longer asked for; empty as long as they are.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.lost = ""
        self._manifest = manifest

    def was_seen(self, row: int) -> bool:
        """Tell whether the key of a row is that of an image."""
        key: bytes = self._manifest.keys[row]
        return key != key_of_path(self._manifest.paths[row]).encode()

    def read(self, row: int) -> Content:
        """Return the bytes that were encoded.

        Raises:
            UnreadableImageError: They are not at hand; the message is the reason alone.
        """
        reason = self._not_asked(row)
        if reason:
            raise UnreadableImageError(reason)
        try:
            content = reading.read(self._manifest, row)
        except (ConfigError, StorageError) as error:
            self._note(error)
            raise UnreadableImageError(self.lost or error.message) from error
        if content.key.encode() != self._manifest.keys[row]:
            raise UnreadableImageError(_CHANGED)
        return content

    @contextmanager
    def looked_up(self) -> Iterator[None]:
        """Let ``find`` know the images at addresses, asked together, as long as this lasts."""
        seen = [row for row in range(len(self._manifest)) if self.was_seen(row)]
        with ExitStack() as stack:
            try:
                stack.enter_context(reading.looked_up(self._manifest.take(seen)))
            except (ConfigError, StorageError) as error:
                self._note(error)
            yield

    def find(self, row: int) -> Found | None:
        """Look for the image of a row without opening it; None where it is not at hand."""
        if self._not_asked(row):
            return None
        try:
            return reading.find(self._manifest, row)
        except (ConfigError, StorageError) as error:
            self._note(error)
            return None

    def _not_asked(self, row: int) -> str:
        """Return why the image of a row is not asked for; empty where it is."""
        if not self.was_seen(row):
            return _UNSEEN
        if not self.lost:
            return ""
        root, path = self._manifest.root, self._manifest.paths[row]
        return self.lost if isinstance(root, Remote) or is_address(path) else ""

    def _note(self, error: ConfigError | StorageError) -> None:
        """Ask for no more images at addresses where none can be had: the first reason counts."""
        if isinstance(error, ConfigError) or error.is_lost:
            self.lost = self.lost or error.message
