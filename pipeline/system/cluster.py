"""A cluster of Ray: one that is joined, or one of this machine alone that ends with the command.

What Ray would print is kept off stdout and stderr, its statistics of usage and its dashboard are
off, and what goes wrong is one line.
"""

import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final

from pipeline.errors import ClusterError, ConfigError, EngineUnavailableError
from pipeline.system import machine, ray_output

# Ray Data does not start without the two others.
_REQUIRED: Final = ("ray", "pandas", "pyarrow")
# Read by Ray's processes when they start: no statistics, nothing of its C++ on stderr, and a worker
# that decodes is kept while it waits: after Ray's one second a new one would import for two.
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}
# Of memory that is shared between processes: what a cluster of this machine alone takes, and the
# least that Ray takes.
_LEAST_MEMORY: Final = 80 << 20
_SHARE: Final = 0.3
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects
# Read by Ray where no address is given.
_VARIABLE: Final = "RAY_ADDRESS"
LOOK: Final = "Look at the cluster with ray status, then run this again; what was done is kept."


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster that this process is connected to.

    Attributes:
        ray: Ray, connected.
        can_grow: Whether nodes may join, unlike one that this command started.
    """

    ray: ModuleType
    can_grow: bool


def require_installed() -> None:
    """Refuse to go on without Ray.

    Raises:
        EngineUnavailableError: Says how to install it.
    """
    missing = [name for name in _REQUIRED if find_spec(name) is None]
    if missing:
        raise EngineUnavailableError(
            f"Expected Ray for --executor ray. Received: no module {missing[0]!r}.",
            hint="Run: pip install 'embedding-pipeline[ray]'",
        )


def require_executor(executor: str, *, address: str | None, **more: object) -> None:
    """Refuse options of the executor ray for another one, and what it lacks, before any work.

    Args:
        executor: The executor asked for.
        address: The cluster to join; None stands for an option that is not given.
        more: Other options by name; None likewise.

    Raises:
        ConfigError: Names the option, or the address that is none of a cluster.
        EngineUnavailableError: Ray is not installed.
    """
    if executor == "ray":
        require_installed()
        _require_address(address)
        return
    for name, value in {"address": address, **more}.items():
        if value is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for --executor ray. Received: it with {executor}.",
                hint="Leave it out, or add --executor ray.",
            )


def _require_address(address: str | None) -> None:
    """Refuse the address of a client or of a dashboard.

    Raises:
        ConfigError: Names the option, or the variable that takes its place.
    """
    found = _address(address)
    if found is not None and "://" in found:
        name = "--address" if found == address else _VARIABLE
        raise ConfigError(
            f"{name}: expected HOST:PORT, or auto, of a cluster that this machine is part of. "
            f"Received: {found!r}.",
            hint="Run the command on a node of the cluster, such as by: ray job submit.",
        )


def _address(given: str | None) -> str | None:
    """Return the address that Ray takes: the variable counts where none is given, or ``auto``."""
    named = os.environ.get(_VARIABLE)
    return named if named and given in (None, "auto") else given


@contextmanager
def joined(address: str | None, *, memory: int) -> Iterator[Connection]:
    """Give Ray, connected to a cluster, as long as the context lasts.

    A connection that the program has already is used and kept.

    Args:
        address: ``HOST:PORT`` or ``auto`` of a cluster to join; ``RAY_ADDRESS`` takes the place of
            None and of ``auto``. Without either, a cluster of this machine alone is started.
        memory: Bytes of shared memory that are enough for a cluster of this machine alone.

    Raises:
        ClusterError: The cluster does not answer, is of another version of Ray or Python, or
            fails in the context.
        ConfigError: The address is of another kind.
        EngineUnavailableError: Ray is not installed.
    """
    require_installed()
    _require_address(address)
    with _environment(), ray_output.without_chatter(), ExitStack() as stack:
        import ray

        is_own = False
        if not ray.is_initialized():
            folder = Path(tempfile.mkdtemp(prefix="ray-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(ray.shutdown)
            is_own = _connect(ray, address, memory, folder)
        try:
            yield Connection(ray, can_grow=not is_own)
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"Expected a cluster that goes on. Received: {ray_output.one_line(str(error))}.",
                hint=LOOK,
            ) from error


def _require_startable() -> None:
    """Refuse what Ray would wait for in vain: it starts Python by a line of the shell, unquoted.

    Raises:
        ClusterError: Python's path has a blank.
    """
    if len(sys.executable.split()) > 1:
        raise ClusterError(
            f"Expected Python at a path without blanks, from which Ray can start it. Received: "
            f"{sys.executable!r}.",
            hint="Make the environment in another folder, or leave --executor ray out.",
        )


def _connect(ray: ModuleType, address: str | None, memory: int, folder: Path) -> bool:
    """Join a cluster, or start one of this machine alone; tell whether it is such a one."""
    found = _address(address)
    is_joined = found is not None and found != "local"
    if not is_joined:
        _require_startable()
    before = signal.getsignal(signal.SIGTERM)
    settings: dict[str, object] = {"address": found}
    if not is_joined:
        settings = {
            "address": "local",
            "num_cpus": machine.processors(),
            "object_store_memory": _bounded(memory),
            "include_dashboard": False,
            "_temp_dir": str(folder),
        }
    try:
        with ray_output.without_stderr():
            ray.init(**settings, log_to_driver=False)
    except Exception as error:  # of many kinds, none of which Ray promises
        said = ray_output.one_line(str(error))
        raise ClusterError(
            f"Expected a Ray cluster {found} to join, of Ray {ray.__version__} and Python "
            f"{platform.python_version()}. Received: {said}."
            if is_joined
            else f"Expected to start Ray on this machine. Received: {said}.",
            hint="Install the cluster's versions of Ray and Python here, or give the address that "
            "ray start --head printed."
            if is_joined
            else "See what pipeline extract says without --executor ray.",
        ) from error
    finally:
        # Ray's own would leave without saying what was kept.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return not is_joined


def _bounded(memory: int) -> int:
    """Return how much shared memory to take, of what is there."""
    there = machine.free_memory()
    with suppress(OSError):
        there = min(there, shutil.disk_usage(_SHARED_MEMORY).free)
    return max(_LEAST_MEMORY, min(memory, int(_SHARE * there)))


@contextmanager
def _environment() -> Iterator[None]:
    """Set what Ray's processes read when they start; values of the user's own stay."""
    added = {name: text for name, text in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
