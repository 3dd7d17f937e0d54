"""Drift of a decoder or a network, seen by every command that encodes, and named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import (
    IDENTITY,
    Command,
    FakeEncoder,
    edit_record,
    replace_network,
    write_image,
    write_photos,
)
from numpy.typing import NDArray

import pipeline
from pipeline import engines
from pipeline.backbones import frozen, probe
from pipeline.cli.main import main
from pipeline.engines import probing
from pipeline.engines.encoder import DRIFT_TOLERANCE, drift
from pipeline.errors import PipelineError, StaleFeaturesError
from pipeline.images import decoder, probe_images, resizing
from pipeline.store.store import Store

FLAGS = ("--weights", "random", "--image-size", 32, "--store", "store")
KEPT = Path("store/probe.json")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a store and a run that stay as they are."""
    folder = tmp_path_factory.mktemp("original")
    write_photos(folder / "photos", 20)
    with pytest.MonkeyPatch.context() as patch:
        replace_network(patch)
        patch.setattr("pipeline.engines.resolve", lambda *_: ("fake", ""))
        patch.chdir(folder)
        for arguments in (
            ("extract", "photos", *map(str, FLAGS)),
            ("train-head", "--store", "store", "--run", "run", "--head", "logreg"),
        ):
            assert main([*arguments, "--quiet"]) == 0
    return folder


@pytest.fixture
def data(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch, fake_network: FakeEncoder
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.engines.resolve", lambda *_: ("fake", ""))
    shutil.copytree(original / "photos", "photos")
    return Path("photos")


@pytest.fixture
def run(original: Path, data: Path) -> Path:
    """A run in the folder at hand, as it is in a project that was copied."""
    for name in ("store", "run"):
        shutil.copytree(original / name, name)
    return Path("run")


def decode_otherwise(monkeypatch: pytest.MonkeyPatch, levels: int, names: tuple[str, ...]) -> None:
    """Have some probe images decoded a little brighter."""
    original, contents = decoder.decode, probe_images.contents()
    changed = {contents[name] for name in names}

    def decode(data: bytes, *arguments: Any, **more: Any) -> NDArray[np.uint8]:
        pixels = original(data, *arguments, **more)
        return np.minimum(pixels, 255 - levels) + np.uint8(levels * (data in changed))

    monkeypatch.setattr(decoder, "decode", decode)


def drifted_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda *given, **more: 255 - original(*given, **more))
    monkeypatch.setattr("PIL.__version__", "99.0")


# The comparison


def test_an_encoder_agrees_with_its_own_probe() -> None:
    kept = probing.make(FakeEncoder(), IDENTITY)
    assert kept.features.shape == (8, 16) and len(set(kept.pixels)) == 8
    assert len(np.unique(kept.features, axis=0)) == 8
    for batch_size in (1, 3, 64):
        assert probing.check(FakeEncoder(batch_size=batch_size), kept) == []
    assert probing.check(FakeEncoder(drift=1), None) == []


@pytest.mark.parametrize("drift", [2e-3, -2e-3, np.inf])
def test_a_network_that_drifted_is_named(drift: float) -> None:
    kept = probing.make(FakeEncoder(), IDENTITY)
    other = FakeEncoder(drift=drift, engine="newer", device="GPU (new)")
    with pytest.raises(PipelineError) as caught:
        probing.check(other, kept)
    if np.isfinite(drift):
        assert isinstance(caught.value, StaleFeaturesError)
        said = caught.value.message
        assert "The network makes other features" in said and "alpha.png and 7 more" in said
        assert "by 2.0e-03 of the largest value (allowed: 1e-03)" in said
        assert "Then: engine fake, device CPU (fake); now: engine newer, device GPU (new)" in said
        assert "--store" in caught.value.hint
    else:
        assert "not-a-number for the probe image" in caught.value.message


def test_versions_of_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "provenance", lambda: {"packages": {"openvino": "2025.0"}})
    kept = probing.make(FakeEncoder(), IDENTITY)
    monkeypatch.setattr(probing, "provenance", lambda: {"packages": {"openvino": "2026.4"}})
    with pytest.raises(StaleFeaturesError, match=r"Then: openvino 2025\.0; now: openvino 2026\.4"):
        probing.check(FakeEncoder(drift=0.01), kept)


