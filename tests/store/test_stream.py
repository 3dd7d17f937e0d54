"""Features on disk: read by row, scaled, scored and trained on without being loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import IDENTITY
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import heads
from pipeline.errors import ConfigError, CorruptShardError, MissingFeaturesError
from pipeline.heads import rows, scaler
from pipeline.heads.centroid import CentroidHead
from pipeline.heads.knn import KnnHead
from pipeline.heads.linear import LinearHead
from pipeline.heads.logreg import LogregHead
from pipeline.heads.majority import MajorityHead
from pipeline.heads.scaler import FeatureScaler
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures

DIM = 6


class ArrayRows:
    """Rows of an array as if they lay on disk in some order; remembers the largest read."""

    def __init__(self, features: Any, order: Any = None) -> None:
        self.shape = features.shape
        self.largest = 0
        self._features = features
        self._order = np.arange(len(features)) if order is None else order

    def __getitem__(self, rows: Any) -> "ArrayRows":
        return ArrayRows(self._features[rows])

    def read(self, rows: Any) -> Any:
        self.largest = max(self.largest, len(rows))
        return self._features[rows]

    def disk_order(self) -> Any:
        return self._order


def keys_of(numbers: Any) -> Any:
    return np.array([f"{number:064x}".encode() for number in numbers], dtype="S64")


def make_store(path: Path, features: Any, sizes: list[int]) -> Store:
    """Write shards of the sizes given; the key of row i is the number i."""
    store = Store.create(path, identity=IDENTITY, dim=features.shape[1], root=path)
    start = 0
    for size in sizes:
        store.plain.add_shard(keys_of(range(start, start + size)), features[start : start + size])
        start += size
    return Store.open(path)


def sorted_classes(n: int, classes: int, dim: int = 64, seed: int = 0) -> tuple[Any, Any]:
    """Features whose rows lie class by class."""
    rng = np.random.default_rng(seed)
    y = np.sort(np.arange(n) % classes)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    return (centres[y] + 1.5 * rng.normal(size=(n, dim))).astype(np.float32), y


# -- rows of a store -----------------------------------------------------------------------


@pytest.mark.slow
@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_rows_come_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(sum(sizes), DIM)).astype(np.float32)
    store = make_store(tmp_path_factory.mktemp("s") / "store", features, sizes)
    numbers = rng.permutation(len(features))[: max(1, len(features) // 2)]
    stored = StoredFeatures.of(store.plain, keys_of(numbers))
    assert stored.shape == (len(numbers), DIM)
    asked = rng.integers(0, len(numbers), 2 * len(numbers))
    np.testing.assert_array_equal(stored.read(asked), features[numbers[asked]])
    order = stored.disk_order()
    np.testing.assert_array_equal(np.sort(order), np.arange(len(numbers)))
    places = store.plain.index.find(keys_of(numbers[order]))
    on_disk = store.plain.index.shard_of[places] * 1000 + store.plain.index.row_of[places]
    assert (np.diff(on_disk) > 0).all()


def test_a_store_is_feature_rows_and_an_array_is_not(tmp_path: Path) -> None:
    features = np.ones((3, DIM), np.float32)
    store = make_store(tmp_path / "store", features, [3])
    assert rows.is_stream(StoredFeatures.of(store.plain, keys_of([0])))
    assert not rows.is_stream(features)


def test_missing_keys_are_refused_as_the_set_refuses_them(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", np.ones((3, DIM), np.float32), [3])
    with pytest.raises(MissingFeaturesError, match="2 of 3 images") as caught:
        StoredFeatures.of(store.plain, keys_of([1, 7, 8]))
    assert caught.value.keys == tuple(key.decode() for key in keys_of([7, 8]))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    features = np.ones((600, DIM), np.float32)
    features[400, 2] = np.nan
    store = make_store(tmp_path / "store", features, [600])
    stored = StoredFeatures.of(store.plain, keys_of(range(600)))
    assert stored.read(np.arange(256)).shape == (256, DIM)
    with pytest.raises(CorruptShardError, match="not finite"):
        stored.read(np.array([3, 400]))


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", np.ones((5, DIM), np.float32), [5])
    stored = StoredFeatures.of(store.plain, keys_of(range(5)))
    store.plain.index.shards[0].path.unlink()
    with pytest.raises(CorruptShardError, match="is gone"):
        stored.read(np.arange(2))


# -- order ---------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.integers(1, 400), st.integers(1, 90), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_and_no_window_is_too_large(
    n: int, window: int, run: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)).astype(np.float32)
    for source in (X, ArrayRows(X, rng.permutation(n))):
        seen = []
        for chosen, features in rows.shuffled(source, rng, window=window, run=run):
            assert 0 < len(chosen) <= max(window, run)
            np.testing.assert_array_equal(features, X[chosen])
            seen.append(chosen)
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(n))


@given(st.integers(1, 200), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_batches_are_the_shuffled_rows_in_parts(n: int, size: int, seed: int) -> None:
    X = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    for source in (X, ArrayRows(X)):
        parts = list(rows.batches(source, np.random.default_rng(seed), size))
        assert all(len(chosen) <= size for chosen, _ in parts)
        whole = list(rows.shuffled(source, np.random.default_rng(seed)))
        for of_rows in (0, 1):
            np.testing.assert_array_equal(
                np.concatenate([part[of_rows] for part in parts]),
                np.concatenate([part[of_rows] for part in whole]),
            )


def test_the_order_follows_from_the_generator() -> None:
    X = np.arange(1000, dtype=np.float32)[:, None]

    def order(seed: int) -> Any:
        generator = np.random.default_rng(seed)
        return np.concatenate(
            [chosen for chosen, _ in rows.shuffled(ArrayRows(X), generator, window=200)]
        )

    np.testing.assert_array_equal(order(1), order(1))
    assert not np.array_equal(order(1), order(2))


def test_every_window_has_its_share_of_classes_that_lie_in_order() -> None:
    y = np.repeat(np.arange(100), 160)
    X = np.zeros((len(y), 1), np.float32)
    generator = np.random.default_rng(0)
    for chosen, _ in rows.shuffled(ArrayRows(X), generator, window=1600):
        shares = np.bincount(y[chosen], minlength=100)
        assert shares.min() == shares.max() == 16
        # A sixteenth of the window has at most its share of any class, by chance.
        assert np.bincount(y[chosen[:100]]).max() < 10


# -- scaler --------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_scaler_of_a_stream_equals_the_formula(
    monkeypatch: pytest.MonkeyPatch, weighted: bool, offset: float
) -> None:
    monkeypatch.setattr(scaler, "PIECE_ROWS", 7)
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(500, 5)) * [1, 2, 3, 1e-2, 5] + offset).astype(np.float32)
    weights = rng.integers(0, 3, 500).astype(float) if weighted else None
    if weights is not None:
        weights[100:130] = 0
    found = FeatureScaler().fit(ArrayRows(X, rng.permutation(500)), sample_weight=weights)
    exact = X.astype(np.float64)
    mean = np.average(exact, axis=0, weights=weights)
    variance = np.average((exact - mean) ** 2, axis=0, weights=weights)
    typical = np.median(np.sqrt(variance))
    scale = np.sqrt(np.sqrt(variance + (1e-2 * typical) ** 2) * typical)
    np.testing.assert_allclose(found.mean_, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.scale_, scale, rtol=1e-9)


# -- heads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [LogregHead(), KnnHead()])
def test_heads_that_need_everything_refuse_a_stream(head: Any) -> None:
    X, y = sorted_classes(30, 3)
    with pytest.raises(ConfigError, match=r"30 images do not fit.*linear, ridge, dense"):
        head.fit(ArrayRows(X), y)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [CentroidHead, MajorityHead])
def test_simple_heads_of_a_stream_are_those_of_an_array(
    monkeypatch: pytest.MonkeyPatch, kind: Any, weighted: bool
) -> None:
    monkeypatch.setattr(rows.blocks, "__defaults__", (37,))
    X, y = sorted_classes(300, 3)
    weights = np.random.default_rng(1).integers(0, 3, 300).astype(float) if weighted else None
    order = np.random.default_rng(0).permutation(300)
    streamed, whole = kind().fit(ArrayRows(X, order), y, weights), kind().fit(X, y, weights)
    np.testing.assert_allclose(streamed.scores(X), whole.scores(X), rtol=1e-9, atol=1e-9)


def test_the_heads_that_stream_are_known_by_name() -> None:
    streaming = {name for name in heads.HEADS if heads.create(name, {}, seed=0).streams}
    assert streaming == set(heads.STREAMING)


@pytest.mark.parametrize("kind", [LinearHead, LogregHead])
def test_scores_of_a_stream_equal_those_of_an_array(kind: Any) -> None:
    X, y = sorted_classes(300, 3)
    head = kind().fit(X, y)
    order = np.random.default_rng(0).permutation(300)
    streamed = head.scores(ArrayRows(X, order))
    np.testing.assert_allclose(streamed, head.scores(X), rtol=1e-4, atol=1e-4)
    assert streamed.dtype == head.scores(X).dtype
    with pytest.raises(ValueError, match="Received: 63"):
        head.predict(ArrayRows(X[:, 1:]))


@pytest.mark.parametrize("labels", [[0, 1], [[0], [1], [0]], [0, 1, np.nan], [0.1, 0.2, 0.7]])
def test_labels_that_do_not_fit_a_stream_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"label|y|NaN"):
        LinearHead().fit(ArrayRows(np.zeros((3, 2), np.float32)), np.array(labels).repeat(2, -1))


def test_rows_of_weight_zero_in_a_stream_count_as_absent() -> None:
    X, y = sorted_classes(400, 4)
    weights = np.where(y == 2, 0.0, 1.0)
    weights[::5] = 0
    spoilt = X.copy()
    spoilt[weights == 0] = 1e6
    streamed = LinearHead(epochs=60).fit(ArrayRows(spoilt), y, weights)
    whole = LinearHead(epochs=60).fit(X, y, weights)
    assert list(streamed.classes_) == list(whole.classes_) == [0, 1, 3]
    np.testing.assert_allclose(streamed.scale_, whole.scale_, rtol=1e-9)
    # The batches differ, so the heads do; neither has looked at the spoilt rows.
    for head in (streamed, whole):
        assert (head.predict(X[weights > 0]) == y[weights > 0]).mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_classes_in_order_on_disk_train_as_well_as_in_memory(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr(rows, "WINDOW_ROWS", 512)
    X, y = sorted_classes(6400, 40)
    X_test, y_test = sorted_classes(4000, 40, seed=1)
    head = LinearHead(optimizer, learning_rate=5e-3, epochs=5, batch_size=64)

    def loss(source: Any) -> float:
        probabilities = head.fit(source, y).predict_proba(X_test)
        return float(-np.log(probabilities[np.arange(len(y_test)), y_test]).mean())

    stream = ArrayRows(X)
    # Long runs from anywhere, 128 rows each, give 0.32 instead of 0.15 with Adam.
    assert loss(stream) < 1.15 * loss(X)
    assert stream.largest <= rows.BLOCK_ROWS


def test_a_store_trains_as_an_array_does(tmp_path: Path) -> None:
    X, y = sorted_classes(900, 3)
    store = make_store(tmp_path / "store", X, [400, 500])
    stored = StoredFeatures.of(store.plain, keys_of(range(900)))
    head = LinearHead(epochs=5)
    streamed, again = (LinearHead(epochs=5).fit(stored, y) for _ in range(2))
    np.testing.assert_array_equal(streamed.coef_, again.coef_)
    whole = head.fit(X, y)
    np.testing.assert_allclose(streamed.mean_, whole.mean_, rtol=1e-6, atol=1e-9)
    assert (streamed.predict(stored) == whole.predict(X)).mean() > 0.99


def test_many_heads_of_a_stream_equal_their_twins() -> None:
    X, y = sorted_classes(600, 3)
    many = [{"learning_rate": rate} for rate in (1e-3, 1e-2)]
    for params, head in zip(many, LinearHead(epochs=3).fit_many(ArrayRows(X), y, many),
                            strict=True):  # fmt: skip
        alone = LinearHead(epochs=3, **params).fit(ArrayRows(X), y)
        np.testing.assert_allclose(head.coef_, alone.coef_, atol=1e-5 * np.abs(head.coef_).max())
