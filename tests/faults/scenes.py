"""What is tried under faults: commands on a small project, and what must be equal after them.

A scene is a start, a command, and what its outcome is compared by. The network is a fake one, so
that a command takes a moment; ``real`` scenes have a small one of Keras.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arguments = list[str]

EXTRACT = ["extract", "photos", "--store", "store", "--weights", "random", "--image-size", "32",
           "--workers", "2", "--batch-size", "4"]  # fmt: skip
TRAIN = ["train-head", "--store", "store", "--run", "run", "--head", "centroid", "--head", "ridge"]
SWEEP = ["sweep", "--store", "store", "--run", "run", "--head", "centroid", "--head", "ridge"]
LEAK_FREE = [*TRAIN[:5], "--head", "ridge", "--split", "leak-free", "--tensorboard"]
SUGGEST = ["suggest", "store", "--n", "3", "--out", "out/suggest.csv"]
PREDICT = ["predict", "run", "photos/ant", "--csv", "out/found.csv", "--head", "ridge"]
EXPORT = ["export", "run", "out/model", "--format", "folder", "--head", "ridge"]
FINETUNE = ["finetune", "run", "--run", "tuned", "--weights", "small.keras", "--epochs", "2",
            "--head", "linear", "--unfreeze-from", "two"]  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One thing to try.

    Attributes:
        name: What it is called.
        before: Commands, and changes of the photos, that make the start.
        command: The command that meets a fault.
        again: The command after the fault, if another one.
        is_real: Whether the network is one of Keras.
        is_once: Whether the command refuses what it has finished.
    """

    name: str
    before: tuple[Arguments | Callable[[], None], ...]
    command: Arguments
    again: Arguments | None = None
    is_real: bool = False
    is_once: bool = False


