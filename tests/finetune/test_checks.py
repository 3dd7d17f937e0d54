"""That fine-tuning starts at the answers of stage 2."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import planted_store
from finetuning import Command
from numpy.typing import NDArray

from pipeline.config.options import FinetuneOptions
from pipeline.errors import EngineUnavailableError, StaleFeaturesError
from pipeline.finetune.checks import check_gradients, check_start
from pipeline.finetune.origin import Origin, open_origin
from pipeline.heads.calibration import probabilities
from pipeline.system.keras_setup import import_keras

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def unsure(tmp_path: Path, command: Command) -> Origin:
    """A run of twenty classes whose probabilities are all about a twentieth."""
    planted_store(tmp_path / "store", {f"class{number:02}": 15 for number in range(20)})
    arguments = ("--store", tmp_path / "store", "--run", tmp_path / "run", "--head", "logreg")
    assert command("train-head", *arguments)[0] == 0
    origin = open_origin(FinetuneOptions(source=str(tmp_path / "run")))
    head: Any = origin.head
    head.coef_, head.intercept_, head.temperature_ = head.coef_ / 1e3, head.intercept_ / 1e3, 1.0
    return origin


def started(origin: Origin, logits: NDArray[np.floating], **options: Any) -> float:
    training: Any = SimpleNamespace(logits=lambda rows: logits)
    return check_start(FinetuneOptions(**options), origin, training)


def val_scores(origin: Origin) -> NDArray[np.floating]:
    keys = origin.examples.keys[origin.rows("val")]
    scores: NDArray[np.floating] = origin.head.scores(origin.store.read(keys))
    return scores


def test_it_starts_where_probabilities_and_answers_are_the_same(unsure: Origin) -> None:
    scores = val_scores(unsure)
    noise = np.random.default_rng(0).normal(size=scores.shape)
    assert started(unsure, scores) == 0
    assert 0 < started(unsure, scores + 1e-7 * noise) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_answers_of_unsure_classes_are_refused(unsure: Origin, precision: str) -> None:
    permuted = np.roll(val_scores(unsure), 1, axis=1)
    differences = probabilities([permuted], 1.0) - probabilities([val_scores(unsure)], 1.0)
    assert np.abs(differences).max() < 1e-3  # which by itself would pass
    with pytest.raises(StaleFeaturesError, match="another answer for"):
        started(unsure, permuted, precision=precision)


def test_a_row_with_another_answer_is_allowed_in_16_bits_alone(unsure: Origin) -> None:
    logits = val_scores(unsure)
    logits[3] = logits[3, ::-1]
    path = unsure.examples.paths[unsure.rows("val")[3]]
    with pytest.raises(StaleFeaturesError, match=rf"another answer for 1 of .*{path}"):
        started(unsure, logits)
    for options in ({"precision": "bfloat16"}, {"cache_precision": "float16"}):
        assert started(unsure, logits, **options) < 1e-3


def test_ties_may_be_broken_in_another_way(unsure: Origin) -> None:
    head: Any = unsure.head
    head.coef_, head.intercept_ = np.zeros_like(head.coef_), np.zeros_like(head.intercept_)
    noise = np.random.default_rng(0).normal(size=val_scores(unsure).shape)
    assert started(unsure, 1e-6 * noise) < 1e-6


def test_probabilities_are_compared_at_the_temperature_of_the_head(unsure: Origin) -> None:
    head: Any = unsure.head
    scores = val_scores(unsure)
    answers = np.eye(20)[scores.argmax(axis=1)]
    raised = scores + 1e-4 * answers  # the same answers, by less than 1e-5 more probable
    assert started(unsure, raised) < 1e-5
    head.temperature_ = 1e-3
    with pytest.raises(StaleFeaturesError, match="probabilities that differ by"):
        started(unsure, raised)


def strided(channels: int, *, stride: int = 2, size: int = 1) -> Any:
    """A cut network whose trained part is a model that holds one convolution."""
    keras = import_keras()
    layers = [keras.Input((8, 8, channels)), keras.layers.Conv2D(4, size, stride, name="reducing")]
    network = SimpleNamespace(layers=["frozen", keras.Sequential(layers)])
    return SimpleNamespace(loaded=SimpleNamespace(network=network), cut=SimpleNamespace(first=1))


@pytest.mark.slow
def test_what_onednn_would_train_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient writes out of bounds: a crash, or wrong numbers."""
    for harmless in (strided(16), strided(8, stride=1), strided(8, size=3)):
        check_gradients(harmless)
    with pytest.raises(EngineUnavailableError, match=r"reducing.*8 channels") as caught:
        check_gradients(strided(8))
    assert "TF_ENABLE_ONEDNN_OPTS=0" in caught.value.hint
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    check_gradients(strided(8))
