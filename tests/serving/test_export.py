"""Export: every format against the cached path, and the check on all that may differ."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiny_resnet
from exported_models import metadata_of
from fakes import (
    FakeEncoder,
    Notes,
    edit_head,
    edit_record,
    list_heads,
    replace_network,
    write_photos,
)
from numpy.typing import NDArray
from PIL import Image
from processes import run_python

from pipeline import heads
from pipeline.backbones import probe
from pipeline.cli.main import main
from pipeline.config.options import CommonOptions
from pipeline.config.serving import ExportOptions
from pipeline.errors import (
    ConfigError,
    EngineUnavailableError,
    HeadNotTrainableError,
    PipelineError,
    RunError,
    StaleFeaturesError,
    WeightsUnavailableError,
)
from pipeline.files.regular import sha256_file
from pipeline.heads.head import Head
from pipeline.images import decoder, manifest
from pipeline.runs import model_folder, stitch
from pipeline.runs.run import Run
from pipeline.serving.classifier import Classifier
from pipeline.serving.export import export, open_source
from pipeline.serving.formats import FORMATS, require_free, size_of, staged
from pipeline.store.store import Store
from pipeline.system import machine
from pipeline.system.progress import Silence

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
SIZE = 32
NETWORKS = ("centroid", "dense", "linear", "linear-svc", "logreg", "majority", "ridge")
OUTS = {"keras": "model.keras", "onnx": "model.onnx", "savedmodel": "model", "folder": "model"}
# Of probabilities, on the same processor: folded float32 layers against heads in float64.
TOLERANCE = 1e-4

Model = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


def save_network(path: Path) -> None:
    """A small network, so that converting it takes a moment: a backbone from a file."""
    from pipeline.system.keras_setup import import_keras

    keras = import_keras()
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Conv2D(24, 5, strides=4, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model.save(path)


def train(folder: Path, run: str, *more: object, names: tuple[str, ...] = ("logreg",)) -> None:
    flags = [flag for name in names for flag in ("--head", name)]
    arguments = ["train-head", "--store", folder / "store", "--run", folder / run, *flags, *more]
    assert main([str(argument) for argument in arguments] + ["--quiet"]) == 0


def with_splits(folder: Path, target: str, labels: tuple[str, ...], lacking: str = "") -> Path:
    """Write a manifest of some classes with declared splits; one class is not in train."""
    rows = Store.open(folder / "store").read_manifest(None)
    kept = [index for index, label in enumerate(rows.labels) if label in labels]
    cycle = {False: ["train"] * 4 + ["val", "test"], True: ["val", "test"]}
    splits = [
        cycle[rows.labels[index] == lacking][index % len(cycle[rows.labels[index] == lacking])]
        for index in kept
    ]
    chosen = replace(
        rows,
        paths=[rows.paths[index] for index in kept],
        labels=[rows.labels[index] for index in kept],
        splits=splits,
        keys=rows.keys[kept],
        statuses=["ok"] * len(kept),
    )
    manifest.write(folder / target, chosen)
    return folder / target


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a store by a small network, and three runs on it."""
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos", 24)
    save_network(folder / "small.keras")
    arguments = ("extract", folder / "photos", "--store", folder / "store", "--engine", "keras",
                 "--backbone", folder / "small.keras", "--preprocessing", "unit",
                 "--image-size", SIZE, "--quiet", "--views", "flip")  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    train(folder, "run", names=(*NETWORKS, "knn"))
    train(folder, "two", "--manifest", with_splits(folder, "two.csv", ("ant", "cow")))
    lacking = with_splits(folder, "lacking.csv", ("ant", "bee", "cow"), lacking="bee")
    train(folder, "lacking", "--manifest", lacking)
    train(folder, "averaged", "--average", "flip", "--reject-below", "0.6")
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(made, tmp_path / "own")
    make_own(tmp_path / "own", "run", "averaged")
    return tmp_path / "own"


def make_own(folder: Path, *runs: str) -> None:
    """Have runs in a copied folder know the store and the photos beside them."""
    for name in runs:
        path = folder / name / "run.json"
        edit_record(path, lambda record: record["inputs"].update(store=str(folder / "store")))
        edit_record(path, lambda record: record.update(root=str(folder / "photos")))


def options_of(folder: Path, out: Path, form: str, **more: Any) -> ExportOptions:
    return ExportOptions(
        **{
            "run": str(folder / "run"),
            "head": "logreg",
            "out": str(out),
            "format": form,
            "weights": str(folder / "small.keras"),
            **more,
        }
    )


def exported(options: ExportOptions, *, force: bool = False) -> dict[str, Any]:
    return export(options, CommonOptions(force=force), Silence())


