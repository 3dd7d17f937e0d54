"""Rates, order, augmentation and weights of fine-tuning."""

import numpy as np
import pytest

from pipeline.errors import StaleFeaturesError
from pipeline.finetune.batches import class_weights, order_of, parts_of, read_ahead, unique_rows
from pipeline.finetune.photos import augmented
from pipeline.finetune.recipe import FineTuningRecipe

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_along_a_cosine() -> None:
    recipe = FineTuningRecipe(epochs=20, batch_size=8, learning_rate=1.0, seed=0, patience=5)
    rates = [recipe.rate(step, 10) for step in range(200)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert np.all(np.diff(rates[10:]) < 0) and rates[105] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3


def test_the_warm_up_of_a_short_training_is_a_tenth_of_it() -> None:
    recipe = FineTuningRecipe(epochs=3, batch_size=8, learning_rate=1.0, seed=0, patience=5)
    assert [recipe.rate(step, 10) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert (
        FineTuningRecipe(epochs=1, batch_size=8, learning_rate=1.0, seed=0, patience=1).rate(0, 1)
        == 1.0
    )


def test_the_tutorial_has_one_rate() -> None:
    recipe = FineTuningRecipe(2, 32, 1e-3, 0, 5, is_tutorial=True)
    assert {recipe.rate(step, 7) for step in range(14)} == {1e-3}


def test_order_is_a_function_of_seed_and_epoch() -> None:
    rows = np.arange(5, 45)
    first = order_of(0, 3, rows)
    np.testing.assert_array_equal(first, order_of(0, 3, rows))
    assert sorted(first) == rows.tolist()
    assert not np.array_equal(first, order_of(0, 4, rows))
    assert not np.array_equal(first, order_of(1, 3, rows))


def test_parts_cover_every_row_once() -> None:
    parts = parts_of(np.arange(10), 4)
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(10))


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    assert list(read_ahead(lambda part: part * 2, range(4))) == [(0, 0), (1, 2), (2, 4), (3, 6)]

    def fail(part: int) -> int:
        raise StaleFeaturesError("gone")

    with pytest.raises(StaleFeaturesError, match="gone"):
        list(read_ahead(fail, [1]))


def test_an_augmented_image_is_a_function_of_its_generator() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8)
    made = [augmented(pixels, 32, np.random.default_rng([7, 3, epoch, 0])) for epoch in (0, 0, 1)]
    assert made[0].shape == (32, 32, 3) and made[0].dtype == np.uint8
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_augmentation_moves_mirrors_and_colours() -> None:
    pixels = np.zeros((37, 37, 3), np.uint8)
    pixels[:, :18] = (200, 120, 40)
    made = [augmented(pixels, 32, np.random.default_rng([0, epoch])) for epoch in range(40)]
    bright_left = [int(item[:, :8].sum()) > int(item[:, -8:].sum()) for item in made]
    assert 8 < sum(bright_left) < 32  # mirrored about half of the time
    assert len({item.max() for item in made}) > 10


def test_balanced_weights_give_every_class_the_same_sum() -> None:
    y = np.array([0, 0, 0, 2, 2, 5])
    found = class_weights(y, "balanced")
    sums = [found[y == label].sum() for label in (0, 2, 5)]
    assert sums == pytest.approx([2.0, 2.0, 2.0]) and found.dtype == np.float32
    np.testing.assert_array_equal(class_weights(y, None), np.ones(6))


def test_rows_of_one_key_count_once() -> None:
    assert unique_rows([b"b", b"a", b"b", b"c"]).tolist() == [0, 1, 3]
