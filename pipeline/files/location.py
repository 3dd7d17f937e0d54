"""Where data is: a path of this machine, or an address such as ``s3://bucket/photos``.

Both are joined by ``/`` and shown by ``str``, so that what only names a place need not know which
it is.
"""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from pipeline.errors import ConfigError

_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.+)", re.DOTALL)
# The host or bucket of an address without credentials, which stand before it, up to an @.
_HOST: Final = re.compile(r"(?:\[[^\]]*\]|[^:@]*)(?::\d{1,5})?")
# Buckets have no port: what follows their colon is a secret.
_BUCKET: Final = re.compile(r"arn:[^@]*|[^:@]*")
_OF_BUCKETS: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_QUERY: Final = re.compile("[?#](.*)", re.DOTALL)
# Of a parameter whose value is a credential, the name, or what it ends in. Those of a download
# have others, as in ?download=1, ?token_count=3 or Dropbox' ?rlkey=.
_SECRET: Final = re.compile(
    r"auth|code|jwt|key|pass|pwd|sig"
    r"|.*(?:api|access|account|auth|private|secret|shared|subscription)[_-]?key(?:[_-]?id)?"
    r"|.*(?:authorization|credentials?|passphrase|passwd|password|secret|signature|token)"
    r"|.*[._-](?:auth|jwt|pass|pwd|sig)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Remote:
    """An object at an address, or all whose addresses begin with it.

    Attributes:
        url: The address, without a slash at its end.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, path: str) -> "Location":
        if is_address(path):
            return locate(path)
        if self._is_web:
            # In the address of a page these begin what is no part of its name.
            path = path.replace("?", "%3F").replace("#", "%23")
        return Remote(f"{self.url}/{path}")

    @property
    def name(self) -> str:
        """The last part of the address; on the web without its query.

        That is a part of it where nothing else has a suffix, as in ``get?file=a.zip``.
        """
        name = self._path.rpartition("/")[2]
        return name if "." in name else self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """What the name ends in, with its dot."""
        return Path(self.name).suffix

    @property
    def parent(self) -> "Remote":
        """What holds the object."""
        return Remote(self._path.rpartition("/")[0])

    @property
    def _path(self) -> str:
        return _QUERY.sub("", self.url) if self._is_web else self.url

    @property
    def _is_web(self) -> bool:
        return self.url.startswith(("http://", "https://"))


Location = Path | Remote


def name_of(text: str) -> str:
    """Return the last part of the place that a text names."""
    place = locate(text)
    return place.name if isinstance(place, Remote) else place.resolve().name


def is_address(text: str) -> bool:
    """Tell an address from a path."""
    return "://" in text and _ADDRESS.fullmatch(text) is not None


def locate(text: str | Path) -> Location:
    """Return the place that a text names; ``file://`` is a path.

    Raises:
        ConfigError: An address holds credentials.
    """
    match = None if isinstance(text, Path) else _ADDRESS.fullmatch(text)
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return Path("/" + rest.lstrip("/"))
    if _has_credentials(rest, _BUCKET if scheme in _OF_BUCKETS else _HOST):
        raise ConfigError(
            f"Expected an address without credentials, which would be written into records. "
            f"Received one with: {scheme}://...",
            hint="Give credentials in the environment, as the storage's own tools take them.",
        )
    return Remote(f"{scheme}://{rest.rstrip('/')}")


def _has_credentials(rest: str, host: re.Pattern[str]) -> bool:
    """Tell whether what follows a scheme holds credentials, which would be written into records.

    A secret before the host may have slashes in it; a ? in the name of an object stays.
    """
    if "@" in rest and not host.fullmatch(re.split("[/?#]", rest)[0]):
        return True
    query = _QUERY.search(rest)
    parameters = re.split("[?#&;]", query[1]) if query else []
    named = (name for name, mark, _ in (text.partition("=") for text in parameters) if mark)
    return any(_SECRET.fullmatch(unquote(name)) for name in named)


def local(option: str, text: str | Path) -> Path:
    """Return the path of a file that is read from this machine alone.

    Args:
        option: What names the file, such as ``--manifest``.
        text: The path.

    Raises:
        ConfigError: It is an address.
    """
    if is_address(str(text)) and isinstance(locate(str(text)), Remote):
        raise ConfigError(
            f"{option}: expected a file of this machine. Received: {str(text)!r}.",
            hint="Fetch it, and give its path.",
        )
    return Path(text)


def join(root: Location, path: str) -> Location:
    """Return the place of a path that is relative to a root; an address is a place itself."""
    return locate(path) if is_address(path) else root / path


def is_below(path: str) -> bool:
    """Tell whether a text is the one spelling of a path below a folder."""
    is_inside = not path.startswith(("/", "../")) and path not in (".", "..")
    return is_inside and not is_address(path) and posixpath.normpath(path) == path


def normalized(path: str) -> str:
    """Return the one spelling of a path or an address."""
    return str(locate(path)) if is_address(path) else posixpath.normpath(path)
