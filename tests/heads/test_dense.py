"""The dense head: Keras' own updates, repeated numbers, several heads in one pass, streams."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline import heads
from pipeline.errors import ConfigError, PipelineError
from pipeline.heads.dense import batches, training
from pipeline.heads.dense.head import SHARED_WEIGHTS, DenseHead, _passes
from pipeline.heads.dense.steps import train
from pipeline.system.keras_setup import import_keras

CLASSES = 4
PLAIN = {
    "hidden": (16,), "dropout": 0.0, "epochs": 4, "batch_size": 16, "learning_rate": 1e-3,
    "decay": False, "scale": False, "seed": 3,
}  # fmt: skip


def blobs(n: int = 75, dim: int = 20, seed: int = 0) -> tuple[Any, Any]:
    """Features whose number of rows no batch size divides."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    centres = np.random.default_rng(99).normal(size=(CLASSES, dim))
    return (centres[y] + rng.normal(size=(n, dim))).astype(np.float32), y


class ArrayRows:
    """Rows of an array as if they lay on disk; remembers the largest read."""

    def __init__(self, features: Any) -> None:
        self.shape = features.shape
        self.largest = 0
        self._features = features

    def __getitem__(self, rows: Any) -> "ArrayRows":
        return ArrayRows(self._features[rows])

    def read(self, rows: Any) -> Any:
        self.largest = max(self.largest, len(rows))
        return self._features[rows]

    def disk_order(self) -> Any:
        return np.arange(len(self._features))


def keras_fit(head: DenseHead, X: Any, y: Any, weights: Any = None) -> tuple[Any, Any]:
    """Return weights and the loss of each epoch of Keras' fit on the head's order of rows."""
    network = head.network(X.shape[1], CLASSES, num_rows=len(X))
    network.run_eagerly = True  # the same operations; compiling takes longer than these few steps
    targets = np.eye(CLASSES, dtype=np.float32)[y]
    losses = []
    for epoch in range(head.epochs):
        order = np.random.default_rng([head.seed, 1, epoch]).permutation(len(X))
        history = network.fit(
            X[order], targets[order], batch_size=head.batch_size, shuffle=False, verbose=0,
            sample_weight=None if weights is None else weights[order],
        )  # fmt: skip
        losses.append(history.history["loss"][0])
    return network.get_weights(), np.array(losses)


def assert_same_training(head: DenseHead, weights: Any, losses: Any) -> None:
    """Keras takes powers of Adam's constants in float32, so its first rates are 3e-5 off."""
    np.testing.assert_allclose(head.losses_, losses, rtol=1e-4, atol=1e-5)
    moved = np.abs(head.weights_[0] - head.network(len(head.mean_), CLASSES, num_rows=75)
                   .get_weights()[0]).mean()  # fmt: skip
    for ours, theirs in zip(head.weights_, weights, strict=True):
        assert np.abs(ours - theirs).mean() < 1e-3 * moved


# -- what needs no TensorFlow --------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"weight_decay": -0.1},
        {"weight_decay": float("inf")},
        {"label_smoothing": 1.0},
        {"class_weight": "even"},
        {"order_seed": -2},
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any]) -> None:
    X, y = blobs()
    with pytest.raises(ConfigError, match=next(iter(params))):
        DenseHead(**params).fit(X, y)
    with pytest.raises(ConfigError, match=next(iter(params))):
        list(DenseHead().fit_many(X, y, [{}, params]))


def passes_of(settings: list[dict[str, Any]], dim: int = 20, **base: Any) -> list[list[int]]:
    """Return the numbers of the heads that share the pass of each."""
    made = [DenseHead(**{**PLAIN, **base, **params}) for params in settings]
    numbers = {id(head): number for number, head in enumerate(made)}
    return [[numbers[id(head)] for head in members] for members in _passes(made, dim, CLASSES)]


def test_heads_that_may_differ_share_a_pass() -> None:
    settings = [
        {"learning_rate": 1e-2},
        {"dropout": 0.5},
        {"weight_decay": 0.1},
        {"label_smoothing": 0.1},
    ]
    assert passes_of(settings) == [[0, 1, 2, 3]] * 4


@pytest.mark.parametrize(
    "params",
    [{"hidden": (8,)}, {"batch_size": 8}, {"epochs": 2}, {"decay": True}, {"scale": True},
     {"class_weight": "balanced"}, {"seed": 4}, {"order_seed": 4}],
)  # fmt: skip
def test_heads_that_may_not_differ_do_not(params: dict[str, Any]) -> None:
    assert passes_of([{}, params, {}, params]) == [[0, 2], [1, 3]] * 2


def test_seeds_share_a_pass_where_the_order_is_set() -> None:
    assert passes_of([{"seed": 0}, {"seed": 1}], order_seed=0) == [[0, 1]] * 2


