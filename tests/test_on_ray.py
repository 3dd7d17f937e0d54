"""The commands on a cluster of Ray: equal to one process row by row, whatever is lost on the way.

One cluster of this machine serves all tests of the file, in their order: starting its processes
takes longer than what they do.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import edit_record, planted_store, write_classes
from onnx_files import Network
from slow_worker import FULL

from pipeline.backbones.probe import FILE as PROBE
from pipeline.cli.main import main
from pipeline.errors import ClusterError
from pipeline.extract.messages import Job
from pipeline.extract.node import require_sight
from pipeline.images.manifest import listing_of
from pipeline.runs.run import Run
from pipeline.store.store import Store
from pipeline.system import nodes as nodes_of

TESTS = Path(__file__).parent
# Ray, pandas and what they bring warn of themselves.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
# Ray starts Python by an unquoted line of the shell.
needs_ray = pytest.mark.skipif(
    " " in sys.executable, reason="Ray starts no Python at a path with a blank"
)
SLOWLY = {"worker_process_setup_hook": "slow_worker.slow_down"}
SMALL = 100 << 20


@dataclass
class Nodes:
    """A cluster of this machine whose nodes come and go."""

    cluster: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, count: int) -> None:
        for _ in range(count):
            self.cluster.add_node(num_cpus=1, object_store_memory=SMALL)

    def lose_one(self) -> None:
        """Kill all processes of a node, at once."""
        self.cluster.remove_node(next(iter(self.cluster.worker_nodes)), allow_graceful=False)

    def lose_all(self) -> None:
        """Kill all that work; the one that leads stays."""
        while self.cluster.worker_nodes:
            self.lose_one()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes of one processor each, and one that leads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        # A worker that waits is kept: each new one imports for two seconds what this one has.
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        # Milliseconds from one look at a node to the next, of which five find it lost.
        patch.setenv("RAY_health_check_period_ms", "300")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": SMALL, "include_dashboard": False}
        found = Nodes(Cluster(initialize_head=True, head_node_args=head))
        found.add(2)
        yield found
        found.cluster.shutdown()


@pytest.fixture(scope="module")
def connected(nodes: Nodes) -> Iterator[Nodes]:
    """Connect this process, whose commands then use the connection."""
    import ray

    ray.init(address=nodes.address, log_to_driver=False, runtime_env=SLOWLY)
    yield nodes
    ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images, a copy of one, one that is none, and a network."""
    folder = tmp_path_factory.mktemp("on-ray")
    write_classes(folder / "photos", {"cat": 30, "dog": 30})
    copy = (folder / "photos/cat/000.png").read_bytes()
    (folder / "photos/cat/copy.png").write_bytes(copy)
    (folder / "photos/dog/bad.png").write_bytes(b"no image")
    Network().save(folder / "network.onnx")
    main(arguments(folder, "local"))
    return folder


def arguments(data: Path, store: str, *more: str) -> list[str]:
    network = ["--backbone", str(data / "network.onnx"), "--preprocessing", "unit"]
    settings = ["--engine", "openvino", "--image-size", "32", "--batch-size", "4"]
    place = ["--store", str(data / store), "--json", "--quiet"]
    return ["extract", str(data / "photos"), *network, *settings, *place, *more]


def on_ray(data: Path, store: str, *more: str) -> list[str]:
    return arguments(data, store, "--executor", "ray", "--actor-cores", "1", *more)


def require_equal(data: Path, store: str) -> None:
    """Compare a store with that of one process, row by row."""
    local, found = Store.open(data / "local"), Store.open(data / store)
    np.testing.assert_array_equal(found.index.keys, local.index.keys)
    np.testing.assert_array_equal(found.read(local.index.keys), local.read(local.index.keys))
    assert found.manifest_path.read_text() == local.manifest_path.read_text()
    assert sum(map(len, found.index.shards)) == len(local)


def when_shards(store: Path, count: int, act: Callable[[], object]) -> threading.Thread:
    """Call a function once a store has a number of shards."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while len(list(store.glob("shards/*.h5"))) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def have_patience(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let a cluster that does not go on be waited for so long."""
    import ray

    patch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", seconds)


