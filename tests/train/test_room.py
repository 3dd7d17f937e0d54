"""Memory and time of heads: what is estimated is what they take, and it is said in time."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command, planted_store

from pipeline import heads
from pipeline.config.options import SweepOptions, TrainHeadOptions
from pipeline.dataset.features import SplitFeatures
from pipeline.errors import ConfigError
from pipeline.heads.logreg import LogregHead
from pipeline.runs.run import Run
from pipeline.store.stream import StoredFeatures
from pipeline.system import machine
from pipeline.train import prepare
from pipeline.train.prepare import prepare_data
from pipeline.train.retraining import Retraining

COUNTS = {"ant": 40, "bee": 40, "cow": 40}
DIM = 64


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", COUNTS, dim=DIM)


def num_train(split: str | None = None) -> int:
    options = TrainHeadOptions(store="store", split=split)
    return prepare_data(options, {}).examples.counts()["train"]


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "dim", "classes"), [(8000, 64, 10), (3000, 32, 200), (3000, 256, 2), (3000, 300, 40)]
)
def test_logreg_takes_the_memory_that_is_said_of_it(n: int, dim: int, classes: int) -> None:
    rng = np.random.default_rng([1])
    y = np.arange(n) % classes
    X = (rng.normal(size=(classes, dim)) * 0.3)[y] + rng.normal(size=(n, dim))
    head, X = LogregHead(max_iter=4), X.astype(np.float32)
    needed = head.memory(n, dim, classes)
    assert (
        0.6 * needed < peak_of(lambda: head.fit(X, y, validation=(X[:300], y[:300]))) < 1.2 * needed
    )


def test_rows_of_several_views_are_put_together_with_one_copy_beside_them() -> None:
    X = np.zeros((4000, DIM), np.float32)
    rows = {"train": slice(0, 4000), "val": slice(4000, 4000), "test": slice(4000, 4000)}
    keys = np.zeros(4000, "S64")
    data = SplitFeatures(X, np.zeros(4000, np.int64), keys, rows, 1, augment=[X + 1, X + 2])
    assert peak_of(lambda: data.to_fit("train")) < 3.2 * X.nbytes
    joined, y = data.of_rows(np.array([3, 1]))
    assert joined[:, 0].tolist() == [0, 0, 1, 1, 2, 2] and len(y) == 6


@pytest.mark.parametrize("free", [30_000, 60_000, 90_000, 120_000, 200_000])
@pytest.mark.parametrize("names", [("ridge",), ("ridge", "logreg"), ("knn",), ("dense", "knn")])
def test_what_is_refused_needs_more_than_there_is(
    free: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {name: heads.create(name, {}, seed=0) for name in names}
    features, train = 4 * DIM * 120, num_train()
    needed = [features + head.memory(train, DIM, 3) for head in wanted.values()]
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    try:
        data = prepare_data(TrainHeadOptions(store="store"), wanted).data
    except ConfigError as error:
        assert max(needed) > free
        assert not all(head.streams for head in wanted.values())
        assert "beside all features" in error.message
    else:
        assert (max(needed) > free) == isinstance(data.X, StoredFeatures)


def test_folds_are_copies_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    head = heads.create("knn", {}, seed=0)
    options = SweepOptions(store="store", split="85/0/15")
    needed = 4 * DIM * 120 + head.memory(num_train(options.split), DIM, 3)
    monkeypatch.setattr(machine, "free_memory", lambda: needed)
    assert prepare_data(options, {"knn": head})
    with pytest.raises(ConfigError, match="Expected memory to fit knn"):
        prepare_data(options, {"knn": head}, settings={"knn": 4}, folds=5)


@pytest.mark.parametrize("name", ["train-head", "sweep"])
def test_what_has_no_room_is_refused_before_near_duplicates_are_searched(
    name: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 30_000)
    monkeypatch.setattr(prepare, "_near_duplicates", None)
    status, result = command(name, "--store", "store", "--head", "knn", "--split", "leak-free")
    assert status == 2 and "Expected memory to fit knn" in result["error"]["message"]


def test_a_head_that_does_not_scale_says_so_before(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli.main import main

    monkeypatch.setattr("pipeline.heads.knn._RATE", 100.0)
    ask = ["train-head", "--store", "store", "--head", "knn", "--head", "ridge"]
    assert main(ask) == 0
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "minutes" in line]
    minutes = num_train() * 120 * DIM / 100 / 60  # each of train with every image
    assert f"knn takes about {minutes:,.0f} minutes" in line


def test_compare_with_seeds_streams_or_refuses(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ridge", "knn"):
        assert command("train-head", "--store", "store", "--head", name, "--run", name)[0] == 0
    kept: Any = Retraining(Run.open(Path("ridge"))).split(1)
    monkeypatch.setattr(machine, "free_memory", lambda: 30_000)
    streamed: Any = Retraining(Run.open(Path("ridge"))).split(1)
    assert isinstance(streamed.X, StoredFeatures)
    np.testing.assert_array_equal(streamed.X.read(np.arange(120)), kept.X)
    status, result = command("compare", "knn", "--seeds", 2)
    assert status == 2 and "Expected memory to fit knn" in result["error"]["message"]