def test_no_pass_is_larger_than_the_cache() -> None:
    sizes = {len(members) for members in passes_of([{}] * 7, dim=SHARED_WEIGHTS // 16 // 3)}
    assert sizes == {1, 2}
    assert passes_of([{}] * 3, dim=SHARED_WEIGHTS) == [[0], [1], [2]]


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_whole_batches_are_the_same_rows(size: int) -> None:
    X, _ = blobs(200)
    ends = [0, 3, 90, 91, 200]
    given = [(np.arange(a, b), X[a:b]) for a, b in pairwise(ends)]
    found = list(batches._whole_batches(iter(given), size))
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), np.arange(200))
    np.testing.assert_array_equal(np.concatenate([features for _, features in found]), X)
    assert all(len(rows) % size == 0 for rows, _ in found[:-1])


# -- parity with Keras ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"hidden": ()},
        {"hidden": (16, 8)},
        {"decay": True},
        {"weight_decay": 0.3},
        {"label_smoothing": 0.2},
        {"batch_size": 1000},
    ],
)
def test_updates_are_those_of_keras_fit(params: dict[str, Any]) -> None:
    X, y = blobs()
    head = DenseHead(**{**PLAIN, **params}).fit(X, y)
    assert_same_training(head, *keras_fit(head, X, y))


@pytest.mark.slow
def test_updates_of_the_tutorial_preset_are_those_of_keras_fit() -> None:
    X, y = blobs(dim=2048)
    head = heads.create("dense", {**heads.PRESETS["tutorial"]["dense"], "epochs": 3}, seed=1)
    assert isinstance(head, DenseHead)
    head.fit(X, y)
    assert_same_training(head, *keras_fit(head, X, y))


@pytest.mark.slow
def test_sample_weights_are_those_of_keras() -> None:
    X, y = blobs()
    weights = np.random.default_rng(1).uniform(0.1, 3, len(X))
    head = DenseHead(**PLAIN).fit(X, y, weights)
    assert_same_training(head, *keras_fit(head, X, y, weights))
    assert np.abs(head.losses_ - DenseHead(**PLAIN).fit(X, y).losses_).max() > 0.01


@pytest.mark.slow
def test_balanced_classes_are_weights() -> None:
    X, y = blobs()
    X, y = X[y != 1][5:], y[y != 1][5:]
    weights = len(y) / (3 * np.bincount(y)[y])
    balanced = DenseHead(**PLAIN, class_weight="balanced").fit(X, y)
    np.testing.assert_array_equal(balanced.losses_, DenseHead(**PLAIN).fit(X, y, weights).losses_)


@pytest.mark.slow
@pytest.mark.parametrize("n", [65, 79])
def test_the_last_smaller_batch_is_trained_on(n: int) -> None:
    """Rows that come last in the only epoch change the weights."""
    X, y = blobs(n)
    params = {**PLAIN, "epochs": 1}
    last = np.random.default_rng([PLAIN["seed"], 1, 0]).permutation(n)[64:]
    changed = X.copy()
    changed[last] += 1
    first, second = DenseHead(**params).fit(X, y), DenseHead(**params).fit(changed, y)
    assert np.abs(first.weights_[0] - second.weights_[0]).max() > 1e-5


@pytest.mark.slow
def test_windows_in_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs()
    whole = DenseHead(**PLAIN, weight_decay=0.1).fit(X, y)
    monkeypatch.setattr(batches, "WINDOW_ROWS", 17)
    cut = DenseHead(**PLAIN, weight_decay=0.1).fit(X, y)
    np.testing.assert_allclose(cut.losses_, whole.losses_, rtol=1e-6)


# -- randomness ----------------------------------------------------------------------------