def kill_an_actor() -> None:
    """End the process of an encoding actor, as a machine that runs out of memory does."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::MapWorker(MapBatches(EncodingActor))"):
            os.kill(int(entry.parent.name), signal.SIGKILL)
            return


@needs_ray
def test_a_cluster_of_another_version_is_refused_in_one_line(
    nodes: Nodes, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.setattr(ray, "__version__", "2.0.0")
    assert main(on_ray(data, "other", "--address", nodes.address)) == 2
    out, err = capfd.readouterr()
    error = json.loads(out)["error"]
    assert error["type"] == "ClusterError"
    assert "2.0.0" in error["message"]
    assert err.count("\n") == 1


@needs_ray
def test_rows_are_those_of_one_process(
    connected: Nodes, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(on_ray(data, "two")) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert err == ""
    counts = result["encoded"], result["reused"], result["skipped"]
    assert counts == (60, 1, 1)
    # The copy may have been encoded as well, by another actor.
    assert sum(node["encoded"] for node in result["nodes"]) in (60, 61)
    assert result["bottleneck"]["bound"] in ("decode", "encode", "write")
    require_equal(data, "two")


@needs_ray
def test_what_a_killed_run_stored_the_next_one_finds(connected: Nodes, data: Path) -> None:
    """It joins the cluster by its address, as a process of its own, and is killed in the middle."""
    store, slowly = data / "killed", json.dumps({"runtime_env": SLOWLY})
    command = [sys.executable, "-m", "pipeline", *on_ray(data, "killed")]
    environment = {**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": slowly}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    killed = subprocess.Popen([*command, "--address", connected.address], env=environment)
    when_shards(store, 3, partial(killed.send_signal, signal.SIGKILL)).join()
    assert killed.wait() == -signal.SIGKILL
    assert not (store / "manifest.csv").exists()
    stored = len(Store.open(store))
    assert 0 < stored < 60
    assert main(on_ray(data, "killed")) == 0
    require_equal(data, "killed")


@needs_ray
def test_trouble_of_a_node_is_said_and_its_images_are_done_again(
    connected: Nodes, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (data / FULL).touch()
    ask = [each for each in on_ray(data, "troubled") if each != "--quiet"]
    assert main(ask) == 0
    err = capfd.readouterr().err
    assert "No space left on device" in err and "tried again later" in err
    assert "in trouble; they are done again" in err
    require_equal(data, "troubled")


@needs_ray
def test_a_lost_actor_and_a_lost_node_cost_nothing_that_was_stored(
    connected: Nodes, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    connected.add(2)
    store = data / "four"
    threads = [when_shards(store, 2, kill_an_actor), when_shards(store, 4, connected.lose_one)]
    assert main(on_ray(data, "four")) == 0
    for thread in threads:
        thread.join()
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert err == ""
    assert result["encoded"] + result["reused"] == 61
    require_equal(data, "four")


@needs_ray
def test_an_actor_that_makes_other_features_is_refused_by_the_name_of_its_node(
    connected: Nodes, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data / "two", data / "drifted")
    probe = json.loads((data / "two" / PROBE).read_text())["features"]
    edit_record(
        data / "drifted" / PROBE,
        lambda record: record.update(features=probe[4:8] + probe[:4] + probe[8:]),
    )
    write_classes(data / "photos", {"elk": 4}, first_seed=900)
    capfd.readouterr()
    assert main(on_ray(data, "drifted")) == 2
    error = json.loads(capfd.readouterr().out)["error"]
    shutil.rmtree(data / "photos/elk")
    assert error["type"] == "StaleFeaturesError"
    assert error["message"].startswith("The node ")


@needs_ray
def test_a_node_that_does_not_see_the_data_is_named(connected: Nodes, data: Path) -> None:
    import ray

    store = Store.unchecked(data / "two")
    job = Job(
        number="", store=store.path, identity=store.identity, views=("",), engine="auto",
        batch_size=1, threads=1, cores=1, probe=None,
        sight=listing_of(data / "elsewhere", [("cat/000.png", "cat", "")]),
    )  # fmt: skip
    with pytest.raises(ClusterError, match=r"^The node .* no such file"):
        nodes_of.require_fit(ray, partial(require_sight, job))


@needs_ray
def test_actors_that_fit_no_node_are_waited_for_and_then_refused(
    connected: Nodes, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    have_patience(monkeypatch, 2)
    ask = [each for each in arguments(data, "large") if each != "--quiet"]
    assert main([*ask, "--executor", "ray", "--actor-cores", "64"]) == 2
    out, err = capfd.readouterr()
    assert "no node has 48 CPU" in err
    error = json.loads(out)["error"]
    assert error["type"] == "ClusterError"
    assert "no answer within 2 s" in error["message"]


@needs_ray
def test_a_sweep_finds_the_same(connected: Nodes, tmp_path: Path) -> None:
    planted_store(tmp_path / "store", {"ant": 40, "bee": 40, "cow": 40})
    ask = ["sweep", "--store", str(tmp_path / "store"), "--head", "logreg", "--head", "ridge"]
    for executor in ("local", "ray"):
        place = str(tmp_path / executor)
        assert main([*ask, "--run", place, "--executor", executor, "--json", "--quiet"]) == 0
    one, other = (Run.open(tmp_path / name).record.heads for name in ("local", "ray"))
    assert list(one) == list(other)
    for name, head in one.items():
        assert other[name].selected == head.selected


@needs_ray
def test_a_cluster_that_lost_all_its_nodes_is_given_up_and_a_rerun_goes_on(
    connected: Nodes, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = data / "lost"
    thread = when_shards(store, 2, connected.lose_all)
    with monkeypatch.context() as patch:
        have_patience(patch, 20)
        assert main(on_ray(data, "lost")) == 2
    thread.join()
    out, err = capfd.readouterr()
    assert err.count("\n") == 1
    error = json.loads(out)["error"]
    assert error["type"] == "ClusterError"
    assert "no progress within 20 s" in error["message"]
    assert 0 < len(Store.open(store)) < 60
    # On one machine, since actors of what was given up may still wait for nodes here.
    assert main(arguments(data, "lost")) == 0
    require_equal(data, "lost")
