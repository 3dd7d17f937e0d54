"""scikit-learn's classifiers by name: parity, what is refused, saving, and forged files."""

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import edit_record
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.errors import ConfigError, EngineUnavailableError, RunError
from pipeline.heads import external
from pipeline.heads.external import ExternalHead, create_external, load_external, save_external
from pipeline.heads.scaler import FeatureScaler

skops_io = pytest.importorskip("skops.io")

LOGREG = "sklearn.linear_model.LogisticRegression"
FOREST = "sklearn.ensemble.RandomForestClassifier"
SAVED = {
    FOREST: {"n_estimators": 10},
    LOGREG: {},
    "sklearn.discriminant_analysis.LinearDiscriminantAnalysis": {},
    "sklearn.ensemble.GradientBoostingClassifier": {"n_estimators": 5},
    "sklearn.ensemble.HistGradientBoostingClassifier": {"max_iter": 5},
    "sklearn.linear_model.RidgeClassifier": {},
    "sklearn.linear_model.SGDClassifier": {},
    "sklearn.naive_bayes.GaussianNB": {},
    "sklearn.neighbors.KNeighborsClassifier": {"algorithm": "kd_tree"},
    "sklearn.neural_network.MLPClassifier": {"hidden_layer_sizes": [8], "max_iter": 500},
    "sklearn.svm.SVC": {},
}


class HoldsOurs(ClassifierMixin, BaseEstimator):
    """A classifier of this module, which scikit-learn's rule of trust leaves out."""

    def fit(self, X: Any, y: Any) -> "HoldsOurs":
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        return np.tile(np.arange(len(self.classes_), dtype=float), (len(X), 1))


class OnlyPredicts(ClassifierMixin, BaseEstimator):
    def predict(self, X: Any) -> Any:
        return np.zeros(len(X))


