"""Engines: the lazy table, the choice, precisions."""

import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from pipeline import engines
from pipeline.backbones.forms import ONNX
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines import Engine
from pipeline.errors import ConfigError, EngineUnavailableError

NETWORK = FrozenBackbone(
    lambda: None, name="none", image_size=32, pooling="avg", dim=1, weights_sha256=""
)

# The table


def test_engines_are_listed_in_order_and_can_be_chosen() -> None:
    assert list(engines.ENGINES) == sorted(engines.ENGINES)
    assert set(engines.FASTEST_FIRST) <= set(engines.ENGINES)


def test_on_a_processor_auto_takes_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, gpu=False)
    assert engines.resolve("auto") == ("openvino", "the fastest on a processor")
    assert engines.resolve("keras") == ("keras", "asked for")


def test_auto_says_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, gpu=False)
    missing = Engine("absent:create", ("no_such_runtime",), "pip install it")
    add_row(monkeypatch, "openvino", missing)
    assert engines.resolve("auto") == ("keras", "openvino is faster and not installed")


def test_auto_takes_keras_on_a_gpu_that_keras_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, gpu=True)
    monkeypatch.setattr("pipeline.system.keras_setup.gpu_name", lambda: "GPU of a test")
    assert engines.resolve("auto") == ("keras", "there is a GPU")
    monkeypatch.setattr("pipeline.system.keras_setup.gpu_name", lambda: None)
    engine, reason = engines.resolve("auto")
    assert engine == "openvino"
    assert "does not see the GPU" in reason


def test_auto_keeps_to_a_keras_backend_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, gpu=False)
    monkeypatch.setattr("pipeline.system.keras_setup.backend_name", lambda: "jax")
    assert engines.resolve("auto") == ("keras", "Keras runs on jax")


def test_auto_takes_an_engine_that_runs_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, gpu=False)
    monkeypatch.setattr("pipeline.system.keras_setup.backend_name", lambda: "jax")
    assert engines.resolve("auto", ONNX) == ("openvino", "the fastest on a processor")
    assert engines.resolve("onnx", ONNX) == ("onnx", "asked for")
    for call in (engines.resolve, engines.require):
        with pytest.raises(ConfigError, match=r"expected onnx or openvino.*in ONNX.*'keras'"):
            call("keras", ONNX)
    add_row(monkeypatch, "openvino", Engine("absent:create", ("no_such_runtime",), "pip install"))
    assert engines.resolve("auto", ONNX) == ("onnx", "openvino is faster and not installed")
    add_row(monkeypatch, "onnx", Engine("absent:create", ("no_such_runtime",), "pip install"))
    with pytest.raises(EngineUnavailableError, match="openvino"):
        engines.resolve("auto", ONNX)


def test_auto_takes_onnx_runtime_on_a_gpu_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, gpu=True)
    monkeypatch.setattr("pipeline.engines.onnx.has_cuda", lambda: True)
    assert engines.resolve("auto", ONNX) == ("onnx", "there is a GPU")
    monkeypatch.setattr("pipeline.engines.onnx.has_cuda", lambda: False)
    engine, reason = engines.resolve("auto", ONNX)
    assert engine == "openvino"
    assert "does not see the GPU" in reason
    assert [engines.best(ONNX, on_gpu=on_gpu) for on_gpu in (True, False)] == ["onnx", "openvino"]


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'keras'") as caught:
        engines.resolve("kera")
    assert "auto" in caught.value.hint


def test_an_absent_engine_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    add_row(monkeypatch, "absent", Engine("absent:create", ("no_such_runtime",), "pip install it"))
    for call in (engines.resolve, create_nothing):
        with pytest.raises(EngineUnavailableError) as caught:
            call("absent")
        assert "no_such_runtime" in caught.value.message
        assert "pip install it" in caught.value.hint


def test_an_engine_that_fails_to_import_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "half_installed.py").write_text("import a_missing_part")
    monkeypatch.syspath_prepend(tmp_path)
    add_row(monkeypatch, "half", Engine("half_installed:create", ("json",), "pip install half"))
    with pytest.raises(EngineUnavailableError, match="a_missing_part") as caught:
        create_nothing("half")
    assert "pip install half" in caught.value.hint


def test_an_engine_is_one_file_and_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "new_engine.py").write_text(
        "def create(loaded, *, batch_size, precision):\n    return loaded, batch_size, precision\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    add_row(monkeypatch, "new", Engine("new_engine:create", ("json",), "pip install new"))
    made: Any = engines.create("new", NETWORK, batch_size=3, precision="float32")
    assert made == (NETWORK, 3, "float32")


def test_choosing_an_engine_imports_no_network_library() -> None:
    script = (
        "import sys, pipeline.backbones.frozen, pipeline.engines, pipeline.backbones.weights\n"
        "pipeline.engines.resolve('auto')\n"
        "print(sorted({'jax', 'keras', 'tensorflow', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def at_hand(monkeypatch: pytest.MonkeyPatch, *, gpu: bool) -> None:
    monkeypatch.setattr("pipeline.system.machine.has_gpu", lambda: gpu)


def add_row(monkeypatch: pytest.MonkeyPatch, name: str, row: Engine) -> None:
    rows = {**engines.ENGINES, name: row}
    monkeypatch.setattr(engines, "ENGINES", MappingProxyType(rows))


def create_nothing(name: str) -> Any:
    return engines.create(name, NETWORK, batch_size=1, precision="float32")
