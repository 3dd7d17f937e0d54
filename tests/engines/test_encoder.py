"""How far features made now are from stored ones, and features that nobody can use."""

import numpy as np
import pytest

from pipeline.engines.encoder import DRIFT_TOLERANCE, drift
from pipeline.engines.queue import EncodingRow, require_finite
from pipeline.errors import PipelineError


def test_drift_is_a_share_of_the_largest_value_of_each_row() -> None:
    stored = np.array([[1, -4, 2], [0, 0, 0], [8, 1, 1]], np.float32)
    made = stored + np.array([[0, 1, 0], [0, 0, 0], [0, 0, -2]], np.float32)
    np.testing.assert_allclose(drift(stored, made), [0.25, 0, 0.25])
    assert (drift(stored, stored * np.float32(1 + DRIFT_TOLERANCE / 2)) < DRIFT_TOLERANCE).all()
    assert np.isnan(drift(stored, np.full_like(stored, np.nan))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_name_the_image(value: float) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    rows = [EncodingRow(index, "k", "", pixels) for index in (4, 2, 0)]
    features = np.zeros((3, 5), np.float32)
    paths = [f"{number}.png" for number in range(5)]
    require_finite(rows, features, paths, remedy="use others")
    features[1:, 3] = value
    with pytest.raises(PipelineError, match=r"infinity or not-a-number for '2\.png'") as caught:
        require_finite(rows, features, paths, remedy="use others")
    assert caught.value.hint == "The weights are unusable for images; use others."
