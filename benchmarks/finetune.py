"""An epoch of fine-tuning on the boundary cache against Keras' fit of the same layers.

Both train ResNet50 from conv5 with a linear head, without augmentation, on the same images: Keras'
fit has them decoded in memory and runs the whole network; ours runs the top on cached activations.
The peer's BatchNorm is frozen, so that it trains a little less. Filling the cache is timed apart.

Usage: python benchmarks/finetune.py [--images 128] [--image-size 224] [--repeats 3] [--quick]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import note, photo_folder, ratio, report

from pipeline import engines
from pipeline.backbones import frozen
from pipeline.files.regular import sha256_file
from pipeline.finetune import surgery as surgery_of
from pipeline.finetune.cache import BoundaryCache
from pipeline.finetune.cut import find_cut
from pipeline.finetune.photos import Photos
from pipeline.finetune.recipe import FineTuningRecipe, TrainingRows
from pipeline.finetune.training import FineTuning
from pipeline.images.manifest import Manifest
from pipeline.system.keras_setup import import_keras
from pipeline.system.progress import Silence

CLASSES = 4
# What Keras' fit is compiled with, by the name of the peer.
PEERS = {"keras_fit": {"jit_compile": False}, "keras_fit_jit": {"jit_compile": True}}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--unfreeze-from", default="conv5")
    parser.add_argument("--engine", default="keras", help="that fills the cache")
    parser.add_argument("--repeats", type=int, default=3, help="epochs timed, after one more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="few small images, one epoch")
    options = parser.parse_args()
    if options.quick:
        options.images, options.image_size, options.batch_size, options.repeats = 16, 64, 8, 1
    with tempfile.TemporaryDirectory() as folder:
        rows = listing(photo_folder(Path(folder), options.images, options.seed))
        results = measure(options, rows, Path(folder))
    report("finetune", vars(options), results)


def listing(folder: Path) -> Manifest:
    """Return a manifest of photos with their keys."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    keys = np.array([sha256_file(folder / path).encode() for path in paths], "S64")
    labels = [path.partition("/")[0] for path in paths]
    return Manifest(folder, paths, labels, ["train"] * len(paths), keys, ["ok"] * len(paths))


def measure(options: Any, rows: Manifest, folder: Path) -> dict[str, Any]:
    """Time epochs of both in turn, each once compiled."""
    y = np.unique(rows.labels, return_inverse=True)[1].astype(np.int64)
    with Photos(rows, options.image_size, "squash", augment_seed=None) as photos:
        images = photos.batch(np.arange(len(rows)), None)
        ours, filling = cached(options, rows, photos, y, folder)
    calls = {
        "cached": ours,
        **{name: keras_fit(options, images, y, **PEERS[name]) for name in options.peers},
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(options.repeats + 1):
        for name, call in calls.items():
            took = call()
            if repeat:
                seconds[name].append(round(took, 4))
            note(f"{name}: {took:.2f} s")
    return {
        "seconds": seconds,
        "images_per_second": {
            name: round(len(rows) / float(np.median(took)), 2) for name, took in seconds.items()
        },
        "filling": filling,
        **{
            f"{name}_over_cached": ratio(seconds[name], seconds["cached"]) for name in options.peers
        },
    }


def cached(
    options: Any, rows: Manifest, photos: Photos, y: np.ndarray, folder: Path
) -> tuple[Callable[[], float], dict[str, Any]]:
    """Fill a cache; return a function that trains one epoch on it, and how long filling took."""
    loaded = network(options)
    cut = find_cut(loaded.network, options.unfreeze_from)
    surgery = surgery_of.operate(loaded, head(loaded.dim), cut)
    cache = BoundaryCache(
        folder / "boundary", {}, rows.keys, shape=surgery.boundary_shape, precision="float32"
    )
    encoder = engines.create(
        options.engine, surgery.bottom, batch_size=options.batch_size, precision="float32"
    )
    began = time.perf_counter()
    cache.fill(photos, encoder, Silence())
    took = time.perf_counter() - began
    cache.open()
    all_rows = np.arange(len(rows))
    # One row of val: judging is no part of what is compared, and training needs one.
    data = TrainingRows(
        cache, y, np.arange(CLASSES), all_rows, all_rows[:1], np.ones(len(y), np.float32)
    )
    epochs = options.repeats + 1
    recipe = FineTuningRecipe(epochs, options.batch_size, 1e-4, options.seed, patience=epochs)
    path = folder / "checkpoint.h5"
    training = FineTuning(surgery.top, surgery, recipe, data, checkpoint=path, identity={})
    return lambda: training.one_epoch(Silence()), {
        "engine": options.engine,
        "seconds": round(took, 3),
        "images_per_second": round(len(rows) / took, 2),
        "bytes_an_image": cache.row_bytes,
    }


def keras_fit(
    options: Any, images: np.ndarray, y: np.ndarray, *, jit_compile: bool
) -> Callable[[], float]:
    """Return Keras' fit of the same layers, one epoch a call."""
    keras = import_keras()
    loaded = network(options)
    cut = find_cut(loaded.network, options.unfreeze_from)
    surgery = surgery_of.operate(loaded, head(loaded.dim), cut)
    for layer in loaded.network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    model = keras.Model(surgery.whole.input, surgery.whole.outputs[1])
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )

    def epoch() -> float:
        began = time.perf_counter()
        model.fit(images, y, batch_size=options.batch_size, epochs=1, verbose=0)
        return time.perf_counter() - began

    return epoch


def network(options: Any) -> frozen.FrozenBackbone:
    """Return ResNet50 with random weights; how fast it is does not depend on them."""
    return frozen.load(
        "resnet50", weights="random", seed=0, image_size=options.image_size, pooling="avg"
    )


def head(dim: int) -> Any:
    """Return a linear head."""
    keras = import_keras()
    layers = [keras.Input((dim,)), keras.layers.Dense(CLASSES, name="logits")]
    return keras.Sequential(layers, name="head")


if __name__ == "__main__":
    main()
