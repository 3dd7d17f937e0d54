"""The transformer: rows in order, nothing encoded twice, bad images refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DIM, Command, FakeEncoder, write_classes
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

import pipeline
from pipeline.errors import ConfigError, DecodeError


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "photos", {"cat": 12, "dog": 12})
    return [
        str(path.relative_to(tmp_path)) for path in sorted(Path("photos").resolve().rglob("*.png"))
    ]


def extractor(**changes: Any) -> Any:
    return pipeline.FeatureExtractor("store", **{"weights": "random", "image_size": 32, **changes})


def test_rows_come_in_the_order_of_the_paths(paths: list[str], fake_network: FakeEncoder) -> None:
    X = extractor().fit_transform(paths)
    assert (X.shape, X.dtype) == ((24, DIM), np.float32)
    order = np.random.default_rng(0).permutation(24)
    again = extractor().transform([paths[place] for place in order])
    np.testing.assert_array_equal(again, X[order])
    twice = extractor().transform(np.array([paths[3], paths[3], paths[1]]))
    np.testing.assert_array_equal(twice, X[[3, 3, 1]])
    column = extractor().transform([[Path(paths[2])], [Path(paths[0]).absolute()]])
    np.testing.assert_array_equal(column, X[[2, 0]])
    assert fake_network.images <= 24 + 8, "images were encoded twice"


@pytest.mark.slow
def test_cross_validation_encodes_every_image_once(
    paths: list[str], fake_network: FakeEncoder
) -> None:
    y = [Path(path).parent.name for path in paths]
    classifier = make_pipeline(extractor(), LogisticRegression(max_iter=2000))
    scores = cross_val_score(classifier, np.array(paths), y, cv=3)
    assert scores.shape == (3,)
    # Beside each image once, the probe of each encoder that is loaded.
    assert fake_network.images <= 24 + 8 * 5
    before = fake_network.images
    cross_val_score(clone(classifier), np.array(paths), y, cv=3)
    assert fake_network.images == before


def test_a_bad_image_is_an_error_and_not_a_row(paths: list[str], fake_network: FakeEncoder) -> None:
    Path(paths[5]).write_bytes(b"no image")
    with pytest.raises(DecodeError, match="photos"):
        extractor().transform(paths)
    with pytest.raises(DecodeError, match="absent"):
        extractor().transform([paths[0], "absent.png"])
    good = extractor().transform([path for path in paths if path != paths[5]])
    assert len(good) == 23


@pytest.mark.parametrize("X", [[], [1, 2], [["a", "b"]], "photos", np.zeros((2, 2))])
def test_what_is_no_list_of_paths_is_refused(
    X: Any, paths: list[str], fake_network: FakeEncoder
) -> None:
    with pytest.raises(ConfigError, match="paths of images"):
        extractor().transform(X)


def test_each_way_to_make_features_has_a_store_of_its_own(
    paths: list[str], fake_network: FakeEncoder
) -> None:
    # The fake takes images of any size.
    small, large = extractor().transform(paths), extractor(image_size=64).transform(paths)
    assert not np.array_equal(small, large)
    pooled = extractor(pooling="max").transform(paths)
    assert len(list(Path("store").glob("*/store.json"))) == 3
    before = fake_network.images
    np.testing.assert_array_equal(extractor().transform(paths), small)
    np.testing.assert_array_equal(extractor(image_size=64).transform(paths), large)
    np.testing.assert_array_equal(extractor(pooling="max").transform(paths), pooled)
    assert fake_network.images == before
    with pytest.raises(ConfigError, match="image"):
        extractor(image_size=3).transform(paths)


@pytest.mark.slow
def test_a_search_over_sizes_and_pooling_scores_every_one(
    paths: list[str], fake_network: FakeEncoder
) -> None:
    y = [Path(path).parent.name for path in paths]
    classifier = make_pipeline(extractor(), LogisticRegression(max_iter=2000))
    grid = {"featureextractor__image_size": [32, 48], "featureextractor__pooling": ["avg", "max"]}
    search = GridSearchCV(classifier, grid, cv=2, error_score="raise")
    search.fit(np.array(paths), y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_store_of_extract_is_used_if_its_features_are_those_asked_for(
    paths: list[str], fake_network: FakeEncoder, command: Command
) -> None:
    flags = ("--weights", "random", "--image-size", 32, "--store", "store")
    assert command("extract", "photos", *flags)[0] == 0
    before = fake_network.images
    extractor().transform(paths)
    assert fake_network.images == before
    extractor(image_size=64).transform(paths)
    assert fake_network.images > before
    assert command("verify", "store")[1]["ok"]


def test_nothing_is_written_where_every_feature_is_there(
    paths: list[str], fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.scan_cache.RACY_NS", 0)
    expected = extractor().transform(paths)
    extractor().transform(paths)
    states = {path: path.stat().st_mtime_ns for path in Path("store").rglob("*")}
    np.testing.assert_array_equal(extractor().transform(paths), expected)
    assert {path: path.stat().st_mtime_ns for path in Path("store").rglob("*")} == states


def test_features_have_names_and_come_as_a_table_on_request(
    paths: list[str], fake_network: FakeEncoder
) -> None:
    made = extractor()
    assert len(made.get_feature_names_out()) == 2048  # of the table, before anything was loaded
    made.transform(paths)
    names = made.get_feature_names_out()
    assert list(names[:2]) == ["featureextractor0", "featureextractor1"] and len(names) == DIM
    assert made.set_output(transform="default").transform(paths).shape == (24, DIM)
    assert "set_output" in dir(made)


@pytest.mark.slow
def test_threads_may_share_a_store(paths: list[str], fake_network: FakeEncoder) -> None:
    expected = extractor().transform(paths)

    def some(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(24)[:10]
        shared = pipeline.FeatureExtractor("shared", weights="random", image_size=32)
        rows = shared.transform([paths[place] for place in order])
        return bool(np.array_equal(rows, expected[order]))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(some, range(18)))


def test_parameters_are_those_of_scikit_learn() -> None:
    made = extractor(pooling="max")
    assert clone(made).get_params() == made.get_params()
    assert made.set_params(pooling="avg").pooling == "avg"