def blobs(n: int = 90, dim: int = 20, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng([seed])
    y = np.arange(n) % classes
    centres = np.random.default_rng([99]).normal(size=(classes, dim)) * 2
    return (centres[y] + rng.normal(size=(n, dim))).astype(np.float32), y


def expected_failures(head: Any) -> dict[str, str]:
    reason = "scikit-learn's bootstrap draws rows, not weights"
    return (
        {"check_sample_weight_equivalence_on_dense_data": reason} if head.target == FOREST else {}
    )


@pytest.mark.slow
@parametrize_with_checks(
    [ExternalHead(LOGREG), ExternalHead(FOREST, {"random_state": 0})],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_forest_equals_scikit_learn() -> None:
    X, y = blobs()
    head = create_external(FOREST, {"n_estimators": 10}, seed=4).fit(X, y)
    scaled = FeatureScaler().fit(X).transform(X)
    theirs = RandomForestClassifier(n_estimators=10, random_state=4).fit(scaled, y)
    expected = np.maximum(theirs.predict_proba(scaled), external.FLOOR)
    np.testing.assert_allclose(np.exp(head.scores(X)), expected, rtol=1e-12)
    assert head.has_probabilities


@pytest.mark.parametrize("classes", [2, 3])
def test_decision_values_equal_scikit_learn(classes: int) -> None:
    X, y = blobs(classes=classes)
    head = create_external("sklearn.svm.SVC", {"C": 0.5}, seed=0).fit(X, y)
    scaled = FeatureScaler().fit(X).transform(X)
    theirs = SVC(C=0.5, random_state=0).fit(scaled, y)
    values = theirs.decision_function(scaled)
    expected = np.stack([-values, values], axis=1) if classes == 2 else values
    np.testing.assert_allclose(head.scores(X), expected, rtol=1e-6)
    np.testing.assert_array_equal(head.predict(X), theirs.predict(scaled))
    assert not head.has_probabilities


def test_labels_may_be_anything() -> None:
    X, y = blobs()
    names = np.array(["dog", "ant", "cow"])
    head = create_external(LOGREG, {}, seed=0).fit(X, names[y])
    assert list(head.classes_) == ["ant", "cow", "dog"]
    assert (head.predict(X) == names[y]).mean() > 0.9


def test_seed_goes_where_none_was_given() -> None:
    assert create_external(FOREST, {}, seed=5).params == {"random_state": 5}
    assert create_external(FOREST, {"random_state": 7}, seed=5).params == {"random_state": 7}
    assert create_external("sklearn.naive_bayes.GaussianNB", {}, seed=5).params == {}


def test_same_seed_same_numbers_and_a_copy_is_equal() -> None:
    X, y = blobs()
    y = np.random.default_rng([8]).permutation(y)
    head = create_external(FOREST, {"n_estimators": 5}, seed=1)
    first = head.fit(X, y).scores(X)
    np.testing.assert_array_equal(clone(head).fit(X, y).scores(X), first)
    other = create_external(FOREST, {"n_estimators": 5}, seed=2).fit(X, y)
    assert not np.array_equal(other.scores(X), first)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("RandomForestClassifier", {}, "dotted name"),
        ("sklearn.ensemble.RandomForestClasifier", {}, "'RandomForestClassifier'"),
        ("sklearn.ensembl.RandomForestClassifier", {}, "No module named"),
        ("sklearn.linear_model.Ridge", {}, "no such classifier"),
        ("os.system", {}, "no such classifier"),
        (".svm.SVC", {}, "dotted name"),
        ("sklearn.multiclass.OneVsRestClassifier", {}, "defaults"),
        (FOREST, {"n_estimator": 3}, "'n_estimators'"),
        ("sklearn.svm.SVC", {"decision_function_shape": "ovo"}, "'ovr'"),
        (f"{__name__}.OnlyPredicts", {}, "decision_function"),
    ],
)
def test_names_and_parameters_that_are_refused(
    name: str, params: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        create_external(name, params, seed=0)


def test_wrong_values_are_refused_by_scikit_learn() -> None:
    head = create_external(FOREST, {"n_estimators": "many"}, seed=0)
    with pytest.raises(ConfigError, match=r"heads.*n_estimators.*'many'"):
        head.fit(*blobs())


def test_weights_count_where_they_are_taken() -> None:
    X, y = blobs()
    weights = np.random.default_rng([2]).uniform(0.1, 3, len(y))
    head = create_external(LOGREG, {}, seed=0).fit(X, y, weights)
    scaled = FeatureScaler().fit(X, sample_weight=weights).transform(X)
    theirs = LogisticRegression(random_state=0).fit(scaled, y, weights)
    np.testing.assert_allclose(head.predict_proba(X), theirs.predict_proba(scaled), atol=1e-5)


def test_weights_are_refused_where_they_are_not() -> None:
    X, y = blobs()
    head = create_external("sklearn.neighbors.KNeighborsClassifier", {}, seed=0)
    with pytest.raises(ConfigError, match="sample weights"):
        head.fit(X, y, np.ones(len(y)))


def test_warnings_of_the_fit_are_notes() -> None:
    head = create_external(LOGREG, {"max_iter": 1}, seed=0).fit(*blobs())
    assert head.converged_ is False and LOGREG in head.notes_[0]
    head.set_params(params={}).fit(*blobs())
    assert (head.converged_, head.notes_) == (None, ())


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_saved_heads_predict_the_same_bit_for_bit(tmp_path: Path, name: str) -> None:
    X, y = blobs()
    head = create_external(name, SAVED[name], seed=1).fit(X, np.array(["a", "b", "c"])[y])
    head.temperature_ = 1.5
    save_external(head, tmp_path)
    again = load_external(tmp_path)
    X_test, _ = blobs(seed=2)
    np.testing.assert_array_equal(again.predict_proba(X_test), head.predict_proba(X_test))
    np.testing.assert_array_equal(again.predict(X_test), head.predict(X_test))
    assert (again.get_params(), again.notes_) == (head.get_params(), head.notes_)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["estimator.skops", "head.json"]


def test_other_types_are_not_saved(tmp_path: Path) -> None:
    head = create_external(f"{__name__}.HoldsOurs", {}, seed=0).fit(*blobs())
    assert head.scores(blobs()[0]).shape == (90, 3)
    with pytest.raises(RunError, match=r"not saved, because it holds .*HoldsOurs"):
        save_external(head, tmp_path)
    assert not list(tmp_path.iterdir())


def test_types_that_skops_cannot_write_are_not_saved(tmp_path: Path) -> None:
    head = create_external(LOGREG, {}, seed=0).fit(*blobs())
    head.estimator_.extra = (number for number in range(3))
    with pytest.raises(RunError, match="not saved, because"):
        save_external(head, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_skops_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = create_external(LOGREG, {}, seed=0).fit(*blobs())
    save_external(head, tmp_path)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(EngineUnavailableError, match=r"not saved.*pip install .*\[skops\]"):
        save_external(head, tmp_path)
    with pytest.raises(EngineUnavailableError, match=r"cannot be read.*pip install"):
        load_external(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "garbled", "cut", "swapped", "version"])
def test_damaged_heads_are_refused(tmp_path: Path, damage: str) -> None:
    save_external(create_external(LOGREG, {}, seed=0).fit(*blobs()), tmp_path)
    record, estimator = tmp_path / "head.json", tmp_path / "estimator.skops"
    if damage == "missing":
        estimator.unlink()
    elif damage == "garbled":
        record.write_text("{")
    elif damage == "cut":
        estimator.write_bytes(estimator.read_bytes()[:100])
    elif damage == "swapped":
        edit_record(record, lambda fields: fields.update(head=FOREST))
    else:
        edit_record(record, lambda fields: fields.update(schema_version=0))
    with pytest.raises(RunError, match="cannot be read"):
        load_external(tmp_path)


def forge(folder: Path, node: dict[str, Any]) -> None:
    """Write a head whose classes are another node of skops' format, with a checksum that fits."""
    save_external(create_external(LOGREG, {}, seed=0).fit(*blobs()), folder)
    path = folder / "estimator.skops"
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "schema.json":
                schema = json.loads(content)
                schema["content"]["classes_"] = node
                content = json.dumps(schema).encode()
            new.writestr(name, content)
    path.write_bytes(made.getvalue())
    digest = hashlib.sha256(made.getvalue()).hexdigest()
    edit_record(folder / "head.json", lambda record: record.update(estimator_sha256=digest))


def test_an_estimator_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    save_external(create_external(LOGREG, {}, seed=0).fit(*blobs()), tmp_path)
    path = tmp_path / "estimator.skops"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.npy", bytes(64 << 20))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_record(tmp_path / "head.json", lambda record: record.update(estimator_sha256=digest))
    with pytest.raises(RunError, match="unpack to"):
        load_external(tmp_path)


def called_with(module: str, name: str, *arguments: Any) -> dict[str, Any]:
    """Return skops' node of an object that is made by calling ``name`` with arguments."""
    return {
        "__class__": name,
        "__module__": module,
        "__loader__": "ConstructorFromReduceNode",
        "__id__": 1,
        "content": json.loads(state_of(tuple(arguments))),
    }


def state_of(value: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(skops_io.dumps(value))) as written:
        return written.read("schema.json")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "exec"),
        ("builtins", "open"),
        ("numpy", "memmap"),
        ("numpy.testing._private.utils", "runstring"),
        ("scipy.io", "FortranFile"),
        ("sklearn.datasets", "fetch_openml"),
        ("subprocess", "Popen"),
    ],
)
def test_forged_heads_run_nothing(tmp_path: Path, module: str, name: str) -> None:
    victim = tmp_path / "victim"
    forge(tmp_path, called_with(module, name, f"open({str(victim)!r}, 'w')", "w"))
    with pytest.raises(RunError, match=f"{module}.{name}, which is not trusted"):
        load_external(tmp_path)
    assert not victim.exists()


def test_a_forgery_works_where_nothing_is_checked(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    forge(tmp_path, called_with("builtins", "exec", f"open({str(victim)!r}, 'w').close()"))
    skops_io.load(tmp_path / "estimator.skops", trusted=["builtins.exec"])
    assert victim.exists()
