"""Keras' backend: refused where nothing is made for it, before Keras is imported."""

import json
import sys
from pathlib import Path

import pytest
from fakes import Command, planted_store, write_classes

from pipeline.errors import EngineUnavailableError
from pipeline.system import keras_setup


@pytest.fixture(autouse=True)
def before_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has imported Keras yet, and nothing sets its backend."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/.keras").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["torch", "numpy", "openvino", "nonsense", "TensorFlow", " jax"])
def test_backends_of_no_use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", name)
    # The dense head is plain operations, which NumPy has as well.
    for refused in (keras_setup.require_backend, keras_setup.import_keras)[
        : 1 if name == "numpy" else 2
    ]:
        with pytest.raises(EngineUnavailableError, match="tensorflow or jax") as caught:
            refused()
        assert f"{name!r}, by KERAS_BACKEND" in caught.value.message
        assert "KERAS_BACKEND=tensorflow" in caught.value.hint
    assert "keras" not in sys.modules


@pytest.mark.parametrize("keras_home", [None, "elsewhere", "~/elsewhere"])
def test_the_file_that_sets_it_is_named(
    keras_home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "home/.keras"
    if keras_home is not None:
        monkeypatch.setenv("KERAS_HOME", keras_home)
        folder = Path(keras_home).expanduser()
        folder.mkdir()
    (folder / "keras.json").write_text(json.dumps({"backend": "torch"}))
    with pytest.raises(EngineUnavailableError, match=str(folder / "keras.json")):
        keras_setup.require_backend()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    keras_setup.require_backend()


def test_backends_that_are_installed_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    keras_setup.require_backend()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(keras_setup, "find_spec", lambda name: object())
    keras_setup.require_backend()
    monkeypatch.setattr(keras_setup, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match="not installed") as caught:
        keras_setup.require_backend()
    assert "pip install jax" in caught.value.hint


def test_every_command_that_needs_keras_refuses_at_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_store(tmp_path / "s", {"a": 30, "b": 30})
    write_classes(tmp_path / "d", {"a": 1, "b": 1})
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    train = ("train-head", "--store", "s", "--run", "r")
    # What needs no Keras goes on.
    assert command(*train, "--head", "logreg")[0] == 0
    for arguments in (
        ("extract", "d", "--weights", "random", "--store", "new"),
        ("extract", "d", "--weights", "random", "--store", "new", "--engine", "keras"),
        ("train-head", "--store", "s", "--run", "new", "--head", "logreg", "--head", "dense"),
        ("sweep", "--store", "s", "--run", "new", "--head", "dense"),
        ("finetune", "r"),
        ("export", "r", "a.keras"),
        ("export", "r", "a", "--format", "folder"),
        ("predict", "r", "d"),
    ):
        status, result = command(*arguments)
        assert (status, "'torch'" in result["error"]["message"]) == (2, True), (arguments, result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "home", "r", "s"]
