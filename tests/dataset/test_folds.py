"""Folds: every row is held out once, groups are whole, classes in proportion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import folds as folding
from pipeline.dataset.folds import grouped_folds


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(10, 60), st.booleans())
def test_groups_are_whole_and_rows_are_held_out_once(
    seed: int, count: int, num_groups: int, many: bool
) -> None:
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(num_groups), rng.integers(0, num_groups, 40)])
    y = rng.integers(0, 2, len(groups))
    y[:num_groups] = np.arange(num_groups) % 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "_FEW", 0 if many else 1000)
        folds = grouped_folds(y, groups, count)
    assert len(folds) == count
    assert (np.sort(np.concatenate([held_out for _, held_out in folds])) == np.arange(len(y))).all()
    for fit, held_out in folds:
        assert len(fit) + len(held_out) == len(y)
        assert not set(groups[fit]) & set(groups[held_out])


@pytest.mark.parametrize("few", [0, 1000])
def test_classes_are_in_proportion(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_FEW", few)
    y = np.repeat([0, 1, 2], [100, 50, 10])
    for _, held_out in grouped_folds(y, np.arange(160).astype(str), 5):
        assert np.bincount(y[held_out]).tolist() == [20, 10, 2]


def test_a_class_of_fewer_groups_than_folds_is_in_some_of_them() -> None:
    y = np.array([0] * 6 + [1, 1])
    folds = grouped_folds(y, np.arange(8), 3)
    assert sorted((y[held_out] == 1).sum() for _, held_out in folds) == [0, 1, 1]


def test_groups_of_all_classes_are_dealt_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patients with photos of several classes: by their first labels no class has three."""
    monkeypatch.setattr(folding, "_FEW", 0)
    y, patients = np.tile([0, 1, 2], 4), np.repeat(np.arange(4), 3)
    y[patients == 1] = [1, 0, 2]
    folds = grouped_folds(y, patients, 4)
    assert sorted(len(held_out) for _, held_out in folds) == [3, 3, 3, 3]
