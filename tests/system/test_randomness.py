"""Streams of random numbers: their numbers never change, and each purpose draws from its own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetuning import SIZE, photo_rows

from pipeline import heads
from pipeline.finetune.batches import order_of
from pipeline.finetune.photos import Photos
from pipeline.finetune.steps import seed_random_layers
from pipeline.finetune.surgery import tutorial_head
from pipeline.finetune.turns import Turns
from pipeline.system.randomness import RandomStream

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every seed that is drawn from, as it is given to NumPy."""
    drawn: list[list[int]] = []
    original = np.random.default_rng

    def recorded(seed: Any = None) -> np.random.Generator:
        if isinstance(seed, list):  # libraries draw too, from other seeds
            drawn.append([int(number) for number in seed])
        return original(seed)

    monkeypatch.setattr(np.random, "default_rng", recorded)
    return drawn


def test_the_numbers_are_those_of_every_result_so_far() -> None:
    assert {stream.name: int(stream) for stream in RandomStream} == {
        "WEIGHTS": 0, "ORDER": 1, "LAYERS": 2, "AUGMENTATION": 3, "VIEWS": 4,
    }  # fmt: skip
    for stream in RandomStream:
        expected = np.random.default_rng([5, int(stream), 2, 9]).random(4)
        np.testing.assert_array_equal(stream.generator(5, 2, 9).random(4), expected)
    assert RandomStream.ORDER.generator(7, 3).permutation(4).tolist() == [3, 0, 2, 1]


@pytest.mark.slow
def test_fine_tuning_draws_each_purpose_from_its_stream(
    seeds: list[list[int]], tmp_path: Path
) -> None:
    rows = photo_rows(tmp_path)
    seeds.clear()
    order_of(7, 3, np.arange(4))
    turns = Turns.drawn(["flip"], seed=7, rows=6)
    with Photos(rows, SIZE, "squash", augment_seed=7, turns=turns) as photos:
        photos.batch(np.array([5]), 2)
    state = SimpleNamespace(dtype="uint32", assign=lambda value: None)
    layer = SimpleNamespace(seed_generator=SimpleNamespace(state=state))
    seed_random_layers(SimpleNamespace(layers=[layer]), 7, 11)
    assert seeds == [[7, 1, 3], [7, 4], [7, 3, 2, 5], [7, 2, 11]]
    seeds.clear()
    tutorial_head(3, 6, seed=7)
    assert seeds == [[7, 0, 0], [7, 0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params", "streams"),
    [
        ("dense", {"hidden": (4,), "dropout": 0.5}, {(0,), (1, 0), (1, 1), (2, 0), (2, 1)}),
        ("linear", {}, {(1, 0), (1, 1)}),
    ],
)
def test_heads_draw_each_purpose_from_its_stream(
    seeds: list[list[int]], name: str, params: dict[str, Any], streams: set[tuple[int, ...]]
) -> None:
    X = np.random.RandomState(0).normal(size=(40, 6)).astype(np.float32)
    y = np.arange(40) % 2
    head = heads.create(name, {**params, "epochs": 2}, seed=7)
    head.fit(X, y, validation=(X, y))
    assert {tuple(seed[1:]) for seed in seeds if seed[0] == 7} == streams