def test_a_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.system.machine.gpu_driver", lambda: "535.1")
    kept = probing.make(FakeEncoder(device="GPU (one)"), IDENTITY)
    monkeypatch.setattr("pipeline.system.machine.gpu_driver", lambda: "570.2")
    with pytest.raises(StaleFeaturesError, match=r"Then: driver 535\.1; now: driver 570\.2"):
        probing.check(FakeEncoder(device="GPU (one)", drift=0.01), kept)


def test_what_did_not_change_is_named_too() -> None:
    kept = probing.make(FakeEncoder(), IDENTITY)
    with pytest.raises(StaleFeaturesError, match=r"Then and now: engine fake, device CPU \(fake\)"):
        probing.check(FakeEncoder(drift=0.01), kept)


def test_a_decoder_that_drifted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = probing.make(FakeEncoder(), IDENTITY)
    decode_otherwise(monkeypatch, 20, ("grey.jpg", "turned.jpg"))
    monkeypatch.setattr("PIL.__version__", "99.0")
    with pytest.raises(StaleFeaturesError) as caught:
        probing.check(FakeEncoder(), kept)
    assert "The decoder gives other pixels" in caught.value.message
    then = kept.decoder["Pillow"]
    assert f"Then: Pillow {then}; now: Pillow 99.0" in caught.value.message


def test_pixels_that_change_nothing_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = probing.make(FakeEncoder(), IDENTITY)
    original = decoder.decode

    def decode(data: bytes, *arguments: Any) -> NDArray[np.uint8]:
        pixels = original(data, *arguments)
        pixels[0, 0, 0] ^= data == probe_images.contents()["plain.png"]  # by one level
        return pixels

    monkeypatch.setattr(decoder, "decode", decode)
    (note,) = probing.check(FakeEncoder(), kept)
    assert note.startswith("Note: plain.png of the probe images") and "allowed: 1e-03" in note
    with pytest.raises(StaleFeaturesError, match=r"network.*alpha\.png and 6 more"):
        probing.check(FakeEncoder(drift=0.01), kept)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("resize", sorted(resizing.RESIZES))
def test_engines_agree_on_the_probe(resize: str) -> None:
    loaded = frozen.load("resnet50", weights="random", seed=0, image_size=32, pooling="avg")
    identity = replace(IDENTITY, decoder=resizing.find(resize).decoder)
    made_by = {"batch_size": 5, "precision": "float32"}
    encoders = [engines.create(name, loaded, **made_by) for name in engines.ENGINES]
    kept = probing.make(encoders[0], identity)
    assert len(np.unique(kept.features, axis=0)) == 8
    for encoder in encoders:
        made = probing.make(encoder, identity)
        assert drift(kept.features, made.features).max() < DRIFT_TOLERANCE / 10, encoder.engine
        assert probing.check(encoder, kept) == []


# Extract


def test_extract_keeps_a_probe_and_a_rerun_loads_nothing(
    command: Command, data: Path, fake_network: FakeEncoder
) -> None:
    result = command("extract", data, *FLAGS)[1]
    assert fake_network.images == result["encoded"] + 8
    kept = KEPT.read_bytes()
    assert json.loads(kept)["network"]["engine"] == "fake"
    assert command("extract", data, *FLAGS)[1]["reused"] == 60
    assert fake_network.images == result["encoded"] + 8
    write_image(data / "ant/new.png", seed=1)
    assert command("extract", data, *FLAGS)[1]["encoded"] == 1
    assert fake_network.images == result["encoded"] + 8 + 9
    assert KEPT.read_bytes() == kept


