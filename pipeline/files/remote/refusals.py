"""What an error of a storage means: whether it may pass, and its reason without credentials.

Each library has errors of its own, and some of several; what they have in common are a status of
HTTP, an error of the operating system, or a name.
"""

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

# Of HTTP: too early, too many requests, a request that took too long.
_PASSING: Final = frozenset({408, 425, 429})
_MISSING: Final = frozenset({404, 410})
# Codes of S3 that say less by their status, which is that of a bad request, than they mean.
_PASSING_CODES: Final = frozenset({"RequestTimeout", "SlowDown", "Throttling"})
_CREDENTIALS: Final = frozenset({
    "AuthorizationHeaderMalformed", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken",
    "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
})  # fmt: skip
_NO_CREDENTIALS: Final = frozenset({
    "CredentialRetrievalError", "DefaultCredentialsError", "NoCredentialsError",
    "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError",
})  # fmt: skip
# Errors of libraries about a connection, by the name of the class or of one that it is made from.
_CONNECTION: Final = frozenset({
    "ClientConnectionError", "ClientPayloadError", "FSTimeoutError", "HTTPClientError",
    "HttpProcessingError", "IncompleteReadError", "ResponseParserError", "ServiceRequestError",
    "ServiceResponseError", "TransportError",
})  # fmt: skip
_PASSING_ERRNOS: Final = frozenset(
    getattr(errno, name)
    for name in ("EAGAIN", "EBUSY", "EIO", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH",
                 "EREMOTEIO", "ETIMEDOUT")
    if hasattr(errno, name)
)  # fmt: skip

CHECK_CREDENTIALS: Final = (
    "Check the credentials in the environment, and what they may do; a public bucket of S3 is read "
    "with FSSPEC_S3_ANON=true."
)
CHECK_ADDRESS: Final = "Correct the address."
TRY_LATER: Final = "Run this again when the storage answers; what was done is kept."
_CHECK_NETWORK: Final = "Check the address and the network, then run this again."

