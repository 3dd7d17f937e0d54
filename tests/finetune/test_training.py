"""Training: gradients, steps, checkpoints, and what ends it."""

import dataclasses
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import Notes
from finetuning import GRADIENT_TOLERANCE, Arrays, operated, small_batch
from numpy.typing import NDArray

from pipeline.errors import PipelineError, RunError
from pipeline.finetune import steps
from pipeline.finetune import surgery as surgery_of
from pipeline.finetune.recipe import FineTuningRecipe, TrainingRows
from pipeline.finetune.training import FineTuning
from pipeline.runs import checkpoint
from pipeline.system.keras_setup import import_keras

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.slow
def test_updates_on_the_boundary_equal_those_on_images() -> None:
    surgery = operated("conv3")
    assert surgery.bottom is not None
    images, classes = small_batch()
    boundary = np.asarray(surgery.bottom.model(images)).reshape(-1, *surgery.boundary_shape)
    start, gradients = surgery_of.values_of(surgery.state), []
    row_weights = np.linspace(0.5, 2, 12).astype(np.float32)
    for model, inputs in ((surgery.whole, images), (surgery.top, boundary)):
        surgery_of.assign(surgery.state, start)
        # Steepest descent at a rate of one changes weights by their gradients.
        optimizer = import_keras().optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
        step = steps.compile_step(model, surgery.head, optimizer, training=False)
        step(inputs, classes, row_weights)
        made = surgery_of.values_of(surgery.state)
        gradients.append([old - new for old, new in zip(start, made, strict=True)])
    largest = max(np.abs(array).max() for array in gradients[0])
    assert largest > 1e-3
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=GRADIENT_TOLERANCE * largest, rtol=0)


