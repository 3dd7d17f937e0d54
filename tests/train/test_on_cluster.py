"""A sweep on a cluster, without one: what is kept, what ends it, and where features are read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import planted_store

from pipeline.dataset.features import SplitFeatures
from pipeline.errors import ClusterError
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures
from pipeline.system import cluster, nodes
from pipeline.system.nodes import Node
from pipeline.train import on_ray


class RayError(Exception):
    """What Ray raises."""


class FakeRay(SimpleNamespace):
    """Ray whose tasks run when they are waited for, the last one first; some never end."""

    def __init__(self, never: tuple[str, ...] = ()) -> None:
        super().__init__(exceptions=SimpleNamespace(RayError=RayError), put=lambda data: data)
        self.never = never

    def remote(self, **_: object) -> Callable[..., Any]:
        def task(function: Callable[..., Any]) -> Any:
            return SimpleNamespace(remote=lambda *given: (function, given[0]))

        return task

    def get(self, answer: Any) -> Any:
        function, name = answer
        try:
            return function(name, None, (), None, 5)
        except Exception as error:
            lost = RayError("ray::_swept()\n  File x\nlost")
            lost.cause = error  # type: ignore[attr-defined]
            raise lost from error

    def wait(self, answers: list[Any], *, timeout: float) -> tuple[list[Any], list[Any]]:
        done = [answer for answer in answers if answer[1] not in self.never][-1:]
        return done, [answer for answer in answers if answer not in done]


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[tuple[str, Any]]]:
    """Sweep heads on a fake cluster of one node."""

    def sweep(ray: FakeRay, *heads: str, found: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
        @contextmanager
        def joined(*_: object, **__: object) -> Iterator[cluster.Connection]:
            yield cluster.Connection(ray, can_grow=True)  # type: ignore[arg-type]

        monkeypatch.setattr(cluster, "joined", joined)
        monkeypatch.setattr(nodes, "require_fit", lambda *_: [Node("a", "a", 2, 0)])
        monkeypatch.setattr(nodes, "patience", lambda _: 0.01)
        monkeypatch.setattr(nodes, "here", lambda: "a")
        monkeypatch.setattr(on_ray, "sweep_head", lambda name, *_, **__: found(name))
        data = SplitFeatures(np.zeros((1, 1)), np.zeros(1, int), np.zeros(1, "S64"), {}, 2)
        bases = dict.fromkeys(heads)
        return on_ray.sweep_heads(bases, dict.fromkeys(heads, ()), data, folds=5, address=None)  # type: ignore[arg-type]

    return sweep


def failing_first(name: str) -> str:
    if name == "first":
        raise ZeroDivisionError("by nothing")
    return f"{name} done"


def test_heads_come_as_they_are_done_and_the_node_of_a_fault_is_named(
    swept: Callable[..., Iterator[tuple[str, Any]]],
) -> None:
    found = swept(FakeRay(), "first", "second", "third", found=failing_first)
    assert [next(found), next(found)] == [("third", "third done"), ("second", "second done")]
    with pytest.raises(ClusterError, match="first: the node a: ZeroDivisionError: by nothing"):
        next(found)


def test_a_cluster_without_a_node_is_given_up(
    swept: Callable[..., Iterator[tuple[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "alive", lambda _: [Node("head", "head", 0, 0)])
    found = swept(FakeRay(never=("first",)), "first", "second", found=failing_first)
    assert next(found) == ("second", "second done")
    with pytest.raises(ClusterError, match="a node that has 2 CPU"):
        next(found)


def test_a_node_reads_a_store_from_wherever_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_store(tmp_path / "store", {"ant": 3})
    monkeypatch.chdir(tmp_path)
    store = Store.open(Path("store"))
    features = StoredFeatures.of(store.plain, store.index.keys[1:])
    monkeypatch.chdir("/")
    on_ray._require_sight(features.one())
    np.testing.assert_array_equal(features.one().read(np.arange(1)), features.read(np.arange(1)))
    (tmp_path / "store").rename(tmp_path / "unmounted")
    with pytest.raises(ClusterError, match=r"features that this run reads.*is gone"):
        on_ray._require_sight(features.one())