def photos_of_test(folder: Path, run: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the decoded test images of a run, and where they are among val and test."""
    rows = Run.open(folder / run).manifest()
    splits = np.array(rows.splits)
    pixels = [decoder.decode(rows.file(index).read_bytes(), SIZE)
              for index in np.flatnonzero(splits == "test")]  # fmt: skip
    return np.stack(pixels), splits[splits != "train"] == "test"


def opened(path: Path, form: str) -> Model:
    """Load an exported model as its users do: with nothing of this package but for a folder."""
    if form == "folder":
        load = FORMATS["folder"].load(path)
        return lambda pixels: load(pixels).astype(np.float32)
    if form == "keras":
        import keras

        model = keras.saving.load_model(path, safe_mode=True)
        return lambda pixels: np.asarray(model(pixels, training=False))
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(["probabilities"], {"images": pixels})[0]
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda pixels: loaded.signatures["serving_default"](images=tf.constant(pixels))[
        "probabilities"
    ].numpy()


def require_agreement(folder: Path, run: str, name: str, model: Model) -> None:
    """Compare with what stage 2 recorded for every test image, in batches of 5 and alone."""
    pixels, is_test = photos_of_test(folder, run)
    expected = Run.open(folder / run).probabilities(name)[is_test]
    assert len(expected) == len(pixels) >= 5
    in_fives = [model(pixels[start : start + 5]) for start in range(0, len(pixels), 5)]
    received = np.concatenate(in_fives)
    assert (received.dtype, received.shape) == (np.float32, expected.shape)
    assert np.abs(received - expected).max() < TOLERANCE
    np.testing.assert_array_equal(received.argmax(axis=1), expected.argmax(axis=1))
    np.testing.assert_allclose(model(pixels[:1])[0], expected[0], atol=TOLERANCE)


# Formats


@pytest.mark.slow
@pytest.mark.parametrize("form", ["keras", "onnx", "savedmodel"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_test_image_agrees(name: str, form: str, made: Path, tmp_path: Path) -> None:
    out = tmp_path / OUTS[form]
    result = exported(options_of(made, out, form, head=name))
    assert result["out"] == str(out) and result["bytes"] == size_of(out) > 0
    assert (result["format"], result["head"]) == (form, name)
    assert result["classes"] == ["ant", "bee", "cow"]
    assert result["stitch"]["n"] == 32 and result["stitch"]["same_argmax"] is True
    assert result["stitch"]["max_difference"] < TOLERANCE
    require_agreement(made, "run", name, opened(out, form))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["keras", "onnx", "savedmodel"])
@pytest.mark.parametrize("run", ["two", "lacking"])
def test_two_classes_and_a_class_that_train_lacked(
    run: str, form: str, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / OUTS[form]
    exported(options_of(made, out, form, run=str(made / run)))
    model = opened(out, form)
    require_agreement(made, run, "logreg", model)
    if run == "lacking":
        pixels, _ = photos_of_test(made, run)
        assert (model(pixels)[:, 1] == 0).all() and (model(pixels)[:, [0, 2]] > 0).any()


@pytest.mark.slow
def test_the_temperature_is_in_the_model(made: Path) -> None:
    """The run's own is not 1, so that a model without it would not agree."""
    for name in ("logreg", "linear-svc", "dense"):
        temperature = heads.load(made / "run" / "heads" / name).temperature_
        assert abs(np.log(temperature)) > 0.02, (name, temperature)


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMATS))
def test_metadata_travel(form: str, own: Path, tmp_path: Path) -> None:
    out, notes = tmp_path / OUTS[form], Notes()
    options = options_of(own, out, form, run=str(own / "averaged"))
    export(options, CommonOptions(), notes)
    metadata = metadata_of(out, form)
    run = Run.open(own / "averaged")
    assert metadata["classes"] == ["ant", "bee", "cow"]
    assert metadata["identity"] == run.inputs.identity.as_json()
    assert metadata["resize"] == "squash" and f"squashed to {SIZE} x" in metadata["input"]
    assert metadata["head"] == "logreg"
    recorded = run.record.heads["logreg"].calibration.temperature
    assert metadata["temperature"] == recorded
    assert (metadata["average"], metadata["reject_below"]) == (["flip"], 0.6)
    # A folder is loaded by this package, which does both.
    said = " ".join(notes.lines)
    assert ("averages probabilities over flip" in said) == (form != "folder")
    assert ("no answer below 0.6" in said) == (form != "folder")


@pytest.mark.slow
def test_onnx_is_one_file_of_opset_17_with_any_batch(made: Path, tmp_path: Path) -> None:
    import onnx

    out = tmp_path / "model.onnx"
    exported(options_of(made, out, "onnx"))
    model = onnx.load(out, load_external_data=False)
    onnx.checker.check_model(model)
    assert {item.domain: item.version for item in model.opset_import}[""] == 17
    assert all(item.data_location == onnx.TensorProto.DEFAULT for item in model.graph.initializer)
    (taken,), (given,) = model.graph.input, model.graph.output
    assert (taken.name, given.name) == ("images", "probabilities")
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not taken.type.tensor_type.shape.dim[0].HasField("dim_value")