@pytest.mark.slow
def test_a_step_equals_that_of_keras() -> None:
    keras = import_keras()
    surgery = operated("all")
    images, classes = small_batch()
    row_weights = np.linspace(0.5, 2, 12).astype(np.float32)
    start = surgery_of.values_of(surgery.state)
    optimizer = steps.adam(surgery.whole.trainable_variables)
    optimizer.learning_rate.assign(1e-3)
    step = steps.compile_step(surgery.whole, surgery.head, optimizer, training=True)
    ours = [float(step(images, classes, row_weights)) for _ in range(3)]
    made = surgery_of.values_of(surgery.state)
    surgery_of.assign(surgery.state, start)
    plain = keras.Model(surgery.whole.input, surgery.whole.outputs[1])
    plain.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    theirs = []
    for _ in range(3):
        plain.reset_metrics()  # else Keras reports a mean over calls
        theirs.append(float(plain.train_on_batch(images, classes, sample_weight=row_weights)))
    assert ours == pytest.approx(theirs, rel=1e-3)
    for one, other in zip(made, surgery_of.values_of(surgery.state), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_tutorial_moves_statistics_above_the_cut_only() -> None:
    surgery = operated("conv3")
    fixed = surgery.fixed(trains_statistics=True)
    before = surgery_of.digest_of(fixed)
    moving = [item for item in surgery.state if "moving" in item.path]
    statistics = surgery_of.digest_of(moving)
    images, classes = small_batch()
    optimizer = steps.adam(surgery.whole.trainable_variables)
    step = steps.compile_step(surgery.whole, surgery.head, optimizer, training=True)
    step(images, classes, np.ones(12, np.float32))
    assert surgery_of.digest_of(fixed) == before
    assert surgery_of.digest_of(moving) != statistics


@pytest.mark.slow
def test_a_precision_holds_for_what_is_compiled_after_it() -> None:
    surgery, images = operated("conv3"), small_batch()[0]
    found = []
    for precision in ("float32", "bfloat16", "float32"):
        surgery_of.set_precision(surgery, precision)
        found.append(steps.compile_forward(surgery.whole)(images)[0])
    largest = np.abs(found[0]).max()
    assert 1e-4 * largest < np.abs(found[1] - found[0]).max() < 5e-2 * largest
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.slow
def test_float32_is_multiplied_as_float32_on_jax() -> None:
    keras = import_keras()
    if keras.backend.backend() != "jax":
        pytest.skip("what JAX calls float32 is a setting of JAX")
    import jax

    found: list[Any] = []

    class Probe(keras.layers.Layer):  # type: ignore[misc]
        """Tells in which arithmetic it is compiled."""

        def call(self, inputs: Any) -> Any:
            found.append(jax.config.jax_default_matmul_precision)
            return inputs

    inputs = keras.Input((6,))
    head = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    features = Probe()(inputs)
    model = keras.Model(inputs, [features, head(features)])
    optimizer = steps.adam(model.trainable_variables)
    rows, classes = np.ones((4, 6), np.float32), np.zeros(4, np.int32)
    found.clear()
    with jax.default_matmul_precision("tensorfloat32"):
        steps.compile_forward(model)(rows)
        step = steps.compile_step(model, head, optimizer, training=False)
        step(rows, classes, np.ones(4, np.float32))
    assert len(found) == 2 and set(found) == {"highest"}


def small_training(path: Path, source: Any, **changes: Any) -> tuple[FineTuning, Any]:
    surgery = operated("conv3")
    options = {"epochs": 4, "batch_size": 5, "learning_rate": 1e-2, "seed": 3, "patience": 9}
    recipe = FineTuningRecipe(**{**options, **changes})
    y = (np.arange(18) % 3).astype(np.int64)
    rows = TrainingRows(
        source, y, np.arange(3), np.arange(12), np.arange(12, 18), np.ones(12, np.float32)
    )
    training = FineTuning(
        surgery.whole, surgery, recipe, rows, checkpoint=path, identity={"seed": 3}
    )
    return training, surgery


@pytest.mark.slow
@pytest.mark.parametrize("is_tutorial", [False, True])
def test_an_interrupted_training_ends_in_the_same_weights(
    tmp_path: Path, is_tutorial: bool
) -> None:
    images = small_batch(18)[0]
    whole, surgery = small_training(tmp_path / "whole.h5", Arrays(images), is_tutorial=is_tutorial)
    whole.run(Notes())
    expected = surgery_of.digest_of(surgery.state)
    for moment in (1, 3):
        source = Arrays(images, fails_in=moment)
        first, _ = small_training(tmp_path / f"{moment}.h5", source, is_tutorial=is_tutorial)
        with pytest.raises(KeyboardInterrupt):
            first.run(Notes())
        again, other = small_training(
            tmp_path / f"{moment}.h5", Arrays(images), is_tutorial=is_tutorial
        )
        assert again.resume() and again.progress.epoch == moment
        again.estimate()
        again.run(Notes())
        assert surgery_of.digest_of(other.state) == expected
        assert again.progress.best_loss == whole.progress.best_loss
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.slow
def test_an_estimate_leaves_no_trace(tmp_path: Path) -> None:
    training, surgery = small_training(tmp_path / "c.h5", Arrays(small_batch(18)[0]))
    variables = [*surgery.state, *training._optimizer.variables]
    before = surgery_of.digest_of(variables)
    seconds = training.estimate()
    assert seconds is not None and seconds > 0
    assert surgery_of.digest_of(variables) == before
    assert not (tmp_path / "c.h5").exists()


class SlowArrays(Arrays):
    """Inputs that take a while to load."""

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> NDArray[Any]:
        time.sleep(0.2)
        return super().batch(rows, epoch)


@pytest.mark.slow
def test_an_estimate_counts_val_and_loads_while_it_trains(tmp_path: Path) -> None:
    images = small_batch(18)[0]
    training, _ = small_training(tmp_path / "c.h5", SlowArrays(images), batch_size=4)
    inner = training._step

    def step(*batch: Any) -> Any:
        time.sleep(0.2)
        return inner(*batch)

    training._step = step
    seconds = training.estimate()
    # Three steps, each of which hides a loading, and six rows of val at 0.2 s for four.
    assert seconds is not None and 0.85 < seconds < 1.2  # in series: 1.5


@pytest.mark.slow
def test_nothing_is_estimated_where_nothing_is_left(tmp_path: Path) -> None:
    source = Arrays(small_batch(18)[0])
    training, _ = small_training(tmp_path / "c.h5", source, epochs=3)
    assert training.epochs_left == 3
    training.one_epoch(Notes())
    assert training.epochs_left == 2
    training.run(Notes())
    assert training.epochs_left == 0 and training.estimate() is None


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_keeps_the_last_good_weights(tmp_path: Path) -> None:
    images, notes = small_batch(18)[0], Notes()
    training, surgery = small_training(tmp_path / "c.h5", Arrays(images), is_tutorial=True)
    inner = training._step

    def step(inputs: Any, classes: Any, row_weights: Any) -> Any:
        # Three steps an epoch: the last of the second epoch breaks the weights first.
        calls.append(1)
        loss = inner(inputs, classes, row_weights)
        if len(calls) == 6:
            surgery.state[0].assign(np.full(surgery.state[0].shape, np.nan, np.float32))
            return np.nan
        if len(calls) == 3:
            good.append(surgery_of.digest_of(surgery.state))
        return loss

    calls: list[int] = []
    good: list[str] = []
    training._step = step
    training.run(notes)
    assert surgery_of.digest_of(surgery.state) == good[0]
    assert training.is_over and training.progress.epoch == 1
    assert "not a number in epoch 2" in training.progress.stopped
    assert any("--learning-rate" in line for line in notes.lines)
    again, other = small_training(tmp_path / "c.h5", Arrays(images), is_tutorial=True)
    assert again.resume() and again.is_over
    again.run(Notes())
    assert surgery_of.digest_of(other.state) == good[0]


@pytest.mark.slow
@pytest.mark.parametrize("is_tutorial", [False, True])
def test_weights_that_the_last_step_of_an_epoch_breaks_are_not_kept(
    tmp_path: Path, is_tutorial: bool
) -> None:
    # The one step of an epoch has a good loss and makes weights that no float32 can multiply.
    training, surgery = small_training(
        tmp_path / "c.h5", Arrays(small_batch(18)[0]), is_tutorial=is_tutorial, batch_size=12,
        learning_rate=1e38,
    )  # fmt: skip
    before = surgery_of.digest_of(surgery.state)
    losses = spied_losses(training)
    training.run(Notes())
    assert np.isfinite(losses).all() and len(losses) == 1
    assert surgery_of.digest_of(surgery.state) == before
    assert training.progress.epochs == [] and training.progress.best_epoch == 0
    assert "not a number in epoch 1" in training.progress.stopped


def spied_losses(training: FineTuning) -> list[float]:
    """Return a list that the loss of each step is appended to."""
    inner, losses = training._step, []

    def step(*batch: Any) -> Any:
        losses.append(float(inner(*batch)))
        return losses[-1]

    training._step = step
    return losses


@pytest.mark.slow
def test_training_that_does_not_help_ends_at_the_start(tmp_path: Path) -> None:
    images = small_batch(18)[0]
    training, surgery = small_training(
        tmp_path / "c.h5", Arrays(images), learning_rate=0.9, epochs=9, patience=2
    )
    before = surgery_of.digest_of(surgery.state)
    training._judge = lambda: (1.0, 0.5)  # as good as the start, never better
    training.run(Notes())
    assert training.progress.epoch == 2 and training.progress.best_epoch == 0
    assert surgery_of.digest_of(surgery.state) == before


@pytest.mark.slow
def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    training, _ = small_training(path, Arrays(small_batch(18)[0]), epochs=1)
    training.run(Notes())
    other, _ = small_training(path, Arrays(small_batch(18)[0]))
    other._identity = {"seed": 4}
    with pytest.raises(RunError, match="of another training"):
        other.resume()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match="cannot be read"):
        training.resume()


