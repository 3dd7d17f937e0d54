"""The linear head: scikit-learn's contract, Keras' own steps, and heads trained many at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline import heads
from pipeline.errors import ConfigError, PipelineError
from pipeline.heads.linear import LinearHead, bank
from pipeline.heads.linear import head as linear
from pipeline.heads.scaler import FeatureScaler
from pipeline.system import machine

SWEEP = [
    {"learning_rate": rate, "weight_decay": decay}
    for rate in (1e-3, 3e-3, 1e-2)
    for decay in (0.0, 0.1)
]


def blobs(n: int = 300, dim: int = 20, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    return (centres[y] + rng.normal(size=(n, dim))).astype(np.float32), y


def assert_same(first: LinearHead, second: LinearHead) -> None:
    """To rounding: products of other widths add in another order."""
    for name in ("coef_", "intercept_"):
        one, other = getattr(first, name), getattr(second, name)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(first.coef_).max())


WEIGHTS_REASON = "a row twice in a batch is not a row of weight two: the batches differ"


@pytest.mark.slow
@parametrize_with_checks(
    [LinearHead(epochs=60, batch_size=16, learning_rate=0.02)],
    expected_failed_checks=lambda _: {
        "check_sample_weight_equivalence_on_dense_data": WEIGHTS_REASON
    },
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"optimizer": "rmsprop"}, "optimizer"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"decay": 1}, "decay"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"class_weight": "even"}, "class_weight"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any], name: str) -> None:
    X, y = blobs()
    with pytest.raises(ConfigError, match=name):
        LinearHead(**params).fit(X, y)
    with pytest.raises(ConfigError, match=name):
        next(LinearHead(epochs=1).fit_many(X, y, [params]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_the_cross_entropy_of_each_epoch(smoothing: float) -> None:
    X, y = blobs()
    weights = np.where(y == 0, 2.0, 0.5)
    # One batch and no decay: the loss of an epoch is that of the head after the epochs before.
    params = {"batch_size": len(X), "decay": False, "label_smoothing": smoothing}
    losses = LinearHead(epochs=3, **params).fit(X, y, weights).losses_
    assert losses.shape == (3,)
    assert losses[0] == pytest.approx(np.log(3), rel=1e-5)
    before = LinearHead(epochs=2, **params).fit(X, y, weights).scores(X)
    logs = before - np.log(np.exp(before).sum(axis=1, keepdims=True))
    targets = (1 - smoothing) * np.eye(3)[y] + smoothing / 3
    expected = np.average(-(targets * logs).sum(axis=1), weights=weights)
    assert losses[2] == pytest.approx(expected, rel=1e-4)


def test_heads_trained_at_once_have_each_its_own_losses() -> None:
    X, y = blobs()
    for head, setting in zip(LinearHead(epochs=3).fit_many(X, y, SWEEP), SWEEP, strict=True):
        alone = LinearHead(epochs=3, **setting).fit(X, y)
        np.testing.assert_allclose(head.losses_, alone.losses_, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_long_training_reaches_the_optimum_of_logistic_regression(optimizer: str) -> None:
    X, y = blobs(n=400, dim=5)
    head = LinearHead(optimizer, learning_rate=0.2, weight_decay=0.0, epochs=500, batch_size=400)
    scaled = FeatureScaler().fit_transform(X)
    theirs = LogisticRegression(C=np.inf, max_iter=2000, tol=1e-8).fit(scaled, y)
    expected = theirs.predict_proba(scaled)
    np.testing.assert_allclose(head.fit(X, y).predict_proba(X), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_heads_trained_together_equal_heads_trained_alone(optimizer: str) -> None:
    X, y = blobs()
    head = LinearHead(optimizer=optimizer, epochs=5, batch_size=32, label_smoothing=0.1)
    weights = np.random.default_rng(1).uniform(0, 2, len(y))
    weights[::7] = 0
    settings = [*SWEEP, {"seed": 1}, {"epochs": 3}, {"class_weight": "balanced"}]
    many = head.fit_many(X, y, settings, weights)
    for params, together in zip(settings, many, strict=True):
        alone = clone(head).set_params(**params).fit(X, y, weights)
        assert together.get_params() == alone.get_params()
        assert_same(alone, together)
        np.testing.assert_array_equal(together.predict(X), alone.predict(X))


def test_settings_that_differ_in_rates_alone_share_every_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[int] = []
    monkeypatch.setattr(
        bank.LinearBank,
        "_batches",
        lambda self, X, scaler, epoch: passes.append(epoch) or iter(()),
    )
    X, y = blobs()
    settings = [*SWEEP, {"seed": 1, "learning_rate": 0.5}, {"seed": 1}]
    list(LinearHead(epochs=2).fit_many(X, y, settings))
    assert passes == [0, 1, 0, 1]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_size_of_banks_change_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    X, y = blobs()
    head = LinearHead(epochs=3)
    expected = list(head.fit_many(X, y, SWEEP))
    monkeypatch.setattr(machine, "processors", lambda: threads)
    monkeypatch.setattr(linear, "MAX_ENTRIES", 21 * 3 * 4)
    monkeypatch.setattr(bank, "SMALL", 0)
    monkeypatch.setattr(bank, "BLOCK_ENTRIES", 30)
    for one, other in zip(expected, head.fit_many(X, y, SWEEP), strict=True):
        assert_same(one, other)


def test_same_seed_same_numbers_another_seed_another_order() -> None:
    X, y = blobs()
    first, again, other = (LinearHead(seed=seed, epochs=3).fit(X, y) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.coef_, again.coef_)
    assert not np.array_equal(first.coef_, other.coef_)
    np.testing.assert_allclose(first.predict_proba(X), other.predict_proba(X), atol=0.02)


def test_only_the_ratios_of_weights_count() -> None:
    X, y = blobs()
    weights = np.random.default_rng(0).uniform(0.5, 2, len(y))
    one = LinearHead(epochs=3).fit(X, y, weights)
    ten = LinearHead(epochs=3).fit(X, y, 10 * weights)
    assert_same(one, ten)
    assert not np.allclose(one.coef_, LinearHead(epochs=3).fit(X, y).coef_, rtol=1e-3)


def test_balanced_weights_help_the_rare_class() -> None:
    X, y = blobs(n=600, classes=2, dim=3)
    keep = (y == 0) | (np.arange(len(y)) % 20 == 1)
    X, y = X[keep], y[keep]
    recalls = [
        (LinearHead(class_weight=kind, epochs=100).fit(X, y).predict(X)[y == 1] == 1).mean()
        for kind in (None, "balanced")
    ]
    assert recalls[1] > recalls[0]


def test_weight_decay_shrinks_the_kernel_and_not_the_bias() -> None:
    X, y = blobs(n=330)
    y = np.where(np.arange(len(y)) < 200, 0, y)
    decays = [{"weight_decay": decay} for decay in (0.0, 10.0)]
    head = LinearHead(optimizer="sgd", learning_rate=0.05, epochs=100)
    free, decayed = head.fit_many(X, y, decays)
    assert np.abs(decayed.coef_).max() < 0.25 * np.abs(free.coef_).max()
    frequencies = np.bincount(y) / len(y)
    assert decayed.predict_proba(X).mean(axis=0) == pytest.approx(frequencies, abs=0.03)


@pytest.mark.slow
def test_label_smoothing_bounds_confidence() -> None:
    X, y = blobs(dim=100)
    head = LinearHead(epochs=200, weight_decay=0.0, learning_rate=0.01)
    sharp, smooth = (
        clone(head).set_params(label_smoothing=share).fit(X, y).predict_proba(X).max(axis=1)
        for share in (0.0, 0.3)
    )
    # The best probability of the true class is 1 - 0.3 + 0.3 / 3.
    assert sharp.mean() > 0.99 and smooth.mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_loss_that_is_no_number_names_the_rate_and_leaves_the_others_alone(
    optimizer: str,
) -> None:
    X, y = blobs()
    head = LinearHead(optimizer=optimizer, epochs=60, batch_size=16, decay=False)
    settings = [{}, {"learning_rate": 1e30, "weight_decay": 1.0}, {}]
    first, lost, last = head.fit_many(X, y, settings)
    assert_same(head.fit(X, y), first)
    assert_same(head, last)
    assert lost.converged_ is False
    assert (len(lost.losses_), len(last.losses_)) == (0, last.epochs)
    assert not np.isfinite(lost.scores(X)).all()
    with pytest.raises(PipelineError, match=r"after epoch \d+\. Lower learning_rate \(1e\+30\)"):
        clone(head).set_params(**settings[1]).fit(X, y)


@pytest.mark.slow
def test_hard_data() -> None:
    rng = np.random.default_rng(0)
    two = LinearHead(epochs=3).fit(np.float32([[0, 1], [1, 0]]), ["a", "b"])
    assert list(two.predict(np.float32([[0, 1], [1, 0]]))) == ["a", "b"]
    constant = np.full((30, 4), 7, np.float32)
    head = LinearHead(epochs=3).fit(constant, np.arange(30) % 3)
    np.testing.assert_allclose(head.predict_proba(constant), 1 / 3, atol=0.02)
    y = np.arange(2100) % 1000
    X = (rng.normal(size=(1000, 64))[y] + 0.1 * rng.normal(size=(2100, 64))).astype(np.float32)
    many = LinearHead(epochs=30, learning_rate=0.01).fit(X, y)
    assert many.coef_.shape == (1000, 64)
    assert (many.predict(X) == y).mean() > 0.9


def test_val_may_lack_a_class_and_is_not_looked_at() -> None:
    X, y = blobs()
    head = LinearHead(epochs=3)
    plain = clone(head).fit(X, y)
    with_val = clone(head).fit(X, y, validation=(X[y == 0], y[y == 0]))
    np.testing.assert_array_equal(plain.coef_, with_val.coef_)


def test_float64_features_give_the_same_head() -> None:
    X, y = blobs()
    assert_same(LinearHead(epochs=3).fit(X, y), LinearHead(epochs=3).fit(X.astype("f8"), y))


def test_features_far_from_zero_lose_little() -> None:
    X, y = blobs()
    near = LinearHead(epochs=20).fit(X, y)
    far = LinearHead(epochs=20).fit(X + 1000, y)
    np.testing.assert_allclose(
        near.predict_proba(X), far.predict_proba(X + np.float32(1000)), atol=2e-3
    )


def test_saved_head_predicts_the_same_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {**heads.HEADS, "linear": "pipeline.heads.linear.head:LinearHead"}
    monkeypatch.setattr(heads, "HEADS", rows)
    X, y = blobs()
    head = heads.create("linear", {"epochs": 3}, seed=2).fit(X, y)
    heads.save(head, tmp_path)
    np.testing.assert_array_equal(heads.load(tmp_path).predict_proba(X), head.predict_proba(X))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_steps_equal_those_of_keras(optimizer: str, smoothing: float) -> None:
    from pipeline.system.keras_setup import import_keras

    keras = import_keras()
    X, y = blobs(n=256)
    head = LinearHead(
        optimizer, learning_rate=0.01, weight_decay=0.0, epochs=4, batch_size=32,
        label_smoothing=smoothing, seed=3,
    ).fit(X, y)  # fmt: skip
    layer = keras.layers.Dense(3, activation="softmax", kernel_initializer="zeros")
    network = keras.Sequential([keras.Input((20,)), layer])
    rates = keras.optimizers.schedules.CosineDecay(0.01, 4 * 256 // 32)
    made = {"sgd": lambda: keras.optimizers.SGD(rates, momentum=0.9),
            "adam": lambda: keras.optimizers.Adam(rates)}  # fmt: skip
    network.compile(made[optimizer](), keras.losses.CategoricalCrossentropy(
        label_smoothing=smoothing))  # fmt: skip
    scaled, targets = FeatureScaler().fit_transform(X), np.eye(3, dtype="f4")[y]
    for epoch in range(4):
        order = np.random.default_rng([3, 1, epoch]).permutation(256)
        for start in range(0, 256, 32):
            rows = order[start : start + 32]
            network.train_on_batch(scaled[rows], targets[rows])
    kernel, bias = network.get_weights()
    np.testing.assert_allclose(head.coef_, kernel.T, atol=1e-5 * np.abs(kernel).max())
    np.testing.assert_allclose(head.intercept_, bias, atol=1e-5 * np.abs(kernel).max())
