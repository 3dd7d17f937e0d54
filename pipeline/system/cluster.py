"""A cluster of Ray: one that is joined, or one of this machine alone that ends with the command.

What Ray would print is kept off stdout and stderr, its statistics of usage and its dashboard are
off, and what goes wrong while a cluster is joined or looked at is one line that names the node.
"""

import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pipeline._version import __version__
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
# How long a node may take to answer, workers that are being started included.
_ANSWER_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster.

    Attributes:
        id: Ray's name for it, in hexadecimal.
        name: Host and the first digits of the id, for messages.
        cpus: Processors that Ray may give away.
        gpus: GPUs that Ray may give away.
    """

    id: str
    name: str
    cpus: float
    gpus: float


def node_name(node_id: str) -> str:
    """Return what messages of this process call the node that it runs on.

    Args:
        node_id: Ray's name for it.
    """
    return f"{platform.node()} ({node_id[:6]})"


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


def require_executor(executor: str, **given: object) -> None:
    """Refuse options of the executor ray for another one.

    Args:
        executor: The executor asked for.
        given: Options by name; None stands for one that is not given.

    Raises:
        ConfigError: Names the option.
    """
    for name, value in given.items():
        if executor != "ray" and value is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for --executor ray. Received: it with {executor}.",
                hint="Leave it out, or add --executor ray.",
            )


@contextmanager
def joined(address: str | None, *, memory: int) -> Iterator[ModuleType]:
    """Give Ray, connected to a cluster, as long as the context lasts.

    A connection that the program has already is used and kept.

    Args:
        address: ``HOST:PORT`` or ``auto`` of a cluster to join; None stands for ``RAY_ADDRESS`` or,
            without it, for a cluster of this machine alone.
        memory: Bytes of shared memory that are enough for a cluster of this machine alone.

    Raises:
        ClusterError: The cluster does not answer, or is of another version of Ray or Python.
        EngineUnavailableError: Ray is not installed.
    """
    require_installed()
    if address is not None and "://" in address:
        raise ConfigError(
            f"--address: expected HOST:PORT, or auto, of a cluster that this machine is part of. "
            f"Received: {address!r}.",
            hint="Run the command on a node of the cluster, such as by: ray job submit.",
        )
    with _environment(), ray_output.without_chatter():
        import ray

        if ray.is_initialized():
            yield ray
            return
        folder = Path(tempfile.mkdtemp(prefix="ray-"))
        try:
            _connect(ray, address, memory, folder)
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def nodes(ray: ModuleType) -> list[Node]:
    """Return the nodes of a cluster that are alive.

    Args:
        ray: Ray, connected.
    """
    return [
        Node(
            id=found["NodeID"],
            name=f"{found['NodeManagerHostname']} ({found['NodeID'][:6]})",
            cpus=found["Resources"].get("CPU", 0.0),
            gpus=found["Resources"].get("GPU", 0.0),
        )
        for found in ray.nodes()
        if found["Alive"]
    ]


def require_fit(ray: ModuleType, check: Callable[[], None] | None = None) -> list[Node]:
    """Ask every node for the release of this package that it has, and whatever else is needed.

    Args:
        ray: Ray, connected.
        check: Raises on a node that cannot be used; pickled by its name in this package.

    Returns:
        The nodes, without those that went meanwhile.

    Raises:
        ClusterError: Names the first node that cannot be used, or does not answer.
    """
    release = __version__

    # Sent by value, because it is within a function: a node may lack this package.
    def look() -> str:
        try:
            from pipeline._version import __version__ as found
        except ImportError as error:
            return f"no package embedding-pipeline that can be imported ({error})"
        if found != release:
            return f"embedding-pipeline {found}"
        return ""

    def look_closer() -> str:
        found = look()
        if found or check is None:
            return found
        try:
            check()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    members = nodes(ray)
    pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    for function, expected in (
        (look, f"embedding-pipeline {release} on every node"),
        (look_closer, "what this node sees on every node"),
    ):
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        asked = [
            task.options(scheduling_strategy=pinned(node.id, soft=False)).remote()
            for node in members
        ]
        answers = [
            (node, _answer(ray, answer)) for node, answer in zip(members, asked, strict=True)
        ]
        for node, found in answers:
            if found:
                raise ClusterError(
                    f"The node {node.name}: expected {expected}. Received: {found}.",
                    hint="Install the same release on every node, and let every node see the "
                    "store and the data under the same paths.",
                )
        members = [node for node, found in answers if found is not None]
        if check is None:
            break
    return members


def _answer(ray: ModuleType, answer: Any) -> str | None:
    """Return what a node says is wrong with it; None of one that went while it was asked."""
    try:
        found: str = ray.get(answer, timeout=_ANSWER_SECONDS)
    except ray.exceptions.GetTimeoutError:
        return f"no answer within {_ANSWER_SECONDS:.0f} s"
    except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
        return None
    except ray.exceptions.RayError as error:
        return ray_output.one_line(str(error))
    return found


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


def _connect(ray: ModuleType, address: str | None, memory: int, folder: Path) -> None:
    """Join a cluster, or start one of this machine alone."""
    is_joined = address is not None or bool(os.environ.get("RAY_ADDRESS"))
    if not is_joined:
        _require_startable()
    before = signal.getsignal(signal.SIGTERM)
    settings: dict[str, object] = {"address": address}
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
        where = address or os.environ.get("RAY_ADDRESS") or "on this machine"
        said = ray_output.one_line(str(error))
        raise ClusterError(
            f"Expected a Ray cluster {where} to join, of Ray {ray.__version__} and Python "
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