@pytest.mark.slow
def test_a_fresh_process_loads_keras_without_this_package(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.keras"
    exported(options_of(made, out, "keras"))
    pixels, is_test = photos_of_test(made, "run")
    np.save(tmp_path / "pixels.npy", pixels)
    code = (
        "import sys, numpy as np, keras\n"
        "model = keras.saving.load_model('model.keras', safe_mode=True)\n"
        "found = keras.ops.convert_to_numpy(model(np.load('pixels.npy'), training=False))\n"
        "np.save('found.npy', found)\n"
        "sys.exit(any(name.partition('.')[0] == 'pipeline' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = Run.open(made / "run").probabilities("logreg")[is_test]
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "knn"])
def test_folder_holds_all_that_predicting_needs(name: str, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    exported(options_of(own, out, "folder", head=name))
    pixels, is_test = photos_of_test(own, "run")
    expected = Run.open(own / "run").probabilities(name)[is_test]
    shutil.rmtree(own)
    received = FORMATS["folder"].load(out)(pixels)
    np.testing.assert_allclose(received, expected, atol=TOLERANCE)
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    digest = metadata_of(out, "folder")["identity"]["weights_sha256"]
    assert found == {"model.json", f"encoder/{digest}.h5", "encoder/network.keras",
                     "encoder/probe.json", "head/head.json", "head/arrays.npz"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("has_probe", [True, False])
def test_a_folder_brings_its_probe(own: Path, tmp_path: Path, has_probe: bool) -> None:
    out = tmp_path / "model"
    if not has_probe:  # a store of an older release: it was just compared with its images
        (own / "store/probe.json").unlink()
    exported(options_of(own, out, "folder"))
    photo = str(next((own / "photos").rglob("*.png")))
    for engine in ("keras", "openvino", "onnx"):
        assert not Classifier.load(out, engine=engine).notes
    found = model_folder.read(out)
    assert found.backbone.probe is not None
    moved = replace(found.backbone.probe, features=found.backbone.probe.features * 1.01)
    other = tmp_path / "other"
    shutil.copytree(out, other)
    probe.keep(other / "encoder", moved)
    with pytest.raises(RunError, match=r"probe\.json' as it was exported"):
        Classifier.load(other)
    listed = {"encoder/probe.json": sha256_file(other / "encoder/probe.json")}
    edit_record(other / "model.json", lambda record: record["files"].update(listed))
    with pytest.raises(StaleFeaturesError, match="The network makes other features"):
        Classifier.load(other)
    (other / "encoder/probe.json").unlink()
    edit_record(other / "model.json", lambda record: record["files"].pop("encoder/probe.json"))
    assert Classifier.load(other).predict(photo).predictions, "one of an older release"


@pytest.mark.slow
def test_drift_is_named_before_a_model_is_written(own: Path, tmp_path: Path) -> None:
    store = Store.open(own / "store")
    kept = probe.find(store.path, store.identity, store.dim)
    assert kept is not None
    probe.keep(store.path, replace(kept, features=kept.features * np.float32(1.01)))
    with pytest.raises(StaleFeaturesError, match="The network makes other features"):
        exported(options_of(own, tmp_path / "model", "folder"))
    assert not (tmp_path / "model").exists()


def finetune_small(folder: Path, *flags: str) -> str:
    """Fine-tune all of a small network; returns its file. Flags are for ``extract``."""
    write_photos(folder / "photos", 30)
    save_network(folder / "small.keras")
    weights = str(folder / "small.keras")
    arguments = ["extract", folder / "photos", "--store", folder / "store", "--backbone",
                 weights, "--preprocessing", "unit", "--image-size", SIZE, *flags]  # fmt: skip
    assert main([*map(str, arguments), "--quiet"]) == 0
    # A head that has much to learn.
    (folder / "early.toml").write_text("[heads.linear]\nepochs = 1\nlearning_rate = 0.003\n")
    train(folder, "stage-two", "--config", folder / "early.toml", names=("linear",))
    tuning = ["finetune", folder / "stage-two", "--run", folder / "run", "--unfreeze-from",
              "all", "--epochs", 6, "--learning-rate", 0.003, "--weights", weights]  # fmt: skip
    assert main([*map(str, tuning), "--quiet"]) == 0
    run = Run.open(folder / "run")
    changed = np.abs(run.probabilities("finetune") - run.probabilities("linear")).max()
    assert changed > 0.05, "nothing was trained"
    return weights


@pytest.mark.slow
@pytest.mark.skipif(not machine.computes_in("bfloat16"), reason="a processor without bfloat16")
def test_a_finetuned_head_is_of_float32_whatever_the_store_holds(tmp_path: Path) -> None:
    weights = finetune_small(tmp_path, "--engine", "openvino", "--precision", "bfloat16")
    run = Run.open(tmp_path / "run")
    rows = run.manifest()
    paths = [rows.file(index) for index, split in enumerate(rows.splits) if split == "test"]
    expected = run.probabilities("finetune")[photos_of_test(tmp_path, "run")[1]]
    for engine in ("keras", "openvino"):
        classifier = Classifier.load(run.path, "finetune", engine=engine, weights=weights)
        tops = [dict(item.top) for item in classifier.predict(paths, top=3).predictions]
        received = [[top[name] for name in run.record.classes] for top in tops]
        np.testing.assert_allclose(received, expected, atol=TOLERANCE)
    with pytest.raises(ConfigError, match="expected openvino, which made"):
        Classifier.load(run.path, "linear", engine="keras", weights=weights)
    with pytest.raises(RunError, match="precision = 'float32'"):
        exported(options_of(tmp_path, tmp_path / "linear.keras", "keras", head="linear"))
    out = tmp_path / "model"
    exported(options_of(tmp_path, out, "folder", head="finetune"))
    identity = metadata_of(out, "folder")["identity"]
    assert identity["precision"] == "float32" and "engine" not in identity
    require_agreement(tmp_path, "run", "finetune", opened(out, "folder"))
    Classifier.load(out, engine="keras")


@pytest.mark.slow
def test_a_finetuned_network_in_every_format(tmp_path: Path) -> None:
    """A backbone that is in no table, trained on: every test image as the run recorded it."""
    weights = finetune_small(tmp_path)
    for name in ("finetune", "linear"):
        for form, out in OUTS.items():
            target = tmp_path / name / form / out
            result = exported(options_of(tmp_path, target, form, head=name, weights=weights))
            assert result["stitch"]["same_argmax"]
            require_agreement(tmp_path, "run", name, opened(target, form))
    (kept,) = (tmp_path / "run/finetune").glob("*.h5")
    place = tmp_path / "run/heads/finetune/probabilities.npy"
    np.save(place, np.roll(np.load(place), 1, axis=0))
    list_heads(tmp_path / "run")
    options = options_of(tmp_path, tmp_path / "out.keras", "keras", head="finetune",
                         weights=weights)  # fmt: skip
    with pytest.raises(StaleFeaturesError, match="The fine-tuned network differs"):
        exported(options)
    kept.unlink()
    with pytest.raises(WeightsUnavailableError, match=kept.stem):
        exported(options)
    assert not (tmp_path / "out.keras").exists()


@pytest.mark.slow
def test_the_real_backbone_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract_of_the_table(tmp_path, 4)
    # Every export builds the network for itself; here they share one.
    source = open_source(ExportOptions(run=str(tmp_path / "run"), out="", format="keras"))
    monkeypatch.setattr("pipeline.serving.export.open_source", lambda _: source)
    for form in FORMATS:
        out = tmp_path / form / OUTS[form]
        result = exported(ExportOptions(run=str(tmp_path / "run"), out=str(out), format=form))
        assert result["stitch"]["max_difference"] < TOLERANCE
        # 94 MB of weights, once.
        assert 93e6 < size_of(out) < 100e6
        model = FORMATS["folder"].load(out) if form == "folder" else opened(out, form)
        pixels, is_test = photos_of_test(tmp_path, "run")
        expected = Run.open(tmp_path / "run").probabilities("logreg")[is_test]
        np.testing.assert_allclose(model(pixels), expected, atol=TOLERANCE)


def extract_of_the_table(folder: Path, count: int) -> None:
    """Extract and train with a backbone of the table, whose weights are drawn."""
    write_photos(folder / "photos", count)
    arguments = ("extract", folder / "photos", "--store", folder / "store", "--weights",
                 "random", "--image-size", SIZE, "--seed", 3, "--engine", "keras",
                 "--quiet")  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    train(folder, "run")


@pytest.fixture
def small_resnet() -> Iterator[None]:
    """For one test, as another of this file is about ResNet50 itself."""
    with tiny_resnet.in_place_of_resnet50():
        yield


@pytest.mark.slow
def test_weights_that_the_store_lost_are_drawn_again_or_asked_for(
    tmp_path: Path, small_resnet: None
) -> None:
    """A file's are asked for by their digest."""
    extract_of_the_table(tmp_path, 12)
    shutil.rmtree(tmp_path / "store" / "encoder")
    options = ExportOptions(run=str(tmp_path / "run"), out=str(tmp_path / "drawn.keras"))
    assert exported(options)["stitch"]["max_difference"] < TOLERANCE
    path = tmp_path / "run/run.json"
    edit_record(path, lambda record: record["source"].update(weights="mine.h5"))
    options = ExportOptions(run=str(tmp_path / "run"), out=str(tmp_path / "again.keras"))
    with pytest.raises(WeightsUnavailableError, match="--weights PATH"):
        exported(options)
    assert exported(replace(options, weights="random"))["stitch"]["same_argmax"]
    edit_record(path, lambda record: record["source"].update(weights_seed=4))
    with pytest.raises(StaleFeaturesError, match="weights_sha256"):
        exported(replace(options, weights="random", out=str(tmp_path / "other.keras")))


@pytest.mark.slow
def test_on_jax_keras_files_are_written_and_other_formats_refused(
    made: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from pipeline.config.options import CommonOptions\n"
        "from pipeline.config.serving import ExportOptions\n"
        "from pipeline.errors import EngineUnavailableError\n"
        "from pipeline.serving.export import export\n"
        "from pipeline.system.progress import Silence\n"
        "run, weights = sys.argv[1:]\n"
        "def write(form, out):\n"
        "    options = ExportOptions(run=run, out=out, format=form, weights=weights, "
        "head='dense')\n"
        "    return export(options, CommonOptions(), Silence())\n"
        "for form, out in (('savedmodel', 'model'), ('onnx', 'model.onnx')):\n"
        "    try:\n"
        "        write(form, out)\n"
        "    except EngineUnavailableError as error:\n"
        "        assert 'KERAS_BACKEND=jax' in error.message\n"
        "    else:\n"
        "        sys.exit(form)\n"
        "write('keras', 'model.keras')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(made / "run"), str(made / "small.keras")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "KERAS_BACKEND": "jax", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("model*")] == ["model.keras"]
    # Written on JAX, read on TensorFlow.
    require_agreement(made, "run", "dense", opened(tmp_path / "model.keras", "keras"))


# What is refused


@pytest.mark.slow
@pytest.mark.parametrize("form", ["keras", "onnx", "savedmodel"])
def test_a_head_that_is_no_network_goes_into_a_folder_alone(
    form: str, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(HeadNotTrainableError, match="logreg") as caught:
        exported(options_of(made, tmp_path / OUTS[form], form, head="knn"))
    assert "--format folder" in caught.value.hint
    assert not list(tmp_path.iterdir())


def spoil_image(folder: Path) -> Path:
    """Make every test image brighter by one level, and return the first."""
    rows = Run.open(folder / "run").manifest()
    paths = [rows.file(index) for index, split in enumerate(rows.splits) if split == "test"]
    for path in paths:
        pixels = np.asarray(Image.open(path)).clip(0, 254) + np.uint8(1)
        Image.fromarray(pixels).save(path)
    return paths[0]


def spoil_store(folder: Path) -> None:
    """Put features that are 1 % larger into a store that is sound in itself."""
    store = Store.open(folder / "store")
    keys = store.read_manifest(None).keys
    features = store.read(keys)
    views = {name: store.read(keys, name) for name in store.views}
    record = store.record
    for name in ("shards", "views"):
        shutil.rmtree(store.path / name)
    (store.path / "scan.sqlite").unlink()
    fresh = Store(store.path, record)
    fresh.plain.add_shard(keys, features * np.float32(1.01))
    for name, values in views.items():
        fresh.views[name].add_shard(keys, values)


def spoil_head(folder: Path) -> None:
    """Put another head, sound in itself, in the place of the run's."""
    place = folder / "run" / "heads" / "logreg"
    for name in ("head.json", "arrays.npz"):
        shutil.copy(folder / "run" / "heads" / "ridge" / name, place / name)
    list_heads(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["keras", "folder"])
@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (spoil_image, StaleFeaturesError, "The image differs"),
        (spoil_store, StaleFeaturesError, "The features differ"),
        (spoil_head, RunError, "The head differs"),
    ],
)
def test_mismatch_names_the_part_and_writes_nothing(
    spoil: Callable[[Path], object], kind: type[PipelineError], words: str, form: str, own: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    spoil(own)
    target = tmp_path / "out"
    with pytest.raises(kind, match=words):
        exported(options_of(own, target / OUTS[form], form))
    assert not target.exists()


@pytest.mark.slow
def test_a_model_that_is_written_wrong_is_not_kept(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that loses the temperature: the assembled model is right, the file is not."""
    form = FORMATS["keras"]

    def write(package: Any, model: Any, path: Path) -> None:
        package.head.temperature_ *= 3
        form.write(package, package.assembled(), path)
        package.head.temperature_ /= 3

    monkeypatch.setattr(
        "pipeline.serving.export.FORMATS", {"keras": replace(form, write=write)}
    )  # fmt: skip
    with pytest.raises(PipelineError, match="The keras model differs") as caught:
        exported(options_of(made, tmp_path / "model.keras", "keras"))
    assert "Nothing was written" in caught.value.message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_images_that_are_gone(own: Path, tmp_path: Path) -> None:
    photos = sorted((own / "photos").rglob("*.png"))
    for path in photos[:60]:
        path.unlink()
    notes = Notes()
    result = export(options_of(own, tmp_path / "model.keras", "keras"), CommonOptions(), notes)
    assert result["stitch"]["n"] == len(photos) - 60 == 12
    said = " ".join(notes.lines)
    assert "60 images of the run cannot be read" in said and "on 12 images" in said
    shutil.rmtree(own / "photos")
    with pytest.raises(RunError, match=re.escape(str(own / "photos"))):
        exported(options_of(own, tmp_path / "again.keras", "keras"))
    assert not (tmp_path / "again.keras").exists()


@pytest.mark.slow
def test_a_store_that_is_gone_or_another(own: Path, tmp_path: Path) -> None:
    options = options_of(own, tmp_path / "model.keras", "keras")
    edit_record(own / "store/store.json", lambda it: it["identity"].update(pooling="max"))
    with pytest.raises(StaleFeaturesError, match="pooling"):
        exported(options)
    shutil.rmtree(own / "store")
    with pytest.raises(RunError, match=re.escape(str(own / "store"))):
        exported(options)


@pytest.mark.slow
def test_a_network_from_a_file_is_asked_for(own: Path, tmp_path: Path) -> None:
    for kept in (own / "store" / "encoder").glob("*.keras"):
        kept.unlink()
    with h5py.File(tmp_path / "small.h5", "w") as file:
        file["kernel"] = np.ones(3)
    for weights in (None, str(tmp_path / "small.h5")):
        with pytest.raises(WeightsUnavailableError, match="file of the network"):
            exported(options_of(own, tmp_path / "model.keras", "keras", weights=weights))


# Without Keras: a random projection in the place of the network


@pytest.fixture(scope="module")
def projected_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projected")
    write_photos(folder / "photos", 24)
    arguments = ("extract", folder / "photos", "--store", folder / "store", "--image-size", SIZE)
    with pytest.MonkeyPatch.context() as patch:
        replace_network(patch)
        assert main([*map(str, arguments), "--quiet"]) == 0
        train(folder, "run", names=("logreg", "centroid"))
    return folder


@pytest.fixture
def projected(
    projected_once: Path, fake_network: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy that a test may spoil, as the working directory."""
    shutil.copytree(projected_once, tmp_path, dirs_exist_ok=True)
    make_own(tmp_path, "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parts(folder: Path) -> tuple[Run, Store, Head]:
    run = Run.open(folder / "run")
    return run, Store.open(folder / "store"), heads.load(folder / "run" / "heads" / "logreg")


def test_sample_is_held_out_balanced_and_the_same_every_time(projected: Path) -> None:
    run, store, _ = parts(projected)
    found = stitch.sample(run, store, count=6)
    again = stitch.sample(run, store, count=6)
    np.testing.assert_array_equal(found.pixels, again.pixels)
    rows = run.manifest()
    split_of = {rows.file(index): split for index, split in enumerate(rows.splits)}
    assert {split_of[path] for path in found.paths} == {"test"}
    assert [path.parent.name for path in found.paths] == ["ant", "bee", "cow"] * 2
    everything = stitch.sample(run, store, count=1000)
    assert len(set(everything.paths)) == len(rows)


def test_everything_agrees(projected: Path) -> None:
    run, store, head = parts(projected)
    found, encoder = stitch.sample(run, store), FakeEncoder()
    stitch.check_features(found, encoder, store)
    stitch.check_head(run, store, "logreg", head)

    def whole(pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        return head.predict_proba(encoder(pixels))

    expected = stitch.cached_probabilities(head, [found.features], 3)
    agreement = stitch.compare(found, expected, whole, "The model")
    assert (agreement.n, agreement.same_argmax) == (32, True)
    assert agreement.max_difference < 1e-6


def test_features_that_differ_are_noticed(projected: Path) -> None:
    run, store, _ = parts(projected)
    found = stitch.sample(run, store)
    stitch.check_features(found, FakeEncoder(drift=5e-4), store)
    with pytest.raises(StaleFeaturesError, match="The features differ") as caught:
        stitch.check_features(found, FakeEncoder(drift=2e-3), store)
    assert str(store.path) in caught.value.message and ".png" in caught.value.message
    with pytest.raises(StaleFeaturesError, match="by nan of"):
        stitch.check_features(found, lambda pixels: np.full((len(pixels), 16), np.nan), store)


def test_a_head_that_differs_is_noticed(projected: Path) -> None:
    run, store, head = parts(projected)
    head.temperature_ *= 1.01
    with pytest.raises(RunError, match="The head differs"):
        stitch.check_head(run, store, "logreg", head)
    other = heads.load(projected / "run" / "heads" / "centroid")
    with pytest.raises(RunError, match="The head differs"):
        stitch.check_head(run, store, "logreg", other)


def test_a_model_that_differs_is_noticed(projected: Path) -> None:
    run, store, head = parts(projected)
    found, encoder = stitch.sample(run, store), FakeEncoder()
    right = head.predict_proba(encoder(found.pixels))
    for spoil in (
        lambda values: values[:, ::-1],
        lambda values: values * 0.99,
        lambda values: np.where(values == values.max(), np.nan, values),
    ):
        with pytest.raises(PipelineError, match="The model differs from the cached path"):
            stitch.compare(
                found,
                right,
                lambda pixels, spoil=spoil: spoil(head.predict_proba(encoder(pixels))),
                "The model",
            )
    assert np.ptp(right) > 0.1


def test_images_that_changed_or_are_gone(projected: Path) -> None:
    run, store, _ = parts(projected)
    first, second, *_ = stitch.sample(run, store).paths
    first.unlink()
    found = stitch.sample(run, store)
    assert list(found.unreadable) == [first] and len(found.paths) == 32
    second.write_bytes(second.read_bytes() + b"\0")
    with pytest.raises(StaleFeaturesError, match=re.escape(str(second))):
        stitch.sample(run, store)
    shutil.rmtree(projected / "photos")
    with pytest.raises(RunError, match="not one can be read"):
        stitch.sample(run, store)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"out": "model.onnx", "format": "keras"}, "end in .keras"),
        ({"out": "model", "format": "onnx"}, "end in .onnx"),
        ({"out": "photos", "format": "folder"}, "a folder"),
        ({"head": "logrig"}, "Did you mean 'logreg'"),
    ],
)
def test_bad_options(projected: Path, changes: dict[str, str], expected: str) -> None:
    options = ExportOptions(**{"run": "run", "out": "model.keras", **changes})
    with pytest.raises(ConfigError, match=expected):
        exported(options)


@pytest.mark.parametrize(
    ("out", "form", "said"),
    [("a.keras", "keras", ""), ("a.onnx", "onnx", ""), ("a", "folder", "no suffix"),
     ("a/b", "folder", "no suffix"), ("a/", "folder", "no suffix")],
)  # fmt: skip
def test_the_name_tells_the_format(
    out: str, form: str, said: str, projected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    seen: list[str | None] = []

    def stop(options: ExportOptions) -> None:
        seen.append(options.format)
        raise RunError("far enough")

    monkeypatch.setattr("pipeline.serving.export.open_source", stop)
    with pytest.raises(RunError, match="far enough"):
        export(ExportOptions(run="run", out=out), CommonOptions(), notes)
    assert seen == [form]
    assert (said in notes.lines[0]) if said else notes.lines == []
    with pytest.raises(RunError, match="far enough"):
        export(ExportOptions(run="run", out="b", format="savedmodel"), CommonOptions(), notes)
    assert seen[1] == "savedmodel"


@pytest.mark.parametrize("out", ["a.h5", "a.pb", "a.KERAS", "a.tflite", "a.v2"])
def test_a_name_of_no_format_is_refused(out: str, projected: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected OUT to end in \.keras or \.onnx") as caught:
        exported(ExportOptions(run="run", out=out))
    assert "--format" in caught.value.hint


def test_runs_that_cannot_be_exported(projected: Path) -> None:
    options = ExportOptions(run="run", out="model.keras")
    path = projected / "run" / "run.json"
    kept = json.loads(path.read_text())

    def refused(words: str, **changes: Any) -> None:
        edit_record(path, lambda record: record.update({**kept, **changes}))
        with pytest.raises(RunError, match=words):
            exported(options)

    refused("none is trained yet", heads={}, best=None)
    unsaved = {**kept["heads"]["logreg"], "not_saved": "no skops"}
    refused("no skops", heads={"logreg": unsaved}, best="logreg")
    refused("classes of 0 to 1", classes=["ant", "bee"])
    identity = {**kept["inputs"]["identity"], "precision": "bfloat16", "engine": "openvino"}
    refused("bfloat16", inputs={**kept["inputs"], "identity": identity})
    path.write_text(json.dumps(kept))
    edit_head(projected / "run", "logreg", lambda record: record.update(temperature=-1.0))
    kept = json.loads(path.read_text())
    refused("a temperature above 0")
    with pytest.raises(RunError, match="There is no run"):
        exported(replace(options, run="elsewhere"))


@pytest.mark.parametrize("form", ["onnx", "savedmodel"])
def test_on_another_backend_formats_of_tensorflow_are_refused(
    projected: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.system.keras_setup.backend_name", lambda: "jax")
    with pytest.raises(EngineUnavailableError, match="KERAS_BACKEND=jax"):
        exported(ExportOptions(run="run", out=OUTS[form], format=form))


# Once more


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMATS))
def test_a_finished_model_is_kept_when_it_is_asked_for_again(
    made: Path, tmp_path: Path, form: str
) -> None:
    """As after a kill between its last write and the end of the command."""
    out = tmp_path / OUTS[form]
    options, notes = options_of(made, out, form), Notes()
    first = exported(options)
    (tmp_path / f".tmp-{out.name}-abcdefgh").mkdir()
    stamp = out.stat().st_mtime_ns
    again = export(options, CommonOptions(), notes)
    assert any("already in" in line for line in notes.lines)
    assert again.keys() == first.keys() and again["bytes"] == first["bytes"]
    assert again["stitch"]["n"] == first["stitch"]["n"]
    assert out.stat().st_mtime_ns == stamp and list(tmp_path.iterdir()) == [out]
    for change in ({"head": "linear"}, {"run": str(made / "averaged")}):
        with pytest.raises(ConfigError, match="--force") as caught:
            exported(replace(options, **change))
        assert "that is there" in caught.value.message
    assert out.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_model_that_only_looks_finished_is_not_kept(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    options = options_of(made, out, "folder")
    exported(options)
    weights = next((out / "encoder").glob("*.h5"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="that is there"):
        exported(options)


# Places


@pytest.mark.parametrize("form", list(FORMATS))
def test_an_existing_place_is_replaced_by_force_alone(form: str, tmp_path: Path) -> None:
    out, kind = tmp_path / OUTS[form], FORMATS[form]

    def fill(temporary: Path, text: str) -> None:
        record = temporary if kind.suffix else temporary / kind.record
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(text)

    with staged(out, kind, force=False) as temporary:
        fill(temporary, "first")
    for text, force in (("second", False), ("third", True)):
        try:
            with staged(out, kind, force=force) as temporary:
                fill(temporary, text)
        except ConfigError as error:
            assert not force and "--force" in error.hint
    record = out if kind.suffix else out / kind.record
    assert record.read_text() == "third"
    with pytest.raises(RuntimeError), staged(out, kind, force=True) as temporary:
        fill(temporary, "fourth")
        raise RuntimeError
    assert record.read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("form", list(FORMATS))
def test_force_leaves_what_is_no_export_alone(form: str, tmp_path: Path) -> None:
    out = tmp_path / OUTS[form]
    (out / "photos").mkdir(parents=True)
    with pytest.raises(ConfigError, match="a folder that is there"):
        require_free(out, FORMATS[form], force=True)
    assert (out / "photos").is_dir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        require_free(link, FORMATS[form], force=True)


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    leftover, other = tmp_path / ".tmp-model.keras-abc", tmp_path / ".tmp-other.keras-abc"
    for folder in (leftover, other):
        folder.mkdir()
        (folder / "half").touch()
    out, form = tmp_path / "model.keras", FORMATS["keras"]
    with staged(out, form, force=False) as temporary:
        # Another export to the same place goes on undisturbed.
        with pytest.raises(RuntimeError), staged(out, form, force=False):
            raise RuntimeError
        temporary.write_text("whole")
    assert out.read_text() == "whole"
    assert not leftover.exists() and other.exists()


def test_an_export_that_was_killed_while_it_replaced_another_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, form = tmp_path / "model", FORMATS["folder"]

    def write(folder: Path, text: str) -> None:
        folder.mkdir()
        (folder / form.record).write_text(text)

    write(out, "old")
    kept = tmp_path / "kept"

    def die(*_: Path) -> None:
        # As the disk is at this moment; an exception would have the folder removed.
        shutil.copytree(tmp_path, kept)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("pipeline.serving.formats.rename_durably", die)
        with pytest.raises(KeyboardInterrupt), staged(out, form, force=True) as temporary:
            write(temporary, "new")
    assert (out / form.record).read_text() == "old", "an interruption is undone at once"
    assert not (kept / "model").exists()
    with (
        pytest.raises(ConfigError, match="with --force a"),
        staged(kept / "model", form, force=False),
    ):
        pytest.fail("there is an export")
    assert (kept / "model" / form.record).read_text() == "old"
    with staged(kept / "model", form, force=True) as temporary:
        write(temporary, "new")
    assert (kept / "model" / form.record).read_text() == "new"
    assert [path.name for path in kept.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        staged(tmp_path / "file" / "model.keras", FORMATS["keras"], force=False),
    ):
        pytest.fail("it must not come so far")


# Documents


@pytest.mark.slow
def test_the_snippets_of_the_document_run(made: Path, tmp_path: Path) -> None:
    for form in ("keras", "onnx", "savedmodel"):
        exported(options_of(made, tmp_path / OUTS[form], form))
    rows = Run.open(made / "run").manifest()
    index = rows.splits.index("test")
    shutil.copy(rows.file(index), tmp_path / "photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "runs").mkdir()
    exported(options_of(made, tmp_path / "runs" / "photos", "folder"))
    (tmp_path / "snippets.py").write_text("\n".join(blocks))
    done = run_python("snippets.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scored = [row for row, split in enumerate(rows.splits) if split != "train"]
    expected = Run.open(made / "run").probabilities("logreg")[scored.index(index)]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [
        "pipeline", "onnxruntime", "openvino", "tensorflow", "keras"
    ]  # fmt: skip
    for _, label, probability in lines:
        assert label == ["ant", "bee", "cow"][int(expected.argmax())]
        assert float(probability) == pytest.approx(float(expected.max()), abs=TOLERANCE)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_documents_pixels_are_the_decoders(form: str, resize: str, tmp_path: Path) -> None:
    text = (ROOT / "docs/serving.md").read_text()
    block = next(re.finditer(r"```python\n(import numpy.*?)```", text, re.DOTALL)).group(1)
    names: dict[str, Any] = {}
    exec(compile(block, "serving.md", "exec"), names)
    path = tmp_path / "photo"
    noise = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(path, format=form, exif=exif)
    expected = decoder.decode(path.read_bytes(), SIZE, resize)
    found = names["pixels"](path, SIZE, resize)
    off = np.abs(found.astype(int) - expected)
    assert found.shape == expected.shape
    # The document makes the whole and cuts; the decoder makes the part alone.
    assert off.max() <= (2 if resize == "crop" else 0)