@pytest.mark.slow
def test_same_seed_same_numbers() -> None:
    X, y = blobs()
    params = {**PLAIN, "dropout": 0.5}
    first, again = DenseHead(**params).fit(X, y), DenseHead(**params).fit(X, y)
    for ours, theirs in zip(first.weights_, again.weights_, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ordered = DenseHead(**params, order_seed=3).fit(X, y)
    np.testing.assert_array_equal(ordered.losses_, first.losses_)
    other = DenseHead(**params, order_seed=4).fit(X, y)
    assert not np.array_equal(other.losses_, first.losses_)


@pytest.mark.slow
def test_dropout_keeps_its_share() -> None:
    recipe = DenseHead(**{**PLAIN, "hidden": (512,), "dropout": 0.3})._recipe()
    X, y = blobs()
    rows = batches.Rows(X, y, None, np.zeros(20), np.ones(20), CLASSES)
    steps = next(batches.Planner([recipe], rows).epoch(0))
    assert np.asarray(steps.kept[0]).mean() == pytest.approx(0.7, abs=0.01)
    assert float(np.asarray(steps.kept_scale)[0, 0]) == pytest.approx(1 / 0.7)


# -- several heads in one pass -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
def test_heads_of_one_pass_equal_their_twins(hidden: tuple[int, ...]) -> None:
    X, y = blobs()
    base = DenseHead(**{**PLAIN, "hidden": hidden, "scale": True}, order_seed=5)
    settings: list[dict[str, Any]] = [
        {},
        {"learning_rate": 1e-2, "dropout": 0.5, "seed": 1},
        {"weight_decay": 0.5, "dropout": 0.2},
        {"epochs": 2},
        {"label_smoothing": 0.3, "seed": 2},
    ]
    weights = np.random.default_rng(1).uniform(0.1, 3, len(X))
    found = list(base.fit_many(X, y, settings, weights))
    for head, params in zip(found, settings, strict=True):
        twin = DenseHead(**{**base.get_params(), **params}).fit(X, y, weights)
        assert isinstance(head, DenseHead) and head.get_params() == twin.get_params()
        np.testing.assert_allclose(head.losses_, twin.losses_, rtol=1e-4)
        np.testing.assert_allclose(head.predict_proba(X), twin.predict_proba(X), atol=1e-3)
    assert len({head.losses_[-1] for head in found if isinstance(head, DenseHead)}) == 5


@pytest.mark.slow
def test_a_head_that_fails_is_named_by_its_rate() -> None:
    X, y = blobs()
    head = DenseHead(**{**PLAIN, "epochs": 30})
    rates = [{"learning_rate": 1e-3}, {"learning_rate": 1e30}]
    with pytest.raises(PipelineError, match=r"loss is .*\(1e\+30\)"):
        list(head.fit_many(X * 1e18, y, rates))


# -- features on disk ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("window", [32, 48, 1000])
def test_streams_train_as_well(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    X, y = blobs(300)
    whole = DenseHead(**{**PLAIN, "epochs": 20, "dropout": 0.2}).fit(X, y)
    monkeypatch.setattr(batches, "WINDOW_ROWS", window)
    stream = ArrayRows(X)
    head = DenseHead(**{**PLAIN, "epochs": 20, "dropout": 0.2}).fit(stream, y)
    assert (head.predict(X) == y).mean() > (whole.predict(X) == y).mean() - 0.05
    assert stream.largest <= max(window, 16)
    np.testing.assert_array_equal(head.predict(stream), head.predict(X))


@pytest.mark.slow
def test_every_row_of_a_stream_is_trained_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW_ROWS", 48)
    X, y = blobs(203)
    X[:, 0] = np.arange(203)
    recipe = DenseHead(**{**PLAIN, "batch_size": 20})._recipe()
    rows = batches.Rows(ArrayRows(X), y, None, np.zeros(20), np.ones(20), CLASSES)
    planner = batches.Planner([recipe], rows)
    seen: list[float] = []
    sizes: list[float] = []
    for steps in planner.epoch(0):
        count = int(steps.count)
        places, real = np.asarray(steps.rows)[:count], np.asarray(steps.row_weights)[:count] > 0
        seen += list(np.asarray(steps.features)[places[real], 0])
        sizes += list(np.asarray(steps.sizes)[:count])
    assert sorted(seen) == list(range(203)) and seen != sorted(seen)
    assert sizes == [20] * 10 + [3]


# -- Keras' other backends -----------------------------------------------------------------

SCRIPT = """
import json, sys
sys.path[:0] = "tests", "tests/heads"
from test_dense import PLAIN, blobs
from pipeline.heads.dense import DenseHead
from pipeline.system.keras_setup import import_keras
X, y = blobs()
heads = [DenseHead(**{**PLAIN, "dropout": float(dropout)}).fit(X, y) for dropout in sys.argv[1:]]
weights = [[array.tolist() for array in head.weights_] for head in heads]
print(json.dumps([import_keras().backend.backend(), weights]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "numpy"])
def test_other_backends_give_nearly_the_same_weights(backend: str) -> None:
    dropouts = (0.0, 0.5)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, dropouts)],
        capture_output=True,
        check=False,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    name, weights = json.loads(done.stdout.splitlines()[-1])
    assert name == backend
    X, y = blobs()
    for dropout, found in zip(dropouts, weights, strict=True):
        ours = DenseHead(**{**PLAIN, "dropout": dropout}).fit(X, y).weights_
        for array, theirs in zip(ours, found, strict=True):
            np.testing.assert_allclose(array, np.array(theirs), atol=1e-5)


# -- scikit-learn's contract ---------------------------------------------------------------

WEIGHTS_REASON = "a row of weight two is in one batch, a row that comes twice in two"


def expected_failures(estimator: Any) -> dict[str, str]:
    return {"check_sample_weight_equivalence_on_dense_data": WEIGHTS_REASON}


@pytest.fixture(scope="module")
def without_xla() -> Iterator[None]:
    """Trace the steps and leave out XLA, which takes a second for each of the checks' shapes."""
    import_keras()
    import tensorflow as tf

    traced = tf.function(train, autograph=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "compiled", lambda shapes: traced)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("without_xla")
@parametrize_with_checks(
    [DenseHead(hidden=(16,), epochs=12, batch_size=8, learning_rate=0.02)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)
