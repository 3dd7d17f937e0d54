"""What the tests of fine-tuning share: small networks, images, and a run of the command."""

import hashlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fakes import Notes, write_classes
from numpy.typing import NDArray
from PIL import Image
from processes import WarmPython

from pipeline.backbones import frozen as backbone
from pipeline.backbones import weights
from pipeline.backbones.variables import variables_of
from pipeline.config.options import CommonOptions, FinetuneOptions
from pipeline.finetune import surgery as surgery_of
from pipeline.finetune.cache import BoundaryCache
from pipeline.finetune.cut import find_cut
from pipeline.finetune.stage import finetune
from pipeline.images.manifest import Manifest
from pipeline.runs.run import Run
from pipeline.system.keras_setup import import_keras

SIZE = 32
# Of a gradient on cached activations, of the largest one.
GRADIENT_TOLERANCE = 1e-5
Command = Callable[..., tuple[int, dict[str, Any]]]


def run_finetune(source: Path, *, force: bool = False, notes: Notes | None = None, **options: Any
                 ) -> dict[str, Any]:  # fmt: skip
    return finetune(
        FinetuneOptions(source=str(source), **options), CommonOptions(force=force), notes or Notes()
    )


def photo_rows(folder: Path, count: int = 6) -> Manifest:
    """Write images and return their manifest, with keys."""
    write_classes(folder, {"a": count // 2, "b": count - count // 2})
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    keys = [hashlib.sha256((folder / path).read_bytes()).hexdigest().encode() for path in paths]
    labels = [path.partition("/")[0] for path in paths]
    return Manifest(folder, paths, labels, ["train"] * count, np.array(keys, "S64"), ["ok"] * count)


def cache_of(folder: Path, rows: Manifest, **changes: Any) -> BoundaryCache:
    options: dict[str, Any] = {"shape": (2, 2, 4), "precision": "float32", **changes}
    identity = options.pop("identity", {"weights": "w"})
    return BoundaryCache(folder, identity, rows.keys, **options)


def small_network(keras: Any, size: int = 8) -> Any:
    """Two single-tensor cuts, a block with a shortcut, and a BatchNorm in each part."""
    layers = keras.layers
    pixels = keras.Input((size, size, 3), name="pixels")
    low = layers.Conv2D(6, 3, padding="same", name="conv2_block1_conv")(pixels)
    low = layers.BatchNormalization(name="conv2_block1_bn")(low)
    low = layers.Activation("relu", name="conv2_block1_out")(low)
    high = layers.Conv2D(6, 3, padding="same", name="conv3_block1_1_conv")(low)
    high = layers.BatchNormalization(name="conv3_block1_1_bn")(high)
    high = layers.Conv2D(6, 1, name="conv3_block1_2_conv")(high)
    high = layers.Add(name="conv3_block1_add")([low, high])
    high = layers.Activation("relu", name="conv3_block1_out")(high)
    return keras.Model(pixels, layers.GlobalAveragePooling2D(name="pool")(high), name="small")


def small_backbone(seed: int = 0) -> backbone.FrozenBackbone:
    keras = import_keras()
    network = small_network(keras)
    drawn = weights.draw(variables_of(network), seed=seed)
    backbone.assign(network, drawn)
    network.trainable = False
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    pixels = keras.ops.divide(keras.ops.cast(images, "float32"), 255.0)
    model = keras.Model(images, network(pixels, training=False))
    return backbone.FrozenBackbone(lambda: model, name="small", image_size=8, pooling="avg", dim=6,
                                   weights_sha256=weights.digest(drawn))  # fmt: skip


def small_batch(count: int = 12) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return images, (np.arange(count) % 3).astype(np.int32)


def operated(unfreeze_from: str) -> surgery_of.Surgery:
    loaded = small_backbone()
    head = surgery_of.tutorial_head(3, 6, seed=1)
    return surgery_of.operate(loaded, head, find_cut(loaded.network, unfreeze_from))


class Arrays:
    """Inputs in memory, as a source; may fail in an epoch, or give what is no number."""

    def __init__(self, inputs: NDArray[Any], *, fails_in: int = -1) -> None:
        self.inputs, self.fails_in = inputs, fails_in

    def batch(self, rows: NDArray[np.intp], epoch: int | None) -> NDArray[Any]:
        if epoch == self.fails_in:
            raise KeyboardInterrupt
        return self.inputs[rows]


FLAGS = ("--weights", "random", "--image-size", SIZE, "--engine", "keras", "--batch-size", 16)


# From a head that knows the classes' shares alone, so that every epoch is better than the start.
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "unfreeze_from": "conv5_block3",
                         "head": "majority", "learning_rate": 1e-3}  # fmt: skip


def bars(path: Path, count: int) -> None:
    """Write images of an upright or a lying bar in noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(60, 140, (SIZE, SIZE, 3), dtype=np.uint8)
        place = int(rng.integers(4, 20))
        region = np.s_[:, place : place + 8] if number % 2 else np.s_[place : place + 8]
        pixels[region] += 60
        file = path / f"class{number % 2}" / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def killed_after_an_epoch(folder: Path, run: str, options: dict[str, Any]) -> None:
    """Fine-tune ``folder/run`` in a process that is killed once its first checkpoint is written."""
    code = (
        "import time, tiny_resnet\n"
        "from pipeline.config.options import CommonOptions, FinetuneOptions\n"
        "from pipeline.finetune.stage import finetune\n"
        "from pipeline.runs import checkpoint\n"
        "from pipeline.system.progress import Silence\n"
        "write = checkpoint.write\n"
        "checkpoint.write = lambda *given: (write(*given), time.sleep(300))\n"
        f"options = FinetuneOptions(source='run', run={run!r}, **{options!r})\n"
        "with tiny_resnet.in_place_of_resnet50():\n"
        "    finetune(options, CommonOptions(), Silence())\n"
    )
    process = WarmPython("-c", code, cwd=folder)
    while process.poll() is None and not (folder / run / "finetune/checkpoint.h5").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert Run.open(folder / run).record.finetuned().verdict is None