def reshaped(file: Any, name: str) -> None:
    """Turn an array into one of another shape."""
    values = file[name][()]
    del file[name]
    file[name] = np.concatenate([values, values])


def said_of(file: Any, **changes: Any) -> None:
    """Change what a checkpoint says of progress; None takes a field away."""
    record = json.loads(file["record"][()])
    said = {**record["progress"], **changes}
    record["progress"] = {name: value for name, value in said.items() if value is not None}
    del file["record"]
    file["record"] = json.dumps(record)


def sealed(file: Any) -> None:
    """Give a checkpoint the digest of what is in it now."""
    if "record" in file:
        groups = {
            name: [values[()] for values in file[name].values()]
            for name in checkpoint.Arrays.__slots__
        }
        del file["sha256"]
        file["sha256"] = np.bytes_(checkpoint._digest(file["record"][()].decode(), groups).encode())


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    small_training(path, Arrays(small_batch(18)[0]), epochs=1)[0].run(Notes())
    whole = path.read_bytes()
    training, surgery = small_training(path, Arrays(small_batch(18)[0]))
    variables = [*surgery.state, *training._optimizer.variables]
    before = surgery_of.digest_of(variables)
    damages: list[Callable[[Any], None]] = [
        lambda file: said_of(file, best_loss=None),
        lambda file: said_of(file, rounds=3),
        lambda file: said_of(file, epoch="one"),
        lambda file: file.pop("record"),
        lambda file: reshaped(file, "state/00000"),
        lambda file: reshaped(file, "optimizer/00002"),
        lambda file: file["state"].pop("00001"),
        lambda file: file["best"].create_dataset("99999", data=[1.0]),
    ]
    for damage, seal in itertools.product(damages, (lambda file: None, sealed)):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            damage(file)
            seal(file)
        with pytest.raises(RunError, match="cannot be read") as raised:
            training.resume()
        assert "Delete it to begin anew" in raised.value.hint
    assert surgery_of.digest_of(variables) == before and training.progress.epoch == 0
    path.write_bytes(whole)
    assert training.resume()


