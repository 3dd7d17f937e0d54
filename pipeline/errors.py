"""The errors this package raises on purpose; every other module imports them.

* PipelineError
  + ConfigError (ValueError)               bad or unknown option; lists the valid names
  + ManifestError (ValueError)             no images, one class, missing column, empty split
    - DamagedTableError                    a table that is cut short; another one may be whole
  + DecodeError (ValueError)               bytes that give no image
    - UnreadableImageError                 an image file whose bytes cannot be had
  + ImageTypeError (TypeError)             an argument that is no image
  + StorageError                           a storage at an address that refuses or is out of reach
  + StoreError
    - StaleFeaturesError                   the features were made another way; names the field
    - MissingFeaturesError (KeyError)      no features for these keys; carries .keys
    - CorruptShardError                    checksum, shape or rows disagree; carries .shard
  + RunError (ValueError)                  a run directory that does not fit what was asked
  + WeightsUnavailableError (OSError)      weights that cannot be had, or do not fit
  + HeadNotTrainableError (TypeError)      a head that is no network; names those that are
  + ClusterError                           a cluster, or a node of it, that cannot be used
  + EngineUnavailableError (ImportError)   an engine that is not installed; carries the pip line

Every message says what was expected and what was received; ``hint`` is the next action.
The command line prints both in one line and exits with status 2.
"""

import difflib
import errno
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

_PERMISSION: Final = "Check permissions, or choose another place; then run this again."
_KIND: Final = (
    "A file stands where a folder is expected, or a folder for a file: give another path."
)
_FULL: Final = "Free disk space, then run this again."
_HANDLES: Final = "Raise the limit of open files (ulimit -n), then run this again."
_HINTS: Final[Mapping[int | None, str]] = MappingProxyType(
    {
        errno.ENOSPC: _FULL,
        errno.EDQUOT: _FULL,
        errno.EFBIG: "The file would be larger than the file system allows: choose another place.",
        errno.EACCES: _PERMISSION,
        errno.EPERM: _PERMISSION,
        errno.EROFS: "The file system is read-only: choose another place.",
        errno.EMFILE: _HANDLES,
        errno.ENFILE: _HANDLES,
        errno.ENOTDIR: _KIND,
        errno.EISDIR: _KIND,
        errno.EEXIST: _KIND,
        errno.ENOENT: "Correct the path, or put back what was there; then run this again.",
        errno.ENAMETOOLONG: "Give a shorter name.",
        errno.ELOOP: "Remove the symbolic link that points back.",
    }
)
_MENTIONED: Final = 5


class PipelineError(Exception):
    """Base of all errors that this package raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class ConfigError(PipelineError, ValueError):
    """An option, flag or configuration key is unknown or out of range."""


class ManifestError(PipelineError, ValueError):
    """The list of examples cannot be used as it is."""


class DamagedTableError(ManifestError):
    """A table that is cut short, damaged or gone, while others of the data may be whole."""


class DecodeError(PipelineError, ValueError):
    """Bytes that cannot be decoded into an image; the message is the reason alone."""


class UnreadableImageError(DecodeError):
    """An image file that is gone, or that is not to be opened; the message is the reason alone."""


class ImageTypeError(PipelineError, TypeError):
    """Something was given for an image that is not one: no path, no bytes, no pixels."""


class StorageError(PipelineError):
    """A storage at an address refuses, or cannot be reached.

    Attributes:
        reason: What happened, as the reason of one image that is bad.
        is_lost: Whether more than one object is concerned, so that going on makes no sense.
    """

    def __init__(
        self, message: str, *, hint: str = "", reason: str = "", is_lost: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason or message.rstrip(".")
        self.is_lost = is_lost


class StoreError(PipelineError):
    """A feature store cannot be used as it is."""


class StaleFeaturesError(StoreError):
    """The stored features were made in another way than the one asked for."""


class MissingFeaturesError(StoreError, KeyError):
    """The store has no features for some keys."""

    def __init__(self, message: str, *, keys: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.keys = tuple(keys)


class CorruptShardError(StoreError):
    """A shard's checksum, shape or values are not what they must be."""

    def __init__(self, message: str, *, shard: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.shard = shard


class RunError(PipelineError, ValueError):
    """A run directory does not fit what was asked of it."""


class WeightsUnavailableError(PipelineError, OSError):
    """Backbone weights cannot be had, or do not fit the backbone."""


class HeadNotTrainableError(PipelineError, TypeError):
    """A head that cannot become layers of a network."""


class ClusterError(PipelineError):
    """A cluster of Ray, or a node of it, cannot be used; names the node."""


class EngineUnavailableError(PipelineError, ImportError):
    """An optional runtime is not installed."""


def hint_for(error: OSError) -> str:
    """Return the next action for an error of the operating system."""
    general = "Check the disk, permissions and the limit of open files, then run this again."
    return _HINTS.get(error.errno, general)


def mention(names: Sequence[str], *, quoted: bool = True) -> str:
    """Return the first few names for a message, and how many more there are."""
    shown = ", ".join(repr(name) if quoted else name for name in names[:_MENTIONED])
    more = len(names) - _MENTIONED
    return shown + (f" and {more:,} more" if more > 0 else "")


def unknown_name(kind: str, name: str, valid: Iterable[str], where: str = "") -> ConfigError:
    """Return the error for an unknown name: the nearest valid one, then all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    place = f" in {where}" if where else ""
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(
        f"Unknown {kind} {name!r}{place}.{suggestion}", hint=f"Valid names: {', '.join(names)}."
    )
