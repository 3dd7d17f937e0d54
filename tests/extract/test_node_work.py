"""What nodes did, what bounded them, and how many actors fit on them."""

import pytest

from pipeline.cli.commands.extract import _node
from pipeline.cli.main import main
from pipeline.errors import ClusterError, StaleFeaturesError
from pipeline.extract.messages import Making, Reading, Refusal
from pipeline.extract.node_work import NodeWork, bottleneck_of
from pipeline.extract.on_ray import Pool
from pipeline.system.nodes import Node


def worked(encoding: float, writing: float) -> NodeWork:
    """Return a node of two processors whose actor was there for ten seconds."""
    work = NodeWork("a", cpus=2)
    work.add(Reading("a", images=100, began=0, ended=10, busy=4))
    work.add(Making("a", 1, 60, 0, 5, encoding / 2, writing / 2, "keras", "GPU"))
    work.add(Making("a", 1, 40, 5, 10, encoding / 2, writing / 2, "keras", "GPU"))
    return work


@pytest.mark.parametrize(
    ("encoding", "writing", "bound"), [(9.5, 1, "encode"), (3, 8, "write"), (3, 1, "decode")]
)
def test_what_bounds_a_node(encoding: float, writing: float, bound: str) -> None:
    found = worked(encoding, writing).as_json()
    assert found["bound"] == bound
    assert found["images_per_second"] == 10
    assert found["busy"] == {"decode": 0.2, "encode": encoding / 10, "write": writing / 10}


def test_the_line_of_a_node_says_what_it_encoded_on() -> None:
    assert _node(worked(9.5, 1).as_json()).startswith("a: 100 encoded (10 images/s) on GPU, bound")


def test_a_node_that_decodes_for_others_has_no_rate_and_bounds_nothing() -> None:
    alone = NodeWork("b", cpus=4)
    alone.add(Reading("b", images=10, began=0, ended=5, busy=10))
    assert alone.as_json()["bound"] is None
    assert alone.as_json()["busy"] == {"decode": 0.5, "encode": None, "write": None}
    assert bottleneck_of([alone]) is None
    both = bottleneck_of([alone, worked(3, 1)])
    assert both is not None
    assert both["bound"] == "decode"


def node(cpus: float, gpus: float = 0) -> Node:
    return Node("", "", cpus, gpus)


@pytest.mark.parametrize(
    ("members", "cores", "expected"),
    [
        ([node(0), node(8), node(16)], None, Pool(8, 3)),
        ([node(0), node(8, gpus=2), node(64)], None, Pool(None, 2)),
        ([node(8, gpus=2), node(16)], 4, Pool(4, 6)),
        ([node(96)], None, Pool(16, 6)),
        ([node(0)], 0, Pool(None, 1)),
    ],
)
def test_one_actor_per_gpu_or_per_so_many_processors(
    members: list[Node], cores: int | None, expected: Pool
) -> None:
    assert Pool.of(members, cores) == expected


def test_an_error_of_a_node_comes_back_as_it_was_with_the_nodes_name() -> None:
    error = Refusal.of(StaleFeaturesError("Other features.", hint="Go back."), "a (12ab)").error()
    assert type(error) is StaleFeaturesError
    assert error.message == "The node a (12ab): Other features."
    assert error.hint == "Go back."
    full = Refusal.of(OSError(28, "No space left on device", "x"), "a").error()
    assert type(full) is ClusterError
    assert "No space left on device (x)" in full.message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["extract", "photos", "--address", "auto"], "--address is for --executor ray"),
        (["extract", "photos", "--actor-cores", "2"], "--actor-cores is for --executor ray"),
        (["sweep", "--store", "s", "--address", "auto"], "--address is for --executor ray"),
    ],
)
def test_options_of_a_cluster_are_refused_without_one(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
