"""The nodes of a cluster of Ray: what they have, whether they can be used, and what they answer.

What goes wrong while they are looked at is one line that names the node.
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from pipeline._version import __version__
from pipeline.errors import ClusterError
from pipeline.system import ray_output
from pipeline.system.cluster import LOOK, Connection
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

# How long a node may take to answer, workers that are being started included.
_ANSWER_SECONDS: Final = 120.0
# From one look at the nodes to the next, while answers are waited for.
_LOOK_SECONDS: Final = 5.0


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

    def fits(self, wanted: Mapping[str, float]) -> bool:
        """Tell whether it has what a task or an actor asks for, once it is free."""
        return self.cpus >= wanted.get("num_cpus", 0) and self.gpus >= wanted.get("num_gpus", 0)


def here() -> str:
    """Return what messages of this process call the node that it runs on."""
    import ray

    return f"{platform.node()} ({ray.get_runtime_context().get_node_id()[:6]})"


def alive(ray: ModuleType) -> list[Node]:
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

    members = alive(ray)
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


def require_room(joined: Connection, wanted: Mapping[str, float], reporter: Reporter) -> None:
    """Refuse what no node can have; say what is waited for where another node may join.

    Args:
        joined: The cluster.
        wanted: What a task or an actor asks for, as Ray's ``num_cpus`` and ``num_gpus``.
        reporter: Where that is said.

    Raises:
        ClusterError: No node of a cluster that cannot grow has as much.
    """
    members = alive(joined.ray)
    if any(node.fits(wanted) for node in members):
        return
    asked = f"{wanted.get('num_cpus', 0):g} CPU and {wanted.get('num_gpus', 0):g} GPU"
    there = (
        f"{counted(len(members), 'node')} with at most "
        f"{max((node.cpus for node in members), default=0):g} CPU and "
        f"{max((node.gpus for node in members), default=0):g} GPU"
    )
    if not joined.can_grow:
        raise ClusterError(
            f"Expected a node that has {asked} for an actor. Received: {there}.",
            hint="Give a smaller --actor-cores, or leave it out.",
        )
    limit = patience(joined.ray)
    within = "" if limit is None else f" within {limit:,.0f} s"
    reporter.say(
        f"Note: no node has {asked} for an actor (the cluster has {there}); waiting for one that "
        f"joins{within}"
    )


def patience(ray: ModuleType) -> float | None:
    """Return for how many seconds a cluster is waited for, as Ray Data does; None for ever."""
    seconds: float = ray.data.DataContext.get_current().execution_no_progress_timeout_s
    return seconds if seconds > 0 else None


def result(ray: ModuleType, answer: Any, what: str) -> Any:
    """Return an answer, once it is there.

    Args:
        ray: Ray, connected.
        answer: Ray's reference to it.
        what: What is expected, for messages.

    Raises:
        ClusterError: There is none for as long as a cluster is waited for.
    """
    limit = patience(ray)
    try:
        return ray.get(answer, timeout=limit)
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(
            f"Expected {what}. Received: no answer within {limit:,.0f} s.", hint=LOOK
        ) from error


def awaited(ray: ModuleType, answers: Iterable[Any], wanted: Mapping[str, float]) -> Iterator[Any]:
    """Yield Ray's references to answers, each once it is there.

    Args:
        ray: Ray, connected.
        answers: The references.
        wanted: What a task that answers asks for, as Ray's ``num_cpus`` and ``num_gpus``.

    Raises:
        ClusterError: No node that has as much was there for as long as a cluster is waited for.
    """
    waiting, limit, since = list(answers), patience(ray), time.monotonic()
    while waiting:
        done, waiting = ray.wait(waiting, timeout=_LOOK_SECONDS)
        if done or any(node.fits(wanted) for node in alive(ray)):
            since = time.monotonic()
        elif limit is not None and time.monotonic() - since >= limit:
            raise ClusterError(
                f"Expected a node that has {wanted['num_cpus']:g} CPU. Received: none within "
                f"{limit:,.0f} s.",
                hint=LOOK,
            )
        yield from done


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
