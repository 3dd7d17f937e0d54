"""Ridge, nearest neighbours, centroids, linear SVC: scikit-learn's answers, and edge cases."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline import heads
from pipeline.errors import ConfigError
from pipeline.heads import knn
from pipeline.heads.centroid import CentroidHead
from pipeline.heads.head import Head
from pipeline.heads.knn import KnnHead
from pipeline.heads.linear_svc import LinearSvcHead
from pipeline.heads.ridge import RidgeHead, factors_of_features, factors_of_rows
from pipeline.heads.scaler import FeatureScaler

ROWS = {
    "centroid": "pipeline.heads.centroid:CentroidHead",
    "knn": "pipeline.heads.knn:KnnHead",
    "linear-svc": "pipeline.heads.linear_svc:LinearSvcHead",
    "ridge": "pipeline.heads.ridge:RidgeHead",
}
MAKERS = {
    "centroid": CentroidHead,
    "knn": KnnHead,
    "linear-svc": lambda: LinearSvcHead(grid=(0.01, 0.1)),
    "ridge": RidgeHead,
}
every_head = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEADS", {**heads.HEADS, **ROWS})


class OnDisk:
    """Features that are read when asked for, and lie in another order than that of the rows."""

    def __init__(self, X: NDArray[np.float32]) -> None:
        self.shape = X.shape
        self._X = X
        self.most_rows = 0

    def __getitem__(self, rows: NDArray[np.bool_]) -> "OnDisk":
        return OnDisk(self._X[rows])

    def read(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        self.most_rows = max(self.most_rows, len(rows))
        return self._X[rows]

    def disk_order(self) -> NDArray[np.intp]:
        return np.random.default_rng(5).permutation(len(self._X))


def blobs(n: int = 90, dim: int = 20, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng([seed])
    y = np.arange(n) % classes
    centres = np.random.default_rng([99]).normal(size=(classes, dim)) * 2
    return (centres[y] + rng.normal(size=(n, dim))).astype(np.float32), y


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "knn"])
def test_scoring_takes_no_memory_of_the_size_of_the_features(name: str) -> None:
    head = MAKERS[name]().fit(*blobs(dim=64))
    X, _ = blobs(60_000, dim=64)
    tracemalloc.start()
    scores = head.scores(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - scores.nbytes < X.nbytes
    in_parts = [head.scores(X[start : start + 7_000]) for start in range(0, len(X), 7_000)]
    np.testing.assert_allclose(scores, np.concatenate(in_parts), rtol=1e-6, atol=1e-8)


def scaled_by_weights(X: Any, weights: Any = None) -> NDArray[np.float64]:
    return FeatureScaler().fit(X, sample_weight=weights).transform(X.astype(np.float64))


def row_weights(n: int) -> NDArray[np.float64]:
    return np.random.default_rng([3]).uniform(0.2, 3.0, n)


NEIGHBOURS_REASON = "a row of weight two is one neighbour, two equal rows are two"
STOPPED_REASON = "coordinate descent stops elsewhere when rows repeat, as in scikit-learn's own"


def expected_failures(estimator: Any) -> dict[str, str]:
    if isinstance(estimator, KnnHead):
        return {"check_sample_weight_equivalence_on_dense_data": NEIGHBOURS_REASON}
    if isinstance(estimator, LinearSvcHead):
        return {"check_sample_weight_equivalence_on_dense_data": STOPPED_REASON}
    return {}


@pytest.mark.slow
@parametrize_with_checks(
    [CentroidHead(), KnnHead(grid=(5,)), LinearSvcHead(grid=(1.0,)), RidgeHead(grid=(1.0,))],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


# Ridge


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(200, 30), (40, 60)])
@pytest.mark.parametrize("classes", [2, 5])
def test_ridge_equals_scikit_learn_for_every_alpha(
    classes: int, shape: tuple[int, int], weighted: bool
) -> None:
    X, y = blobs(*shape, classes)
    weights = row_weights(len(y)) if weighted else None
    scaled, indicators = scaled_by_weights(X, weights), np.eye(classes)[y]
    alphas = (1e-2, 1.0, 1e2, 1e4)
    ours = RidgeHead().fit_many(X, y, [{"grid": (alpha,)} for alpha in alphas], weights)
    for alpha, head in zip(alphas, ours, strict=True):
        theirs = Ridge(alpha=alpha, solver="svd").fit(scaled, indicators, sample_weight=weights)
        np.testing.assert_allclose(head.coef_, theirs.coef_, atol=1e-9)  # type: ignore[attr-defined]
        np.testing.assert_allclose(head.scores(X), theirs.predict(scaled), atol=1e-8)


def test_ridge_balanced_is_the_weights_of_balanced_classes() -> None:
    X, y = blobs()
    y = np.where(np.arange(len(y)) < 60, 0, y)
    balanced = (len(y) / (3 * np.bincount(y)))[y]
    ours = RidgeHead(grid=(1.0,), class_weight="balanced").fit(X, y)
    twin = RidgeHead(grid=(1.0,)).fit(X, y, balanced)
    np.testing.assert_allclose(ours.scores(X), twin.scores(X), atol=1e-12)
    assert not np.allclose(ours.scores(X), RidgeHead(grid=(1.0,)).fit(X, y).scores(X), atol=1e-3)


def test_ridge_is_the_same_from_either_gram_matrix() -> None:
    X, y = blobs(30, 40)
    weights = row_weights(len(y))
    scaler = FeatureScaler().fit(X, sample_weight=weights)
    found = []
    for factorize in (factors_of_features, factors_of_rows):
        left, eigenvalues, right = factorize(X, y, weights, scaler)
        found.append(left @ (right / (eigenvalues + 0.1)[:, None]))
    np.testing.assert_allclose(*found, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(20_000, 12), (40, 60)])
def test_ridge_is_the_same_from_disk(shape: tuple[int, int], weighted: bool) -> None:
    X, y = blobs(*shape)
    # A mean of 1,000 deviations, where sums of raw squares would lose digits.
    X = X + np.float32(1000) * X.std()
    weights = row_weights(len(y)) * (np.arange(len(y)) % 7 > 0) if weighted else None
    stream = OnDisk(X)
    streamed = RidgeHead(grid=(0.1,)).fit(stream, y, weights)
    in_memory = RidgeHead(grid=(0.1,)).fit(X, y, weights)
    np.testing.assert_allclose(streamed.scores(stream), in_memory.scores(X), atol=1e-8)
    assert stream.most_rows <= 8192


def test_ridge_chooses_alpha_on_val() -> None:
    X, y = blobs(40, 200)
    X_val, y_val = blobs(40, 200, seed=1)
    chosen = {
        RidgeHead().fit(X, y, validation=(X_val, labels)).alpha_
        for labels in (y_val, (y_val + 1) % 3)
    }
    assert len(chosen) == 2


# Nearest neighbours


@pytest.mark.parametrize("k", [1, 7, 90])
def test_knn_equals_scikit_learn(k: int) -> None:
    X, y = blobs()
    X_test, _ = blobs(seed=1)
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda found: np.exp((1 - found) / 0.07)
    ).fit(X.astype(np.float64), y)
    votes = np.maximum(theirs.predict_proba(X_test.astype(np.float64)), knn.FLOOR)
    ours = KnnHead(grid=(k,)).fit(X, y)
    np.testing.assert_allclose(np.exp(ours.scores(X_test)), votes, atol=1e-5)


def test_knn_finds_the_neighbours_of_val_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    find = knn.nearest

    def counted(train: Any, queries: Any, k: int) -> Any:
        asked.append(k)
        return find(train, queries, k)

    monkeypatch.setattr(knn, "nearest", counted)
    X, y = blobs()
    X_val, y_val = blobs(seed=1)
    head = KnnHead(grid=(50, 1, 5)).fit(X, y, validation=(X_val, y_val))
    assert asked == [50]
    head.scores(X_val)
    assert asked == [50, head.k_]


def test_knn_chooses_as_if_every_k_were_fitted_alone() -> None:
    X, y = blobs(90, 5)
    X_val, y_val = blobs(90, 5, seed=1)
    validation = X_val, (y_val + np.arange(90) // 80) % 3  # some of them wrong
    head = KnnHead().fit(X, y, validation=validation)
    losses = {k: KnnHead(grid=(k,)).fit(X, y)._loss(validation) for k in head.grid}
    assert head.k_ == min(losses, key=lambda k: losses[k])
    assert len(set(losses.values())) == len(losses)
    # What was kept for val does not leak into other scores.
    alone = KnnHead(grid=(head.k_,)).fit(X, y)
    np.testing.assert_array_equal(head.scores(X), alone.scores(X))


def test_knn_more_neighbours_than_rows_are_all_rows() -> None:
    X, y = blobs(10)
    many, all_rows = KnnHead(grid=(50,)).fit(X, y), KnnHead(grid=(10,)).fit(X, y)
    np.testing.assert_array_equal(many.scores(X), all_rows.scores(X))


def test_knn_does_not_depend_on_the_length_of_features() -> None:
    X, y = blobs()
    lengths = np.random.default_rng([1]).uniform(0.1, 10, len(X)).astype(np.float32)[:, None]
    stretched = KnnHead(grid=(5,)).fit(X * lengths, y)
    np.testing.assert_allclose(
        stretched.scores(X), KnnHead(grid=(5,)).fit(X, y).scores(X), atol=1e-3
    )


def test_knn_weights_are_weights_of_votes() -> None:
    X = np.eye(2, 5, dtype=np.float32)
    query = X.sum(axis=0, keepdims=True)  # as near to one row as to the other
    head = KnnHead(grid=(2,)).fit(X, [0, 1], sample_weight=[3.0, 1.0])
    np.testing.assert_allclose(head.predict_proba(query), [[0.75, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("grid", [[], [0], [2.5], [True], 5])
def test_knn_refuses_a_bad_grid(grid: Any) -> None:
    with pytest.raises(ConfigError, match="grid"):
        KnnHead(grid=grid).fit(*blobs())


# Centroids


def test_centroid_equals_scikit_learn() -> None:
    X, y = blobs(classes=4)
    X_test, _ = blobs(classes=4, seed=1)
    scaler = FeatureScaler().fit(X)
    theirs = NearestCentroid().fit(scaler.transform(X.astype(np.float64)), y)
    head = CentroidHead().fit(X, y)
    np.testing.assert_allclose(head.centroids_, theirs.centroids_, atol=1e-10)
    scaled = scaler.transform(X_test.astype(np.float64))
    np.testing.assert_array_equal(head.predict(X_test), theirs.predict(scaled))
    squares = ((scaled[:, None] - theirs.centroids_) ** 2).mean(axis=2)
    np.testing.assert_allclose(head.scores(X_test), -squares, atol=1e-10)


def test_centroid_weights_are_repeated_rows() -> None:
    X, y = blobs()
    repeats = np.arange(len(y)) % 3
    repeated = CentroidHead().fit(np.repeat(X, repeats, axis=0), np.repeat(y, repeats))
    np.testing.assert_allclose(
        CentroidHead().fit(X, y, repeats).scores(X), repeated.scores(X), atol=1e-10
    )


# Linear SVC


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(90, 20), (40, 60)])
def test_linear_svc_equals_scikit_learn(shape: tuple[int, int], classes: int) -> None:
    X, y = blobs(*shape, classes)
    scaled = scaled_by_weights(X)
    theirs = LinearSVC(C=0.01, dual="auto", random_state=3).fit(scaled, y)
    values = theirs.decision_function(scaled)
    expected = np.stack([-values, values], axis=1) if classes == 2 else values
    head = LinearSvcHead(grid=(0.01,), seed=3).fit(X, y)
    np.testing.assert_allclose(head.scores(X), expected, atol=1e-10)
    assert head.converged_ is True


def test_linear_svc_says_when_it_did_not_converge() -> None:
    head = LinearSvcHead(grid=(100.0,), max_iter=1).fit(*blobs())
    assert head.converged_ is False and "max_iter" in head.notes_[0]


def test_linear_svc_repeats_itself() -> None:
    X, y = blobs(40, 60)
    first, again = (LinearSvcHead(grid=(1.0,), seed=2).fit(X, y).scores(X) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = LinearSvcHead(grid=(1.0,), seed=3).fit(X, y).scores(X)
    assert not np.array_equal(first, other)


# Every head


@every_head
def test_saved_heads_predict_the_same_bit_for_bit(tmp_path: Path, table: None, name: str) -> None:
    X, y = blobs()
    head = heads.create(name, {}, seed=1).fit(X, y, validation=blobs(seed=1))
    heads.save(head, tmp_path)
    again = heads.load(tmp_path)
    X_test, _ = blobs(seed=2)
    np.testing.assert_array_equal(again.scores(X_test), head.scores(X_test))
    assert again.selected_params() == head.selected_params()


@every_head
def test_labels_may_be_anything(name: str) -> None:
    X, y = blobs()
    names = np.array(["dog", "ant", "cow"])
    head = MAKERS[name]().fit(X, names[y], validation=(X, names[y]))
    assert (head.predict(X) == names[y]).mean() > 0.9


@every_head
def test_classes_that_val_or_train_lacks(name: str) -> None:
    X, y = blobs()
    X_val, y_val = blobs(seed=1)
    y_val = np.where(y_val == 2, 7, y_val)  # val lacks class 2, and train class 7
    head = MAKERS[name]().fit(X, y, validation=(X_val, y_val))
    assert list(head.classes_) == [0, 1, 2]
    assert (head.predict(X) == y).mean() > 0.9


@every_head
def test_classes_of_one_row(name: str) -> None:
    X, y = blobs(6, 40, classes=6)
    head = MAKERS[name]().fit(X, y, validation=blobs(6, 40, classes=6, seed=1))
    assert head.scores(X).shape == (6, 6)
    np.testing.assert_array_equal(head.predict(X), y)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "linear-svc")) for name in MAKERS],
)
def test_a_thousand_classes(name: str) -> None:
    X, y = blobs(2500, 50, classes=1000)
    params = {"ridge": {"grid": (1e-3,)}, "linear-svc": {"grid": (1.0,), "tol": 0.1}}
    head: Head = MAKERS[name]().set_params(**params.get(name, {})).fit(X, y)
    assert head.scores(X).shape == (2500, 1000)
    assert (head.predict(X) == y).mean() > 0.9


@every_head
def test_constant_features(name: str) -> None:
    X, y = blobs()
    X[:, 3:15] = 1234.5
    head = MAKERS[name]().fit(X, y, validation=(X, y))
    assert np.isfinite(head.scores(X)).all()
    # To the cosine of features as they are, 12 large constants leave nothing else to see.
    assert name == "knn" or (head.predict(X) == y).mean() > 0.8
    everything = MAKERS[name]().fit(np.full_like(X, 5.0), y)
    assert np.isfinite(everything.scores(X)).all()


@every_head
def test_two_rows(name: str) -> None:
    X = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]], dtype=np.float32)
    head = MAKERS[name]().fit(X, ["a", "b"])
    assert list(head.predict(X)) == ["a", "b"]


@every_head
def test_one_class_is_refused(name: str) -> None:
    X, y = blobs()
    with pytest.raises(ValueError, match="two classes"):
        MAKERS[name]().fit(X, 0 * y)
