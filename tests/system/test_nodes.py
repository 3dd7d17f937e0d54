"""Nodes of a cluster: what none of them has is refused, or waited for, and never for ever."""

from types import SimpleNamespace
from typing import Any

import pytest
from fakes import Notes

from pipeline.errors import ClusterError
from pipeline.system import nodes
from pipeline.system.cluster import Connection

LARGE = {"num_cpus": 48.0}


def fake_ray(*sizes: tuple[float, float], seconds: float = 1800.0) -> Any:
    """Ray with nodes of so many processors and GPUs, that is asked for nothing else."""
    found = [
        {
            "NodeID": "ab" * 28,
            "NodeManagerHostname": "worker",
            "Resources": {"CPU": cpus, "GPU": gpus},
            "Alive": True,
        }
        for cpus, gpus in sizes
    ]
    context = SimpleNamespace(execution_no_progress_timeout_s=seconds)
    data = SimpleNamespace(DataContext=SimpleNamespace(get_current=lambda: context))
    return SimpleNamespace(nodes=lambda: found, data=data)


def test_what_no_node_has_is_said_where_one_may_join_and_refused_elsewhere() -> None:
    notes, ray = Notes(), fake_ray((0, 0), (16, 2))
    for wanted in ({"num_cpus": 12}, {"num_cpus": 1, "num_gpus": 1}):
        nodes.require_room(Connection(ray, can_grow=False), wanted, notes)
    assert notes.lines == []
    nodes.require_room(Connection(ray, can_grow=True), LARGE, notes)
    assert notes.lines == [
        "Note: no node has 48 CPU and 0 GPU for an actor (the cluster has 2 nodes with at most 16 "
        "CPU and 2 GPU); waiting for one that joins within 1,800 s"
    ]
    with pytest.raises(ClusterError, match=r"48 CPU and 0 GPU.*at most 16 CPU") as caught:
        nodes.require_room(Connection(ray, can_grow=False), LARGE, notes)
    assert "--actor-cores" in caught.value.hint


@pytest.mark.parametrize(("seconds", "limit"), [(1800.0, 1800.0), (-1.0, None)])
def test_a_cluster_is_waited_for_as_long_as_ray_data_does(
    seconds: float, limit: float | None
) -> None:
    assert nodes.patience(fake_ray(seconds=seconds)) == limit
