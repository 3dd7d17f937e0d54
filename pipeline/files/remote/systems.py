"""The file systems of addresses: one per scheme, made when it is first needed.

A file system of fsspec does its work on one thread with an event loop, whichever thread asks, so
that any number of threads may share one. Neither survives a fork: the child makes its own.
"""

import os
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError
from pipeline.files.location import Remote
from pipeline.files.remote.refusals import redacted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    Settings = Mapping[str, Any]

# More than there are reading threads; what waits for a connection is no slow storage.
_CONNECTIONS: Final = 256
_CONNECT_SECONDS: Final = 10
_READ_SECONDS: Final = 30

_made: dict[str, "AbstractFileSystem"] = {}
_lock = threading.Lock()
# Kept in a forked child, so that nothing of them is closed on a loop that runs in the parent.
_abandoned: list["AbstractFileSystem"] = []


def scheme_of(place: Remote) -> str:
    """Return what an address begins with, such as ``s3``."""
    return place.url.partition("://")[0]


def host_of(place: Remote) -> str:
    """Return an address to the end of its bucket or host, such as ``s3://bucket``."""
    scheme, _, rest = place.url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def path_of(place: Remote, system: "AbstractFileSystem") -> str:
    """Return what a file system calls an object."""
    return str(system._strip_protocol(place.url))


def of(place: Remote) -> "AbstractFileSystem":
    """Return the file system of an address.

    Raises:
        ConfigError: Nothing of that name is known, or what speaks to it is not installed.
    """
    scheme = scheme_of(place)
    with _lock:
        if scheme not in _made:
            _made[scheme] = _new(place, scheme)
        return _made[scheme]


def _new(place: Remote, scheme: str) -> "AbstractFileSystem":
    try:
        import fsspec
        from fsspec.config import conf
    except ImportError as error:
        raise _not_installed(place, "fsspec", scheme) from error
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise _not_installed(place, _package(error), scheme) from error
    except ValueError as error:
        raise ConfigError(
            f"Expected an address such as s3://bucket/photos. Received: {str(place)!r}, whose "
            f"scheme {scheme!r} is not known.",
            hint="Correct it, or give a path of this machine.",
        ) from error
    settings = _SETTINGS.get(scheme, _plain)(conf.get(scheme, {}))
    try:
        system = kind(skip_instance_cache=True, use_listings_cache=False, **settings)
    except ImportError as error:
        raise _not_installed(place, _package(error), scheme) from error
    except (OSError, TypeError, ValueError) as error:  # such as a scheme for files within files
        raise ConfigError(
            f"Expected an address of a storage. Received: {str(place)!r}: {redacted(str(error))}.",
            hint="Give an address such as s3://bucket/photos, or a path of this machine.",
        ) from None
    if hasattr(system, "retries"):
        system.retries = 1  # what may pass is tried again here, the same for every storage
    return system


def _s3(given: "Settings") -> "Settings":
    config = {
        "connect_timeout": _CONNECT_SECONDS,
        "max_pool_connections": _CONNECTIONS,
        "read_timeout": _READ_SECONDS,
        "retries": {"max_attempts": 0},
        **given.get("config_kwargs", {}),
    }
    # One request for an object, without one before that asks for its size.
    return {"config_kwargs": config, "max_concurrency": 1}


def _http(given: "Settings") -> "Settings":
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS
    )
    # With proxies, and credentials of .netrc.
    return {"client_kwargs": {"timeout": timeout, "trust_env": True, **given.get("client_kwargs",
                                                                                 {})}}  # fmt: skip


def _plain(given: "Settings") -> "Settings":
    return {}


_SETTINGS: Final[Mapping[str, Callable[["Settings"], "Settings"]]] = MappingProxyType(
    {"http": _http, "https": _http, "s3": _s3, "s3a": _s3}
)


def _package(error: ImportError) -> str:
    """Return the package that an import failed for."""
    found = error
    while isinstance(found.__cause__, ImportError):
        found = found.__cause__
    return (found.name or "another library").partition(".")[0]


def _not_installed(place: Remote, package: str, scheme: str) -> ConfigError:
    own = scheme in _SETTINGS or package == "fsspec"
    return ConfigError(
        f"{str(place)!r} needs {package}, which is not installed.",
        hint=f"pip install {chr(39) + 'embedding-pipeline[remote]' + chr(39) if own else package}",
    )


def _forget() -> None:
    """Let a forked child make its own."""
    global _lock
    _lock = threading.Lock()
    _abandoned.extend(_made.values())
    _made.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
