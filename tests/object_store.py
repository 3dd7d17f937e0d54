"""An object store on this machine, and a site of the web, whose answers a test may spoil."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.files.remote import retries

Start = Callable[..., Any]
Application = Callable[[dict[str, Any], Start], Iterable[bytes]]

# Told apart from anything else that a file or a message may hold.
KEY_ID, SECRET = "AKIAQ7WJ3ZV2NBXLK5PD", "wJalrXUtnFEMIK7MDENGbPxRfiCYzKq8vT4sH2nA"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    # Nothing of the person who runs the tests.
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def set_environment(patch: pytest.MonkeyPatch, store: ObjectStore, copies: Path) -> None:
    """Give credentials for a store and a folder for copies; let retries follow at once."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": store.url}.items():
        patch.setenv(name, value)
    patch.setenv("PIPELINE_CACHE_DIR", str(copies))
    patch.setattr(retries, "PAUSE", 0)


class ObjectStore:
    """S3 by moto. ``spoil``, given method and path, says what is wrong with an answer.

    An answer may be ``cut`` in the middle, wait until the store ends (``hang``), or be an error
    such as ``503 SlowDown``; None leaves it as it is.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None: ...

        self._inner: Application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True,
                                   request_handler=Quiet)  # fmt: skip
        self.url = f"http://127.0.0.1:{self._server.port}"
        self._ended = threading.Event()
        self.reset()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def reset(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.spoil: Callable[[str, str], str | None] = lambda method, path: None

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def count(self, method: str, ending: str = "") -> int:
        return sum(asked == method and path.endswith(ending) for asked, path in self.requests)

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.spoil(method, path)
        if fault == "hang":
            self._ended.wait()
        if fault is None or fault == "hang":
            return self._inner(environ, start)
        if fault == "cut":
            return _cut(b"".join(self._inner(environ, start)))
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, _, code = fault.partition(" ")
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        start(f"{status} x", [("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]


def _cut(body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    raise ConnectionAbortedError


class Website:
    """A folder on the web, with times and without ETags, as Python serves it.

    ``headers``, given those of an answer, changes them; ``spoil`` gives a status in its place.
    """

    def __init__(self, folder: Path) -> None:
        site = self
        self.requests: list[tuple[str, str]] = []
        self.headers: Callable[[dict[str, str]], None] = lambda headers: None
        self.spoil: Callable[[str, str], int | None] = lambda method, path: None

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def send_head(self) -> Any:
                site.requests.append((self.command, self.path))
                status = site.spoil(self.command, self.path)
                if status:
                    self.send_error(status)
                    return None
                return super().send_head()

            def send_header(self, keyword: str, value: str) -> None:
                told = {keyword: value}
                site.headers(told)
                for name, said in told.items():
                    super().send_header(name, said)

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # as many as there are readers, who would wait for seconds

        self._server = Server(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
