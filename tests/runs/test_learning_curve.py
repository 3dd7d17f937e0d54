"""What a learning curve says before fine-tuning, and when it says what."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import planted_store
from numpy.typing import NDArray

from pipeline import heads
from pipeline.config.options import TrainHeadOptions
from pipeline.dataset.examples import prepare
from pipeline.dataset.features import SplitFeatures, features_of, rule_of
from pipeline.runs import metrics
from pipeline.runs.learning_curve import HEAD_ROOM_SHARES, SMALL_GAIN, head_room, nested
from pipeline.train.fit import fit_head


def split_data(path: Path, count: int, separation: float = 0.6) -> SplitFeatures:
    store = planted_store(path, {"a": count, "b": count, "c": count}, separation=separation)
    options = TrainHeadOptions(split="60/30/10")
    return features_of(store, prepare(store.read_manifest(), rule_of(options)), options)


def with_labels(data: SplitFeatures, split: str, y: NDArray[np.int64]) -> SplitFeatures:
    changed = data.y.copy()
    changed[data.rows[split]] = y
    return SplitFeatures(data.X, changed, data.keys, data.rows, data.num_classes)


def fitted(data: SplitFeatures, name: str = "logreg", **params: Any) -> Any:
    return fit_head(heads.create(name, params, seed=0), data).head


def test_the_curve_ends_at_the_head_and_grows(tmp_path: Path) -> None:
    data = split_data(tmp_path / "store", 100)
    head = fitted(data)
    found = head_room(head, data)
    X, y = data.part("val")
    right = head.predict(X) == y
    last = found["curve"][-1]
    assert [row["share"] for row in found["curve"]] == [*HEAD_ROOM_SHARES, 1.0]
    counts = [row["n_train"] for row in found["curve"]]
    assert counts == sorted(set(counts)) and counts[-1] == len(data.part("train")[1])
    assert last["error"] == pytest.approx(1 - right.mean())
    low, high = metrics.wilson(int(right.sum()), len(right))
    assert last["error_ci95"] == pytest.approx([1 - high, 1 - low])
    for row in found["curve"]:
        assert row["error_ci95"][0] <= row["error"] <= row["error_ci95"][1]
    for number in (*counts[:2], f"{last['error']:.4f}"):
        assert str(number) in found["text"]


def test_each_point_is_a_fit_on_that_part_with_what_was_chosen(tmp_path: Path) -> None:
    data = split_data(tmp_path / "store", 100)
    head = fitted(data)
    before = {name: np.array(getattr(head, name)) for name in head.fitted}
    found = head_room(head, data)
    for row, (_, rows) in zip(found["curve"], nested(data, HEAD_ROOM_SHARES), strict=False):
        alone = heads.create("logreg", {"grid": [head.C_]}, seed=0).fit(*data.of_rows(rows))
        X, y = data.part("val")
        assert row["n_train"] == len(rows)
        assert row["error"] == pytest.approx(float((alone.predict(X) != y).mean()))
    for name, value in before.items():
        np.testing.assert_array_equal(value, getattr(head, name))
    assert head_room(head, data) == found, "nothing is drawn"


def test_an_error_that_still_falls_asks_for_photos(tmp_path: Path) -> None:
    """Labels that only the second half of train has right."""
    data = split_data(tmp_path / "store", 200, separation=1.0)
    ((_, half),) = nested(data, [0.5])
    train = data.rows["train"]
    y = data.y[train].copy()
    is_half = np.isin(np.arange(train.start, train.stop), half)
    y[is_half] = np.random.default_rng(0).permutation(y[is_half])
    data = with_labels(data, "train", y)
    found = head_room(fitted(data), data)
    assert found["finding"] == "falling" and found["gain_ci95"][0] > 0
    assert "more photos may help as much" in found["text"]


def test_a_flat_curve_blames_the_features(tmp_path: Path) -> None:
    """Some labels of val are wrong, whatever is learned: an error that photos do not cure."""
    data = split_data(tmp_path / "store", 1200, separation=3.0)
    y = data.part("val")[1].copy()
    y[::10] = (y[::10] + 1) % 3
    data = with_labels(data, "val", y)
    found = head_room(fitted(data, grid=[1e-3]), data)
    assert found["finding"] == "flat", found
    assert found["gain_ci95"][0] <= 0 and found["gain_ci95"][1] < SMALL_GAIN
    assert found["curve"][-1]["error"] == pytest.approx(0.1, abs=0.01)
    assert "the features are the limit" in found["text"]


def test_a_small_val_tells_nothing(tmp_path: Path) -> None:
    data = split_data(tmp_path / "store", 60)
    found = head_room(fitted(data), data)
    assert found["finding"] == "undecided"
    assert found["gain_ci95"][0] <= 0 and found["gain_ci95"][1] >= SMALL_GAIN
    assert "too small to tell" in found["text"]


def test_without_errors_nothing_is_to_gain(tmp_path: Path) -> None:
    data = split_data(tmp_path / "store", 60, separation=6.0)
    found = head_room(fitted(data), data)
    assert found["finding"] == "none"
    assert found["curve"][-1]["error"] == 0.0
    assert "No error on val" in found["text"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "linear"])
def test_networks_are_fitted_again_too(tmp_path: Path, name: str) -> None:
    data = split_data(tmp_path / "store", 60, separation=1.5)
    found = head_room(fitted(data, name), data)
    assert found["curve"][0]["error"] < 0.5 and found == head_room(fitted(data, name), data)
