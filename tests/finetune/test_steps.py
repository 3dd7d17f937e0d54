"""Fine-tuning: blocks, rates by block, the optimizer against Keras', and dropout of the head."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuning import (
    FLAGS,
    Arrays,
    Notes,
    bars,
    killed_after_an_epoch,
    run_finetune,
    small_backbone,
    small_batch,
)
from numpy.typing import NDArray

from pipeline import backbones, heads
from pipeline.backbones import frozen
from pipeline.cli.main import main
from pipeline.config import options as config
from pipeline.config.fields import flag_of
from pipeline.config.options import FinetuneOptions
from pipeline.errors import ConfigError, RunError
from pipeline.finetune import cut as cuts
from pipeline.finetune import surgery as surgery_of
from pipeline.finetune.cut import blocks_of, find_cut
from pipeline.finetune.recipe import FineTuningRecipe, TrainingRows
from pipeline.finetune.steps import adamw, compile_step, seed_random_layers
from pipeline.finetune.training import FineTuning
from pipeline.heads import layers as head_layers
from pipeline.heads.dense import DenseHead
from pipeline.runs.run import Run
from pipeline.serving import assembly
from pipeline.system.keras_setup import import_keras

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
# Blocks of each stage, as the papers have them; MobileNetV3's are in one row.
BLOCKS = {
    "convnexttiny": (3, 3, 9, 3),
    "efficientnetlite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnetlite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnetlite2": (1, 3, 3, 4, 4, 5, 1),
    "efficientnetv2b0": (1, 2, 2, 3, 5, 8),
    "mobilenetv3large": (15,),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet50v2": (3, 4, 6, 3),
}
ROW_WEIGHTS = np.linspace(0.5, 2, 12).astype(np.float32)


def network_of(name: str) -> Any:
    import_keras()
    return frozen._build(backbones.find(name), None, 64, "avg")


def all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield layer
        yield from all_layers(layer) if hasattr(layer, "layers") else ()


# Blocks


def test_every_backbone_has_its_count_of_blocks() -> None:
    assert sorted(BLOCKS) == sorted(backbones.BACKBONES)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_those_of_the_architecture_and_each_can_be_a_cut(name: str) -> None:
    network = network_of(name)
    blocks = blocks_of(network)
    in_order = list(dict.fromkeys(blocks))
    assert blocks == sorted(blocks, key=in_order.index)  # no block is in two pieces
    assert in_order[0] == ""  # the stem
    stages = Counter((*cuts._parts(block), "")[1] for block in in_order[1:])
    assert tuple(stages.values()) == BLOCKS[name]
    places = {layer.name: number for number, layer in enumerate(network.layers)}
    for block in in_order[1:]:
        cut = find_cut(network, block)
        assert cut.first == blocks.index(block) == places[cut.layer]
        assert cut.boundary is not None
    for stage in filter(None, stages):
        block = next(block for block in in_order if stage in cuts._parts(block))
        assert find_cut(network, stage).first == blocks.index(block)


@pytest.mark.slow
def test_an_unknown_part_lists_blocks_where_there_are_no_stages() -> None:
    with pytest.raises(ConfigError) as raised:
        find_cut(network_of("mobilenetv3large"), "expanded_conv_15")
    assert "Did you mean 'expanded_conv_5'" in str(raised.value)
    expected = ["expanded_conv", *(f"expanded_conv_{number}" for number in range(1, 15))]
    assert f"Blocks: {', '.join(expected)}." in raised.value.hint
    assert "Stages: none" in raised.value.hint


@pytest.mark.slow
def test_a_boundary_is_called_the_same_however_many_networks_were_built() -> None:
    found = [find_cut(network_of("convnexttiny"), "convnext_tiny_stage_3") for _ in range(2)]
    assert found[0].below == found[1].below != ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block", "last"),
    [
        ("convnexttiny", "convnext_tiny_stage_3_block_2", "layer_normalization"),
        ("efficientnetlite0", "block7a", "top_bn"),
        ("efficientnetv2b0", "block6h", "top_bn"),
        ("mobilenetv3large", "expanded_conv_14", "conv_1_bn"),
    ],
)
def test_the_last_block_of_other_networks_trains_on_its_boundary(
    name: str, block: str, last: str
) -> None:
    loaded = frozen.load(name, weights="random", seed=0, image_size=32, pooling="avg")
    head = surgery_of.tutorial_head(3, loaded.dim, seed=1)
    surgery = surgery_of.operate(loaded, head, find_cut(loaded.network, block))
    assert surgery.bottom is not None
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    boundary = np.asarray(surgery.bottom.model(images, training=False))
    boundary = boundary.reshape(-1, *surgery.boundary_shape)
    received = np.asarray(surgery.top(boundary, training=False)[1])
    expected = np.asarray(surgery.whole(images, training=False)[1])
    np.testing.assert_allclose(received, expected, atol=1e-4 * np.abs(expected).max())
    variables = surgery.top.trainable_variables
    factors = surgery_of.rate_factors(surgery, variables, 0.5)
    assert set(factors) == {0.5, 1.0}
    before, fixed = surgery_of.values_of(variables), surgery.fixed(trains_statistics=False)
    digest = surgery_of.digest_of(fixed)
    optimizer = adamw(variables, factors)
    step = compile_step(surgery.top, surgery.head, optimizer, training=False)
    optimizer.learning_rate.assign(1e-4)
    step(boundary, (np.arange(6) % 3).astype(np.int32), np.ones(6, np.float32))
    assert surgery_of.digest_of(fixed) == digest
    changed = {
        variable.path.split("/")[-2].rstrip("_0123456789")
        for variable, old, new in zip(
            variables, before, surgery_of.values_of(variables), strict=True
        )
        if not np.array_equal(old, new)
    }
    assert last.rstrip("_0123456789") in changed and "logits" in changed


def nameless_network() -> Any:
    """A stem, a convolution and two residual blocks, which Keras names by counting."""
    keras = import_keras()
    layers = keras.layers

    def convolved(inputs: Any) -> Any:
        return layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(inputs))

    pixels = keras.Input((8, 8, 3))
    outputs = layers.ReLU()(convolved(layers.ReLU()(convolved(pixels))))
    for _ in range(2):
        inner = convolved(layers.ReLU()(convolved(outputs)))
        outputs = layers.ReLU()(layers.Add()([outputs, inner]))
    return keras.Model(pixels, layers.GlobalAveragePooling2D()(outputs))


@pytest.mark.slow
def test_blocks_without_names_begin_where_one_tensor_passes() -> None:
    network = nameless_network()
    kinds = [type(layer).__name__ for layer in network.layers]
    convolutions = [place for place, kind in enumerate(kinds) if kind == "Conv2D"]
    starts = [0, *(convolutions[number] for number in (1, 2, 4))]
    ends = [*starts[1:], len(network.layers)]
    names = ["", *(network.layers[start].name for start in starts[1:])]
    expected = [
        name
        for name, start, end in zip(names, starts, ends, strict=True)
        for _ in range(start, end)
    ]
    assert blocks_of(network) == expected
    with pytest.raises(ConfigError) as raised:
        find_cut(network, "conv5")
    assert f"Blocks: {', '.join(names[1:])}." in raised.value.hint
    assert find_cut(network, names[2]).boundary is not None


@pytest.mark.slow
def test_a_network_without_kernels_is_one_block() -> None:
    keras = import_keras()
    pixels = keras.Input((8, 8, 3))
    network = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(pixels))
    assert blocks_of(network) == ["", ""]


# Rates by block


def dense_head(dropout: float = 0.5, hidden: int = 32) -> DenseHead:
    """A dense head on the six features of the small backbone, with drawn weights."""
    rng = np.random.default_rng(5)
    head = DenseHead(hidden=(hidden,), dropout=dropout)
    head.classes_, head.n_features_in_ = np.arange(3), 6
    head.mean_, head.scale_ = np.zeros(6), np.full(6, 0.5)
    head.weights_ = [
        rng.normal(size=shape).astype(np.float32)
        for shape in ((6, hidden), (hidden,), (hidden, 3), (3,))
    ]
    return head


def operated(head: Any, unfreeze_from: str = "conv3") -> surgery_of.Surgery:
    loaded = small_backbone()
    cut = find_cut(loaded.network, unfreeze_from)
    return surgery_of.operate(loaded, head_layers.head_network(head), cut)


@pytest.mark.slow
def test_the_rate_falls_by_the_decay_from_block_to_block() -> None:
    surgery = operated(dense_head(), "all")
    variables = surgery.whole.trainable_variables
    found = surgery_of.rate_factors(surgery, variables, 0.5)
    for variable, factor in zip(variables, found, strict=True):
        layer = variable.path.split("/")[-2]
        block = layer.partition("_block")[0]
        expected = {"conv2": 0.25, "conv3": 0.5, "hidden_1": 1.0, "logits": 1.0}[block]
        assert factor == expected, variable.path
    assert set(surgery_of.rate_factors(surgery, variables, 1.0)) == {1.0}


@pytest.mark.slow
def test_what_is_above_the_last_block_has_its_rate_and_the_stem_the_lowest() -> None:
    network = network_of("efficientnetv2b0")
    by_layer = dict(zip((layer.name for layer in network.layers), blocks_of(network), strict=True))
    assert by_layer["top_conv"] == by_layer["avg_pool"] == "block6h"
    surgery = surgery_of.Surgery(
        frozen.FrozenBackbone(
            lambda: import_keras().Sequential([network]), name="efficientnetv2b0", image_size=64,
            pooling="avg", dim=1280, weights_sha256="",
        ),
        find_cut(network, "all"), None, None, None, None,
    )  # fmt: skip
    kernels = [
        network.get_layer(f"{name}_conv").weights[0]
        for name in ("top", "block6h_project", "block6g_project", "stem")
    ]
    assert surgery_of.rate_factors(surgery, kernels, 0.9) == pytest.approx(
        [0.9, 0.9, 0.9**2, 0.9**22]
    )


def change_of_one_step(layer_decay: float, optimizer: str) -> dict[str, NDArray[np.float32]]:
    """Return how one step at a rate of 0.01 changes the weights of the small network."""
    surgery = operated(dense_head(0.0), "all")
    training = training_of(surgery, Path("unused"), layer_decay=layer_decay, optimizer=optimizer)
    training._optimizer.learning_rate.assign(1e-2)
    variables = surgery.whole.trainable_variables
    before = surgery_of.values_of(variables)
    training._step(small_batch()[0], small_batch()[1], ROW_WEIGHTS)
    return {
        "/".join(variable.path.split("/")[-2:]): new - old
        for variable, old, new in zip(
            variables, before, surgery_of.values_of(variables), strict=True
        )
    }


def training_of(
    surgery: surgery_of.Surgery, path: Path, *, source: Any = None, **changes: Any
) -> FineTuning:
    options = {"epochs": 4, "batch_size": 5, "learning_rate": 1e-2, "seed": 3, "patience": 9}
    source = source or Arrays(small_batch(18)[0])
    y = (np.arange(18) % 3).astype(np.int64)
    rows = TrainingRows(
        source, y, np.arange(3), np.arange(12), np.arange(12, 18), np.ones(12, np.float32)
    )
    recipe = FineTuningRecipe(**{**options, **changes})
    return FineTuning(surgery.whole, surgery, recipe, rows, checkpoint=path, identity={"seed": 3})


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_the_first_update_of_a_block_is_its_share_of_the_undivided_one(optimizer: str) -> None:
    whole = change_of_one_step(1.0, optimizer)
    shared = change_of_one_step(0.5, optimizer)
    for path, change in whole.items():
        factor = 0.25 if "conv2" in path else 0.5 if "conv3" in path else 1.0
        np.testing.assert_allclose(shared[path], factor * change, rtol=1e-3, atol=1e-7)
    # Adam's first step is as large as the rate, whatever the gradient; decay adds 1 % of a weight.
    kernel = np.abs(shared["conv2_block1_conv/kernel"])
    assert np.median(kernel) == pytest.approx(0.25e-2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2, 0.5])
def test_with_one_rate_the_optimizer_is_that_of_keras(weight_decay: float) -> None:
    keras = import_keras()
    surgery = operated(dense_head(0.0), "all")
    variables = surgery.whole.trainable_variables
    start, made = surgery_of.values_of(variables), []
    theirs = keras.optimizers.Adam(1.0)
    if weight_decay:
        theirs = keras.optimizers.AdamW(1.0, weight_decay=weight_decay)
        theirs.exclude_from_weight_decay([item for item in variables if len(item.shape) < 2])
    theirs.build(variables)
    ours = adamw(variables, [1.0] * len(variables), weight_decay=weight_decay)
    images, classes = small_batch()
    for optimizer in (ours, theirs):
        surgery_of.assign(variables, start)
        step = compile_step(surgery.whole, surgery.head, optimizer, training=False)
        for rate in (1e-2, 3e-3, 5e-3):
            optimizer.learning_rate.assign(rate)
            step(images, classes, ROW_WEIGHTS)
        made.append(surgery_of.values_of(variables))
    for first, our, their in zip(start, *made, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-7, rtol=1e-6)
        assert not np.array_equal(our, first)


@pytest.mark.slow
def test_weight_decay_takes_kernels_alone() -> None:
    surgery = operated(dense_head(0.0), "all")
    variables = surgery.whole.trainable_variables
    optimizer = adamw(variables, [0.5] * len(variables), weight_decay=0.1)
    optimizer.learning_rate.assign(0.2)
    before = surgery_of.values_of(variables)
    images, classes = small_batch()
    # Rows of no weight have no gradient: only decay is left, 0.1 x 0.2 x 0.5 of a weight.
    step = compile_step(surgery.whole, surgery.head, optimizer, training=False)
    step(images, classes, np.zeros(12, np.float32))
    for old, new in zip(before, surgery_of.values_of(variables), strict=True):
        kept = 0.99 if old.ndim > 1 else 1.0
        np.testing.assert_allclose(new, kept * old, rtol=1e-6)


@pytest.mark.slow
def test_a_scaled_loss_makes_the_same_steps() -> None:
    surgery = operated(dense_head(0.0), "all")
    variables = surgery.whole.trainable_variables
    start, made = surgery_of.values_of(variables), []
    images, classes = small_batch()
    for precision in ("float32", "float16"):
        surgery_of.assign(variables, start)
        optimizer = adamw(variables, [0.5] * len(variables), precision=precision)
        optimizer.learning_rate.assign(1e-2)
        step = compile_step(surgery.whole, surgery.head, optimizer, training=False)
        losses = [float(step(images, classes, ROW_WEIGHTS)) for _ in range(2)]
        made.append([np.array(losses), *surgery_of.values_of(variables)])
    for plain, scaled in zip(*made, strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-6)


# Dropout of the head


@pytest.mark.slow
def test_dropout_is_behind_the_hidden_layers_alone() -> None:
    network = head_layers.head_network(dense_head(0.3))
    rates = {layer.name: layer.rate for layer in network.layers if "dropout" in layer.name}
    assert rates == {"dropout_1": 0.3}
    for head in (dense_head(0.0), heads.create("logreg", {}, seed=0)):
        if head.name == "logreg":
            rng = np.random.default_rng(0)
            head.fit(rng.normal(size=(30, 6)).astype(np.float32), np.arange(30) % 3)
        names = [layer.name for layer in head_layers.head_network(head).layers]
        assert not [name for name in names if "dropout" in name]


@pytest.mark.slow
def test_dropout_drops_a_share_and_keeps_the_mean() -> None:
    head = dense_head(0.25, hidden=2000)
    # Every hidden unit is one, and every logit their mean.
    head.weights_ = [np.zeros((6, 2000)), np.ones(2000), np.full((2000, 3), 1 / 2000), np.zeros(3)]
    network = head_layers.head_network(head)
    seed_random_layers(network, 0, 0)
    features = np.zeros((400, 6), np.float32)
    np.testing.assert_allclose(network(features, training=False), 1.0, rtol=1e-5)
    drawn = np.asarray(network(features, training=True))[:, 0]
    assert drawn.mean() == pytest.approx(1.0, abs=5e-3)
    # The variance of a mean of 2,000 units, each 1 / 0.75 three times of four, else zero.
    assert drawn.var() == pytest.approx(0.25 / 0.75 / 2000, rel=0.3)


@pytest.mark.slow
def test_layers_above_a_cut_draw_the_same_without_those_below() -> None:
    keras = import_keras()

    def states(count: int, step: int) -> list[list[int]]:
        layers = [keras.layers.Dropout(0.5, seed=0) for _ in range(count)]
        seed_random_layers(keras.Sequential([keras.Input((4,)), *layers]), 7, step)
        return [np.asarray(layer.seed_generator.state).tolist() for layer in layers]

    assert states(3, 5)[1:] == states(2, 5)
    assert states(2, 5) != states(2, 6)
    assert states(2, 5)[0] != states(2, 5)[1]


@pytest.mark.slow
def test_what_is_exported_has_no_dropout() -> None:
    loaded = small_backbone()
    for fold in (True, False):
        model = assembly.assemble(loaded, dense_head(), 3, fold=fold)
        kinds = {type(layer).__name__ for layer in all_layers(model)}
        assert "Dense" in kinds and "Dropout" not in kinds


def losses_and_weights(
    path: Path, dropout: float, **changes: Any
) -> tuple[list[float], str, FineTuning]:
    surgery = operated(dense_head(dropout))
    training = training_of(surgery, path, **changes)
    training.run(Notes())
    losses = [row["loss"] for row in training.progress.epochs]
    trained = [*surgery.state, *training._optimizer.variables]
    return losses, surgery_of.digest_of(trained), training


@pytest.mark.slow
def test_dropout_changes_what_is_trained_and_follows_the_seed(tmp_path: Path) -> None:
    # One batch holds all rows, so that the order of rows has no part in it.
    found = {
        name: losses_and_weights(tmp_path / name, dropout, batch_size=12, seed=seed)[:2]
        for name, dropout, seed in (
            ("dropped", 0.5, 3), ("again", 0.5, 3), ("other", 0.5, 4), ("kept", 0.0, 3),
            ("kept4", 0.0, 4),
        )
    }  # fmt: skip
    assert found["dropped"] == found["again"]
    assert found["other"][0] != pytest.approx(found["dropped"][0], rel=1e-3)
    assert found["kept"][0] != pytest.approx(found["dropped"][0], rel=1e-3)
    assert found["kept4"][0] == pytest.approx(found["kept"][0], rel=1e-4)


@pytest.mark.slow
def test_every_step_drops_other_units(tmp_path: Path) -> None:
    training = training_of(operated(dense_head()), tmp_path / "c.h5", learning_rate=1e-9)
    part, images = np.arange(12), small_batch()[0]
    losses = [training._train_on(part, images, step) for step in (0, 1, 0)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


@pytest.mark.slow
def test_outputs_do_not_depend_on_dropout(tmp_path: Path) -> None:
    rows, logits = np.arange(18), []
    for dropout in (0.5, 0.0):
        training = training_of(operated(dense_head(dropout)), tmp_path / "c.h5")
        logits.append(training.logits(rows))
        np.testing.assert_array_equal(training.logits(rows), logits[-1])
    np.testing.assert_array_equal(*logits)


@pytest.mark.slow
def test_training_with_dropout_keeps_what_is_fixed(tmp_path: Path) -> None:
    surgery = operated(dense_head())
    fixed = surgery.fixed(trains_statistics=False)
    moving = [item for item in surgery.state if "moving" in item.path]
    assert moving
    before = surgery_of.digest_of(fixed), surgery_of.digest_of(moving)
    training_of(surgery, tmp_path / "c.h5", layer_decay=0.5).run(Notes())
    assert (surgery_of.digest_of(fixed), surgery_of.digest_of(moving)) == before


@pytest.mark.slow
def test_training_with_dropout_resumes_bit_for_bit(tmp_path: Path) -> None:
    images = small_batch(18)[0]
    losses, expected, whole = losses_and_weights(tmp_path / "whole.h5", 0.5, layer_decay=0.5)
    assert whole.progress.best_epoch > 0
    for moment in (1, 3):
        path, options = tmp_path / f"{moment}.h5", {"layer_decay": 0.5}
        source = Arrays(images, fails_in=moment)
        first = training_of(operated(dense_head()), path, source=source, **options)
        with pytest.raises(KeyboardInterrupt):
            first.run(Notes())
        surgery = operated(dense_head())
        again = training_of(surgery, path, **options)
        assert again.resume() and again.progress.epoch == moment
        again.estimate()
        again.run(Notes())
        assert [row["loss"] for row in again.progress.epochs] == losses
        trained = [*surgery.state, *again._optimizer.variables]
        assert surgery_of.digest_of(trained) == expected


# The command, on the real network with random weights


QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "unfreeze_from": "conv5_block3",
                         "head": "dense", "learning_rate": 1e-2, "layer_decay": 0.5,
                         "optimizer": "adam"}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    """A folder with photos, their store, and a run with a dense head that is hardly trained."""
    folder = tmp_path_factory.mktemp("finetune_training")
    bars(folder / "photos", 60)
    (folder / "heads.toml").write_text("[heads.dense]\nepochs = 1\nlearning_rate = 1e-5\n")
    for arguments in (
        ("extract", folder / "photos", "--store", folder / "store", *FLAGS),
        ("train-head", "--store", folder / "store", "--run", folder / "run", "--head", "dense",
         "--split", "60/20/20", "--config", folder / "heads.toml"),
    ):  # fmt: skip
        assert main([str(argument) for argument in (*arguments, "--quiet")]) == 0
    return folder


@pytest.fixture(scope="module")
def uninterrupted(trained: Path) -> dict[str, Any]:
    result = run_finetune(trained / "run", run=str(trained / "whole"), **QUICK)
    assert result["finetune"]["kept_epoch"] > 0  # else the weights are those of the start
    return result


@pytest.mark.slow
def test_a_dense_head_starts_at_its_answers_and_keeps_its_dropout(
    trained: Path, uninterrupted: dict[str, Any]
) -> None:
    assert uninterrupted["finetune"]["start_difference"] < 1e-4
    assert heads.load(trained / "run/heads/dense").dropout == 0.5
    head = heads.load(trained / "whole/heads/finetune")
    assert (head.dropout, tuple(head.hidden)) == (0.5, (256,))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [("optimizer", "adamw"), ("layer_decay", 1.0)])
def test_another_optimizer_or_decay_is_another_run(
    trained: Path, uninterrupted: dict[str, Any], name: str, value: Any
) -> None:
    inputs = Run.open(trained / "whole").record.inputs
    assert inputs[name] == QUICK[name]
    with pytest.raises(RunError, match=f"{name} = {QUICK[name]!r}.*{name} = {value!r}"):
        run_finetune(trained / "run", run=str(trained / "whole"), **{**QUICK, name: value})


@pytest.mark.slow
def test_a_killed_run_with_dropout_ends_in_the_same_weights(
    trained: Path, uninterrupted: dict[str, Any]
) -> None:
    killed_after_an_epoch(trained, "killed", QUICK)
    notes = Notes()
    result = run_finetune(trained / "run", run=str(trained / "killed"), notes=notes, **QUICK)
    assert "Going on after epoch 1" in notes.lines
    received, expected = result["finetune"], uninterrupted["finetune"]
    assert received["weights_sha256"] == expected["weights_sha256"]
    assert [row["loss"] for row in received["epochs"]] == [
        row["loss"] for row in expected["epochs"]
    ]


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"layer_decay": 0.7}])
def test_the_preset_fixes_optimizer_and_decay(tmp_path: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=flag_of(name)):
        run_finetune(tmp_path, preset="tutorial", **options)


@pytest.mark.parametrize("value", [0.0, 1.5, -0.5])
def test_the_decay_of_the_rate_is_a_share(value: float) -> None:
    with pytest.raises(ConfigError, match="--layer-decay"):
        config.build(FinetuneOptions, {"layer_decay": value})