def write_photos(count: int, first: int = 0) -> None:
    """Write photos of three classes that differ in colour."""
    from PIL import Image

    colours = {"ant": (130, 100, 100), "bee": (100, 130, 100), "cow": (100, 100, 130)}
    for number, (name, colour) in enumerate(colours.items()):
        Path("photos", name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            rng = np.random.default_rng(1000 * number + index)
            pixels = rng.normal(colour, 40, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"photos/{name}/{index:03}.png")


def _more() -> None:
    write_photos(2, first=50)


def _unlabelled() -> None:
    Path("photos/new").mkdir()
    for path in sorted(Path("photos").glob("*/00[0-3].png")):
        path.rename(f"photos/new/{path.parent.name}-{path.name}")


def _fewer() -> None:
    for path in sorted(Path("photos").glob("*/00[0-3].png")):
        path.unlink()


SMALL = ["--backbone", "small.keras", "--preprocessing", "unit", "--engine", "keras"]
REAL = [argument for argument in EXTRACT if argument not in ("--weights", "random")] + SMALL
OTHER = [*EXTRACT[:-6], "--image-size", "48", *EXTRACT[-4:], "--force"]
TRAIN_LINEAR = [*TRAIN, "--head", "linear"]

SCENES = {
    scene.name: scene
    for scene in (
        Scene("extract", (), EXTRACT),
        Scene("extract-more", (EXTRACT, _more), [*EXTRACT, "--views", "flip"]),
        Scene("extract-force", (EXTRACT,), OTHER),
        Scene("extract-force-then-not", (EXTRACT,), OTHER, again=OTHER[:-1]),
        Scene("extract-manifest", (EXTRACT, _more), [*EXTRACT, "--manifest", "list.csv"]),
        Scene("prune", (EXTRACT, _fewer, [*EXTRACT, "--views", "flip"]), ["prune", "store"]),
        Scene("train-head", (EXTRACT,), TRAIN),
        Scene("train-head-more", (EXTRACT, TRAIN), [*TRAIN, "--head", "majority"]),
        Scene("train-head-force", (EXTRACT, TRAIN), [*TRAIN, "--seed", "1", "--force"]),
        Scene(
            "train-head-force-then-not",
            (EXTRACT, TRAIN),
            [*TRAIN, "--split-seed", "1", "--force"],
            again=[*TRAIN, "--split-seed", "1"],
        ),
        Scene("train-head-leak-free", (EXTRACT,), LEAK_FREE),
        Scene("suggest", (_unlabelled, [*EXTRACT, "--unlabelled", "new"]), SUGGEST, is_once=True),
        Scene("sweep", (EXTRACT,), SWEEP),
        Scene("sweep-force", (EXTRACT, SWEEP), [*SWEEP, "--force"]),
        Scene("predict", (EXTRACT, TRAIN), PREDICT, is_once=True),
        Scene("predict-force", (EXTRACT, TRAIN, PREDICT), [*PREDICT, "--top", "2", "--force"]),
        Scene("export", (EXTRACT, TRAIN), EXPORT),
        Scene("export-force", (EXTRACT, TRAIN, EXPORT), [*EXPORT, "--force"]),
        Scene(
            "export-force-then-not",
            (EXTRACT, TRAIN, EXPORT),
            [*EXPORT[:-1], "centroid", "--force"],
            again=[*EXPORT[:-1], "centroid"],
        ),
        Scene("extract-real", (), REAL, is_real=True),
        Scene("finetune", (REAL, TRAIN_LINEAR), FINETUNE, is_real=True),
        Scene(
            "finetune-force", (REAL, TRAIN_LINEAR, FINETUNE), [*FINETUNE, "--force"], is_real=True
        ),
        *(
            Scene(
                f"export-{form}",
                (REAL, TRAIN_LINEAR),
                [
                    "export",
                    "run",
                    f"out/model{suffix}",
                    "--format",
                    form,
                    "--head",
                    "linear",
                    "--weights",
                    "small.keras",
                ],
                is_real=True,
            )
            for form, suffix in (
                ("keras", ".keras"),
                ("onnx", ".onnx"),
                ("savedmodel", ""),
                ("folder", ""),
            )
        ),
    )
}


# What must be equal


def observe(*, features: bool = True) -> dict[str, Any]:
    """Return what the project in the current folder holds, without what may differ."""
    found: dict[str, Any] = {"files": listing()}
    for path in sorted(Path().rglob("*")):
        if path.parts[0] == "photos" or not path.is_file():
            continue
        name = path.as_posix()
        if path.suffix == ".csv":
            found[name] = list(csv.reader(path.open(newline="")))
        elif path.name in ("run.json", "head.json", "model.json", "pipeline.json"):
            found[name] = _lasting(json.loads(path.read_text()))
        elif path.name == "store.json":
            found[name] = _lasting_store(json.loads(path.read_text()))
        elif path.suffix in (".npy", ".npz"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if features:
        found["rows"] = rows()
    found["verify"] = {name: problems(Path(name)) for name in ("store", "run", "tuned")}
    return found


def problems(path: Path) -> list[Any]:
    """Return what verify finds wrong with a store or a run."""
    from pipeline.verify.run import verify_run
    from pipeline.verify.store import verify

    if (path / "run.json").exists():
        return list(verify_run(path)["problems"])
    return list(verify(path)["problems"]) if (path / "store.json").exists() else []


def listing() -> list[str]:
    """Return the files, with one name for all shards and without caches."""
    names = set()
    for path in Path().rglob("*"):
        name = path.as_posix()
        if path.is_dir() or path.parts[0] == "photos":
            continue
        name = re.sub(r"/[0-9a-f]{64}\.h5$", "/DIGEST.h5", name)
        names.add(re.sub(r"/variables\.data-.*$", "/variables.data", name))
    # Both lie around or do not, as a kill had it; neither holds anything.
    return sorted(name for name in names if not name.endswith(("scan.sqlite-journal",)))


def leftovers() -> list[str]:
    """Return temporary files and folders."""
    return sorted(
        path.as_posix()
        for path in Path().rglob("*")
        if path.name.startswith(".tmp-") or path.name.endswith(".next")
    )


def rows() -> dict[str, str]:
    """Return a digest of the features of every key, by set; bad shards raise."""
    from pipeline.store.store import Store

    if not Store.exists(Path("store")):
        return {}
    store = Store.open(Path("store"))
    found = {}
    for name, item in {"": store.plain, **store.views}.items():
        keys = item.index.keys
        for key, row in zip(keys, item.read(keys), strict=True):
            found[f"{name}/{key.decode()}"] = hashlib.sha256(row.tobytes()).hexdigest()
    return found


# Digests of files that hold times; that they are right is seen by verify.
_CHANGING = ("provenance", "record_sha256", "features_sha256", "head.json", "text")
_TIMES = re.compile(r"seconds|images_per_second|^time$|rate$")


def _lasting(value: Any) -> Any:
    """Leave out times, and digests of files that hold times."""
    if isinstance(value, dict):
        return {
            name: _lasting(item)
            for name, item in value.items()
            if not _TIMES.search(name) and name not in _CHANGING
        }
    if isinstance(value, list) and all(isinstance(one, str) and len(one) == 64 for one in value):
        return value[:1]  # the file that it is of, and the one before
    if isinstance(value, list):
        return [_lasting(item) for item in value]
    return value


def _lasting_store(record: dict[str, Any]) -> Any:
    record = dict(record)
    record["manifests"] = {
        name: {**known, "sha256": known["sha256"][:1]}
        for name, known in record["manifests"].items()
    }
    return _lasting(record)


# The fake network


def replace_network() -> None:
    """Put a random projection in the place of backbone and engine."""
    from fakes import DIM, FakeEncoder

    from pipeline import engines
    from pipeline.backbones import frozen, weights
    from pipeline.backbones.frozen import FrozenBackbone
    from pipeline.runs import stitch
    from pipeline.serving import formats

    class Model:
        layers = (None,)

        def __init__(self, arrays: Any) -> None:
            self.arrays = arrays

    def arrays_of(seed: int) -> dict[str, Any]:
        return {"conv/kernel": np.full((16, 16), seed, np.float32), "conv/bias": np.ones(9, "f4")}

    def load(name: str, *, seed: int, image_size: int, pooling: str, **_: Any) -> Any:
        arrays = arrays_of(seed)
        return FrozenBackbone(lambda: Model(arrays), name=name, image_size=image_size,
                               pooling=pooling, dim=DIM,
                               weights_sha256=weights.digest(arrays))  # fmt: skip

    frozen.load = load
    FrozenBackbone.arrays = lambda self: self.model.arrays  # type: ignore[method-assign]
    engines.create = lambda *_, batch_size, **__: FakeEncoder(batch_size=batch_size)
    stitch.runner = lambda model: FakeEncoder()
    formats.runner = lambda model: FakeEncoder()


def save_small_network() -> None:
    """Write a small network of Keras."""
    from pipeline.system.keras_setup import import_keras

    keras = import_keras()
    keras.utils.set_random_seed(4)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(8, 5, strides=4, activation="relu", name="one"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(8, 3, strides=2, activation="relu", name="two"),
            layers.GlobalAveragePooling2D(name="pool"),
        ]
    )
    model.save("small.keras")


def reset(start: Path, root: Path) -> None:
    """Put the project back to its start."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(start, root, symlinks=True)
    os.chdir(root)