@pytest.mark.slow
def test_rows_of_a_class_that_train_lacks_are_wrong(tmp_path: Path) -> None:
    training, _ = small_training(tmp_path / "c.h5", Arrays(small_batch(18)[0]))
    _, before = training._judge()
    y = training._rows.y.copy()
    y[12:18] = [0, 1, 7, 7, 7, 7]
    training._rows = dataclasses.replace(training._rows, y=y)
    training._columns = np.searchsorted(training._rows.classes, y).astype(np.int32)
    loss, accuracy = training._judge()
    assert np.isfinite(loss) and accuracy <= 2 / 6 and 0 <= before <= 1


@pytest.mark.slow
def test_outputs_of_many_rows_take_the_room_of_one_array(tmp_path: Path) -> None:
    images = small_batch(18)[0]
    training, surgery = small_training(tmp_path / "c.h5", Arrays(images), batch_size=2000)
    features, logits = (np.asarray(item) for item in surgery.whole(images, training=False))
    rows = np.tile(np.arange(18), 10_000)
    for made, expected in ((training.features, features), (training.logits, logits)):
        made(rows[:1])  # compiles
        tracemalloc.start()
        found = made(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Beside the array no more than a few batches of images.
        assert peak < found.nbytes + 5 * 2000 * images[0].nbytes
        assert found.dtype == np.float32 and found.shape == (len(rows), expected.shape[1])
        np.testing.assert_allclose(found, expected[rows], atol=1e-5)


@pytest.mark.slow
def test_missing_memory_names_the_batch_size_to_try(tmp_path: Path) -> None:
    training, _ = small_training(tmp_path / "c.h5", Arrays(small_batch(18)[0]), batch_size=8)

    def fail(*_: Any) -> Any:
        raise MemoryError

    training._step = fail
    with pytest.raises(PipelineError, match="--batch-size 4"):
        training.run(Notes())
