"""The transformer: rows in order, nothing encoded twice, bad images refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DIM, FakeEncoder, write_classes
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

import pipeline
from pipeline.errors import ConfigError, DecodeError, StaleFeaturesError


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
    assert fake_network.images <= 24 + 2, "images were encoded twice"


def test_cross_validation_encodes_every_image_once(
    paths: list[str], fake_network: FakeEncoder
) -> None:
    y = [Path(path).parent.name for path in paths]
    classifier = make_pipeline(extractor(), LogisticRegression(max_iter=2000))
    scores = cross_val_score(classifier, np.array(paths), y, cv=3)
    assert scores.shape == (3,)
    # Beside each image once, a few are encoded again to see that the encoder is still the same.
    assert fake_network.images <= 24 + 2 * 5
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


def test_features_made_another_way_are_refused(paths: list[str], fake_network: FakeEncoder) -> None:
    extractor().transform(paths)
    with pytest.raises(StaleFeaturesError, match="image_size"):
        extractor(image_size=64).transform(paths)
    with pytest.raises(ConfigError, match="image"):
        extractor(image_size=3).transform(paths)


def test_parameters_are_those_of_scikit_learn() -> None:
    made = extractor(pooling="max")
    assert clone(made).get_params() == made.get_params()
    assert made.set_params(pooling="avg").pooling == "avg"
