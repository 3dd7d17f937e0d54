"""Where a network is cut."""

from typing import Any

import numpy as np
import pytest
from finetuning import operated, small_backbone, small_batch

from pipeline.errors import ConfigError
from pipeline.finetune import steps
from pipeline.finetune import surgery as surgery_of
from pipeline.finetune.cut import cut_at, find_cut, last_stage
from pipeline.system.keras_setup import import_keras

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "below"),
    [
        ("conv3", "conv3_block1_1_conv", "conv2_block1_out"),
        ("conv3_block1", "conv3_block1_1_conv", "conv2_block1_out"),
        ("conv3_block1_2_conv", "conv3_block1_2_conv", ""),  # inside the block, beside its shortcut
        ("conv2", "conv2_block1_conv", ""),  # nothing is frozen
        ("all", "pixels", ""),
        ("pool", "pool", "conv3_block1_out"),
    ],
)
def test_a_part_is_found_by_name(name: str, layer: str, below: str) -> None:
    cut = find_cut(small_backbone().network, name)
    assert (cut.layer, cut.below) == (layer, below)
    assert (cut.boundary is not None) == bool(below)


@pytest.mark.slow
def test_a_layer_that_is_used_twice_is_cut_with_all_its_uses() -> None:
    keras = import_keras()
    layers = keras.layers
    pixels = keras.Input((8, 8, 3), name="pixels")
    low = layers.Conv2D(4, 1, name="low")(pixels)
    frozen, trained = (layers.Conv2D(4, 1, name=name) for name in ("frozen", "trained"))
    once = frozen(low)
    again = trained(trained(once))
    beside = layers.Add(name="beside")([again, trained(low)])
    below = trained(frozen(again))
    for output, expected in ((again, once), (beside, None), (below, None)):
        cut = find_cut(keras.Model(pixels, output), "trained")
        assert cut.boundary is expected
    top = keras.Model(once, again)
    kernel = np.asarray(trained.kernel)[0, 0]
    made = np.asarray(top(np.ones((1, 8, 8, 4), np.float32)))[0, 0, 0]
    np.testing.assert_allclose(made, np.ones(4) @ kernel @ kernel, atol=1e-5)


@pytest.mark.slow
def test_the_preset_needs_more_layers_than_it_freezes() -> None:
    network = small_backbone().network
    with pytest.raises(ConfigError, match=r"more than 15 layers.* Received: one of 10\."):
        cut_at(network, surgery_of.TUTORIAL_FROZEN)


@pytest.mark.slow
def test_an_unknown_part_lists_the_stages() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'conv3'.*Stages: conv2, conv3; or all"):
        find_cut(small_backbone().network, "conv6")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv3", "conv3_block1_2_conv", "all"])
def test_exactly_what_is_above_the_cut_is_trained(name: str) -> None:
    surgery = operated(name)
    fixed = surgery.fixed(trains_statistics=False)
    before, changed = surgery_of.digest_of(fixed), surgery_of.values_of(surgery.state)
    images, classes = small_batch()
    variables = surgery.whole.trainable_variables
    optimizer = steps.adamw(variables, [1.0] * len(variables))
    step = steps.compile_step(surgery.whole, surgery.head, optimizer, training=False)
    optimizer.learning_rate.assign(1e-2)
    for _ in range(3):
        step(images, classes, np.ones(12, np.float32))
    assert surgery_of.digest_of(fixed) == before
    trained = surgery.whole.trainable_variables
    for variable, old, new in zip(
        surgery.state, changed, surgery_of.values_of(surgery.state), strict=True
    ):
        is_trained = any(variable is item for item in trained)
        assert np.array_equal(old, new) != is_trained, variable.path
    names = {variable.path.split("/")[-2] for variable in trained}
    assert ("conv2_block1_conv" in names) == (name == "all")
    assert {"hidden_1", "logits"} <= names


def network_of(*chain: tuple[int, str]) -> Any:
    """A chain of convolutions by stride, and the pooling."""
    keras = import_keras()
    pixels = features = keras.Input((32, 32, 3), name="pixels")
    for stride, name in chain:
        features = keras.layers.Conv2D(2, 3, stride, padding="same", name=name)(features)
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D(name="pool")(features))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (((2, "conv4_block1_conv"), (2, "conv5_block1_conv"), (1, "conv5_block2_conv")), "conv5"),
        # Two stages of the last size, and a block of the stage before that ends in it too.
        (((2, "block5a_conv"), (2, "block6a_conv"), (1, "block7a_conv")), "block6"),
        (((1, "block5a_conv"), (2, "block5b_conv"), (1, "block6a_conv")), "block6"),
        # Names tell blocks alone: the last ones of one size.
        (((2, "block1_conv"), (2, "block2_conv"), (1, "block3_conv")), "block2"),
        (((2, "block1_conv"), (1, "block2_conv"), (2, "block3_conv")), "block3"),
        # Names tell nothing.
        (((2, "stem"), (2, "two"), (2, "three"), (1, "four")), "three"),
        (((2, "stem"), (1, "two"), (1, "three")), "two"),
    ],
)
def test_the_last_stage(chain: tuple[tuple[int, str], ...], expected: str) -> None:
    network = network_of(*chain)
    assert last_stage(network) == expected
    cut = find_cut(network, expected)
    assert cut.layer.startswith(expected) and cut.boundary is not None


@pytest.mark.slow
def test_the_last_stage_of_a_network_without_maps_is_its_last_block() -> None:
    keras = import_keras()
    pixels = keras.Input((32, 32, 3), name="pixels")
    patches = keras.layers.Conv2D(4, 8, 8, name="patches")(pixels)
    tokens = keras.layers.Reshape((16, 4), name="tokens")(patches)
    for name in ("one", "two"):
        tokens = keras.layers.Dense(4, name=name)(tokens)
    network = keras.Model(pixels, keras.layers.GlobalAveragePooling1D(name="pool")(tokens))
    assert last_stage(network) == "two"


@pytest.mark.slow
def test_a_network_without_blocks_has_to_be_told() -> None:
    keras = import_keras()
    inner = network_of((2, "conv5_block1_conv"))
    pixels = keras.Input((32, 32, 3), name="image")
    network = keras.Model(pixels, inner(pixels))
    with pytest.raises(ConfigError, match="show no stage") as caught:
        last_stage(network)
    assert "Layers: image, " in caught.value.hint and "all" in caught.value.hint
    assert find_cut(network, "all").first == 0
