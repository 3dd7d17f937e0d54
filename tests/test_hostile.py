"""Files that came from elsewhere: none hangs, fills memory, runs code or has another file read."""

import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import DIM, Command, FakeBackbone, edit_record, planted_store, write_classes, write_image

from pipeline import engines, heads
from pipeline.backbones import keras_file, weights, weights_file
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.cli.main import main
from pipeline.errors import (
    CorruptShardError,
    DecodeError,
    PipelineError,
    RunError,
    StaleFeaturesError,
    WeightsUnavailableError,
)
from pipeline.files.regular import sha256_file
from pipeline.files.state import FileState
from pipeline.finetune import photos as finetune_data
from pipeline.images.manifest import Manifest
from pipeline.images.reading import Reference
from pipeline.runs import model_folder, stitch
from pipeline.runs.run import Run
from pipeline.store.scan_cache import ScanCache
from pipeline.store.store import Store
from pipeline.verify.store import verify

COUNTS = {"ant": 14, "bee": 14, "cow": 14}
# Of a file that the scan cache trusts, since it is not young.
OLD_STATUS = Path(h5py.__file__).stat()
OLD = FileState.of(OLD_STATUS)
SECRET = b"\x01\x00\x80\x3f" * 4000


@pytest.fixture(autouse=True)
def never_for_ever() -> Iterator[None]:
    """End what waits: opening a pipe that nobody writes to."""

    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a run that stay as they are."""
    folder = tmp_path_factory.mktemp("original")
    planted_store(folder / "store", COUNTS).refresh_view()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command = ["train-head", "--store", "store", "--run", "run", "--head", "logreg", "--quiet"]
        assert main(command) == 0
    return folder


@pytest.fixture
def made(tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store and a run in the folder at hand, as they are in a project that was copied."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


ODD = pytest.mark.parametrize("odd", [fifo, zeros])


@ODD
@pytest.mark.parametrize(
    "name",
    ["store/store.json", "store/manifest.csv", "shard", "run/run.json", "run/manifest.csv",
     "run/heads/logreg/head.json", "run/heads/logreg/arrays.npz",
     "run/heads/logreg/probabilities.npy"],
)  # fmt: skip
def test_what_is_no_file_is_an_error(
    made: Path, command: Command, name: str, odd: Callable[[Path], None]
) -> None:
    (shard,) = (made / "store/shards").glob("*.h5")
    odd(shard if name == "shard" else made / name)
    where = "run" if name.startswith("run") else "store"
    assert command("verify", where)[0] == 2
    if where == "store":
        status, result = command("train-head", "--store", "store", "--run", "other")
    elif "npy" in name or name == "run/manifest.csv":
        status, result = command("compare", "run")
    else:
        status, result = command("predict", "run", "nothing")
    assert status == 2 and result["error"]["message"]
    assert "internal" not in result["error"]["type"]


@ODD
@pytest.mark.parametrize("name", ["features.h5", "scan.sqlite"])
def test_what_is_made_anew_may_be_anything(
    made: Path, command: Command, name: str, odd: Callable[[Path], None]
) -> None:
    odd(made / "store" / name)
    assert len(Store.open(made / "store")) == 42
    command("verify", "store", "--repair")
    assert command("verify", "store")[0] == 0


@ODD
def test_images_are_files(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    key = hashlib.sha256(write_image(tmp_path / "a.png", 1)).hexdigest()
    keys = np.array([key.encode()], dtype="S64")
    rows = Manifest(tmp_path, ["a.png"], ["ant"], ["test"], keys, ["ok"])
    odd(tmp_path / "a.png")
    with pytest.raises(DecodeError, match="not a regular file"):
        Reference(tmp_path / "a.png")()
    with (
        finetune_data.Photos(rows, 32, "squash", augment_seed=None) as photos,
        pytest.raises(StaleFeaturesError, match="not a regular file"),
    ):
        photos.batch(np.arange(1), None)

    class OneImage:
        path = tmp_path

        def manifest(self) -> Manifest:
            return rows

    with pytest.raises(RunError, match="not one can be read"):
        stitch.sample(OneImage(), planted_store(tmp_path / "store", COUNTS))  # type: ignore[arg-type]


@ODD
def test_weights_are_files(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    path = tmp_path / ("0" * 64 + ".h5")
    path.touch()
    odd(path)
    with pytest.raises(WeightsUnavailableError):
        weights.load(path)
    with pytest.raises(WeightsUnavailableError):
        weights_file.read(path, [])
    network = path.rename(tmp_path / "net.keras")
    with pytest.raises(WeightsUnavailableError):
        keras_file.architecture(network)


# -- shards ----------------------------------------------------------------------------


def elsewhere(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    file.create_dataset(name, shape, dtype, external=[(str(Path("secret").resolve()), 0, 8000)])


def linked(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    with h5py.File("secret.h5", "w") as other:
        other.create_dataset("data", shape, dtype)
    file[name] = h5py.ExternalLink("secret.h5", "data")


def soft(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    file.create_dataset("other", data=np.zeros(shape, dtype))
    file[name] = h5py.SoftLink("/other")


def virtual(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource("secret.h5", "data", shape, dtype)
    file.create_virtual_dataset(name, layout)


def promised(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    file.create_dataset(name, (1 << 40, *shape[1:]), dtype)


def packed(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    shape = (1 << 16, *shape[1:])
    file.create_dataset(name, shape, dtype, chunks=shape, compression="gzip")


def group(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    file.create_group(name)


def texts(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    file.create_dataset(name, data=["a"] * shape[0], dtype=h5py.string_dtype())


FORGED = [elsewhere, linked, soft, virtual, promised, packed, group, texts]


@pytest.mark.slow
@pytest.mark.parametrize("forge", FORGED)
@pytest.mark.parametrize("name", ["features", "keys", "sums"])
def test_a_shard_holds_its_own_data_as_it_is(
    made: Path, forge: Callable[..., None], name: str
) -> None:
    """Named by its digest, so that only what is in it can give it away."""
    Path("secret").write_bytes(SECRET)
    store = Store.open(made / "store")
    (path,) = store.shard_paths()
    shape, dtype = {"features": ((42, 12), "<f4"), "keys": ((42,), "S64"), "sums": ((42,), "<u4")}[
        name
    ]
    forged = path.with_name("forged")
    with h5py.File(path) as old, h5py.File(forged, "w") as file:
        file.attrs.update(old.attrs)
        for other in {"features", "keys", "sums"} - {name}:
            file[other] = old[other][:]
        forge(file, name, shape, dtype)
    path.unlink()
    path = forged.rename(path.with_name(sha256_file(forged) + ".h5"))
    with pytest.raises(CorruptShardError):
        Store.open(made / "store")
    (problem, *_) = verify(made / "store", repair=True)["problems"]
    assert problem["shard"] == path.stem and not path.exists()


def test_a_shard_that_changed_after_its_check_is_found_when_it_is_read(made: Path) -> None:
    store = Store.open(made / "store")
    (path,) = store.shard_paths()
    data = bytearray(path.read_bytes())
    place = data.index(store.read(store.index.keys[5:6]).tobytes())
    for changed in (place, data.index(store.index.keys[7])):
        copy = bytearray(data)
        copy[changed] ^= 1
        path.write_bytes(copy)
        with store.scan_cache() as cache:
            cache.remember_check(path.stem, path.stat())
        opened = Store.open(made / "store")
        with pytest.raises(CorruptShardError, match="not those that were written"):
            opened.read(opened.index.keys)


def test_shards_without_sums_are_read(made: Path) -> None:
    store = Store.open(made / "store")
    (path,) = store.shard_paths()
    before = store.read(store.index.keys)
    old = path.with_name("old")
    with h5py.File(path) as new, h5py.File(old, "w") as file:
        file.attrs.update(new.attrs)
        file["keys"], file["features"] = new["keys"][:], new["features"][:]
    path.unlink()
    old.rename(path.with_name(sha256_file(old) + ".h5"))
    store = Store.open(made / "store")
    np.testing.assert_array_equal(store.read(store.index.keys), before)
    assert verify(made / "store")["shards"] == 1


# -- the scan cache --------------------------------------------------------------------


def test_a_cache_is_never_in_the_way(tmp_path: Path) -> None:
    path, photo = tmp_path / "scan.sqlite", tmp_path / "photo"
    photo.write_bytes(b"photo")
    status = OLD
    with ScanCache(path) as cache:
        for number in range(400):
            cache.remember_key(tmp_path / str(number), status, f"{number:064}")
            cache.remember_failure(f"{number:064}", "decoder", "bad")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(data)
        start = int(rng.integers(len(data)))
        junk = rng.bytes(int(rng.integers(1, 3000)))
        changed[start : start + len(junk)] = junk
        path.write_bytes(changed[: len(data)])
        with ScanCache(path) as cache:
            for number in range(0, 400, 7):
                assert cache.key(tmp_path / str(number), status) in (None, f"{number:064}")
                assert cache.failure(f"{number:064}", "decoder") in (None, "bad")
            cache.remember_check("shard", photo.stat())
            assert cache.is_checked("shard", photo.stat())
        with ScanCache(path) as cache:
            assert cache.is_checked("shard", photo.stat())


def test_a_row_that_changed_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "scan.sqlite"
    status = OLD
    with ScanCache(path) as cache:
        cache.remember_key(tmp_path / "a", status, "a" * 64)
        cache.remember_failure("b" * 64, "decoder", "bad")
        cache.remember_check("shard", OLD_STATUS)
    database = sqlite3.connect(path)
    database.execute("UPDATE files SET key = replace(key, 'a', 'c')")
    database.execute("UPDATE failures SET reason = 'none'")
    database.execute("UPDATE shards SET name = 'other'")
    database.commit()
    database.close()
    with ScanCache(path) as cache:
        assert cache.key(tmp_path / "a", status) is None
        assert cache.failure("b" * 64, "decoder") is None
        assert not cache.is_checked("other", OLD_STATUS)


def test_a_cache_of_the_version_before_keeps_what_it_knows(tmp_path: Path) -> None:
    path = tmp_path / "scan.sqlite"
    status = OLD
    with ScanCache(path) as cache:
        cache.remember_key(tmp_path / "a", status, "a" * 64)
    database = sqlite3.connect(path)
    for table in ("files", "failures", "shards"):
        database.execute(f"ALTER TABLE {table} DROP COLUMN checksum")
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()
    with ScanCache(path) as cache:
        assert cache.key(tmp_path / "a", status) == "a" * 64


def test_a_cache_that_another_holds_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "scan.sqlite"
    with ScanCache(path) as cache:
        cache.remember_check("shard", tmp_path.stat())
    path.chmod(0o444)
    before = path.read_bytes()
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with ScanCache(path) as cache:
        cache._database.close()
        cache._database = database
        cache.remember_check("other", tmp_path.stat())
    assert path.read_bytes() == before


# -- exported folders ------------------------------------------------------------------


@pytest.fixture
def shipped(made: Path) -> Path:
    """An exported folder."""
    run = Run.open(made / "run")
    network = FakeBackbone.drawn("shipped")
    record = model_folder.ModelRecord(
        schema_version=model_folder.SCHEMA_VERSION,
        classes=run.record.classes,
        identity=replace(run.inputs.identity, weights_sha256=network.weights_sha256),
        dim=12,
        head="logreg",
        average=[],
        reject_below=0.0,
    )
    head = heads.load(made / "run/heads/logreg")
    model_folder.write(made / "model", network, head, record, None)  # type: ignore[arg-type]
    write_classes(made / "photos", {"ant": 1})
    return made / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "resnet51"},
        {"backbone": 3},
        {"backbone": "keras-file:none"},
        {"backbone": "onnx-file:none"},
        {"backbone": "onnx-file:none", "output": "features"},
        {"output": "features"},
        {"output": 3},
        {"pooling": "median"},
        {"pooling": ["avg"]},
        {"preprocessing": "other"},
        {"preprocessing": None},
        {"precision": "float8"},
        {"precision": "bfloat16"},
        {"precision": "bfloat16", "engine": "none"},
        {"precision": "bfloat16", "engine": 7},
        {"precision": "int8", "engine": "openvino"},
        {"precision": "int8", "engine": "openvino", "quantized": "../../../etc/passwd"},
        {"quantized": "1" * 64},
        {"decoder": "other-2"},
        {"image_size": -32},
        {"image_size": 0},
        {"image_size": True},
        {"image_size": 1 << 40},
        {"image_size": "32"},
        {"weights_sha256": "../../../etc/passwd"},
        {"weights_sha256": ""},
    ],
)
def test_an_identity_that_none_can_have_is_one_clear_error(
    shipped: Path, command: Command, changes: dict[str, Any]
) -> None:
    edit_record(shipped / "model.json", lambda record: record["identity"].update(changes))
    status, result = command("predict", shipped, "photos", "--engine", "keras")
    assert status == 2 and result["error"]["type"] in (
        "ConfigError", "RunError", "StaleFeaturesError", "WeightsUnavailableError",
        "EngineUnavailableError",
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": -12},
        {"dim": 1 << 60},
        {"dim": 12.5},
        {"dim": True},
        {"classes": ["bee", "ant"]},
        {"classes": "ant"},
        {"average": ["nothing"]},
        {"average": "flip"},
        {"reject_below": "0"},
        {"head": ["logreg"]},
        {"files": 3},
        {"files": {"head/head.json": 3}},
        {"files": {}},
        {"schema_version": 99},
    ],
)
def test_a_record_that_none_can_have_is_one_clear_error(
    shipped: Path, command: Command, changes: dict[str, Any]
) -> None:
    edit_record(shipped / "model.json", lambda record: record.update(changes))
    status, result = command("predict", shipped, "photos", "--engine", "keras")
    assert status == 2 and result["error"]["hint"]


def test_class_names_that_changed_places_are_found(shipped: Path, command: Command) -> None:
    record = json.loads((shipped / "model.json").read_text())
    record["classes"] = record["classes"][::-1]
    (shipped / "model.json").write_text(json.dumps(record))
    status, result = command("predict", shipped, "photos")
    assert status == 2 and "model.json" in result["error"]["message"]
    assert command("verify", shipped)[1]["ok"] is False


def test_verify_of_a_folder(shipped: Path, command: Command) -> None:
    assert command("verify", shipped)[0] == 0
    (saved,) = (shipped / "encoder").glob("*.h5")
    data = bytearray(saved.read_bytes())
    data[data.index(np.float32(FakeBackbone.drawn("shipped").scale).tobytes())] ^= 1
    saved.write_bytes(data)
    (problem,) = command("verify", shipped)[1]["problems"]
    assert problem["shard"] == f"encoder/{saved.name}" and problem["fix"] == "Export it again."


def test_a_head_of_another_folder_is_found(shipped: Path, command: Command) -> None:
    other = heads.create("centroid", {}, seed=0)
    rng = np.random.default_rng(0)
    heads.save(other.fit(rng.normal(size=(30, 12)), np.arange(30) % 3), shipped / "head")
    status, result = command("predict", shipped, "photos")
    assert status == 2 and "as it was exported" in result["error"]["message"]
    shutil.rmtree(shipped / "head")
    assert command("predict", shipped, "photos")[0] == 2


# -- networks --------------------------------------------------------------------------


def keras_archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return path


def weights_content(fill: Callable[[h5py.File], object]) -> bytes:
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        fill(file)
    return made.getvalue()


@pytest.mark.parametrize(
    "config",
    [
        b" " * (64 << 20),
        b"[" * 100_000,
        b'{"config":' * 100_000 + b"1" + b"}" * 100_000,
        b"[]",
        b"3",
        b"",
        b'{"config": NaN}',
        b'{"config": ' + b"9" * 5000 + b"}",
    ],
)
def test_an_architecture_is_read_as_far_as_one_can_be(tmp_path: Path, config: bytes) -> None:
    path = keras_archive(tmp_path / "net.keras", config__json=config)
    with pytest.raises(WeightsUnavailableError, match=r"net\.keras"):
        keras_file.architecture(path)
    with pytest.raises(WeightsUnavailableError, match=r"net\.keras"):
        keras_file.load(path, image_size=32, pooling="avg")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil"])
def test_members_stay_in_their_archive(tmp_path: Path, name: str) -> None:
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"{}")
        archive.writestr(name, b"evil")
    with pytest.raises(WeightsUnavailableError, match="evil"):
        keras_file.load(path, image_size=32, pooling="avg")


@pytest.mark.parametrize("forge", FORGED[:2] + FORGED[3:6])
def test_weights_in_an_archive_are_its_own(
    tmp_path: Path, forge: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").write_bytes(SECRET)
    content = weights_content(
        lambda file: forge(file.create_group("layers/a/vars"), "0", (20, 3), "f4")
    )
    path = keras_archive(tmp_path / "net.keras", config__json=b"{}", model__weights__h5=content)
    with pytest.raises(WeightsUnavailableError, match=r"[Rr]eceived"):
        keras_file.load(path, image_size=32, pooling="avg")


@pytest.mark.slow
def test_a_network_with_weights_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    keras = keras_file.import_keras()
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(2, 3)])
    model.save(tmp_path / "net.keras")
    assert keras_file.load(tmp_path / "net.keras", image_size=32, pooling="avg") is not None
    kernel = np.array(model.layers[0].kernel)
    kernel[0, 0, 0, 0] = np.nan
    model.layers[0].kernel.assign(kernel)
    model.save(tmp_path / "net.keras")
    with pytest.raises(WeightsUnavailableError, match="NaN or infinity in conv2d"):
        keras_file.load(tmp_path / "net.keras", image_size=32, pooling="avg")


@pytest.mark.slow
@pytest.mark.parametrize("config", [{"class_name": "Dense", "module": "keras.layers"}, {}])
def test_an_archive_of_something_else_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    said = {"registered_name": None, "build_config": {}, "config": {"units": 3}, **config}
    content = weights_content(lambda file: file.create_group("vars"))
    path = keras_archive(
        tmp_path / "net.keras",
        config__json=json.dumps(said).encode(),
        metadata__json=b'{"keras_version": "3.0"}',
        model__weights__h5=content,
    )
    with pytest.raises(WeightsUnavailableError):
        keras_file.load(path, image_size=32, pooling="avg")


def kept_copy(folder: Path, content: bytes, suffix: str) -> FrozenBackbone:
    """Return a network with a converted copy in its folder, under the name that it should have."""
    folder.mkdir()
    name = weights.converted_digest("0" * 64, hashlib.sha256(content).hexdigest())
    (folder / (name + suffix)).write_bytes(content)

    def build() -> Any:
        raise AssertionError("the copy is taken")

    return FrozenBackbone(build, name="fake", image_size=32, pooling="avg", dim=DIM,
                          weights_sha256="0" * 64, converted=folder)  # fmt: skip


def identity_model(location: str | None = None) -> bytes:
    """Return an ONNX model of other inputs and outputs than a backbone's, or of external data."""
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    if location:
        value.ClearField("float_data")
        value.data_location = TensorProto.EXTERNAL
        value.external_data.add(key="location", value=location)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [value])
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)],
                                  ir_version=8).SerializeToString()  # fmt: skip


@pytest.mark.parametrize("content", [b"garbage", b"\x00" * 1000])
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_converted_network_of_garbage_is_one_clear_error(
    tmp_path: Path, content: bytes, engine: str
) -> None:
    suffix = {"onnx": ".model-1.onnx", "openvino": ".graph-1.pb"}[engine]
    network = kept_copy(tmp_path / "encoder", content, suffix)
    with pytest.raises(PipelineError) as caught:
        engines.create(engine, network, batch_size=4, precision="float32")
    assert "Delete" in caught.value.hint


@pytest.mark.parametrize("location", [None, "../secret", "/etc/passwd"])
def test_a_converted_network_reads_no_other_file(tmp_path: Path, location: str | None) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    network = kept_copy(tmp_path / "encoder", identity_model(location), ".model-1.onnx")
    with pytest.raises(PipelineError, match="external data" if location else "Received"):
        engines.create("onnx", network, batch_size=4, precision="float32")
