"""Fixtures that several test files share."""

import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_resnet
from fakes import Command, FakeEncoder, replace_network
from object_store import ObjectStore, Website, set_environment

from pipeline.cli.main import main
from pipeline.files.location import Remote
from pipeline.files.remote import retries, systems


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command with --json; return its exit status and result."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments] + ["--json", "--quiet"])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def fake_network(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """Replace the backbone; see ``fakes.replace_network``."""
    return replace_network(monkeypatch)


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Build a tiny network wherever ResNet50 is asked for, to the end of the module."""
    with tiny_resnet.in_place_of_resnet50():
        yield


@pytest.fixture
def age() -> Callable[[Path], None]:
    """Make the scan cache trust files that were written a moment ago."""

    def make_old(folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                os.utime(path, (1_600_000_000, 1_600_000_000))

    return make_old


@pytest.fixture(scope="session")
def object_store_process() -> Iterator[ObjectStore]:
    """Start one object store for all tests of a process."""
    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture
def object_store(
    object_store_process: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[ObjectStore]:
    """An object store with its credentials in the environment; copies go to a new folder."""
    set_environment(monkeypatch, object_store_process, tmp_path / "copies")
    yield object_store_process
    object_store_process.reset()


@pytest.fixture
def bucket(object_store: ObjectStore, request: pytest.FixtureRequest) -> str:
    """The address of an empty bucket."""
    name = f"b{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
    systems.of(Remote("s3://any")).mkdir(name)
    object_store.reset()
    return f"s3://{name}"


@pytest.fixture
def website(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Website]:
    """The folder ``tmp_path/site`` on the web; copies go to a new folder."""
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "copies"))
    monkeypatch.setattr(retries, "PAUSE", 0)
    (tmp_path / "site").mkdir()
    site = Website(tmp_path / "site")
    yield site
    site.close()


# Files with tests of minutes, so that no process is left with one of them at the end; before them
# one that forks hundreds of times, which is cheap while this process has not imported TensorFlow.
FIRST = (
    "test_flips", "test_on_jax", "test_on_ray", "test_documents", "test_benchmarks",
    "test_end_to_end", "test_signals", "test_progress", "test_memory", "test_export",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


# Memory that is a folder, where writing waits for no disk; tests keep some gigabytes in it.
IN_MEMORY = Path("/dev/shm")
NEEDED = 8e9


def pytest_configure() -> None:
    if IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > NEEDED:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))
        # What programs that are tested, benchmarks among them, keep for a while lies there too.
        os.environ.setdefault("TMPDIR", str(IN_MEMORY))
        tempfile.tempdir = None
    # Whoever starts the tests in the background has Ctrl-C ignored, here and in what is started.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