_USERINFO: Final = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY: Final = re.compile(r"(?<=\S)\?[^\s'\"]+")
# Names of variables whose values are secret; what they hold is cut from texts of others.
_SECRET: Final = re.compile(r"ACCESS|ACCOUNT|AUTH|CREDENTIAL|KEY|PASS|SAS|SECRET|TOKEN", re.I)
_LEAST_SECRET: Final = 6
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an error means.

    Attributes:
        reason: What happened.
        hint: What to do.
        may_pass: Whether the same request may succeed later.
        is_missing: Whether there is no such object, which is all that is wrong.
        has_answered: Whether the storage was reached.
        pause: Seconds after which the storage asks to be tried again; 0 where it says nothing.
    """

    reason: str
    hint: str = CHECK_ADDRESS
    may_pass: bool = False
    is_missing: bool = False
    has_answered: bool = True
    pause: float = 0.0


def of(error: BaseException) -> Refusal:
    """Return what an error of a storage means."""
    chain = list(_chain(error))
    for item in chain:
        status = _status(item)
        if status:
            return _of_status(status, _code(item), item)
    if isinstance(error, FileNotFoundError):
        return Refusal("there is no such object", is_missing=True)
    if isinstance(error, PermissionError):
        return Refusal("access is denied", CHECK_CREDENTIALS)
    names = {kind.__name__ for item in chain for kind in type(item).__mro__}
    if names & _NO_CREDENTIALS:
        return Refusal(_without_credentials(names), CHECK_CREDENTIALS)
    return _of_connection(chain, names)


def redacted(text: str) -> str:
    """Return a text of others without what may be secret: values of the environment, queries."""
    for name, value in os.environ.items():
        if len(value) >= _LEAST_SECRET and _SECRET.search(name):
            text = text.replace(value, "***")
    text = _QUERY.sub("?***", _USERINFO.sub("***@", text))
    return " ".join(text.split())[:_SHOWN]


def _of_status(status: int, code: str, error: BaseException) -> Refusal:
    said = f"{status} {code}".strip()
    if code == "NoSuchBucket":
        return Refusal(f"there is no such bucket ({said})")
    if code in _CREDENTIALS or status == 401:
        return Refusal(f"the credentials are not accepted ({said})", CHECK_CREDENTIALS)
    if code in _PASSING_CODES or status in _PASSING or status >= 500:
        return Refusal(
            f"the storage is busy or fails ({said})", TRY_LATER, may_pass=True,
            pause=_pause(error),
        )  # fmt: skip
    if status in _MISSING:
        return Refusal("there is no such object", is_missing=True)
    if status == 403:
        return Refusal(f"access is denied ({said})", CHECK_CREDENTIALS)
    if 300 <= status < 400:
        hint = "Name its region in the environment, such as by AWS_DEFAULT_REGION."
        return Refusal(f"the storage sends elsewhere ({said})", hint)
    return Refusal(f"the storage refuses ({said})")


def _of_connection(chain: list[BaseException], names: set[str]) -> Refusal:
    """Return what an error without an answer of the storage means."""
    for item in chain:
        if isinstance(item, ssl.SSLCertVerificationError):
            return Refusal("the certificate of the host is not trusted", has_answered=False)
        if isinstance(item, socket.gaierror):
            host = next(filter(None, map(_host, chain)), "of the host")
            reason = f"the name {host} is not known"
            return Refusal(reason, _CHECK_NETWORK, may_pass=True, has_answered=False)
        if isinstance(item, ConnectionRefusedError):
            return Refusal(
                "the host does not answer: connection refused", _CHECK_NETWORK, may_pass=True,
                has_answered=False,
            )  # fmt: skip
    if any(isinstance(item, TimeoutError) for item in chain) or any("Timeout" in n for n in names):
        reason = "no answer in time"
        return Refusal(reason, TRY_LATER, may_pass=True, has_answered=False)
    is_cut = bool(names & _CONNECTION) or any(
        isinstance(item, ConnectionError)
        or (isinstance(item, OSError) and item.errno in _PASSING_ERRNOS)
        for item in chain
    )
    if is_cut:
        reason = "the connection was cut"
        return Refusal(reason, TRY_LATER, may_pass=True, has_answered=False)
    first = chain[0]
    return Refusal(redacted(f"{type(first).__name__}: {first}"), has_answered=False)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then what it was made from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or _held(error) or error.__context__


def _held(error: BaseException) -> BaseException | None:
    """Return the error that one of botocore holds.

    Its context may be another: it is raised again in another thread, which may handle an error.
    """
    held = getattr(error, "kwargs", None)
    found = held.get("error") if isinstance(held, dict) else None
    return found if isinstance(found, BaseException) else None


def _response(error: BaseException) -> Mapping[str, object]:
    """Return the response of an error of S3, as botocore keeps it."""
    found = getattr(error, "response", None)
    return found if isinstance(found, dict) else MappingProxyType({})


def _metadata(error: BaseException, name: str) -> object:
    metadata = _response(error).get("ResponseMetadata")
    return metadata.get(name) if isinstance(metadata, dict) else None


def _status(error: BaseException) -> int:
    """Return the status of HTTP that an error is of; 0 of others."""
    if any(kind.__name__ == "HttpProcessingError" for kind in type(error).__mro__):
        return 0  # aiohttp calls an answer that was cut short a bad message, by the number 400
    # As botocore keeps it; then aiohttp, Azure's library and gcsfs.
    if status := _as_status(_metadata(error, "HTTPStatusCode")):
        return status
    for name in ("status", "status_code", "code"):
        if status := _as_status(getattr(error, name, None)):
            return status
    return 0


def _as_status(value: object) -> int:
    text = str(value)
    return int(text) if text.isdigit() and 300 <= int(text) < 600 else 0


def _code(error: BaseException) -> str:
    """Return the code of an error of S3, such as SlowDown; empty of others, and of plain digits."""
    said = _response(error).get("Error")
    code = str(said.get("Code", "")) if isinstance(said, dict) else ""
    return "" if code.isdigit() else code


def _pause(error: BaseException) -> float:
    """Return the seconds of a header Retry-After; 0 without one."""
    headers = getattr(error, "headers", None) or _metadata(error, "HTTPHeaders") or {}
    if not isinstance(headers, Mapping):
        return 0.0
    said = str(headers.get("Retry-After") or headers.get("retry-after") or "")
    return float(said) if said.isdigit() else 0.0


def _host(error: BaseException) -> str:
    """Return the host that an error of a connection names, which an endpoint may have set."""
    host = getattr(error, "host", "")
    return repr(host) if isinstance(host, str) and host else ""


def _without_credentials(names: set[str]) -> str:
    if "ProfileNotFound" in names:
        return "the profile that AWS_PROFILE names is not known"
    return "no complete credentials were found"
