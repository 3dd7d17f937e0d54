"""Heads: scikit-learn's contract, Keras' own predictions, saving, and what they choose."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import edit_record
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline import heads
from pipeline.errors import ConfigError, PipelineError, RunError
from pipeline.files.regular import sha256_file
from pipeline.heads.dense import DenseHead
from pipeline.heads.logreg import LogregHead
from pipeline.heads.majority import MajorityHead
from pipeline.heads.scaler import FeatureScaler

QUICK_DENSE = {"hidden": (16,), "epochs": 30, "batch_size": 16, "learning_rate": 0.01}


def blobs(n: int = 90, dim: int = 20, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, dim)) * 2
    return (centres[y] + rng.normal(size=(n, dim))).astype(np.float32), y


FLOOR_REASON = "a floor: it does not look at X, so it learns nothing"


def expected_failures(estimator: Any) -> dict[str, str]:
    if isinstance(estimator, MajorityHead):
        return {"check_classifiers_train": FLOOR_REASON}
    return {}


@pytest.mark.slow
@parametrize_with_checks(
    [LogregHead(grid=(1.0,)), MajorityHead(), FeatureScaler()],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_table_is_in_order() -> None:
    assert list(heads.HEADS) == sorted(heads.HEADS)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("densse", {}, "'dense'"),
        ("dense", {"epoch": 3}, "'epochs'"),
        ("dense", {"epochs": "3"}, "epochs"),
        ("dense", {"epochs": True}, "epochs"),
        ("dense", {"hidden": 3}, "hidden"),
        ("logreg", {"grid": 3}, "grid"),
    ],
)
def test_unknown_names_and_wrong_types(name: str, params: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        heads.create(name, params, seed=0)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("dense", {"hidden": 512}, r"a list such as \[256\]. Received: 512. Write \[512\]"),
        ("dense", {"hidden": ["a"]}, r"a list such as \[256\]. Received: \[\"a\"\]"),
        ("dense", {"hidden": [True]}, r"a list such as \[256\]. Received: \[true\]"),
        ("dense", {"hidden": [256.5]}, r"a list such as \[256\]"),
        ("dense", {"decay": 1}, "true or false. Received: 1"),
        ("dense", {"scale": "no"}, 'true or false. Received: "no"'),
        ("dense", {"epochs": 2.5}, "an integer such as 40. Received: 2.5"),
        ("dense", {"dropout": True}, "a number such as 0.5. Received: true"),
        ("linear", {"optimizer": 3}, 'a text such as "adam". Received: 3'),
        ("dense", {"class_weight": 3}, "a text. Received: 3"),
    ],
)
def test_types_are_named_as_a_file_spells_them(
    name: str, params: dict[str, Any], expected: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"^\[heads.{name}\] {next(iter(params))}: expected {expected}"
    ):
        heads.create(name, params, seed=0)


def test_numbers_of_a_list_may_have_a_point_where_they_are_whole() -> None:
    # So a sweep records the neighbours that it chose.
    assert heads.create("knn", {"grid": [20.0]}, seed=0).get_params()["grid"] == [20.0]
    assert heads.create("logreg", {"grid": [1]}, seed=0).get_params()["grid"] == [1]


@pytest.mark.parametrize("grid", [[], [0.0], [-1.0], ["a"], [float("nan")], [float("inf")], [True]])
def test_logreg_refuses_a_bad_grid(grid: list[Any]) -> None:
    X, y = blobs()
    with pytest.raises(ConfigError, match="grid"):
        LogregHead(grid=grid).fit(X, y)


@pytest.mark.parametrize(
    "params",
    [{"hidden": [0]}, {"dropout": 1.0}, {"epochs": 0}, {"batch_size": -1}, {"learning_rate": 0.0}],
)
def test_dense_refuses_bad_parameters(params: dict[str, Any]) -> None:
    X, y = blobs()
    with pytest.raises(ConfigError, match=next(iter(params))):
        DenseHead(**params).fit(X, y)


def test_seed_goes_to_heads_that_have_one() -> None:
    assert heads.create("dense", {}, seed=5).get_params()["seed"] == 5
    assert "seed" not in heads.create("logreg", {}, seed=5).get_params()


@given(st.integers(0, 1000), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_scaler_is_finite_whatever_is_constant(seed: int, constant: int) -> None:
    X = np.random.default_rng(seed).normal(size=(20, 30)).astype(np.float32) * 100
    X[:, :constant] = 1234.5
    scaled = FeatureScaler().fit_transform(X)
    assert np.isfinite(scaled).all() and np.abs(scaled).max() < 20


def test_scaler_follows_its_formula() -> None:
    X = np.random.default_rng(0).normal(size=(50, 9)) * [1, 2, 3, 1e-5, 5, 0, 0, 0, 0]
    std = X.std(axis=0)
    typical = np.median(std[:5])
    expected = np.sqrt(np.sqrt(std**2 + (1e-2 * typical) ** 2) * typical)
    np.testing.assert_allclose(FeatureScaler().fit(X).scale_, expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_logreg_equals_scikit_learn_on_scaled_features(classes: int) -> None:
    X, y = blobs(classes=classes)
    ours = LogregHead(grid=(0.5,), tol=1e-9).fit(X, y)
    scaled = FeatureScaler().fit_transform(X.astype(np.float64))
    theirs = LogisticRegression(C=0.5, max_iter=1000, tol=1e-9).fit(scaled, y)
    np.testing.assert_allclose(
        ours.predict_proba(X), theirs.predict_proba(scaled), atol=1e-6, rtol=1e-5
    )


def test_logreg_chooses_on_val_and_says_when_at_the_edge() -> None:
    X, y = blobs()
    head = LogregHead(grid=(1e-6, 1e-5)).fit(X, y, validation=blobs(seed=1))
    assert any("edge" in note for note in head.notes_)
    refit = clone(head).set_params(**head.selected_params()).fit(X, y)
    assert head.C_ == refit.C_
    np.testing.assert_allclose(refit.predict_proba(X), head.predict_proba(X), atol=1e-4)


def test_logreg_says_when_it_did_not_converge() -> None:
    X, y = blobs()
    head = LogregHead(grid=(100.0,), max_iter=1).fit(X, y)
    assert head.converged_ is False and "did not converge" in head.notes_[0]


def test_logreg_chooses_by_val_alone() -> None:
    X, y = blobs(30, 200)
    X_val, y_val = blobs(30, 200, seed=1)
    chosen = {LogregHead().fit(X, y, validation=(X_val, labels)).C_
              for labels in (y_val, (y_val + 1) % 3)}  # fmt: skip
    assert len(chosen) == 2


def test_majority_is_the_frequencies_of_train() -> None:
    X, y = blobs(10, classes=3)
    np.testing.assert_allclose(MajorityHead().fit(X, y).predict_proba(X[:2]), [[0.4, 0.3, 0.3]] * 2)


def fitted(name: str) -> Any:
    X, y = blobs()
    params = QUICK_DENSE if name == "dense" else {}
    return heads.create(name, params, seed=1).fit(X, y, validation=blobs(seed=1))


@pytest.mark.parametrize(
    "name", [pytest.param("dense", marks=pytest.mark.slow), "logreg", "majority"]
)
def test_saved_heads_predict_the_same_bit_for_bit(tmp_path: Path, name: str) -> None:
    head = fitted(name)
    heads.save(head, tmp_path)
    again = heads.load(tmp_path)
    X, _ = blobs(seed=2)
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))
    assert (again.converged_, again.notes_) == (head.converged_, head.notes_)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.npz", "head.json"]


@pytest.mark.parametrize("damage", ["missing", "garbled", "cut", "foreign"])
def test_damaged_heads_are_refused(tmp_path: Path, damage: str) -> None:
    heads.save(fitted("logreg"), tmp_path)
    record, arrays = tmp_path / "head.json", tmp_path / "arrays.npz"
    if damage == "missing":
        arrays.unlink()
    elif damage == "garbled":
        record.write_text("{")
    elif damage == "cut":
        arrays.write_bytes(arrays.read_bytes()[:100])
    else:
        record.write_text(json.dumps({**json.loads(record.read_text()), "head": "os:system"}))
    with pytest.raises((RunError, ConfigError)):
        heads.load(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    heads.save(fitted("logreg"), tmp_path)
    with (tmp_path / "arrays.npz").open("wb") as file:
        np.savez(file, classes_=np.array([{}], dtype=object))
    digest = sha256_file(tmp_path / "arrays.npz")
    edit_record(tmp_path / "head.json", lambda record: record.update(arrays_sha256=digest))
    with pytest.raises(RunError, match="allow_pickle"):
        heads.load(tmp_path)


def test_arrays_of_another_head_are_refused(tmp_path: Path) -> None:
    X, y = blobs()
    heads.save(LogregHead(grid=(0.1,)).fit(X, y), tmp_path / "a")
    heads.save(LogregHead(grid=(10.0,)).fit(X, y), tmp_path / "b")
    (tmp_path / "a/arrays.npz").write_bytes((tmp_path / "b/arrays.npz").read_bytes())
    with pytest.raises(RunError, match="not the one"):
        heads.load(tmp_path / "a")


def test_logreg_without_val_says_so() -> None:
    X, y = blobs()
    head = LogregHead(grid=(0.1, 10.0)).fit(X, y)
    assert head.C_ == 1.0 and "no val" in head.notes_[0]


def test_val_of_unknown_classes_chooses_nothing() -> None:
    X, y = blobs()
    head = LogregHead(grid=(0.1, 10.0)).fit(X, y, validation=(X, y + 100))
    assert head.C_ == 0.1


@pytest.mark.slow
def test_dense_equals_keras_own_predictions() -> None:
    X, y = blobs()
    head = DenseHead(**QUICK_DENSE).fit(X, y)
    network = head.network(X.shape[1], 3, num_rows=len(X))
    network.set_weights(head.weights_)
    scaled = ((X - head.mean_) / head.scale_).astype(np.float32)
    np.testing.assert_allclose(head.predict_proba(X), network.predict(scaled, verbose=0), atol=2e-6)
    assert (head.predict(X) == y).mean() > 0.9


@pytest.mark.slow
def test_dense_repeats_itself_and_touches_no_global_generator() -> None:
    X, y = blobs()
    random.seed(3)
    python_state = random.getstate()
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first = DenseHead(**QUICK_DENSE, seed=4).fit(X, y).predict_proba(X)
    assert (np.random.get_state()[1] == before).all()
    assert random.getstate() == python_state
    np.testing.assert_array_equal(
        DenseHead(**QUICK_DENSE, seed=4).fit(X, y).predict_proba(X), first
    )
    assert not np.array_equal(DenseHead(**QUICK_DENSE, seed=5).fit(X, y).predict_proba(X), first)


@pytest.mark.slow
def test_tutorial_preset_is_exactly_the_tutorials_head() -> None:
    head = heads.create("dense", heads.PRESETS["tutorial"]["dense"], seed=0)
    network = head.network(2048, 10, num_rows=100)  # type: ignore[attr-defined]
    config = [(type(layer).__name__, layer.units, layer.activation.__name__)
              for layer in network.layers]  # fmt: skip
    assert config == [("Dense", 1024, "relu"), ("Dense", 10, "softmax")]
    assert type(network.optimizer).__name__ == "Adam"
    assert float(network.optimizer.learning_rate) == pytest.approx(1e-3)
    assert network.loss == "categorical_crossentropy"
    params = head.get_params()
    assert (params["epochs"], params["batch_size"], params["scale"]) == (10, 32, False)


@pytest.mark.slow
def test_loss_that_is_no_number_stops() -> None:
    X, y = blobs()
    with pytest.raises(PipelineError, match="loss is"):
        DenseHead(hidden=(8,), epochs=30, learning_rate=1e30, decay=False).fit(X * 1e18, y)