@pytest.mark.parametrize("part", ["network", "decoder"])
def test_extract_sees_drift_before_it_writes(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    assert command("extract", data, *FLAGS)[0] == 0
    write_image(data / "ant/new.png", seed=1)
    if part == "network":
        fake_network.drift = 0.01
    else:
        drifted_pixels(monkeypatch)
    status, result = command("extract", data, *FLAGS)
    assert status == 2 and result["error"]["type"] == "StaleFeaturesError"
    assert f"The {part}" in result["error"]["message"] and "--store" in result["error"]["hint"]
    assert len(Store.open(Path("store"))) == 60


def test_a_store_without_a_probe_gets_one_and_is_told_of(
    command: Command, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("extract", data, *FLAGS)[0] == 0
    KEPT.unlink()
    assert command("extract", data, *FLAGS)[0] == 0 and not KEPT.exists()
    assert command("verify", "store")[1]["ok"]
    write_image(data / "ant/new.png", seed=1)
    arguments = [str(argument) for argument in ("extract", data, *FLAGS)]
    assert pipeline.cli.main.main(arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "Note: the store had no probe" in said and "verify store --reencode N" in said
    assert KEPT.exists()
    write_image(data / "ant/newer.png", seed=2)
    assert pipeline.cli.main.main(arguments) == 0
    assert "had no probe" not in capsys.readouterr().err


def test_force_replaces_the_probe(command: Command, data: Path, fake_network: FakeEncoder) -> None:
    assert command("extract", data, *FLAGS)[0] == 0
    fake_network.drift = 0.01
    assert command("extract", data, *FLAGS, "--seed", 1, "--force")[0] == 0
    store = Store.open(Path("store"))
    found = probe.find(store.path, store.identity, store.dim)
    assert found is not None
    assert probing.check(fake_network, found) == []


def test_a_damaged_probe_is_found_and_repaired(command: Command, data: Path) -> None:
    assert command("extract", data, *FLAGS)[0] == 0
    KEPT.write_text(KEPT.read_text().replace("Pillow", "Billow"))
    write_image(data / "ant/new.png", seed=1)
    status, result = command("extract", data, *FLAGS)
    assert status == 2 and "verify --repair" in result["error"]["hint"]
    status, result = command("verify", "store")
    assert status == 2 and [found["shard"] for found in result["problems"]] == ["probe.json"]
    assert command("verify", "store", "--repair")[1]["repaired"] == [f"removed {KEPT}"]
    assert command("extract", data, *FLAGS)[1]["encoded"] == 1
    assert command("verify", "store")[1]["ok"] and KEPT.exists()


# Other commands


def changed(encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    if part == "network":
        encoder.drift = 0.01
    else:
        drifted_pixels(monkeypatch)


COMMANDS: dict[str, Callable[[], tuple[object, ...]]] = {
    "predict": lambda: ("predict", "run", "photos/ant/000.png"),
    "evaluate": lambda: ("evaluate", "run", "photos"),
    "verify": lambda: ("verify", "store", "--reencode", 5),
}


@pytest.mark.parametrize("part", ["network", "decoder"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_encodes_sees_drift(
    command: Command,
    run: Path,
    fake_network: FakeEncoder,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    part: str,
) -> None:
    before = fake_network.images
    status, result = command(*COMMANDS[name]())
    assert status == 0 and fake_network.images >= before + 8
    changed(fake_network, monkeypatch, part)
    status, result = command(*COMMANDS[name]())
    assert status == 2 and result["error"]["type"] == "StaleFeaturesError"
    assert f"The {part}" in result["error"]["message"]
    assert "store/probe.json" in result["error"]["message"]


def test_a_classifier_is_compared_once_and_a_run_without_a_probe_never(
    run: Path, fake_network: FakeEncoder
) -> None:
    before = fake_network.images
    classifier = pipeline.Classifier.load(run)
    assert fake_network.images == before + 8 and not classifier.notes
    classifier.predict("photos/ant/000.png")
    assert fake_network.images == before + 9
    KEPT.unlink()
    fake_network.drift = 0.01
    pipeline.Classifier.load(run)
    assert fake_network.images == before + 9


def test_what_changed_without_consequence_is_said_by_predict(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_record(KEPT, lambda record: record["pixels"].update({"grey.jpg": "0" * 64}))
    edit_record(KEPT, lambda record: record["decoder"].update(Pillow="11.3.0"))
    assert pipeline.cli.main.main(["predict", "run", "photos/ant/000.png"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "Note: grey.jpg of the probe images" in said and "Then: Pillow 11.3.0" in said
    assert len(pipeline.Classifier.load(run).notes) == 1


def test_a_feature_extractor_sees_drift(
    data: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(str(path) for path in data.rglob("*.png"))
    extractor = pipeline.FeatureExtractor("cv", weights="random", image_size=32)
    extractor.transform(paths[:30])
    fake_network.drift = 0.01
    extractor.transform(paths[:30])
    with pytest.raises(StaleFeaturesError, match="The network"):
        extractor.transform(paths)
